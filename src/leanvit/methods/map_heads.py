"""Heads that give every place of an image the scores of classes.

Letters: B images, C classes, D channels, h and w rows and columns.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Backbone, Tokens
from leanvit.methods.pyramid import Pyramid

GROUPS = 32
"""Groups of channels that are normed together: no batch is needed, so that steps may be split."""
LEAST = 4
"""Channels of a group at the least: a pooled map of one place has no other numbers to norm by."""
POOLS = (1, 2, 3, 6)
"""Sides of the grids that UPerNet pools the coarsest map to."""


class MapHead(nn.Module):
    """What all heads have in common."""

    blocks: tuple[int, ...] = ()
    """Of the backbone, whose outputs the head takes besides the final regions."""

    def forward(self, final: Tokens, hidden: Sequence[Tokens]) -> Tensor:
        """Return scores [B, C, h, w] of final regions and of the outputs of `blocks`."""
        raise NotImplementedError


class LinearMap(MapHead):
    """One linear layer on the final regions: what they say by themselves."""

    def __init__(self, backbone: Backbone, channels: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(backbone.feature_dim, classes, 1)

    def forward(self, final: Tokens, hidden: Sequence[Tokens]) -> Tensor:
        """Return scores [B, C, h, w] at the stride of the final regions."""
        scores: Tensor = self.score(final.grid.movedim(-1, 1))
        return scores


class PyramidHead(MapHead):
    """A head on a pyramid of the backbone."""

    def __init__(self, backbone: Backbone, channels: int, classes: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(backbone, spread=True)
        self.blocks = self.pyramid.blocks
        self.score = nn.Conv2d(channels, classes, 1)

    def forward(self, final: Tokens, hidden: Sequence[Tokens]) -> Tensor:
        """Return scores [B, C, h, w] at the finest map's stride."""
        scores: Tensor = self.score(self.fused(self.pyramid(final, hidden)))
        return scores

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """Return one map [B, channels, h, w] of those of the pyramid."""
        raise NotImplementedError


class SemanticFPN(PyramidHead):
    """Semantic FPN (arXiv 1901.02446): a feature pyramid whose levels are brought to the finest.

    Each level is convolved and doubled in size until it is as fine as the finest; their sum is
    scored.
    """

    def __init__(self, backbone: Backbone, channels: int, classes: int) -> None:
        super().__init__(backbone, channels, classes)
        strides = self.pyramid.strides
        self.top_down = TopDown(self.pyramid.dims, channels)
        doublings = [round(math.log2(stride / strides[0])) for stride in strides]
        self.levels = nn.ModuleList(
            nn.Sequential(*(_convolved(channels, channels) for _ in range(max(count, 1))))
            for count in doublings
        )

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the sum of all levels at the finest map's stride."""
        size = maps[0].shape[-2:]
        levels = zip(self.levels, self.top_down(maps), strict=True)
        return torch.stack([_refined(level, found, size) for level, found in levels]).sum(0)


class UPerNet(PyramidHead):
    """UPerNet (arXiv 1807.10221): pooled context on top, a feature pyramid, all levels fused."""

    def __init__(self, backbone: Backbone, channels: int, classes: int) -> None:
        super().__init__(backbone, channels, classes)
        *finer, last = self.pyramid.dims
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), _convolved(last, channels, 1))
            for side in POOLS
        )
        self.context = _convolved(last + len(POOLS) * channels, channels)
        self.top_down = TopDown((*finer, channels), channels)
        self.fuse = _convolved((len(finer) + 1) * channels, channels)

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """Return all levels side by side at the finest map's stride, convolved to one."""
        *finer, last = maps
        size = last.shape[-2:]
        pooled = [_resized(pool(last), size) for pool in self.pools]
        top = self.context(torch.cat([last, *pooled], 1))
        levels = self.top_down([*finer, top])
        fused = torch.cat([_resized(level, maps[0].shape[-2:]) for level in levels], 1)
        found: Tensor = self.fuse(fused)
        return found


class TopDown(nn.Module):
    """A feature pyramid network (arXiv 1612.03144): coarse maps are added to finer ones."""

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in dims)
        self.outer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in dims)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps of equal width, the finest first."""
        inner = [layer(one) for layer, one in zip(self.inner, maps, strict=True)]
        for finer in range(len(inner) - 2, -1, -1):
            coarse = functional.interpolate(inner[finer + 1], inner[finer].shape[-2:])
            inner[finer] = inner[finer] + coarse
        return [layer(one) for layer, one in zip(self.outer, inner, strict=True)]


def _convolved(dim: int, channels: int, side: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, channels, side, padding=side // 2, bias=False),
        nn.GroupNorm(math.gcd(GROUPS, max(channels // LEAST, 1)), channels),
        nn.ReLU(inplace=True),
    )


def _refined(level: nn.Module, found: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map after its convolutions, each followed by a doubling until it has the size."""
    assert isinstance(level, nn.Sequential)
    for convolved in level:
        found = convolved(found)
        doubled = [min(2 * side, most) for side, most in zip(found.shape[-2:], size, strict=True)]
        found = _resized(found, doubled)
    return _resized(found, size)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


HEADS: Mapping[str, Callable[[Backbone, int, int], MapHead]] = MappingProxyType(
    {"linear": LinearMap, "fpn": SemanticFPN, "upernet": UPerNet}
)
"""Head by name: backbone, width of the head, classes C."""
