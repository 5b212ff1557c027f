"""How features fill their space: singular values, uniformity, alignment, and prototypes.

Letters: N images, D channels, K prototypes, S side in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.analysis.rank import effective_rank
from leanvit.analysis.subjects import Scene, Subject
from leanvit.backbones.base import evaluating
from leanvit.config.analysis import RankConfig
from leanvit.config.methods import DinoConfig, HeadConfig
from leanvit.config.resume import RESOLVED, read_past
from leanvit.core import random
from leanvit.core.console import warn
from leanvit.core.random import seeded
from leanvit.data.render import render
from leanvit.data.views import UNITS, View, plan
from leanvit.methods.heads import Head
from leanvit.train.checkpoint import CHECKPOINTS, newest_checkpoint
from leanvit.weights.whole import strip

SCALE = (0.4, 1.0)
"""Share of an image's area that a view shows whose likeness is measured: DINO's global views."""
STRENGTH = (0.4, 0.4, 0.2, 0.1)
MOST_PAIRS = 2**24
"""Pairs of images, or of an image and a prototype, that are compared at a time."""


@dataclass(frozen=True, slots=True)
class TwoCrops:
    """An image [3, S, S] and two random views of it, together [3, 3, S, S]."""

    seed: int

    @property
    def key(self) -> str:
        """Words that are the same only where the views are."""
        return f"two crops {self.seed}"

    def __call__(self, pixels: Tensor, index: int) -> Tensor:
        """Return the image of this number and its views."""
        size = pixels.shape[-1]
        view = View(size, SCALE, 0.5, jitter=0.8, jitter_strength=STRENGTH, gray=0.2, blur=0.5)
        units = random.units(self.seed, "alignment", index, count=2 * UNITS).reshape(2, UNITS)
        image = (pixels * 255).round().byte()
        views = [render(plan(view, row, *pixels.shape[1:]), image) for row in units]
        return torch.stack([pixels, *views])


@dataclass(frozen=True, slots=True)
class Space:
    """How one network's features fill their space."""

    subject: Subject
    values: Tensor
    """Singular values of the features [min(N, D)], largest first."""
    figures: dict[str, float | int]
    images: int


def look_at_space(config: RankConfig, scene: Scene) -> list[Space]:
    """Return what every network's view features are like. Raises ValueError for a single image."""
    if len(scene.source) < 2:
        raise ValueError("A single image has no spectrum; name two or more.")
    rows: dict[str, list[Tensor]] = {subject.name: [] for subject in scene.subjects}
    for batch in scene.batches("features", TwoCrops(config.seed)):
        for subject in scene.subjects:
            features = subject.says(batch.pixels.flatten(0, 1)).pooled.float().cpu()
            rows[subject.name].append(features.unflatten(0, (-1, 3)))
    return [space_of(subject, torch.cat(rows[subject.name])) for subject in scene.subjects]


def space_of(subject: Subject, features: Tensor) -> Space:
    """Return the figures of view features [N, 3, D] of images and of two views of each."""
    images = features[:, 0].double()
    values = torch.linalg.svdvals(images)
    centered = torch.linalg.svdvals(images - images.mean(0)).square()
    share = centered.cumsum(0) / centered.sum().clamp_min(1e-300)
    figures: dict[str, float | int] = {
        "dims": images.shape[1],
        "effective rank": effective_rank(images),
        "dims of 90 %": int((share < 0.9).sum()) + 1,
        "uniformity": uniformity(images),
        "alignment": alignment(features[:, 1].double(), features[:, 2].double()),
        **prototypes_of(subject, features[:, 0]),
    }
    return Space(subject, values, figures, len(images))


def uniformity(features: Tensor) -> float:
    """Return the log of the mean of exp(-2 d^2) over all pairs of unit features [N, D].

    Wang and Isola (arXiv 2005.10242), equation for t = 2: 0 where all are the same, about -4 where
    they are spread over a sphere of many dimensions.
    """
    unit = functional.normalize(features, dim=1)
    total = 0.0
    for rows in unit.split(max(MOST_PAIRS // len(unit), 1)):
        total += float(torch.exp(4 * (rows @ unit.T) - 4).sum())
    count = len(unit)
    return math.log((total - count) / (count * (count - 1)))


def alignment(left: Tensor, right: Tensor) -> float:
    """Return the mean squared distance of unit features [N, D] of two views of each image.

    Wang and Isola (arXiv 2005.10242), for alpha = 2: 0 where the views of an image are the same.
    """
    unit = (functional.normalize(side, dim=1) for side in (left, right))
    first, second = unit
    return float((first - second).square().sum(1).mean())


@torch.no_grad()
def prototypes_of(subject: Subject, features: Tensor) -> dict[str, float | int]:
    """Return which prototypes are the nearest of images whose view features [N, D] are given.

    How many there are, how many are taken, and the perplexity of the choice: exp of its entropy, as
    many as are taken alike. Nothing for a network without prototypes or without a checkpoint.
    """
    head = _head(subject)
    if head is None:
        return {}
    module, center = head
    with evaluating(module):
        found = module(features)
    chosen = [
        (rows @ found.prototypes.T - center).argmax(1)
        for rows in found.rows.split(max(MOST_PAIRS // len(center), 1))
    ]
    taken = torch.cat(chosen).bincount(minlength=len(center)).double()
    share = taken[taken > 0] / taken.sum()
    return {
        "prototypes": len(center),
        "taken": int((taken > 0).sum()),
        "perplexity": float(torch.exp(-(share * share.log()).sum())),
    }


def _head(subject: Subject) -> tuple[Head, Tensor] | None:
    """Return the teacher's view head of a run's newest checkpoint, and the center [K]."""
    folder = Path(subject.model)
    if not subject.trained or not (folder / RESOLVED).is_file():
        return None
    method = read_past(folder).resolved.config.method
    if not isinstance(method, DinoConfig):
        return None
    try:
        checkpoint = newest_checkpoint(folder / CHECKPOINTS, warn)
    except ValueError:
        return None
    if checkpoint is None:
        return None
    tensors = checkpoint.tensors()
    return _head_of(tensors, subject.backbone.feature_dim, method.head)


def _head_of(tensors: dict[str, Tensor], width: int, config: HeadConfig) -> tuple[Head, Tensor]:
    place = "method.teacher.head."
    with seeded(0, "weights"):  # which are replaced at once
        head = Head(width, config)
    head.load_state_dict(strip(tensors, place))
    return head, tensors["method.center.value"]


def few(spaces: Sequence[Space]) -> list[str]:
    """Return a warning if there are no more images than dimensions, which bounds their rank."""
    short = [space for space in spaces if space.images <= int(space.figures["dims"])]
    return [
        f"{space.subject.name}: {space.images} images for {space.figures['dims']} dimensions: its "
        f"rank is that of the images as much as of the network; look at more."
        for space in short
    ]


def rows_of(spaces: Sequence[Space]) -> list[dict[str, Any]]:
    """Return a table: a row for each network; figures that a network has not are left open."""
    names = list(dict.fromkeys(name for space in spaces for name in space.figures))
    return [
        {"network": space.subject.name, **{name: space.figures.get(name) for name in names}}
        for space in spaces
    ]
