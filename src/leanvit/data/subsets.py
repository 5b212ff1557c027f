"""Fewer images, unbalanced classes (arXiv 2205.14443), or the images of several sources in one.

Letters: N images of a class, C classes.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leanvit.config import DataConfig
from leanvit.core import random
from leanvit.data.sources import About, Sample, Source, Subset


class Drawn(Subset):
    """Some images of a source, drawn by a key; says so of itself."""

    def __init__(self, source: Source, indices: NDArray[np.int64], how: str) -> None:
        super().__init__(source, indices.tolist())
        self.how = how

    def about(self) -> About:
        """Return what this is, and what it was drawn from."""
        whole = self.source.about()
        what = f"{len(self)} of the {len(self.source)} images of {whole.what} ({self.how})"
        return whole._replace(what=what)


def draw_subset(source: Source, config: DataConfig, seed: int) -> Source:
    """Return the source, or the images of it that a fraction and an imbalance leave.

    Class c of C, in their order, keeps the share imbalance^(-c / (C - 1)) of its images, the
    exponential long tail of arXiv 1901.05555, times the fraction: rounded, and one image at least.
    Images without classes are one class. Which of a class are kept depends on the seed and on how
    many there are; a smaller share is part of a larger one. Raises ValueError for an imbalance
    where images have no classes.
    """
    fraction, imbalance = config.fraction, config.imbalance
    if fraction == imbalance == 1:
        return source
    labelled = len(source.classes) > 1 and bool((source.targets >= 0).all())
    if imbalance > 1 and not labelled:
        raise ValueError(
            f"data.imbalance {imbalance:g} leaves classes unequal numbers of images, and these "
            f"images have no classes; docs/data.md says how a source names them."
        )
    targets = source.targets if labelled else np.zeros(len(source), dtype=np.int64)
    last = max(len(source.classes) - 1, 1)
    kept: list[NDArray[np.int64]] = []
    for target in np.unique(targets).tolist():
        members = np.flatnonzero(targets == target)
        share = fraction * imbalance ** (-target / last if labelled else 0.0)
        order = random.permutation(seed, "subset", target, count=len(members))
        kept.append(members[order[: max(round(share * len(members)), 1)]])
    how = [f"data.{name} {getattr(config, name):g}" for name in ("fraction", "imbalance")]
    named = ", ".join(word for word in how if not word.endswith(" 1"))
    return Drawn(source, np.sort(np.concatenate(kept)), f"{named}, seed {seed}")


class Joined:
    """The images of several sources with the same classes, one source after the other.

    Raises ValueError if the classes differ.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self.classes = self._sources[0].classes
        if any(source.classes != self.classes for source in self._sources):
            raise ValueError("Images whose classes differ cannot be joined.")
        self.targets = np.concatenate([source.targets for source in self._sources])
        self._ends = np.cumsum([len(source) for source in self._sources])

    def __len__(self) -> int:
        return len(self.targets)

    def _place(self, index: int) -> tuple[Source, int]:
        """Return the source of an image, and its number there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[number]
        return source, index - int(self._ends[number]) + len(source)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        source, number = self._place(index)
        sample = source[number]
        return Sample(sample.image, index, sample.target)

    def name(self, index: int) -> str:
        """Return the image's name in its own source."""
        source, number = self._place(range(len(self))[index])
        return source.name(number)

    def fingerprint(self) -> str:
        """Return a digest of those of all sources."""
        words = " ".join(source.fingerprint() for source in self._sources)
        return hashlib.sha256(words.encode()).hexdigest()

    def validation(self) -> Source | None:
        """Return None: nothing was set aside."""
        return None

    def about(self) -> About:
        """Return what the parts are."""
        whole = self._sources[0].about()
        return whole._replace(what=" and ".join(source.about().what for source in self._sources))
