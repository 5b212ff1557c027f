"""Swin transformer as EsViT runs it: pads, then rolls; any input size (arXiv 2103.14030).

Parameter names are the official ones. Letters as in base.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Ask, Backbone, Logits, Packed
from leanvit.backbones.layers import LayerNorm, Mlp, PreNormBlock, init_linear
from leanvit.config import SwinConfig
from leanvit.core.precision import full
from leanvit.kernels.branches import fits
from leanvit.kernels.linear import Linear
from leanvit.kernels.window_attention import window_attention
from leanvit.kernels.window_branch import window_branch
from leanvit.kernels.windows import WindowLayout, window_layout


class PatchEmbed(nn.Module):
    """Cut a view into patches and embed them; pixels beyond the last whole patch are left out."""

    def __init__(self, patch: int, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = LayerNorm(dim, eps)

    def forward(self, views: Sequence[Tensor]) -> Packed:
        """[B, 3, height, width] views -> packed [N, dim]."""
        maps = [self.proj(view) for view in views]
        tokens = torch.cat([m.flatten(2).mT.reshape(-1, m.shape[1]) for m in maps])
        return Packed(self.norm(tokens), tuple((m.shape[0], *m.shape[2:]) for m in maps))


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours and halve the result's channels; odd sides are zero-padded."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(4 * dim, eps)

    def forward(self, packed: Packed) -> Packed:
        """[N, dim] -> about [N / 4, 2 dim]."""
        merged, shapes = [], []
        for tokens in packed.tokens():
            grid = tokens.grid
            if grid.shape[1] % 2 or grid.shape[2] % 2:
                grid = nn.functional.pad(grid, (0, 0, 0, grid.shape[2] % 2, 0, grid.shape[1] % 2))
            corners = grid.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
            grid = corners.flatten(3)
            merged.append(grid.reshape(-1, grid.shape[-1]))
            shapes.append((grid.shape[0], grid.shape[1], grid.shape[2]))
        return Packed(full(self.reduction(self.norm(torch.cat(merged)))), tuple(shapes))


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for every relative position."""

    undecayed: ClassVar[frozenset[str]] = frozenset({"relative_position_bias_table"})
    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(
            nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02)
        )
        index = relative_position_index(window)
        self.register_buffer("relative_position_index", index, persistent=False)

    def bias(self) -> Tensor:
        """Return the position bias [H, T, T]."""
        side = self.window**2
        index = self.relative_position_index.flatten()
        table = self.relative_position_bias_table.index_select(0, index)
        return table.view(side, side, -1).permute(2, 0, 1)

    def layout(self, packed: Packed) -> WindowLayout:
        """Return which tokens are in which window."""
        layout: WindowLayout = packed.plan[1 if self.shift else 0]
        return layout

    def forward(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Logits]]:
        """[N, dim] -> [N, dim] and, if asked, each view's logits."""
        layout = self.layout(packed)
        x, logits = window_attention(
            self.qkv(packed.x), self.qkv.bias, self.bias(), layout, with_logits=with_logits
        )
        return self.proj(x), [] if logits is None else _by_view(logits, packed, layout)


def _by_view(logits: Tensor, packed: Packed, layout: WindowLayout) -> list[Logits]:
    """Split logits [windows, H, T, T] into those of each view."""
    places = [place[None] for place in layout.places]
    counts = [b * place.shape[1] for (b, _, _), place in zip(packed.shapes, places, strict=True)]
    return [
        Logits(part.unflatten(0, (-1, place.shape[1])), place)
        for part, place in zip(logits.split(counts), places, strict=True)
    ]


def relative_position_index(window: int) -> Tensor:
    """Return [T, T]: the row of the bias table for each pair of places in a window."""
    places = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
    offset = places[:, :, None] - places[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


class SwinBlock(PreNormBlock):
    """Window attention and an MLP."""

    attn: WindowAttention

    def __init__(self, config: SwinConfig, stage: int, window: int, shift: int) -> None:
        dim = config.dim * 2**stage
        attn = WindowAttention(dim, config.heads[stage], window, shift)
        super().__init__(dim, attn, Mlp(dim, config.mlp_ratio), config.norm_eps)

    def attend(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Logits]]:
        """Return the attention's branch; without logits, on the CPU some windows at a time."""
        attn = self.attn
        tables = attn.layout(packed).tables
        if (
            with_logits
            or tables is None
            or not fits(packed.x, attn, self.norm1, attn.qkv, attn.proj)
        ):
            return super().attend(packed, with_logits)
        bias = attn.bias()
        return window_branch(packed.x, self.norm1, attn.qkv, attn.proj, bias, tables), []


class SwinStage(nn.Module):
    """Blocks at one resolution and, but for the last stage, the merging that ends it."""

    window: int
    shift: int

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        side = -(-(config.image_size // config.patch) // 2**stage)  # merging rounds up
        window, shift = config.window, config.window // 2
        if side <= window:  # one window covers the nominal map: nothing to shift (official rule)
            window, shift = side, 0
        self.window, self.shift = window, shift
        self.blocks = nn.ModuleList(
            SwinBlock(config, stage, window, shift * (index % 2))
            for index in range(config.depths[stage])
        )
        self.downsample = (
            PatchMerging(config.dim * 2**stage, config.norm_eps)
            if stage < len(config.depths) - 1
            else None
        )


class Swin(Backbone):
    """Swin transformer; view feature: mean of the final tokens, region features: those tokens."""

    can: ClassVar[frozenset[str]] = frozenset({"fill", "logits"})
    config: SwinConfig

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        stages = len(config.depths)
        self.stage_dims = tuple(config.dim * 2**stage for stage in range(stages))
        self.stage_strides = tuple(config.patch * 2**stage for stage in range(stages))
        self.stage_ends = tuple(blocks - 1 for blocks in accumulate(config.depths))
        self.patch_embed = PatchEmbed(config.patch, config.dim, config.norm_eps)
        self.layers = nn.ModuleList(SwinStage(config, stage) for stage in range(stages))
        self.norm = LayerNorm(self.feature_dim, config.norm_eps)
        init_linear(self)

    def embed(self, views: Sequence[Tensor], ask: Ask) -> Packed:
        """Embed patches; hidden ones are replaced by the given token."""
        packed: Packed = self.patch_embed(views)
        return self._laid_out(packed.filled(ask.fill), 0)

    def _laid_out(self, packed: Packed, stage: int) -> Packed:
        """Add the stage's window layouts, outside the blocks, so that these compile cleanly."""
        window, shift = self.stages[stage].window, self.stages[stage].shift
        skip = self.config.skip_padding
        layouts = (
            window_layout(packed.shapes, window, moved, packed.x.device, skip)
            for moved in (0, shift)
        )
        return replace(packed, plan=tuple(layouts))

    @property
    def stages(self) -> list[SwinStage]:
        """The stages in order."""
        return list(self.layers)  # type: ignore[arg-type]

    def blocks(self) -> Iterator[SwinBlock]:
        """Yield the blocks of all stages in order."""
        for stage in self.stages:
            yield from stage.blocks  # type: ignore[misc]

    def after_block(self, index: int, packed: Packed) -> Packed:
        """Merge patches at the end of every stage but the last."""
        if index not in self.stage_ends[:-1]:
            return packed
        stage = self.stage_ends.index(index)
        merge = self.stages[stage].downsample
        assert merge is not None
        return self._laid_out(merge(packed), stage + 1)

    def param_layers(self) -> Iterator[tuple[str, int]]:
        """Yield names and depths; a merging belongs to the last block before it."""
        starts = [0, *(end + 1 for end in self.stage_ends)]
        for name, _ in self.named_parameters():
            parts = name.split(".")
            if parts[0] == "patch_embed":
                yield name, 0
            elif parts[0] == "norm":
                yield name, self.depth + 1
            elif parts[2] == "blocks":
                yield name, starts[int(parts[1])] + int(parts[3]) + 1
            else:
                yield name, self.stage_ends[int(parts[1])] + 1
