"""Whether a network finds the regions of an image again in another view of it (EsViT, section 4.3).

The protocol is that of EsViT's official analysis: the second view is the image mirrored, its colors
changed, in grey. Of each region of the first view the most similar one of the second is taken, and
of these pairs the most similar few. A pair is right if it is exactly the mirrored place.

Letters: B images, S side in pixels, h and w rows and columns of regions, T = h * w regions,
D channels, P pairs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.backbones.base import Backbone
from leanvit.config.evaluation import STEREO, CorrespondenceConfig
from leanvit.core import random
from leanvit.data.sources import open_source
from leanvit.data.views import UNITS, View, plan
from leanvit.evaluation.features import Description, describe_grid, digest
from leanvit.evaluation.inputs import prepare
from leanvit.evaluation.models import with_untrained
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.stereo import centers, stereo_result
from leanvit.kernels.color import recolor

SECOND = View(
    size=0,
    scale=(1.0, 1.0),
    flip=1.0,
    jitter=0.8,
    jitter_strength=(0.4, 0.4, 0.2, 0.1),
    gray=1.0,
)
"""What is drawn of the second view; it keeps the first one's size."""
COLUMNS = ("accuracy", "distance", "similarity")
"""Percent of right pairs, pixels from the right place, 100 times the cosine of the weakest pair."""


def correspondence_result(config: CorrespondenceConfig, model: str | Path, quiet: bool) -> Result:
    """Evaluate a model's region features on images, or on the stereo pair."""
    if config.data == STEREO:
        return stereo_result(config, model, quiet)
    source = open_source(config.data)
    seen, networks = prepare(config, model, source, quiet)
    shown = with_untrained(networks, model) if config.baselines else networks
    h, w = grid_of(next(iter(shown.values())), seen.size)
    ways = {name: describe_pairs(network, config.pairs) for name, network in shown.items()}
    two = seen.changing(TwoViews(config.seed))
    found = two.describe(source, "images to find again", ways)
    rows: list[dict[str, Any]] = []
    if config.baselines:
        rows.append({"network": "chance", **chance(h, w, seen.size)})
    for name, values in found.rows.items():
        means = values.double().mean(0).tolist()
        rows.append({"network": name, **dict(zip(COLUMNS, means, strict=True))})
    few = f"A view has {h * w} regions, fewer than {config.pairs} (pairs), so all of them count."
    facts = {
        "images": len(found.index),
        "image_size": seen.size,
        "crop": seen.crop,
        "grid": [h, w],
        "pairs": min(config.pairs, h * w),
    }
    notes = [few] if h * w < config.pairs else []
    title = headline(rows, "correspondence", "accuracy", of="network")
    return Result("correspondence", facts, rows, [*notes, *two.notes], headline=title)


def grid_of(backbone: Backbone, size: int) -> tuple[int, int]:
    """Return (h, w) of what a network says of images of so many pixels."""
    grid = describe_grid(backbone)(torch.zeros(1, 3, size, size))
    return grid.shape[1], grid.shape[2]


@dataclass(frozen=True, slots=True)
class TwoViews:
    """An image [3, S, S] and its second view, together [2, 3, S, S]."""

    seed: int

    @property
    def key(self) -> str:
        """Words that are the same only where the views are."""
        return f"correspondence {self.seed}"

    def __call__(self, pixels: Tensor, index: int) -> Tensor:
        """Return both views of the image of this number."""
        return torch.stack([pixels, second_view(pixels, self.seed, index)])


def second_view(pixels: Tensor, seed: int, index: int) -> Tensor:
    """Return an image [3, S, S] in [0, 1] mirrored, with other colors in 8 of 10 cases, in grey."""
    units = random.units(seed, "correspondence", index, count=UNITS)
    planned = plan(SECOND, units, *pixels.shape[1:])
    mirrored = pixels.flip(-1)
    return recolor(mirrored, planned.jitter, to_gray=planned.gray, sigma=0.0, solarize=False)


def describe_pairs(backbone: Backbone, pairs: int) -> Description:
    """Return what turns two views [B, 2, 3, S, S] into `COLUMNS` [B, 3]."""
    grid = describe_grid(backbone)

    def rows(views: Tensor) -> Tensor:
        first, second = (grid(view) for view in views.unbind(1))
        return found_again(first, second, pairs, views.shape[-1])

    return Description(rows, lambda: f"correspondence {pairs} {digest(backbone)}")


def found_again(first: Tensor, second: Tensor, pairs: int, size: int) -> Tensor:
    """Return `COLUMNS` [B, 3] of region features [B, h, w, D] of images and of their second views.

    size: S; of fewer regions than pairs all count.
    """
    h, w = first.shape[1:3]
    left, right = (functional.normalize(x.flatten(1, 2).float(), dim=2) for x in (first, second))
    similarity, nearest = (left @ right.mT).max(2)
    strongest, region = similarity.topk(min(pairs, h * w), 1)
    matched = nearest.gather(1, region)
    true = torch.arange(h * w, device=first.device).view(h, w).flip(1).flatten()[region]
    places = centers(h, w, size).to(first.device)
    distance = (places[matched] - places[true]).norm(dim=2).mean(1)
    accuracy = 100 * (matched == true).float().mean(1)
    return torch.stack([accuracy, distance, 100 * strongest[:, -1]], 1)


def chance(h: int, w: int, size: int) -> dict[str, float | None]:
    """Return what is expected of a region that is drawn from all with the same probability."""
    places = centers(h, w, size).double()
    return {
        "accuracy": 100 / (h * w),
        "distance": float(torch.cdist(places, places).mean()),
        "similarity": None,
    }
