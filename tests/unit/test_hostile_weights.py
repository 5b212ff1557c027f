"""Files that are hostile, damaged or something else: refused by name, and nothing runs."""

import argparse
import collections
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from leanvit.weights.pickles import ALLOWED
from leanvit.weights.reading import read_checkpoint
from tests.checkpoints import (
    SAVE,
    WEIGHTS,
    entries,
    pack,
    refusal,
    repacked,
    same,
    save_legacy,
    write_sharded,
)

# Hostile files


class Runs:
    """What a pickle does when it is read by the usual means."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def nested(marker: Path) -> bytes:
    """Return a torch file, as bytes, that makes the marker."""
    torch.save(Runs(os.mkdir, str(marker)), inner := io.BytesIO())
    return inner.getvalue()


def hidden(marker: Path) -> np.ndarray[Any, Any]:
    array = np.empty(1, dtype=object)
    array[0] = Runs(os.mkdir, str(marker))
    return array


HOSTILE: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "a shell": ("posix.system", lambda marker: Runs(os.system, f"mkdir {marker}")),
    "a system call": ("posix.mkdir", lambda marker: Runs(os.mkdir, str(marker))),
    "eval": ("eval", lambda marker: Runs(eval, f"__import__('os').mkdir({str(marker)!r})")),
    "exec": ("exec", lambda marker: Runs(exec, f"__import__('os').mkdir({str(marker)!r})")),
    "a file in a file": (
        "torch.storage._load_from_bytes",
        lambda marker: Runs(torch.storage._load_from_bytes, nested(marker)),
    ),
    "within a namespace": (
        "posix.mkdir",
        lambda marker: argparse.Namespace(arch=Runs(os.mkdir, str(marker))),
    ),
    "within an array of objects": ("posix.mkdir", hidden),
}


@pytest.mark.parametrize("way", HOSTILE)
def test_nothing_in_a_pickle_runs(
    way: str, save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    name, attack = HOSTILE[way]
    marker, file = tmp_path / "marker", tmp_path / "model.pth"
    save({"w": torch.ones(1), "x": attack(marker)}, file)
    words = refusal(file)
    assert f"{name!r}" in words and "nothing was executed" in words and "state dict" in words
    assert entries(tmp_path) == ["model.pth"]
    torch.load(file, weights_only=False)  # the attack is a real one
    assert marker.exists()


def test_a_shard_runs_nothing(tmp_path: Path) -> None:
    torch.save(Runs(os.mkdir, str(tmp_path / "marker")), tmp_path / "part")
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "part"}}')
    with pytest.raises(ValueError, match=r"part' is a pickle that asks for 'posix\.mkdir'"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_an_array_of_objects_runs_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.ones(1), x=hidden(tmp_path / "marker"))
    found = read_checkpoint(tmp_path / "x.npz")
    assert torch.equal(found.tensors["w"], torch.ones(1))
    with pytest.raises(ValueError, match=r"x\.npz' is damaged .*'x': Object arrays"):
        found.tensors["x"]
    assert entries(tmp_path) == ["x.npz"]
    np.load(tmp_path / "x.npz", allow_pickle=True)["x"]  # the attack is a real one
    assert (tmp_path / "marker").exists()


def test_a_broken_header_of_an_array_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00\x08\x00{'a': (\n")
    with pytest.raises(ValueError, match=r"x' is damaged .*'w'"):
        read_checkpoint(tmp_path / "x").tensors["w"]


def test_what_hangs_on_a_tensor_is_left_there(
    save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    tensor: Any = torch.ones(2)
    tensor.detach = tensor.contiguous = tensor.is_neg = collections.OrderedDict
    save({"w": tensor}, tmp_path / "x")
    same(read_checkpoint(tmp_path / "x"), {"w": torch.ones(2)})


def test_a_plain_pickle_is_not_opened(tmp_path: Path) -> None:
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(Runs(os.mkdir, "marker"), protocol))
        assert "a pickle that torch.save did not write" in refusal(tmp_path / "x.pkl")
        data = pickle.dumps({"w": Runs(os.mkdir, str(tmp_path / "marker"))}, protocol)
        refusal(pack(tmp_path / "x.pth", data))
    assert entries(tmp_path) == ["x.pkl", "x.pth"]


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


TRICKS = {
    "a namespace becomes another class": b"cargparse\nNamespace\n)\x81N}"
    + word("__class__") + b"cnumpy\nndarray\ns\x86b.",
    "a namespace brings its own __setstate__": b"cargparse\nNamespace\n)\x81}"
    + word("__setstate__") + b"cposix\nsystem\nsb" + word("mkdir marker") + b"b.",
    "a dictionary hides its items": b"ccollections\nOrderedDict\n)R}"
    + word("items") + b"cargparse\nNamespace\nsb.",
    "a scalar of objects": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(" + word("O8")
    + b"\x89\x88tR(K\x03" + word("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    + word("cposix\nsystem\n") + b"\x86R.",
    "attributes are reached": b"cbuiltins\ngetattr\ncargparse\nNamespace\n" + word("__init__")
    + b"\x86R.",
    "a class's own state": b"cargparse\nNamespace\nN}" + word("__new__")
    + b"cbuiltins\ndict\ns\x86b.",
    "a list in itself": b"]q\x00h\x00a.",
    "lists of lists": b"]"
    + b"".join(b"q%c](" % n + b"h%c" % n * 10 + b"e" for n in range(40)) + b".",
    "a name of names": b"}" + b"".join(b"}" + word("x" * 300) for _ in range(4)) + b"K\x01ssss.",
    "numbers as storage": b"K\x05Q.",
    "nothing": b"N.",
    "an unknown storage": b"(" + word("module") + b"K\x01K\x02tQ.",
}  # fmt: skip
"""Pickles by hand, of what no pickler writes."""

ENDLESS = ("a list in itself", "lists of lists", "a name of names")


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_lead_nowhere(trick: str, tmp_path: Path) -> None:
    before = [dict(vars(stand_in)) for stand_in in ALLOWED.values()]
    words = refusal(pack(tmp_path / "x.pth", b"\x80\x02" + TRICKS[trick]))
    assert ("nested without end" in words) == (trick in ENDLESS)
    assert entries(tmp_path) == ["x.pth"]
    assert argparse.Namespace(arch="vit").arch == "vit"
    after = [dict(vars(stand_in)) for stand_in in ALLOWED.values()]
    assert after == before  # none was changed for the next file


def test_what_others_allowed_counts_for_nothing(tmp_path: Path) -> None:
    called = list[object]()
    torch.save({"w": torch.ones(1), "x": Runs(os.mkdir, "y")}, tmp_path / "x")
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([(called.append, "posix.mkdir"), (open, "x.y")]):
        allowed = set(torch.serialization.get_safe_globals())
        assert "'posix.mkdir'" in refusal(tmp_path / "x")
        assert set(torch.serialization.get_safe_globals()) == allowed
    assert called == [] and set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    "name", ["torch.distributed.tensor\nDTensor", "torch.distributed._shard.a\nB"]
)
def test_sharded_tensors_are_named(name: str, tmp_path: Path) -> None:
    words = refusal(pack(tmp_path / "x", b"\x80\x02c" + name.encode() + b"\n."))
    assert "sharded tensors" in words and "full state dict" in words


def test_sizes_that_lie_are_refused(tmp_path: Path) -> None:
    big, lies = torch.arange(16.0).reshape(4, 4), (b"K\x10tq", b"M\x00\x40tq")
    torch.save({"w": big, "v": big + 1}, tmp_path / "x")
    words = refusal(repacked(tmp_path / "x", tmp_path / "y", replace=lies))
    assert "record size (64 bytes) does not match expected size (65536" in words
    shape = (b"K\x04K\x04\x86", b"K\x40K\x40\x86")
    assert "resize" in refusal(repacked(tmp_path / "x", tmp_path / "z", replace=shape))
    save_legacy({"w": big}, tmp_path / "old")
    data = (tmp_path / "old").read_bytes()
    for claim in (b"M\x00\x40", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"):
        (tmp_path / "lie").write_bytes(data.replace(b"K\x10N", claim + b"N"))
        assert data != (tmp_path / "lie").read_bytes()
        assert "damaged" in refusal(tmp_path / "lie")


# Something else


def tar(*names: str) -> bytes:
    with tarfile.open(fileobj=(data := io.BytesIO()), mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return data.getvalue()


def zipped(*names: str, flags: int = 0) -> bytes:
    with zipfile.ZipFile(data := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, "x")
            archive.filelist[-1].flag_bits |= flags
    return data.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

STRANGERS = {
    "empty": (b"", "empty"),
    "page": (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "a web page"),
    "pointer": (POINTER, "git lfs pull"),
    "text": (b"Not found: no such file", "text that begins with 'Not found"),
    "text with a brace": (b"weights {of a net}", "text that begins with 'weights {"),
    "json": (b'{"message": "Not Found"}', "no `weight_map`"),
    "half of json": (b'{"weight_map"', "no JSON"),
    "deep json": (b'{"a":' + b"[" * 100_000, "no JSON"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG image"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "unpack it"),
    "zeros": (bytes(2048), "begins with the bytes 00"),
    "noise": (bytes(range(200, 250)), "begins with the bytes c8"),
    "tar": (tar("notes.txt", "net/model.pth"), "a tar archive of 'net/model.pth', .*unpack it"),
    "hostile tar": (tar("../marker", "/tmp/x"), "a tar archive of '../marker', '/tmp/x'"),
    "old torch tar": (tar("sys_info", "pickle", "storages"), "a tar archive"),
    "half a tar": (tar("model.pth")[:600], "a tar archive of 'model.pth'"),
    "zip": (zipped("readme.txt", "net/model.pth"), "a zip archive of 'net/model.pth'"),
    "no members": (zipped(), "a zip archive of nothing"),
    "encrypted": (zipped("archive/data.pkl", flags=1), "encrypted"),
    "script": (
        zipped("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"),
        "a TorchScript archive",
    ),
    "half a zip": (zipped("a/data.pkl")[:60], "damaged or cut off"),
    "npy": (b"\x93NUMPY\x01\x00", "numpy.savez"),
    "safetensors": ((1 << 20).to_bytes(8, "little") + b'{"a":', "damaged or cut off"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    content, expected = STRANGERS[name]
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_checkpoint(tmp_path / "model.pth")
    refusal(tmp_path / "model.pth")
    assert entries(tmp_path) == ["model.pth"]


def test_a_tar_archive_that_begins_as_a_pickle_is_not_extracted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    info = tarfile.TarInfo("storages")
    block = bytearray(info.tobuf())
    block[: len(magic)] = magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x").write_bytes(bytes(block) + bytes(1024))
    assert tarfile.is_tarfile(tmp_path / "x")
    monkeypatch.setattr(tarfile.TarFile, "extract", lambda *_: pytest.fail("extracted"))
    assert "damaged" in refusal(tmp_path / "x")


def test_a_file_without_named_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "x")
    assert "without named tensors, but with 'a'" in refusal(tmp_path / "x")
    torch.save(torch.ones(3), tmp_path / "x")
    assert "without named tensors" in refusal(tmp_path / "x")


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.pth")
    assert "No such file" in refusal(tmp_path / "none" / "model.pth")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    assert "No such file" in refusal(tmp_path / "link")
    assert "too long" in refusal(tmp_path / ("x" * 400))
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refusal(tmp_path / "pipe")


def test_a_refusal_of_the_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "x")

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:  # the one who runs the tests may read everything
        patched.setattr(Path, "open", closed)
        assert "Permission denied" in refusal(tmp_path / "x")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", closed)
        assert "Permission denied" in refusal(tmp_path)


# Damage

ROUNDS = 120
"""Damaged copies of each file."""


def damage(data: bytes, draw: np.random.Generator) -> bytes:
    """Return a file that was cut, or some of whose bytes were changed or lost."""
    values = np.frombuffer(data, np.uint8).copy()
    reach = len(values) if draw.random() < 0.3 else min(len(values), 1500)  # where the names are
    place, kind = int(draw.integers(reach)), draw.integers(4)
    if kind == 0:
        values = values[:place]
    elif kind == 1:
        values = np.delete(values, slice(place, place + int(draw.integers(1, 30))))
    elif kind == 2:
        values[place : place + 8] = draw.choice([0, 1, 127, 128, 255])
    else:
        places = draw.integers(0, reach, 3)
        values[places] ^= 1 << draw.integers(0, 8, 3).astype(np.uint8)
    return values.tobytes()


def write_one(kind: str, path: Path) -> None:
    half = WEIGHTS["proj.bias"].half()
    if kind == "safetensors":
        save_file({**WEIGHTS, "half": half}, path, {"format": "pt"})
    elif kind == "numpy":
        with path.open("wb") as file:
            np.savez(file, w=np.ones((2, 3), ">f4"), n=np.arange(3))
    elif kind == "tar":
        path.write_bytes(tar("model.pth", "../marker"))
    else:
        tree = {"model": WEIGHTS, "half": half, "args": argparse.Namespace(arch="vit", lr=(1, 2))}
        SAVE[kind]({**tree, "best": np.float64(1.0), "order": np.arange(3)}, path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "numpy", "tar"])
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(sum(kind.encode()))
    path = tmp_path / "model.pth"
    write_one(kind, path)
    whole, refused = path.read_bytes(), 0
    for _ in range(ROUNDS):
        path.write_bytes(damage(whole, draw))
        try:
            found = read_checkpoint(path)
            for tensor in found.tensors.values():
                assert tensor.dtype == torch.float32 or not tensor.is_floating_point()
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        assert entries(tmp_path) == ["model.pth"]
    assert ROUNDS // 4 < refused <= ROUNDS


def test_damaged_indices_are_read_or_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path, "model.safetensors", save_file)
    index, draw = tmp_path / "model.safetensors.index.json", np.random.default_rng(0)
    whole, names, refused = index.read_bytes(), entries(tmp_path), 0
    for _ in range(ROUNDS):
        index.write_bytes(damage(whole, draw))
        try:
            same(read_checkpoint(tmp_path), WEIGHTS)
        except ValueError as error:
            assert str(tmp_path) in str(error)
            refused += 1
    assert refused > ROUNDS // 2 and entries(tmp_path) == names
