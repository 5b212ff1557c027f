"""The contract of a method: views in, loss terms out; it knows no optimiser, file or process.

Letters: V views, B images, L blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanvit.backbones.base import Ask, Backbone
from leanvit.config import Schedule
from leanvit.core import random
from leanvit.core.precision import to_device
from leanvit.core.schedules import schedule_value
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.data.views import ViewSpec


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in the run a step lies."""

    step: int
    """Number of the step, from 0."""
    run: int
    """Steps in the run."""
    epoch: int
    """Number of the pass over the images, from 0."""
    seed: int
    """Seed of the run."""

    def value(self, schedule: Schedule) -> float:
        """Return the value of a schedule now."""
        return schedule_value(schedule, self.step, self.run)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step found; tensors stay on their device."""

    total: Tensor
    """The scalar that is minimised."""
    terms: Mapping[str, Tensor]
    """Its parts before weighting."""
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """Other scalars worth a curve."""


class Method(nn.Module):
    """A way to learn. All state lives in parameters and buffers."""

    def views(self) -> ViewSpec | None:
        """Return the views that a batch must hold; None if the method takes images as they are."""
        raise NotImplementedError

    def forward(self, batch: Any, at: Moment) -> StepOutput:
        """Run one (micro-)batch of what `views` asked for.

        Changes nothing that another micro-batch of the step can see.
        """
        raise NotImplementedError

    def after_step(self, at: Moment, sound: Tensor) -> None:
        """Move what moves once a step, after the weights: centers, averages, queues.

        sound: a scalar on the device, 1, or 0 for a step that is to leave no trace. Parameters that
        move here respect it; buffers need not, since the loop puts them back.
        """

    def encoder(self) -> Backbone:
        """Return the weights that evaluation and export see."""
        raise NotImplementedError

    def learner(self) -> Backbone | None:
        """Return the network that takes the gradients, where it is not the encoder."""
        return None

    def backbones(self) -> list[Backbone]:
        """Return every backbone that begins with the weights that a run starts from."""
        return [network for network in (self.encoder(), self.learner()) if network is not None]

    def part(self, name: str) -> str:
        """Return the module that a trained parameter counts to, in norms and clipping."""
        return name.split(".")[0]

    def frozen(self, at: Moment) -> list[nn.Parameter]:
        """Return the parameters that get no gradient and no update now, used or not."""
        return []

    def coupled(self) -> bool:
        """Whether batch norm couples the images of a batch, so that a step cannot be split."""
        return any(isinstance(module, SyncBatchNorm) for module in self.modules())


COPIES = 1 << 40
"""What keys of an image's copies lie apart: more than any source has images."""


def keep_mask(
    rates: list[float], views: int, index: Tensor, at: Moment, copy: Tensor | None = None
) -> Tensor | None:
    """Draw stochastic depth for every (view, image, block, branch): `Ask.drop` [L, 2, V * B].

    Keyed by (seed, epoch, image, copy), so it does not depend on batch size, rank or resume.
    """
    if not any(rates):
        return None
    shape = (len(rates), 2, views)
    each = index.numpy() if copy is None else (index + COPIES * copy).numpy()
    units = random.units_of_each(
        at.seed, "drop path", at.epoch, each=each, count=int(np.prod(shape))
    ).T.reshape(*shape, len(index))
    kept = units >= np.asarray(rates).reshape(-1, 1, 1, 1)
    return torch.from_numpy(kept).flatten(2)


def kept_patches(share: float, patches: int, views: int, index: Tensor, at: Moment) -> Tensor:
    """Draw which patches a learner sees of views alike where it misses a share: [V * B, n].

    PatchDropout, arXiv 2208.07220; patches: of one view. Keyed as stochastic depth is; `Ask.keep`.
    """
    count = max(round((1 - share) * patches), 1)
    units = random.units_of_each(
        at.seed, "token dropout", at.epoch, each=index.numpy(), count=views * patches
    )
    noise = torch.from_numpy(units).unflatten(1, (views, patches)).transpose(0, 1)
    return noise.argsort(dim=-1, stable=True)[..., :count].flatten(0, 1)


def learner_ask(
    backbone: Backbone,
    views: int,
    index: Tensor,
    at: Moment,
    device: torch.device,
    copy: Tensor | None = None,
) -> Ask:
    """Draw what a learner's pass over `views` views of each image is asked with.

    index, copy: [B] as in `ViewBatch`.
    """
    drop = keep_mask(backbone.drop_rates(), views, index, at, copy)
    neighbors = neighbor_draw(backbone, at)
    drop, neighbors = (
        None if draw is None else to_device(draw, device) for draw in (drop, neighbors)
    )
    return Ask(drop=drop, neighbors=neighbors)


def neighbor_draw(backbone: Backbone, at: Moment) -> Tensor | None:
    """Draw the neighbour that the chunks of each block see in a step: `Ask.neighbors` [L].

    None for a backbone that sees all. Keyed by (seed, step), so it is the same on every rank.
    """
    if not backbone.draws_neighbors:
        return None
    units = random.units(at.seed, "neighbors", at.step, count=backbone.depth)
    return torch.from_numpy((8 * units).astype(np.int64))
