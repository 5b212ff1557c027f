"""Regions matched between two views of an image, or between two images, there and back.

Letters: S side in pixels, h and w rows and columns of regions, T = h * w regions, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.analysis.matches import between, centers
from leanvit.analysis.subjects import Scene, Subject
from leanvit.config.analysis import CorrespondencePicturesConfig
from leanvit.core import random
from leanvit.data.render import render
from leanvit.data.views import UNITS, View, plan

SCALE = (0.4, 0.8)
"""Share of an image's area that a second view shows."""
STRENGTH = (0.4, 0.4, 0.2, 0.1)
LEAST = 0.25
"""Share of the first picture's regions that lie in the second at least."""
DRAWS = 100
"""Second views that are tried for that."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures that are matched."""

    names: tuple[str, str]
    left: Tensor
    """[3, S, S] in [0, 1]."""
    right: Tensor
    """[3, S, S] in [0, 1]."""
    plans: Any = None
    """The plans of two views of one image, which say where regions truly lie; None otherwise."""

    def truth(self, h: int, w: int) -> Tensor:
        """Return where the middle of each left region lies on the right [T, 2]; NaN if unknown.

        As (x, y) from 0 to 1.
        """
        if self.plans is None:
            return torch.full((h * w, 2), torch.nan)
        return between(*self.plans)(centers(h, w))


@dataclass(frozen=True, slots=True)
class Matching:
    """What one network makes of a pair: of each left region its match on the right."""

    grid: tuple[int, int]
    """(h, w) of both pictures."""
    similarity: Tensor
    """[T, T] cosine of left and right regions."""
    match: Tensor
    """[T] the most similar right region; of equal ones the first."""
    cycle: Tensor
    """[T] bool: whether that region's own match is the left region again."""
    truth: Tensor
    """[T] the right region that lies at the true place; -1 where that is unknown."""

    @property
    def known(self) -> Tensor:
        """[T] bool: whether the true place is known."""
        return self.truth >= 0

    @property
    def correct(self) -> Tensor:
        """[T] bool: matched to within one region, across and down, of the true one."""
        w = self.grid[1]
        rows = (self.match // w - self.truth // w).abs() <= 1
        columns = (self.match % w - self.truth % w).abs() <= 1
        return self.known & rows & columns

    def strongest(self, count: int) -> Tensor:
        """Return the left regions [P] with the most similar matches, known places first of all."""
        value = self.similarity.gather(1, self.match[:, None])[:, 0]
        value = torch.where(self.known, value, value - 4) if self.known.any() else value
        found = value.sort(descending=True, stable=True).indices[:count]
        return found[self.known[found]] if self.known.any() else found

    def chance(self) -> float:
        """Return the share of known regions that a match drawn from all would have right."""
        h, w = self.grid
        row, column = self.truth[self.known] // w, self.truth[self.known] % w
        near = [
            (at + 1).clamp(max=n - 1) - (at - 1).clamp(min=0) + 1
            for at, n in ((row, h), (column, w))
        ]
        return float((near[0] * near[1]).double().mean()) / (h * w)

    def figures(self) -> dict[str, float | None]:
        """Return percent of regions that are matched back, and of known ones matched rightly."""
        right = chance = None
        if self.known.any():
            right = 100 * float(self.correct[self.known].double().mean())
            chance = 100 * self.chance()
        value = self.similarity.gather(1, self.match[:, None]).double().mean()
        return {
            "correct %": right,
            "chance %": chance,
            "matched back %": 100 * float(self.cycle.double().mean()),
            "similarity %": 100 * float(value),
        }


def matching(left: Tensor, right: Tensor, truth: Tensor) -> Matching:
    """Match region features [h, w, D] of two pictures. truth [T, 2]: as `Pair.truth` gives it."""
    h, w = left.shape[:2]
    ours, others = (functional.normalize(x.flatten(0, 1).double(), dim=1) for x in (left, right))
    similarity = ours @ others.T
    match, back = similarity.argmax(1), similarity.argmax(0)
    column, row = (
        (truth[:, i] * n).nan_to_num(0).floor().long().clamp(0, n - 1) for i, n in ((0, w), (1, h))
    )
    place = torch.where(truth.isfinite().all(1), row * w + column, -1)
    cycle = back[match] == torch.arange(h * w)
    return Matching((h, w), similarity, match, cycle, place)


def pairs_of(config: CorrespondencePicturesConfig, scene: Scene) -> list[Pair]:
    """Return the pictures to match. Raises ValueError for one image where two are matched."""
    few = scene.few(config.drawn)
    pixels, names = few.pixels(), [few.source.name(i) for i in range(len(few.source))]
    if config.between == "views":
        return [
            two_views(image, number, name)
            for number, (image, name) in enumerate(zip(pixels, names, strict=True))
        ]
    if len(names) < 2:
        raise ValueError("One image cannot be matched with another; name two or more.")
    return [
        Pair((names[i], names[i + 1]), pixels[i], pixels[i + 1])
        for i in range(0, len(names) - 1, 2)
    ]


def two_views(pixels: Tensor, number: int, name: str) -> Pair:
    """Return an image [3, S, S] in [0, 1] beside a random view of it, with other colors.

    The first of a few fixed draws is taken that shows enough of it.
    """
    side = pixels.shape[-1]
    image = (pixels * 255).round().byte()
    second = View(side, SCALE, 0.5, jitter=0.8, jitter_strength=STRENGTH, gray=0.2)
    first = replace(second, scale=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0)
    for attempt in range(DRAWS):
        units = random.units(0, "pairs", number, attempt, count=2 * UNITS).reshape(2, UNITS)
        left = replace(plan(first, units[0], side, side), box=(0, 0, side, side), flip=False)
        right = plan(second, units[1], side, side)
        if between(left, right)(centers(8, 8)).isfinite().all(1).double().mean() >= LEAST:
            break
    return Pair((name, name), pixels, render(right, image), (left, right))


def look_at_pairs(pairs: Sequence[Pair], subjects: Sequence[Subject]) -> list[list[Matching]]:
    """Return what each network makes of each pair."""
    found = []
    for subject in subjects:
        mine = []
        for pair in pairs:
            grid = subject.says(torch.stack([pair.left, pair.right])).grid.cpu()
            mine.append(matching(grid[0], grid[1], pair.truth(*grid.shape[1:3])))
        found.append(mine)
    return found


def rows_of(
    subjects: Sequence[Subject], pairs: Sequence[Pair], found: Sequence[Sequence[Matching]]
) -> list[dict[str, Any]]:
    """Return a table: a row for each network and pair."""
    return [
        {
            "network": subject.name,
            "left": pair.names[0],
            "right": "another view" if pair.plans else pair.names[1],
            **each.figures(),
        }
        for subject, mine in zip(subjects, found, strict=True)
        for pair, each in zip(pairs, mine, strict=True)
    ]
