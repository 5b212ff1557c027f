"""Maps of several strides from any backbone: what heads for dense tasks stand on.

Letters: B images, D channels, h and w rows and columns of a grid.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import PLAIN, Ask, Backbone, Tokens, evaluating
from leanvit.backbones.layers import LayerNorm

FINEST = 4
"""Stride that the finest map of a single-scale network comes near to, in pixels."""
LEVELS = 4
"""Maps of a single-scale network: strides 4, 8, 16, 32, as multi-stage networks have them."""


class ChannelNorm(LayerNorm):
    """Layer norm over the channels of maps [B, D, h, w]."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels of every place."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Pyramid(nn.Module):
    """Maps [B, D_i, h_i, w_i], the finest first.

    Of a multi-stage network one for the end of each stage, the last by its own final norm and the
    others by a new one (as Swin, arXiv 2103.14030, is used for detection). Of a single-scale
    network four, made by transposed convolutions and pooling (arXiv 2203.16527): all from the
    final regions, or, with `spread`, from the outputs of blocks a third, a half, two thirds and
    all of the way up (as the lightweight study's Semantic FPN, arXiv 2404.12210).
    """

    def __init__(self, backbone: Backbone, *, spread: bool) -> None:
        super().__init__()
        self.dims: tuple[int, ...]
        """D_i."""
        self.strides: tuple[float, ...]
        """Pixels between neighbouring places of each map."""
        self.blocks: tuple[int, ...]
        """Whose outputs are the maps before the last."""
        if len(backbone.stage_ends) > 1:
            self._from_stages(backbone)
        else:
            self._from_one_scale(backbone, spread)

    def _from_stages(self, backbone: Backbone) -> None:
        self.blocks = tuple(backbone.stage_ends[:-1])
        self.dims = (*backbone.stage_dims[:-1], backbone.feature_dim)
        self.strides = tuple(map(float, backbone.stage_strides))
        self.norms = nn.ModuleList(ChannelNorm(dim) for dim in self.dims[:-1])
        self.scales = nn.ModuleList(nn.Identity() for _ in self.dims)

    def _from_one_scale(self, backbone: Backbone, spread: bool) -> None:
        depth, dim = backbone.depth, backbone.feature_dim
        self.blocks = (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1) if spread else ()
        if min(self.blocks, default=0) < 0:
            raise ValueError(
                f"A network of {depth} blocks is too shallow for a pyramid; 3 at least."
            )
        up = round(math.log2(backbone.stride / FINEST))
        powers = [up - level for level in range(LEVELS)]
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in self.blocks)
        self.scales = nn.ModuleList(_rescaled(dim, power) for power in powers)
        self.dims = tuple(dim // 2 ** max(power, 0) for power in powers)
        self.strides = tuple(backbone.stride / 2.0**power for power in powers)

    def forward(self, final: Tokens, hidden: Sequence[Tokens]) -> list[Tensor]:
        """Return the maps of final regions and of the outputs of `blocks`."""
        last = _as_map(final)
        maps = [norm(_as_map(one)) for norm, one in zip(self.norms, hidden, strict=True)]
        maps += [last] * (len(self.scales) - len(maps))
        return [scale(one) for scale, one in zip(self.scales, maps, strict=True)]


def _as_map(tokens: Tokens) -> Tensor:
    return tokens.grid.movedim(-1, 1)


def _rescaled(dim: int, power: int) -> nn.Module:
    """Return what makes a map 2^power times as fine; every doubling halves the channels."""
    if power <= 0:
        return nn.MaxPool2d(2**-power, ceil_mode=True) if power else nn.Identity()
    parts: list[nn.Module] = []
    for step in range(power):
        width = dim // 2**step
        if step:
            parts += [ChannelNorm(width), nn.GELU()]
        parts.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
    return nn.Sequential(*parts)


def look(
    backbone: Backbone, images: Tensor, blocks: tuple[int, ...], ask: Ask = PLAIN, *, frozen: bool
) -> tuple[Tokens, tuple[Tokens, ...]]:
    """Return the final regions of images [B, 3, height, width], and the outputs of blocks.

    Images of any size are padded at the right and below, with zeros after normalisation, to whole
    regions. A frozen backbone gets no gradient and sees as it does in use. ask: the draws of a
    training step.
    """
    multiple = region_side(backbone)
    height, width = images.shape[-2:]
    padded = functional.pad(images, (0, -width % multiple, 0, -height % multiple))
    ask = Ask(hidden=blocks, drop=ask.drop, neighbors=ask.neighbors)
    if frozen:
        with torch.no_grad(), evaluating(backbone):
            (found,) = backbone([padded], ask)
    else:
        (found,) = backbone([padded], ask)
    return Tokens(found.grid, None), found.hidden


def region_side(backbone: Backbone) -> int:
    """Return the pixels of a side that images of whole regions are a multiple of."""
    return max(backbone.stride, backbone.config.patch)
