"""Projection heads and the center of the teacher's logits.

Letters: N rows, d backbone channels, D bottleneck width, K prototypes.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.layers import init_linear
from leanvit.config import HeadConfig
from leanvit.core.distributed import all_sum
from leanvit.core.precision import full, unrounded
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.kernels.linear import Linear
from leanvit.kernels.prototypes import Projection


class Prototypes(nn.Module):
    """K prototypes as direction and length (weight norm); parameter names are the official ones."""

    undecayed: ClassVar[frozenset[str]] = frozenset({"weight_g"})

    def __init__(self, prototypes: int, bottleneck: int, train_gain: bool) -> None:
        super().__init__()
        bound = bottleneck**-0.5
        directions = nn.init.uniform_(torch.empty(prototypes, bottleneck), -bound, bound)
        self.weight_v = nn.Parameter(directions)
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=train_gain)

    def forward(self) -> Tensor:
        """Return the prototypes [K, D]."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def scores(self, row: Tensor) -> Tensor:
        """Return the products [K] of the prototypes with a row [D], without making them."""
        return (self.weight_v @ row) * (self.weight_g[:, 0] / self.weight_v.norm(dim=1))


class Head(nn.Module):
    """MLP to a unit bottleneck, beside K prototypes (DINO's head)."""

    def __init__(self, channels: int, config: HeadConfig) -> None:
        super().__init__()
        widths = (channels, config.hidden, config.hidden)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            norm = [SyncBatchNorm(narrow)] if config.batch_norm else []
            layers += [Linear(wide, narrow), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, Linear(config.hidden, config.bottleneck))
        init_linear(self.mlp)
        self.last_layer = Prototypes(config.prototypes, config.bottleneck, config.train_gain)

    def forward(self, x: Tensor) -> Projection:
        """Features [N, d] -> unit rows [N, D] and prototypes [K, D], both fp32 or wider."""
        with unrounded(x):
            prototypes = self.last_layer()
        rows = functional.normalize(full(self.mlp(x)), dim=-1)
        return Projection(rows, prototypes)


class Center(nn.Module):
    """Moving mean of the teacher's logits, from bottleneck rows alone.

    The mean of the logits is the prototypes applied to the mean row, so no K-wide row is needed
    and processes exchange D numbers. Rows are collected over a step's micro-batches, all of which
    see the same center; it moves once, in `update`. Under DDP buffers must not be broadcast
    (`broadcast_buffers=False`): what a process collected is its own until then.
    """

    value: Tensor
    row_sum: Tensor
    rows: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(config.prototypes))
        self.register_buffer("row_sum", torch.zeros(config.bottleneck), persistent=False)
        self.register_buffer("rows", torch.zeros(()), persistent=False)

    def key_bias(self, temperature: float) -> Tensor:
        """Return what the loss adds to the teacher's scaled logits [K]."""
        return -self.value / temperature

    @torch.no_grad()
    def collect(self, rows: Tensor) -> None:
        """Remember teacher rows [N, D] of this step."""
        self.row_sum += rows.sum(0)
        self.rows += len(rows)

    @torch.no_grad()
    def update(self, prototypes: Prototypes, momentum: float) -> None:
        """Move towards the mean logit of the collected rows of all processes, then forget them.

        prototypes: those that the rows were compared with. Without rows it stays.
        """
        collected = all_sum(torch.cat([self.row_sum, self.rows[None]]))
        mean = prototypes.scores(collected[:-1] / collected[-1].clamp_min(1))
        self.value.lerp_(torch.where(collected[-1] > 0, mean, self.value), 1 - momentum)
        self.row_sum.zero_()
        self.rows.zero_()
