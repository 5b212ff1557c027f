"""Features on the user's disk, so that nothing is computed twice and nothing stale is ever used.

A file holds what one way of describing says of one part of a source. Its name is a digest of that
way (weights included), of this code and its libraries, and of how images are read; inside are the
digests of the encoded images themselves, which are read and compared before the rows are used.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from leanvit.core import kept
from leanvit.data.images import mark
from leanvit.data.sources import Source
from leanvit.evaluation.features import Described, Description

KIND = "features"
MOST = 10 * 2**30
"""Bytes that are kept; what was not used for longest goes first."""
LIBRARIES = ("torch", "torchvision", "pillow", "simplejpeg", "numpy")


class Kept:
    """The features that some ways of describing, of images that are read in one way, left there."""

    def __init__(self, reading: str, ways: Mapping[str, Description]) -> None:
        """reading: how images are read and what computes, in words."""
        facts = (code_digest(), *(f"{name} {version(name)}" for name in LIBRARIES), reading)
        keys = {name: way.key() for name, way in ways.items()}
        self._words = {name: (*facts, key) for name, key in keys.items()}
        self.whole = all(keys.values())
        """Whether every way says what it is; otherwise nothing is found and nothing kept."""

    def find(self, source: Source, part: range) -> Described | None:
        """Return what is known of a part of a source, if that is all, and its images are the same.

        Reads the images, if there are such features, and decodes none.
        """
        rows, marks = {}, set[bytes]()
        for name in self._words if self.whole else ():
            place = self._place(name, source, part)
            arrays = None if place is None else kept.load(place)
            if place is None or arrays is None:
                return None
            rows[name] = torch.from_numpy(arrays[0])
            marks.add(arrays[1].tobytes())
            place.touch()
        if not rows or marks != {_marks(source, part)}:
            return None
        index = torch.arange(part.start, part.stop)
        target = torch.from_numpy(source.targets[part.start : part.stop].astype(np.int64))
        return Described(rows, index, target, ())

    def keep(self, source: Source, part: range, found: Described) -> None:
        """Keep what was found of a part, if all of its images could be read."""
        if not self.whole or len(found.index) < len(part):
            return
        for name, rows in found.rows.items():
            if (place := self._place(name, source, part)) is not None:
                kept.write(place, [rows.numpy(), np.frombuffer(found.marks, dtype=np.uint8)])

    def prune(self) -> None:
        """Remove what is too much."""
        kept.prune(KIND, MOST)

    def _place(self, name: str, source: Source, part: range) -> Path | None:
        where = f"{source.fingerprint()} {part.start} {part.stop}"
        return kept.place_of(KIND, [*self._words[name], where])


def _marks(source: Source, part: range) -> bytes:
    """Return the digests of a part's images as they are now; nothing if one cannot be read."""
    try:
        return b"".join(mark(source[index].image) for index in part)
    except OSError:
        return b""


@cache
def code_digest() -> str:
    """Return a digest of leanvit itself: other code may compute other features."""
    found = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}".encode())
        found.update(path.read_bytes())
    return found.hexdigest()
