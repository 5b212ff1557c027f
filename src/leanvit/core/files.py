"""Files that are whole or not there: written beside, synced, renamed."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EIO
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from leanvit.core.console import warn
from leanvit.core.errors import CheckpointError


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Turn a disk's refusal into a CheckpointError that says what is safe."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"Could not write {path}: {error.strerror or error}. What was saved before is "
            f"untouched; make room and continue with --resume."
        ) from error


@contextmanager
def spared(path: Path) -> Iterator[None]:
    """Say a disk's refusal and go on: for what a run can do without, such as its pictures."""
    try:
        yield
    except OSError as error:
        warn(f"Could not write {path}: {error.strerror or error}.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a disk's refusal into a ValueError that names what a user asked for."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"Cannot write to {str(path)!r}: {error.strerror or error}.") from error


def require_writable(path: Path) -> None:
    """Raise ValueError if a file or folder of a name cannot be made, before work that needs it."""
    with writing(path):
        place = next(parent for parent in path.absolute().parents if parent.exists())
        with TemporaryFile(dir=place):
            pass


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as one synced safetensors file. Raises OSError if the disk refuses."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata)
    except SafetensorError as error:  # it says the number of a refusal in its words
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else EIO
        raise OSError(code, os.strerror(code) if number else str(error)) from error
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors keeps its files from everybody else
    sync(path)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on disk."""
    path.write_bytes(data)
    sync(path)


class Replacing:
    """Write a file or directory beside its place; it takes the place at the end, or vanishes.

    Each process has its own name for it, so that none ends what another began.
    """

    def __init__(self, path: Path, *, inside: bool = False) -> None:
        """inside: write in a folder beside; for writers that make files of their own meanwhile."""
        self.path, self._inside = path, inside
        self._beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._written = self._beside / path.name if inside else self._beside

    def __enter__(self) -> Path:
        for left in leftovers(self.path):
            owner = left.name.split(".")[-2]
            if owner == str(os.getpid()) or not Path("/proc", owner).exists():  # it was killed
                _remove(left)
        if self._inside:
            self._beside.mkdir()
        return self._written

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            _remove(self._beside)
            return
        if self._written.is_dir():
            _remove(self.path)
        self._written.replace(self.path)
        if self._inside:
            self._beside.rmdir()
        sync(self.path.parent)


def leftovers(path: Path) -> list[Path]:
    """Return what processes that write a file or directory have beside it, or left there."""
    return list(path.parent.glob(f".{escape(path.name)}.*.tmp"))


def sweep(path: Path) -> None:
    """Remove what killed processes left beside a file that nobody else may write."""
    for left in leftovers(path):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or the entries of a directory are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def forget(path: Path) -> None:
    """Give back the memory in which the system keeps a synced file, for the next one to take.

    For what nobody reads soon: memory that was never used costs a writer many times what copying
    into it does.
    """
    if sys.platform == "linux":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
