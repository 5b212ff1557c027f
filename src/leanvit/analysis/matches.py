"""Which regions of two views a network takes for the same, and whether they are.

Letters: H, W height and width of a picture in pixels, h, w of its grid of regions, T regions,
P pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from leanvit.analysis.match_pictures import strongest_matches
from leanvit.backbones.base import Backbone, evaluating
from leanvit.core import random
from leanvit.data.render import render
from leanvit.data.sample import stereo_pair
from leanvit.data.views import UNITS, Plan, View, plan

Truth = Callable[[Tensor], Tensor]
"""Points [T, 2] of the left picture as (x, y), 0 to 1 -> the same on the right, NaN if unknown."""


@dataclass(frozen=True, slots=True)
class Matches:
    """The most similar pairs of regions of two pictures."""

    left: Tensor
    """[3, H, W] in [0, 1]."""
    right: Tensor
    """[3, H, W] in [0, 1]."""
    grids: tuple[tuple[int, int], tuple[int, int]]
    """(h, w) on the left and on the right."""
    pairs: Tensor
    """[P, 2] region numbers, row by row; the most similar pair first."""
    similarity: Tensor
    """[P] cosine."""
    correct: Tensor
    """[P] whether the true place lies within one region of the matched one."""
    accuracy: float
    """Percent of correct matches of all left regions whose place on the right is known."""


def match(backbone: Backbone, left: Tensor, right: Tensor, truth: Truth, count: int) -> Matches:
    """Match the regions of two pictures [3, H, W] in [0, 1]; keep the `count` strongest pairs.

    Only left regions whose true place is known take part. Raises ValueError if there is none.
    """
    device = next(backbone.parameters()).device
    mean = torch.tensor(backbone.mean).view(-1, 1, 1)
    std = torch.tensor(backbone.std).view(-1, 1, 1)
    with torch.no_grad(), evaluating(backbone):
        seen = backbone([((side - mean) / std)[None].to(device) for side in (left, right)])
    grids = [features.grid[0].cpu() for features in seen]
    (h, w), (h2, w2) = ((grid.shape[0], grid.shape[1]) for grid in grids)
    true = truth(centers(h, w))
    known = torch.nonzero(true.isfinite().all(1))[:, 0]
    if not len(known):
        raise ValueError("No region of the left picture can be seen on the right.")
    pairs, similarity = strongest_matches(
        grids[0].flatten(0, 1)[known], grids[1].flatten(0, 1), len(known)
    )
    pairs[:, 0] = known[pairs[:, 0]]
    away = (centers(h2, w2)[pairs[:, 1]] - true[pairs[:, 0]]).abs() * torch.tensor([w2, h2])
    correct = (away <= 1).all(1)
    return Matches(
        left,
        right,
        ((h, w), (h2, w2)),
        pairs[:count],
        similarity[:count],
        correct[:count],
        100 * float(correct.double().mean()),
    )


def centers(h: int, w: int) -> Tensor:
    """Return the middle [h * w, 2] of each region as (x, y) from 0 to 1."""
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def match_views(backbone: Backbone, pixels: Tensor, view: View, *, count: int = 10) -> Matches:
    """Match two views of one image [3, height, width] (uint8); their boxes give the truth.

    Of a few fixed draws the first pair whose views show something in common is taken.
    """
    height, width = pixels.shape[1:]
    # boxes know nothing of shears and erased places
    view = replace(view, interpolation="bicubic", randaugment=0.0, erase=0.0)
    for attempt in range(100):
        units = random.units(0, "matches", attempt, count=2 * UNITS).reshape(2, UNITS)
        left, right = (plan(view, row, height, width) for row in units)
        truth = between(left, right)
        if truth(centers(8, 8)).isfinite().all(1).sum() >= 16:
            break
    return match(backbone, render(left, pixels), render(right, pixels), truth, count)


def between(left: Plan, right: Plan) -> Truth:
    """Return where points of one view of an image lie in another one."""

    def truth(points: Tensor) -> Tensor:
        x, y = points.unbind(1)
        top, start, height, width = left.box
        x = start + (1 - x if left.flip else x) * width
        y = top + y * height
        top, start, height, width = right.box
        x, y = (x - start) / width, (y - top) / height
        found = torch.stack([1 - x if right.flip else x, y], 1)
        inside = ((found >= 0) & (found < 1)).all(1, keepdim=True)
        return found.where(inside, torch.nan)

    return truth


def match_stereo(backbone: Backbone, *, width: int = 512, count: int = 30) -> Matches:
    """Match the two pictures of the sample's stereo pair; measured disparities give the truth."""
    pictures = stereo_pair()
    disparity = torch.from_numpy(pictures[2].copy())
    height, full_width = disparity.shape
    size = [round(width * height / full_width), width]
    left, right = (
        tv.resize(torch.from_numpy(side.copy()).permute(2, 0, 1), size, antialias=True) / 255
        for side in pictures[:2]
    )

    def truth(points: Tensor) -> Tensor:
        column = (points[:, 0] * full_width).long()
        row = (points[:, 1] * height).long()
        x = points[:, 0] - disparity[row, column] / full_width
        found = torch.stack([x, points[:, 1]], 1)
        return found.where(found.isfinite() & (found >= 0), torch.nan)

    return match(backbone, left, right, truth, count)
