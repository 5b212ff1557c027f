"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a student's views.

Images are mixed in pairs of neighbours, 0 with 1, 2 with 3, so that the result does not depend on
how a batch is split over micro-batches or processes. One share is drawn for each view of a step.
Letters: V_g views of one size, B images, S side in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from leanvit.config import MixConfig
from leanvit.core import random
from leanvit.core.precision import to_device
from leanvit.losses.view import Mixing


def mix_views(
    groups: Sequence[Tensor], config: MixConfig, seed: int, step: int
) -> tuple[list[Tensor], Mixing | None]:
    """Mix the first `config.views` views of groups [V_g, B, 3, S, S].

    Returns the groups and how they were mixed; None where nothing was.
    """
    if not config.views:
        return list(groups), None
    draw = random.generator(seed, "mix", step)
    mixed: list[Tensor] = []
    own: list[float] = []
    for group in groups:
        if len(own) >= config.views:
            own += [1.0] * len(group)
            mixed.append(group)
            continue
        views = list(group)
        for number, view in enumerate(views):
            if len(own) < config.views:
                views[number], share = _mix(view, config, draw)
                own.append(share)
            else:
                own.append(1.0)
        mixed.append(torch.stack(views))
    device = groups[0].device
    partner = torch.arange(groups[0].shape[1], device=device) ^ 1
    shares = to_device(torch.tensor(own, dtype=torch.float64), device)
    return mixed, Mixing(partner, shares, config.views)


def _mix(view: Tensor, config: MixConfig, draw: np.random.Generator) -> tuple[Tensor, float]:
    """Mix one view [B, 3, S, S]; return it and the share of its own image."""
    partner = view.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    if config.cutmix and (not config.mixup or draw.random() < config.switch):
        return _cut(view, partner, draw.beta(config.cutmix, config.cutmix), draw)
    share = float(draw.beta(config.mixup, config.mixup))
    return view * share + partner * (1 - share), share


def _cut(
    view: Tensor, partner: Tensor, share: float, draw: np.random.Generator
) -> tuple[Tensor, float]:
    """Put a box of the partner's pixels into the view; boxes at the border are cut off."""
    height, width = view.shape[-2:]
    half = np.sqrt(1 - share) / 2
    rows, columns = (
        slice(
            int(max((center - half) * side, 0)),
            int(min((center + half) * side, side)),
        )
        for center, side in zip(draw.random(2), (height, width), strict=True)
    )
    mixed = view.clone()
    mixed[..., rows, columns] = partner[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)
