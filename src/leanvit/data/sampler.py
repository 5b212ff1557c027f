"""The order of images: a pure function of (seed, step), the same for every number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leanvit.config import epoch_steps
from leanvit.core import random


@dataclass(frozen=True, slots=True)
class Key:
    """One place in the run's order of images."""

    epoch: int
    position: int
    """Place in the epoch's order."""
    index: int
    """Number of the image in its source."""
    copy: int = 0
    """Which of the image's places in this epoch it is."""


@dataclass(frozen=True)
class Order:
    """Which images each step sees: an own permutation every epoch, whole batches only.

    With repeats, every image of the permutation takes so many places of the same batch (repeated
    augmentation, arXiv 1901.09335 and 2012.12877). An epoch keeps its length, so it sees that many
    times fewer images. A batch lists the first places of its images, then the second ones and so
    on: an image never stands beside itself, where it would be mixed with itself, and with as many
    processes as repeats each of its places falls to another.
    """

    images: int
    """Images in the source."""
    batch: int
    """Images in a step, over all processes."""
    seed: int
    """Seed of the run."""
    rank: int = 0
    """This process."""
    world: int = 1
    """Number of processes; each takes an equal, contiguous part of every batch."""
    repeats: int = 1
    """Places that an image takes in a row; a batch's end may cut them, as in DeiT."""
    epoch_steps: int = field(init=False)
    """Steps in an epoch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "epoch_steps", epoch_steps(self.images, self.batch))

    def keys(self, step: int) -> list[Key]:
        """Return this process's images of a step, counted from 0 over the whole run."""
        epoch, within = divmod(step, self.epoch_steps)
        share = self.batch // self.world
        first = within * self.batch
        places = sorted(range(first, first + self.batch), key=lambda place: place % self.repeats)
        order = _permutation(self.seed, epoch, self.images)
        return [
            Key(epoch, place, int(order[place // self.repeats]), place % self.repeats)
            for place in places[self.rank * share : (self.rank + 1) * share]
        ]

    def steps(self, start: int, end: int) -> Iterator[list[Key]]:
        """Yield the images of steps start..end - 1."""
        for step in range(start, end):
            yield self.keys(step)


def draw_key(epoch: int, index: int, copy: int = 0) -> tuple[int, ...]:
    """Return the key of an image's draws in an epoch; its first place draws as if it were alone."""
    return (epoch, index, copy) if copy else (epoch, index)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    return random.permutation(seed, "order", epoch, count=images)


def replacement(seed: int, key: Key, attempt: int, images: int) -> int:
    """Return the image that stands in for an unreadable one: a hash, so that resume is exact."""
    (unit,) = random.units(seed, "replacement", key.epoch, key.position, attempt, count=1)
    return int(unit * images)
