"""Arrays in the user's folder for caches, by a digest of all that they were made from.

Nothing depends on them: what cannot be written is not kept, and what is damaged is not there.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]
HEAD = b"leanvit kept 1\n"
"""How a file begins; the digest of the rest follows."""


def folder_of(kind: str) -> Path | None:
    """Return the folder for a kind of arrays, if this user has one for caches."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "leanvit" / kind


def place_of(kind: str, words: Sequence[str]) -> Path | None:
    """Return the file of what was made from some words, if there is a folder for it."""
    folder = folder_of(kind)
    joined = "\0".join(words).encode(errors="surrogateescape")
    return None if folder is None else folder / hashlib.sha256(joined).hexdigest()[:32]


def write(place: Path, arrays: Sequence[NDArray[Any]]) -> None:
    """Keep arrays; without room, or the right to write there, the next time takes as long."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with NamedTemporaryFile(dir=place.parent, delete=False) as stream:
            beside = Path(stream.name)
            try:
                start = stream.write(HEAD + bytes(32))
                for array in arrays:
                    np.save(stream, array, allow_pickle=False)
                stream.seek(start)
                digest = hashlib.file_digest(stream, "sha256").digest()
                stream.seek(len(HEAD))
                stream.write(digest)
                stream.flush()
                beside.replace(place)
            finally:
                beside.unlink(missing_ok=True)
    except OSError:
        return


def load(place: Path) -> Arrays | None:
    """Return the arrays of a file, if it is there and whole."""
    try:
        if not place.is_file():
            return None
        with place.open("rb") as stream:
            head, digest = stream.read(len(HEAD)), stream.read(32)
            start = stream.tell()
            if head != HEAD or hashlib.file_digest(stream, "sha256").digest() != digest:
                return None
            end = stream.seek(0, os.SEEK_END)
            stream.seek(start)
            arrays = []
            while stream.tell() < end:
                arrays.append(np.load(stream, allow_pickle=False))
            return arrays
    except OSError:
        return None


def touch(place: Path) -> None:
    """Note that a file was used, where that may be noted."""
    try:
        place.touch()
    except OSError:
        return


def prune(kind: str, most: int) -> None:
    """Remove what was not used for longest, until a kind takes at most so many bytes."""
    folder = folder_of(kind)
    try:
        found = [] if folder is None else [(path, path.stat()) for path in folder.iterdir()]
        found.sort(key=lambda entry: entry[1].st_mtime, reverse=True)
        total = 0
        for path, facts in found:
            total += facts.st_size
            if total > most:
                path.unlink(missing_ok=True)
    except OSError:
        return
