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


@dataclass(frozen=True)
class Order:
    """Which images each step sees: an own permutation every epoch, whole batches only."""

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
    epoch_steps: int = field(init=False)
    """Steps in an epoch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "epoch_steps", epoch_steps(self.images, self.batch))

    def keys(self, step: int) -> list[Key]:
        """Return this process's images of a step, counted from 0 over the whole run."""
        epoch, within = divmod(step, self.epoch_steps)
        share = self.batch // self.world
        first = within * self.batch + self.rank * share
        order = _permutation(self.seed, epoch, self.images)
        return [Key(epoch, place, int(order[place])) for place in range(first, first + share)]

    def steps(self, start: int, end: int) -> Iterator[list[Key]]:
        """Yield the images of steps start..end - 1."""
        for step in range(start, end):
            yield self.keys(step)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    return random.permutation(seed, "order", epoch, count=images)


def replacement(seed: int, key: Key, attempt: int, images: int) -> int:
    """Return the image that stands in for an unreadable one: a hash, so that resume is exact."""
    (unit,) = random.units(seed, "replacement", key.epoch, key.position, attempt, count=1)
    return int(unit * images)
