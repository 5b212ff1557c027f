"""Features on the user's disk, so that nothing is computed twice and nothing stale is ever used.

A file holds what one way of describing says of one part of a source. Its name is a digest of that
way (weights included), of this code and its libraries, and of how images are read; inside are the
digests of the encoded images themselves, which are compared with those that are there now before
the rows are used.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leanvit.core import kept
from leanvit.data.images import MARK, mark
from leanvit.data.sources import Source
from leanvit.evaluation.features import Described, Description

KIND = "features"
MOST = 10 * 2**30
"""Bytes that are kept; what was not used for longest goes first."""
LIBRARIES = ("torch", "torchvision", "pillow", "simplejpeg", "numpy")


class Stored(NamedTuple):
    """What a way said of a part of a source, when the images were those of the marks."""

    rows: Tensor
    """[N, D]"""
    marks: bytes
    """N digests."""

    def of(self, images: slice, marks: bytes) -> Tensor | None:
        """Return the rows of some images of the part, if these are still the same."""
        same = self.marks[MARK * images.start : MARK * images.stop] == marks
        return self.rows[images] if same else None


class Kept:
    """The features of a source that some ways of describing left there.

    Ways that do not say what they are (`Description.key`) leave none.
    """

    def __init__(self, source: Source, reading: str, ways: Mapping[str, Description]) -> None:
        """reading: how images are read and what computes, in words."""
        self.source = source
        facts = (code_digest(), *(f"{name} {version(name)}" for name in LIBRARIES), reading)
        keys = {name: way.key() for name, way in ways.items()}
        where = source.fingerprint()
        self._words = {name: (*facts, key, where) for name, key in keys.items() if key}

    def find(self, part: range) -> dict[str, Stored]:
        """Return what is known of a part, by the ways; its images may be others by now."""
        found = {}
        for name in self._words:
            place = self._place(name, part)
            arrays = None if place is None else kept.load(place)
            if place is not None and arrays is not None:
                found[name] = Stored(torch.from_numpy(arrays[0]), arrays[1].tobytes())
                kept.touch(place)
        return found

    def unchanged(self, part: range, stored: Mapping[str, Stored]) -> bool:
        """Return whether the images of a part, which are read for it, are those of all stored."""
        try:
            now = b"".join(mark(self.source[index].image) for index in part)
        except OSError:
            return False
        return {each.marks for each in stored.values()} == {now}

    def keep(self, part: range, found: Described, stored: Mapping[str, Stored]) -> None:
        """Keep what was found of a part, if all of its images could be read.

        stored: what was known of it before.
        """
        for name in self._words if len(found.index) == len(part) else ():
            if name in stored and stored[name].marks == found.marks:
                continue
            if (place := self._place(name, part)) is not None:
                marks = np.frombuffer(found.marks, dtype=np.uint8)
                kept.write(place, [found.rows[name].numpy(), marks])

    def _place(self, name: str, part: range) -> Path | None:
        return kept.place_of(KIND, [*self._words[name], f"{part.start} {part.stop}"])


@cache
def code_digest() -> str:
    """Return a digest of leanvit itself: other code may compute other features."""
    found = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}".encode())
        found.update(path.read_bytes())
    return found.hexdigest()
