"""Any checkpoint file, opened safely: what it holds, before anybody asks what it means.

The kind of a file follows from its content, not from its ending. Nothing that a file names is
executed, nothing is unpacked or written, and a tensor is read when it is asked for, so the state of
an optimizer beside the weights costs nothing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from leanvit.data.sources import is_file, is_folder
from leanvit.weights.pickles import Leaf, Read, Value, read_legacy, read_zip
from leanvit.weights.strangers import (
    BROKEN,
    FETCH,
    INDEX,
    LEGACY,
    NUMPY,
    SAFETENSORS,
    TORCH,
    Refusal,
    damaged,
    disk_named,
    kind_of,
    listed,
    refused,
)

CONFIG = "config.json"
SINGLE = ("model.safetensors", "pytorch_model.bin")
"""What Hugging Face and timm call their weights, the better one first."""
SHARDED = tuple(f"{name}.index.json" for name in SINGLE)
"""What says in which shard each tensor is."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, averaged models
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning Fabric
    }
)
"""Modules that hold one other and add nothing to it, by the names that they give it."""


class Tensors(Mapping[str, Tensor]):
    """Tensors of a file by name, read when they are asked for and not kept.

    They are on the CPU, contiguous, without gradients; all floating ones are float32. Asking for a
    complex, quantized or sparse tensor or one without data raises a ValueError.
    """

    def __init__(self, path: Path, reads: Mapping[str, Read]) -> None:
        self._path, self._reads = path, reads

    def __getitem__(self, name: str) -> Tensor:
        return _plain(self._path, name, self._reads[name])

    def __contains__(self, name: object) -> bool:
        return name in self._reads  # else it would be read

    def __iter__(self) -> Iterator[str]:
        return iter(self._reads)

    def __len__(self) -> int:
        return len(self._reads)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds."""

    path: Path
    """The file or folder."""
    tensors: Mapping[str, Tensor]
    """By their names, keys of nested dictionaries joined with dots, without wrappers."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """Numbers and words beside them, such as `epoch` or `args.arch`, named in the same way."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The header of a safetensors file."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The config.json that Hugging Face and timm put beside their weights."""


def read_checkpoint(path: Path) -> Contents:
    """Return what a checkpoint holds: a file, or a folder as Hugging Face or timm write it.

    Reads safetensors, whole or in shards; files of torch.save, new and old; npz.
    Raises ValueError if it is none of these, is damaged, or names anything but tensors and plain
    values, such as a class; of that, nothing is executed.
    """
    file = _weights_in(path) if is_folder(path) else path
    kind = kind_of(file)
    leaves = list((_read_shards if kind == INDEX else READERS[kind])(file))
    reads = [(name, leaf) for name, leaf in leaves if callable(leaf) and name]
    values = {name: leaf for name, leaf in leaves if not callable(leaf)}
    if not reads:
        named = [name for name in values if name]
        what = f"without named tensors{f', but with {listed(named)}' if named else ''}"
        raise refused(path, what, "give the file that holds the weights")
    beside = file.with_name(CONFIG)
    return Contents(
        path,
        Tensors(path, _unwrapped(path, reads)),
        values,
        metadata=_open_safetensors(file).metadata() or {} if kind == SAFETENSORS else {},
        config=read_json(beside) if file.name in SINGLE + SHARDED and is_file(beside) else {},
    )


def unwrap(name: str) -> str:
    """Return a parameter's name without the modules that wrap others, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name


def non_finite(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors that hold an infinity or NaN; reads them all."""
    return tuple(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())


# Tensors


def _plain(path: Path, name: str, read: Read) -> Tensor:
    """Read a tensor as `Tensors` promises it."""
    try:
        tensor = read()
    except Refusal:
        raise
    except BROKEN as error:
        raise damaged(path, f"{name!r}: {error}") from error
    what = _oddity(tensor)
    if not what:
        tensor = tensor.detach().contiguous()
        return tensor.float() if tensor.is_floating_point() else tensor
    todo = "save plain numbers, best float32, in its place"
    raise refused(path, f"a checkpoint whose {name!r} is {what}", todo)


def _oddity(tensor: Tensor) -> str:
    """Return what keeps a tensor from being plain numbers; empty if nothing does."""
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_meta:
        return "without data"
    plain = tensor.dtype in FLOATS + WHOLE
    return "" if plain else f"of type {str(tensor.dtype).removeprefix('torch.')}"


def _unwrapped(path: Path, reads: Iterable[tuple[str, Read]]) -> dict[str, Read]:
    """Return tensors under their names without wrappers, each once."""
    found = dict[str, Read]()
    given = dict[str, str]()
    for long, read in reads:
        if any(part.lstrip("_").startswith("flat_param") for part in long.split(".")):
            what = f"a checkpoint of FSDP's flat parameters, such as {long!r}"
            raise refused(path, what, "save a full state dict, gathered on one process")
        name = unwrap(long)
        if name in found and not _same(_plain(path, name, found[name]), _plain(path, name, read)):
            what = f"a checkpoint where {given[name]!r} and {long!r} are one name but differ"
            raise refused(path, what, "remove one of them")
        found[name], given[name] = read, long
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


# Files


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except BROKEN as error:
        raise damaged(path, str(error)) from error


def _read_safetensors(path: Path) -> Iterator[tuple[str, Leaf]]:
    file = _open_safetensors(path)
    yield from ((name, partial(file.get_tensor, name)) for name in file.keys())  # noqa: SIM118


def _read_numpy(path: Path) -> Iterator[tuple[str, Leaf]]:
    try:
        file = np.load(path, allow_pickle=False)
    except BROKEN as error:
        raise damaged(path, str(error)) from error
    yield from ((name, partial(_array, file, name)) for name in file.files)


def _array(file: Mapping[str, np.ndarray[Any, Any]], name: str) -> Tensor:
    array = file[name]
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


READERS: Mapping[str, Callable[[Path], Iterable[tuple[str, Leaf]]]] = {
    SAFETENSORS: _read_safetensors,
    TORCH: read_zip,
    LEGACY: read_legacy,
    NUMPY: _read_numpy,
}
"""Kind of file -> what yields its leaves."""


# Folders


def _weights_in(folder: Path) -> Path:
    """Return the file of weights in a folder, or the index of its shards."""
    with disk_named(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    for name in (SINGLE[0], SHARDED[0], SINGLE[1], SHARDED[1]):
        if name in names:
            return folder / name
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        todo = (
            f"run `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE`"
        )
        raise refused(folder, "a folder of torch.distributed.checkpoint", todo)
    holds = f"it holds {listed(names)}" if names else "it is empty"
    what = f"a folder without {SINGLE[0]} or {SINGLE[1]}: {holds}"
    raise refused(folder, what, "give the file of the weights itself")


def _read_shards(index: Path) -> Iterator[tuple[str, Leaf]]:
    """Yield the leaves of all shards that an index names; all lie in its folder."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise refused(index, "JSON, but no index of shards (it has no `weight_map`)", FETCH)
    files = sorted(set(places.values()))
    for file in files:
        if Path(file).name != file or file in ("", "..") or "\\" in file:
            raise refused(index, f"an index whose shard {file!r} is outside of its folder", FETCH)
    if missing := [file for file in files if not is_file(index.with_name(file))]:
        raise refused(index, f"an index of shards that are missing: {listed(missing)}", FETCH)
    left = set(places)
    for file in files:
        shard = index.with_name(file)
        if (kind := kind_of(shard)) == INDEX:
            raise refused(shard, "an index of shards instead of one", FETCH)
        for name, leaf in READERS[kind](shard):
            left.discard(name)
            yield name, leaf
    if left:
        raise refused(
            index, f"an index of tensors that no shard has: {listed(sorted(left))}", FETCH
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ValueError if it holds none."""
    with disk_named(path):
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise refused(path, "no JSON object", FETCH)
    return found
