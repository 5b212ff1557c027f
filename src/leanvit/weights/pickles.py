"""Checkpoints that torch.save wrote, opened without running anything that they name.

Only torch's restricted unpickler reads them, and of what torch does not allow by itself, only the
names in ALLOWED, each of which stands for an inert record instead of the real class.
"""

import io
import re
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    safe_globals,
)

from leanvit.weights.strangers import BROKEN, RESAVE, Refusal, damaged, disk_named, refused

Plain = None | bool | int | float | str
Value = Plain | tuple[Plain, ...]
Read = Callable[[], Tensor]
"""Reads one tensor."""
Leaf = Read | Value

MOST, LONGEST = 1 << 18, 1000
"""Parts of a file, and letters in a name: a few bytes of pickle may nest without end."""


class Inert:
    """A record of how something was called and what was put in it."""

    __slots__ = ("arguments", "state")
    arguments: tuple[object, ...]
    state: object

    def __new__(cls, *arguments: object) -> Self:  # an unpickler need not call __init__
        """Keep the arguments."""
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state


class Namespace(Inert):
    """Stands for argparse.Namespace: its state is a dictionary."""


class Dtype(Inert):
    """Stands for numpy.dtype: arguments (code, ...), state (version, byte order, ...)."""


class Scalar(Inert):
    """Stands for a numpy scalar: arguments (dtype, bytes)."""


class Array(Inert):
    """Stands for a numpy array: state (version, shape, dtype, whether by columns, bytes)."""


def _plain_dict(*_: object) -> dict[object, object]:
    """Stand for collections.defaultdict; what is missing stays missing."""
    return {}


ALLOWED = {
    "argparse.Namespace": Namespace,  # the `args` of EsViT, DINO, MAE, DeiT, timm
    "collections.defaultdict": _plain_dict,  # states of optimizers that are no part of torch
    "builtins.dict": Inert,  # what such a defaultdict makes
    "builtins.list": Inert,
    "numpy.dtype": Dtype,  # within the next ones
    "numpy.ndarray": Inert,
    "numpy.core.multiarray.scalar": Scalar,  # best accuracies and losses, by numpy 1
    "numpy._core.multiarray.scalar": Scalar,  # by numpy 2
    "numpy.core.multiarray._reconstruct": Array,  # class means, schedules, random states
    "numpy._core.multiarray._reconstruct": Array,
}
"""Global of a pickle -> what stands for it."""

CODES = {"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"}
"""Numpy's numbers: no objects, no text, no records."""


_ALONE = threading.Lock()
"""Torch keeps what is allowed for the whole process."""


@contextmanager
def _these_alone() -> Iterator[None]:
    """Allow the names above, whatever else libraries have allowed in this process."""
    with _ALONE:
        before = get_safe_globals()
        clear_safe_globals()
        try:
            with safe_globals([(stand_in, name) for name, stand_in in ALLOWED.items()]):
                yield
        finally:
            add_safe_globals(before)


def read_zip(path: Path) -> list[tuple[str, Leaf]]:
    """Return the leaves of a file by torch 1.6 or newer, by name; tensors stay on disk until read.

    Raises ValueError if it is damaged, names anything but weights, or is not as long as it says.
    """
    try:
        return _in_place(path)
    except Refusal:  # other tools may have packed or compressed it anew: torch reads it, or says no
        return _at_once(path)


def read_legacy(path: Path) -> list[tuple[str, Leaf]]:
    """Return the leaves of a file by torch before 1.6, by name; all of it is read at once.

    Raises ValueError if it is damaged or names anything but weights.
    """
    return _at_once(path)


def _at_once(path: Path) -> list[tuple[str, Leaf]]:
    leaves = _flat(path, _load(path, path, "cpu"))
    return [(n, partial(_given, x) if isinstance(x, Tensor) else x) for n, x in leaves]


def _given(tensor: Tensor) -> Tensor:
    return tensor


def _load(path: Path, source: Path | IO[bytes], device: str) -> object:
    try:
        with _these_alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on other protocols of pickle: they are refused
            return torch.load(source, map_location=device, weights_only=True)
    except BROKEN as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> Refusal:
    words = str(error)
    if "torch.distributed" in words:
        what = "a checkpoint of sharded tensors (DTensor or ShardedTensor)"
        return refused(path, what, "save a full state dict, gathered on one process")
    if found := re.search(r"GLOBAL (\S+) (?:was not|whose)", words):
        what = f"a pickle that asks for {found[1]!r}, which is no part of weights"
        return refused(path, what, f"nothing was executed; {RESAVE}")
    reason = words.split("WeightsUnpickler error: ")[-1].strip().partition("\n")[0]
    return damaged(path, reason[:200] or type(error).__name__)


# Tensors inside the archive


def _in_place(path: Path) -> list[tuple[str, Leaf]]:
    """Return the leaves of a file whose tensors lie in it as they are, without reading those."""
    skeleton, places = _skeleton(path)
    # on `meta` no tensor is read; torch notes at which place of the archive each would be
    tree = _load(path, skeleton, "meta")
    with disk_named(path):
        whole: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    return [
        (name, _mapped(path, leaf, places, whole) if isinstance(leaf, Tensor) else leaf)
        for name, leaf in _flat(path, tree)
    ]


def _skeleton(path: Path) -> tuple[io.BytesIO, dict[int, tuple[int, int]]]:
    """Return a file with the pickle of this one and empty tensors, and where the real ones lie.

    The latter by the place of the empty one: (begin, size). What torch reads is thus an archive of
    ours: it crashes where a hostile one names another byte order.
    """
    skeleton, real = io.BytesIO(), dict[str, tuple[int, int]]()
    try:
        with (
            path.open("rb") as file,
            zipfile.ZipFile(file) as archive,
            zipfile.ZipFile(skeleton, "w") as bare,
        ):
            for name, member in {each.filename: each for each in archive.infolist()}.items():
                part = name.partition("/")[2]
                if part in ("data.pkl", "version"):
                    bare.writestr(name, archive.read(member))
                elif part == "byteorder" and archive.read(member) != sys.byteorder.encode():
                    raise damaged(path, "of another byte order")
                elif part.startswith("data/") and member.compress_type == zipfile.ZIP_STORED:
                    bare.writestr(name, b"")
                    real[name] = _begin(file, member), member.file_size
    except BROKEN as error:
        raise damaged(path, str(error)) from error
    places = {_begin(skeleton, each): each.filename for each in bare.infolist()}
    skeleton.seek(0)
    return skeleton, {place: real[name] for place, name in places.items() if name in real}


def _begin(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member of an archive begin."""
    file.seek(member.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return file.tell() + name + extra


def _mapped(path: Path, tensor: Tensor, places: Mapping[int, tuple[int, int]], whole: Any) -> Read:
    """Return how to read a tensor that lies in the file; only its description is there yet.

    Raises ValueError if it is not there, in full and as plain numbers.
    """
    storage = tensor.untyped_storage() if tensor.layout == torch.strided else None
    begin, size = places.get(getattr(storage, "_checkpoint_offset", -1), (0, -1))
    if storage is None or storage.nbytes() != size:
        raise damaged(path, "not all tensors are where they should be")

    def read() -> Tensor:
        empty = torch.empty(0, dtype=tensor.dtype)
        found = empty.set_(  # which checks that all of the tensor lies within
            whole[begin : begin + size], tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        found = found.neg() if tensor.is_neg() else found
        aligned = found.data_ptr() % found.element_size() == 0  # not where others packed the file
        return found if aligned else found.clone()

    return read


# The tree


def _flat(path: Path, tree: object) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of what a pickle held: tensors, readers of arrays, plain values.

    Names are the keys on the way, joined with dots; a list of plain values is one leaf. What is
    none of these is left out. Raises ValueError if there is no end to it.
    """
    waiting: list[tuple[str, object]] = [("", tree)]
    for _ in range(MOST):
        if not waiting:
            return
        name, node = waiting.pop()
        inside = _inside(node)
        if len(name) > LONGEST:
            break
        if inside is None:
            leaf = _leaf(path, name, node)
            if leaf is not _NOTHING:
                yield name, leaf
            continue
        below = [(f"{name}.{key}" if name else str(key), item) for key, item in inside]
        waiting += reversed(below)
    what = f"nested without end: a name is longer than {LONGEST} or there are over {MOST} parts"
    raise refused(path, what, RESAVE)


def _inside(node: object) -> list[tuple[object, object]] | None:
    """Return what lies below a node, by key; None if it is a leaf."""
    if isinstance(node, Namespace):
        node = node.state
    if isinstance(node, dict):
        # a pickle may hide an instance's own `items`, but not the type's; odd keys say nothing
        return [(k, v) for k, v in dict.items(node) if isinstance(k, (str, int, float))]
    if isinstance(node, (list, tuple)) and not _is_plain(node):
        return list(enumerate(node))
    return None


def _is_plain(node: list[object] | tuple[object, ...]) -> bool:
    return all(item is None or isinstance(item, (bool, int, float, str)) for item in node)


_NOTHING = object()


def _leaf(path: Path, name: str, node: object) -> object:
    if isinstance(node, Tensor):
        return Tensor.detach(node)  # without the attributes that a pickle may have hung on it
    if isinstance(node, (bool, int, float, str)) or node is None:
        return node
    if isinstance(node, (list, tuple)):
        return tuple(node)
    if isinstance(node, (torch.dtype, torch.device)):
        return str(node)
    if isinstance(node, Scalar) and len(node.arguments) == 2:
        values = _numbers(*node.arguments)
        return values.item() if values is not None and values.size == 1 else _NOTHING
    if isinstance(node, Array):
        return partial(_array, path, name, node.state)
    return _NOTHING


def _numbers(dtype: object, data: object) -> np.ndarray[Any, Any] | None:
    """Return the numbers that a numpy pickle describes, in one row; None if they are no numbers."""
    match dtype, data:
        case Dtype(arguments=(str(name), *_), state=(_, ">" | "<" | "|" as order, *_)), bytes():
            if name in CODES and len(data) % np.dtype(name).itemsize == 0:
                return np.frombuffer(data, np.dtype(name).newbyteorder(order)).astype(name)
    return None


def _array(path: Path, name: str, state: object) -> Tensor:
    """Return a numpy array as a tensor. Raises ValueError if it is not one of numbers."""
    match state:
        case (_, tuple(shape), dtype, bool(by_columns), data):
            values = _numbers(dtype, data)
            if values is not None:
                try:
                    return torch.from_numpy(values.reshape(shape, order="F" if by_columns else "C"))
                except (TypeError, ValueError) as error:
                    raise damaged(path, f"{name!r} does not have the shape {shape}") from error
    raise refused(path, f"a checkpoint whose {name!r} is an array of objects, not numbers", RESAVE)
