"""Whether a network finds the regions of a picture again where a second camera saw them.

The stereo pair of the sample has a measured disparity, so that true places are known. Letters: H
and W height and width of the pictures, S side of the network's input in pixels, h and w rows and
columns of its regions, N windows, T and U regions of the left and of the right picture, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from leanvit.backbones.base import Backbone
from leanvit.config.evaluation import CorrespondenceConfig
from leanvit.core import random
from leanvit.data.sample import stereo_pair
from leanvit.evaluation.features import describe_grid
from leanvit.evaluation.inputs import device_of
from leanvit.evaluation.models import open_networks, with_untrained
from leanvit.evaluation.result import Result, headline

MANY = 1000
"""Regions of each picture that stand for all where chance is computed, which is for all pairs."""


@dataclass(frozen=True, slots=True)
class Regions:
    """What a network says of a picture, window by window."""

    rows: Tensor
    """[T, D], of unit length."""
    places: Tensor
    """[T, 2] the middle of each region as (x, y), in pixels of the picture as it was taken."""
    fresh: Tensor
    """[T] whether no earlier window shows the place."""
    cell: Tensor
    """[2] width and height of a region in the same pixels."""


def stereo_result(config: CorrespondenceConfig, model: str | Path, quiet: bool) -> Result:
    """Match every region of the left picture with those of the right one, all windows together."""
    networks = open_networks(model, device_of(config), quiet)
    first = next(iter(networks.values()))
    size = first.config.image_size if config.image_size == "auto" else config.image_size
    shown = with_untrained(networks, model) if config.baselines else networks
    *sides, disparity = (torch.from_numpy(array.copy()) for array in stereo_pair())
    pictures = [side.permute(2, 0, 1) / 255 for side in sides]
    rows: list[dict[str, Any]] = []
    for name, network in shown.items():
        left, right = (regions(network, side, size, config.batch) for side in pictures)
        true = true_places(left.places, disparity)
        asked = left.fresh & true.isfinite().all(1)
        if not asked.any():
            raise ValueError(f"At {size} pixels no region of the left picture has a known place.")
        if config.baselines and not rows:
            rows += baselines(left.places[asked], true[asked], right)
        rows.append(
            {"network": name, **matched(left.rows[asked], true[asked], right, config.pairs)}
        )
    height, width = disparity.shape
    facts = {
        "image_size": size,
        "pictures": [height, width],
        "regions": int(asked.sum()),
        "candidates": len(right.rows),
        "cell": [round(float(side), 2) for side in left.cell],
        "pairs": config.pairs,
    }
    title = headline(rows, "stereo", "within a cell", of="network")
    return Result("correspondence", facts, rows, headline=title)


def centers(h: int, w: int, size: float) -> Tensor:
    """Return the middle [h * w, 2] of each region of a view of so many pixels, as (x, y)."""
    y, x = (torch.arange(h) + 0.5) * (size / h), (torch.arange(w) + 0.5) * (size / w)
    return torch.stack([x.repeat(h), y.repeat_interleave(w)], 1)


def starts(side: int, size: int) -> list[int]:
    """Return where windows begin: edge to edge, and a last one flush with the far border."""
    return sorted({*range(0, side - size + 1, size), side - size})


def regions(backbone: Backbone, picture: Tensor, size: int, batch: int) -> Regions:
    """Return the regions of a picture [3, H, W] in [0, 1], seen through windows of S pixels.

    A picture that is smaller than a window is enlarged until its shorter side is S. Raises
    ValueError for features that are not finite.
    """
    height, width = picture.shape[1:]
    scale = max(1.0, size / min(height, width))
    if scale > 1:
        sides = [round(scale * height), round(scale * width)]
        picture = tv.resize(picture, sides, InterpolationMode.BICUBIC).clamp(0, 1)
    tops, lefts = (starts(side, size) for side in picture.shape[1:])
    windows = torch.stack(
        [picture[:, top : top + size, left : left + size] for top in tops for left in lefts]
    )
    see = describe_grid(backbone)
    grid = torch.cat([see(part).float().cpu() for part in windows.split(batch)])
    if not grid.isfinite().all():
        raise ValueError(
            "The region features of the stereo pair hold numbers that are not finite: the weights "
            "are damaged, or the training diverged."
        )
    h, w = grid.shape[1:3]
    inside = centers(h, w, size)
    corners = torch.tensor([(left, top) for top in tops for left in lefts])
    known = torch.tensor([(x, y) for y in _ends(tops, size) for x in _ends(lefts, size)])
    places = corners[:, None] + inside
    return Regions(
        functional.normalize(grid.flatten(0, 2), dim=1),
        (places / scale).flatten(0, 1),
        (places >= known[:, None]).all(2).flatten(),
        torch.tensor([size / w, size / h]) / scale,
    )


def _ends(begins: Sequence[int], size: int) -> list[int]:
    """Return where the windows before each window end."""
    return [0, *(begin + size for begin in begins[:-1])]


def true_places(places: Tensor, disparity: Tensor) -> Tensor:
    """Return where places [T, 2] of the left picture lie on the right; not finite if unknown.

    disparity: [H, W] in pixels, of the left picture. What the right picture does not show, beyond
    its left border, is unknown.
    """
    column, row = places.long().unbind(1)
    x = places[:, 0] - disparity[row, column]
    return torch.stack([x.where(x >= 0, torch.nan), places[:, 1]], 1)


def matched(rows: Tensor, true: Tensor, right: Regions, pairs: int) -> dict[str, float]:
    """Return how far the nearest regions of the right picture are from the true places.

    rows: [T, D] of unit length; true: [T, 2].
    """
    best = [(part @ right.rows.T).max(1) for part in rows.split(1024)]
    similarity, nearest = (torch.cat(column) for column in zip(*best, strict=True))
    away = right.places[nearest] - true
    strongest = similarity.topk(min(pairs, len(rows))).indices
    close = within(away, right.cell)
    return {**_errors(away, right.cell), "strongest": 100 * float(close[strongest].double().mean())}


def baselines(places: Tensor, true: Tensor, right: Regions) -> list[dict[str, Any]]:
    """Return what is expected of any region of the right picture, and of the same place there."""
    apart = _some(right.places) - _some(true)[:, None]
    anywhere = _errors(apart.flatten(0, 1), right.cell)
    same = _errors(places - true, right.cell)
    return [
        {"network": "chance", **anywhere, "strongest": anywhere["within a cell"]},
        {"network": "same place", **same, "strongest": None},
    ]


def _some(places: Tensor) -> Tensor:
    """Return places, or `MANY` of them, drawn once and for all."""
    drawn = random.permutation(0, "some places", count=len(places))[:MANY]
    return places[torch.from_numpy(drawn)]


def within(away: Tensor, cell: Tensor) -> Tensor:
    """Return which of the distances [T, 2] are at most one region wide and one high."""
    return (away.abs() <= cell).all(1)


def _errors(away: Tensor, cell: Tensor) -> dict[str, float]:
    """Return mean and median of the distances [T, 2] in pixels, and the share within a region."""
    distance = away.double().norm(dim=1)
    return {
        "error": float(distance.mean()),
        "median error": float(distance.median()),
        "within a cell": 100 * float(within(away, cell).double().mean()),
    }
