"""Checkpoint files that tests share."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leanvit.weights.reading import Contents, read_checkpoint

WEIGHTS = {"proj.weight": torch.arange(12.0).reshape(3, 4), "proj.bias": torch.arange(3.0)}


def refusal(path: Path) -> str:
    """Return why a file is not read; it names the file, once."""
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    words = str(caught.value)
    assert words.startswith(repr(str(path))) and words.count("cannot be read") == 1
    return words


def same(contents: Contents, expected: Mapping[str, Tensor]) -> None:
    assert set(contents.tensors) == set(expected) and len(contents.tensors) == len(expected)
    for name, tensor in contents.tensors.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def save_legacy(tree: object, path: Path) -> None:
    torch.save(tree, path, _use_new_zipfile_serialization=False)


def pack(path: Path, data: bytes) -> Path:
    """Write a file as torch.save does, of any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


def repacked(
    source: Path,
    path: Path,
    member: str = "data.pkl",
    replace: tuple[bytes, bytes] = (b"", b""),
    *,
    without: tuple[str, ...] = (),
    compress: int = zipfile.ZIP_STORED,
) -> Path:
    """Write a zip file anew, as tools do that know nothing of torch, with a part replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compress) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(member):
                assert replace[0] in data
                data = data.replace(*replace) if replace[0] else data
            if not name.endswith(without):
                new.writestr(name, data)
    return path


SAVE: Mapping[str, Callable[[Any, Path], None]] = {"zip": torch.save, "legacy": save_legacy}


def write_sharded(folder: Path, single: str, save_one: Callable[[Any, Path], None]) -> None:
    names = {name: f"part-{number}" for number, name in enumerate(WEIGHTS)}
    for name, file in names.items():
        save_one({name: WEIGHTS[name].clone()}, folder / file)
    (folder / f"{single}.index.json").write_text(json.dumps({"weight_map": names}))


def entries(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())
