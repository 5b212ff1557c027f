"""Convolutional vision transformer as EsViT runs it: in windows, any input size (arXiv 2103.15808).

Letters as in base.py; S slots of a view: the places of its maps, zero-padded to whole windows.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Ask, Logits, Packed, StagedBackbone
from leanvit.backbones.layers import LayerNorm, PreNormBlock, init_linear
from leanvit.backbones.swin import relative_position_index
from leanvit.config import CvTConfig
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.kernels.attention import attend
from leanvit.kernels.linear import linear
from leanvit.kernels.windows import window_layout

Triple = tuple[int, int, int]
"""(B, h, w) of a view, or the side of its windows and how many lie down and across."""

SLOPE = 1.702
"""Of QuickGELU."""

EPS = 1e-5
"""Of the layer norms: torch's own, unlike EsViT's Swin."""


class Plan(NamedTuple):
    """How the map of each view is cut into windows."""

    windows: tuple[Triple, ...]
    """Their side, and how many lie down and across."""
    places: tuple[Tensor, ...]
    """[W, T] row-major place of each slot in the map, -1 for padding."""


class Pointwise(nn.Linear):
    """A 1 x 1 convolution of single tokens [N, C]; the weight has a convolution's shape."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out)
        self.weight = nn.Parameter(self.weight.detach()[:, :, None, None])

    def forward(self, input: Tensor) -> Tensor:
        """[N, C] -> [N, out]."""
        return linear(input, self.weight.flatten(1), self.bias)


class Mlp(nn.Module):
    """Two layers with QuickGELU, x * sigmoid(s x), between them; s is 1.702."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = Pointwise(dim, hidden)
        self.fc2 = Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim] -> [N, dim]."""
        out: Tensor = self.fc2(functional.silu(SLOPE * self.fc1(x)) / SLOPE)  # silu keeps less
        return out


class ConvEmbed(nn.Module):
    """A strided convolution, whose kernels overlap, and a norm: what begins a stage."""

    def __init__(self, channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 2 * stride - 1, stride, stride // 2)
        self.norm = LayerNorm(dim, EPS)

    def forward(self, maps: Sequence[Tensor]) -> Packed:
        """[B, channels, height, width] maps -> packed [N, dim]."""
        found = [self.proj(each).permute(0, 2, 3, 1) for each in maps]
        shapes = tuple((b, h, w) for b, h, w, _ in (grid.shape for grid in found))
        return Packed(self.norm(torch.cat([grid.flatten(0, 2) for grid in found])), shapes)


class WindowAttention(nn.Module):
    """Multi-head attention within windows; queries, keys and values come from a convolution.

    The depth-wise convolution and its batch norm run over the padded map: what they make of the
    padding takes part in the attention and is cut off after it. Batch statistics are those of
    the views of one size, and the running ones move once for each size.
    """

    undecayed: ClassVar[frozenset[str]] = frozenset({"relative_position_bias_table"})
    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, *, position_bias: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.scale = dim**-0.5  # of all channels, not of a head's: official weights expect it
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = SyncBatchNorm(dim)
        self.qkv = Pointwise(dim, 3 * dim)
        self.proj = Pointwise(dim, dim)
        self.relative_position_bias_table: nn.Parameter | None = None
        if position_bias:
            table = nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02)
            self.relative_position_bias_table = nn.Parameter(table)
            index = relative_position_index(window)
            self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Logits]]:
        """[N, dim] -> [N, dim] and, if asked, each view's logits."""
        slots = [
            self.norm(self._slots(tokens.grid, windows))
            for tokens, windows in zip(packed.tokens(), packed.plan.windows, strict=True)
        ]
        parts = self.qkv(torch.cat(slots)).split([part.shape[0] for part in slots])
        attended, logits = [], []
        for number, (qkv, shape) in enumerate(zip(parts, packed.shapes, strict=True)):
            out, values = self._attend(qkv, shape, packed.plan.windows[number], with_logits)
            attended.append(out)
            if values is not None:
                where = packed.plan.places[number][None]
                logits.append(Logits(values.unflatten(0, (shape[0], -1)), where))
        return self.proj(torch.cat(attended)), logits

    def _slots(self, grid: Tensor, windows: Triple) -> Tensor:
        """Convolve a padded map [B, h, w, dim] and cut it into windows: [S, dim]."""
        b, h, w, dim = grid.shape
        side, down, across = windows
        grid = functional.pad(grid, (0, 0, 0, across * side - w, 0, down * side - h))
        # channels stay last in memory, where a CPU convolves faster and nothing is transposed
        grid = self.conv(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return grid.reshape(b, down, side, across, side, dim).transpose(2, 3).reshape(-1, dim)

    def _attend(
        self, qkv: Tensor, shape: Triple, windows: Triple, with_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Slots [S, 3 dim] -> tokens [B * h * w, dim] and, if asked, logits [B * W, H, T, T]."""
        (b, h, w), (side, down, across), dim = shape, windows, qkv.shape[1] // 3
        heads = qkv.view(-1, side**2, 3, self.heads, dim // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        bias = self.bias(side)
        out, logits = attend(q, k, v, bias, scale=self.scale, with_logits=with_logits)
        out = out.reshape(b, down, across, self.heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        grid = out.reshape(b, down * side, across * side, dim)
        return grid[:, :h, :w].flatten(0, 2), logits

    def bias(self, side: int) -> Tensor | None:
        """Return the position bias [1, H, T, T] of windows of `side` tokens, if there is one."""
        if self.relative_position_bias_table is None:
            return None
        index = self.relative_position_index.view([self.window] * 4)[:side, :side, :side, :side]
        table = self.relative_position_bias_table.index_select(0, index.flatten())
        return table.view(1, side**2, side**2, -1).permute(0, 3, 1, 2)


def _block(config: CvTConfig, stage: int) -> PreNormBlock:
    dim, heads, bias = config.dims[stage], config.heads[stage], config.position_bias
    attn = WindowAttention(dim, heads, config.window, position_bias=bias)
    return PreNormBlock(dim, attn, Mlp(dim, config.mlp_ratio), EPS)


class CvTStage(nn.Module):
    """An embedding and the blocks at its resolution."""

    def __init__(self, config: CvTConfig, stage: int) -> None:
        super().__init__()
        channels, stride = (config.dims[stage - 1], 2) if stage else (3, config.patch)
        self.embed = ConvEmbed(channels, config.dims[stage], stride)
        self.blocks = nn.ModuleList(_block(config, stage) for _ in range(config.depths[stage]))


class CvT(StagedBackbone):
    """CvT; view feature: mean of the final tokens, region features: those tokens."""

    can: ClassVar[frozenset[str]] = frozenset({"fill", "logits"})
    config: CvTConfig

    def __init__(self, config: CvTConfig) -> None:
        super().__init__(config)
        stages = len(config.depths)
        self.stage_dims = config.dims
        self.stage_strides = tuple(config.patch * 2**stage for stage in range(stages))
        self.stage_ends = tuple(blocks - 1 for blocks in accumulate(config.depths))
        self.stages = nn.ModuleList(CvTStage(config, stage) for stage in range(stages))
        self.norm = LayerNorm(self.feature_dim, EPS)
        init_linear(self)

    def embed(self, views: Sequence[Tensor], ask: Ask) -> Packed:
        """Embed the pixels; hidden tokens are replaced by the given one."""
        return self._begin(0, views).filled(ask.fill)

    def _begin(self, stage: int, maps: Sequence[Tensor]) -> Packed:
        """Return what enters a stage, and how its maps are cut into windows.

        The blocks only multiply these sizes: where they divided them, torch took a minute to
        trace a block whose sizes are symbols.
        """
        packed: Packed = self.stages[stage].embed(maps)  # type: ignore[operator]
        windows, places = [], []
        for _, h, w in packed.shapes:
            side = min(self.config.window, h, w)
            windows.append((side, -(-h // side), -(-w // side)))
            places.append(window_layout(((1, h, w),), side, 0, packed.x.device).places[0])
        return replace(packed, plan=Plan(tuple(windows), tuple(places)))

    def after_block(self, index: int, packed: Packed) -> Packed:
        """Embed anew at the end of every stage but the last."""
        if index not in self.stage_ends[:-1]:
            return packed
        maps = [tokens.grid.permute(0, 3, 1, 2) for tokens in packed.tokens()]
        return self._begin(self.stage_ends.index(index) + 1, maps)
