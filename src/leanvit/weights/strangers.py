"""What a file is, by its first bytes, and what to do with those that hold no weights we can read.

Nothing is extracted, decoded or written here: archives are listed, and no more.
"""

import pickle
import re
import stat
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from leanvit.data.archives import BROKEN_TAR

SAFETENSORS, TORCH, LEGACY, NUMPY, INDEX = "safetensors", "torch", "legacy", "numpy", "index"
"""Kinds of files that are read on. `legacy` is torch before 1.6; an index is JSON, on shards."""

MAGIC_PICKLE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""What torch wrote first, up to version 1.5: a pickled number."""

LARGEST_HEADER = 100_000_000
"""Of a safetensors file, in bytes; its own library refuses more."""

UNPACK = "unpack it and name the file inside"
FETCH = "fetch the file itself again"
GRAPH = "a graph holds no named weights: name the run or the .safetensors that it was made from"
RESAVE = "load it where you trust it and save its state dict alone, best as safetensors"

BROKEN = (
    *(pickle.UnpicklingError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, OSError),
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, SafetensorError, SyntaxError, tokenize.TokenError),
)
"""What reading a damaged file may raise: a pickle's bytes are calls, and so are the wrong ones."""

MAGIC = {
    b"version https://git-lfs": ("a git-lfs pointer, not the file it points to", "git lfs pull"),
    b"\x89PNG": ("a PNG image", FETCH),
    b"\xff\xd8\xff": ("a JPEG image", FETCH),
    b"GIF8": ("a GIF image", FETCH),
    b"RIFF": ("a WebP image or a RIFF file", FETCH),
    b"%PDF": ("a PDF document", FETCH),
    b"\x1f\x8b": ("compressed with gzip", UNPACK),
    b"BZh": ("compressed with bzip2", UNPACK),
    b"\xfd7zXZ": ("compressed with xz", UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    b"Rar!": ("a RAR archive", UNPACK),
    b"\x89HDF": ("an HDF5 file, as Keras writes them", "save the weights as safetensors"),
    b"\x93NUMPY": ("one numpy array without a name", "save named arrays with numpy.savez"),
    b"PAR1": (
        "a Parquet file, which holds features or images and no network",
        "name the model that they were made with",
    ),
    b"GGUF": ("a GGUF file", "take the safetensors file that it was made from"),
    b"\x80": ("a pickle that torch.save did not write", RESAVE),
}
"""First bytes -> what the file is, what to do."""

ONNX = rb"\x08[\x01-\x1f](\x12.[ -~]|[\x3a\x42])"
"""First bytes of an ONNX graph: its version, then its producer's name, a graph or operators."""
PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".tar")
"""Endings that weights have."""


class Refusal(ValueError):
    """A file whose weights cannot be read: says which, what it is instead and what to do."""


def refused(path: Path, what: str, todo: str) -> Refusal:
    """Return (not raise) the error for a file that is something else."""
    return Refusal(f"{str(path)!r} is {what}, so its weights cannot be read; {todo}.")


@contextmanager
def disk_named(path: Path) -> Iterator[None]:
    """Turn a refusal of the disk into a ValueError that says which file it was."""
    try:
        yield
    except OSError as error:
        raise Refusal(
            f"{str(path)!r} cannot be read: {error.strerror or error}; give a checkpoint file or "
            f"the folder of one."
        ) from error


def damaged(path: Path, reason: str) -> Refusal:
    """Return (not raise) the error for a file that cannot be read to its end."""
    return refused(path, f"damaged or cut off ({reason})", FETCH)


def kind_of(path: Path) -> str:
    """Return the kind of a file. Raises ValueError if it is none of those that hold weights."""
    with disk_named(path):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise refused(path, "no file", "give a checkpoint file or the folder of one")
        with path.open("rb") as file:
            head = file.read(tarfile.BLOCKSIZE)
    if not head:
        raise refused(path, "empty", FETCH)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(path)
    if head.startswith(MAGIC_PICKLE):
        return LEGACY
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_HEADER:
        return SAFETENSORS
    if head.lstrip().startswith(b"{"):
        return INDEX
    raise _stranger(path, head)


def _stranger(path: Path, head: bytes) -> Refusal:
    for magic, (what, todo) in MAGIC.items():
        if head.startswith(magic):
            return refused(path, what, todo)
    if re.match(ONNX, head, re.DOTALL):
        raise refused(path, "an ONNX graph", GRAPH)
    if head.lstrip().lower().startswith(PAGE):
        return refused(path, "a web page, as a failed download leaves behind", FETCH)
    if (names := _tar_names(path)) is not None:
        return refused(path, f"a tar archive{_holding(names)}", UNPACK)
    start = head[:60].decode("utf-8", errors="ignore")
    if start.strip() and all(c.isprintable() or c.isspace() for c in start) and b"\0" not in head:
        return refused(path, f"text that begins with {start[:40]!r}", FETCH)
    return refused(path, f"no checkpoint: it begins with the bytes {head[:8].hex(' ')}", FETCH)


def _tar_names(path: Path) -> list[str] | None:
    """Return the names in a tar archive's headers as far as they can be read; None if it is none.

    An archive of zeros alone counts as none.
    """
    names = list[str]()
    with disk_named(path), path.open("rb") as file:
        try:
            archive = tarfile.TarFile(fileobj=file)
            while (member := archive.next()) is not None and len(names) < 1000:
                names.append(member.name)
        except BROKEN_TAR:
            pass
    return names or None


def _zip_kind(path: Path) -> str:
    """Return whose zip archive this is. Raises ValueError if it is nobody's."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except BROKEN as error:
        raise damaged(path, str(error)) from error
    names = [member.filename for member in members]
    if any(member.flag_bits & 1 for member in members):
        raise refused(path, "an encrypted zip archive", UNPACK)
    if any(f"/{name}".endswith("/constants.pkl") or "/code/" in name for name in names):
        todo = "it may hold a program, so " + RESAVE
        raise refused(path, "a TorchScript archive", todo)
    if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        return TORCH
    if any(name.endswith("/archive_format") or "/data/weights/" in name for name in names):
        raise refused(path, "a program of torch.export (.pt2)", GRAPH)
    if names and all(name.endswith(".npy") for name in names):
        return NUMPY
    raise refused(path, f"a zip archive{_holding(names)}", UNPACK)


def _holding(names: Sequence[str]) -> str:
    """Return a clause on what an archive holds: weights first, if there are any."""
    shown = [name for name in names if name.lower().endswith(WEIGHTS)] or list(names)
    return " of " + listed(shown) if shown else " of nothing"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return some of the names, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name[:100]) for name in names[:most]) + more
