"""Vision Longformer as EsViT runs it: sliding chunks and global tokens (arXiv 2103.15358).

Names within attention are the official ones. Letters as in base.py, and in each stage g global
tokens an image, n = h * w tokens of a grid.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Ask, Logits, Packed, StagedBackbone, Tokens
from leanvit.backbones.layers import LayerNorm, Mlp, PreNormBlock, init_linear
from leanvit.backbones.swin import relative_position_index
from leanvit.config import ViLConfig
from leanvit.core.precision import unrounded
from leanvit.core.tracing import once_per_size
from leanvit.kernels.attention import attend
from leanvit.kernels.chunk_attention import (
    ChunkLayout,
    chunk_attention,
    chunk_layout,
    logits_of_pairs,
    one_neighbor,
)
from leanvit.kernels.linear import Linear


class PatchEmbed(nn.Module):
    """Embed patches of a map and put the stage's global tokens first."""

    undecayed: ClassVar[frozenset[str]] = frozenset({"cls_token"})

    def __init__(self, channels: int, dim: int, patch: int, prefix: int) -> None:
        super().__init__()
        if prefix:
            self.cls_token = nn.Parameter(_normal(1, prefix, dim))
        self.prefix = prefix
        self.proj = nn.Conv2d(channels, dim, patch, patch)
        self.norm = LayerNorm(dim)

    def forward(self, maps: Sequence[Tensor], fill: tuple[Tensor, Tensor] | None = None) -> Packed:
        """[B, channels, height, width] maps -> packed tokens; `fill` as in `Ask`."""
        maps = [self.proj(m) for m in maps]
        x = self.norm(torch.cat([m.flatten(2).mT.flatten(0, 1) for m in maps]))
        packed = Packed(x, tuple((m.shape[0], *m.shape[2:]) for m in maps)).filled(fill)
        if not self.prefix:
            return packed
        images = [
            torch.cat([self.cls_token.expand(view.shape[0], -1, -1), view], 1).flatten(0, 1)
            for view in packed.views()
        ]
        return replace(packed, x=torch.cat(images), prefix=self.prefix)


def _normal(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(*shape), std=0.02)


class RelativeAttention(nn.Module):
    """Attention whose logits have a learned bias for relative positions and for global tokens."""

    undecayed: ClassVar[frozenset[str]] = frozenset(
        {
            "local_relative_position_bias_table",
            "g2l_relative_position_bias",
            "g2g_relative_position_bias",
        }
    )

    def __init__(self, heads: int, rows: int, prefix: int) -> None:
        super().__init__()
        self.heads, self.prefix = heads, prefix
        self.local_relative_position_bias_table = nn.Parameter(_normal(rows, heads))
        if prefix:
            self.g2l_relative_position_bias = nn.Parameter(_normal(2, heads, prefix))
            self.g2g_relative_position_bias = nn.Parameter(_normal(heads, prefix, prefix))

    def local(self, index: Tensor) -> Tensor:
        """Return the bias [H, a, b] of pairs of grid tokens, by their rows of the table [a, b]."""
        table = self.local_relative_position_bias_table.index_select(0, index.flatten())
        return table.view(*index.shape, -1).permute(2, 0, 1)

    def of_global(self, tokens: int) -> Tensor:
        """Return the bias [H, g, g + n] of what global tokens see."""
        others = self.g2l_relative_position_bias[0, ..., None].expand(-1, -1, tokens)
        return torch.cat([self.g2g_relative_position_bias, others], 2)

    def to_global(self, tokens: int) -> Tensor:
        """Return the bias [H, n, g] of how grid tokens see global ones."""
        return self.g2l_relative_position_bias[1, :, None].expand(-1, tokens, -1)

    def split(self, x: Tensor, parts: int) -> Tensor:
        """[B, T, parts * dim] -> [parts, B, H, T, d]."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


def _logits(values: Tensor) -> Logits:
    """Return logits [B, H, T, T] of all tokens of a view as those of one window."""
    return Logits(values[:, None], torch.arange(values.shape[-1], device=values.device)[None, None])


class ChunkAttention(RelativeAttention):
    """Grid tokens see the chunks around them and the global tokens; these see everything.

    Both use the same projections, as the published networks do.
    """

    def __init__(self, dim: int, heads: int, window: int, prefix: int) -> None:
        super().__init__(heads, (4 * window - 1) ** 2, prefix)
        self.query = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Logits]]:
        """[N, dim] -> [N, dim] and, if asked, each view's logits."""
        layout: ChunkLayout = packed.plan
        if packed.neighbor is not None:
            layout = one_neighbor(layout, packed.neighbor)
        q, kv = self.query(packed.x), self.kv(packed.x)
        bias = torch.cat([self.local(layout.offsets), self.to_global(len(layout.offsets))], 2)
        attended, logits = chunk_attention(q, kv, bias, layout, with_logits)
        of_global, rows = self._of_global(packed, q, kv, with_logits)
        out = self.proj(attended.index_copy(0, layout.prefixes, of_global))
        if not with_logits:
            return out, []
        pairs = logits_of_pairs(logits, layout, packed.shapes, packed.prefix)
        return out, [_logits(torch.cat(both, 2)) for both in zip(rows, pairs, strict=True)]

    def _of_global(
        self, packed: Packed, q: Tensor, kv: Tensor, with_logits: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what the global tokens of all images see [I * g, dim], and their logits."""
        attended, found = [], []
        for queries, seen in zip(packed.views(q), packed.views(kv), strict=True):
            (own,) = self.split(queries[:, : self.prefix], 1)
            k, v = self.split(seen, 2)
            bias = self.of_global(seen.shape[1] - self.prefix)[None]
            out, logits = attend(own, k, v, bias, with_logits=with_logits)
            attended.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
            found += [] if logits is None else [logits]
        return torch.cat(attended), found


class FullAttention(RelativeAttention):
    """Every token sees every token of its image."""

    index: Tensor

    def __init__(self, dim: int, heads: int, side: int, prefix: int) -> None:
        super().__init__(heads, (2 * side - 1) ** 2, prefix)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.register_buffer("index", relative_position_index(side), persistent=False)

    def forward(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Logits]]:
        """[N, dim] -> [N, dim] and, if asked, each view's logits."""
        nominal = self.local(self.index)
        attended, found = [], []
        for qkv, resize in zip(packed.views(self.qkv(packed.x)), packed.plan, strict=True):
            q, k, v = self.split(qkv, 3)
            out, logits = attend(
                q, k, v, self._bias(nominal, resize)[None], with_logits=with_logits
            )
            attended.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
            found += [] if logits is None else [_logits(logits)]
        return self.proj(torch.cat(attended)), found

    def _bias(self, bias: Tensor, resize: Tensor | None) -> Tensor:
        """Return [H, T, T] from the bias [H, side^2, side^2] of the nominal grid."""
        if resize is not None:
            with unrounded(bias):
                bias = resize @ bias @ resize.mT
        if not self.prefix:
            return bias
        tokens = bias.shape[1]
        grid = torch.cat([self.to_global(tokens), bias], 2)
        return torch.cat([self.of_global(tokens), grid], 1)


@once_per_size
def resize_matrix(
    side: int, rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Return what turns a bias [side^2, side^2] into that of another grid, from both sides.

    [rows * columns, side^2], None for the nominal grid. As in the official code, the matrix is
    resized bicubically as if it were an image. That is defined for square grids; another grid
    takes the rows and columns of the square of its longer side that it covers.
    """
    if (rows, columns) == (side, side):
        return None
    longer = max(rows, columns)
    eye = torch.eye(side**2, dtype=torch.float64)[None, None]
    square = functional.interpolate(eye, (longer**2, side**2), mode="bicubic")
    return square.view(longer, longer, -1)[:rows, :columns].flatten(0, 1).to(device, dtype)


class ViLStage(nn.Module):
    """Patch embedding and blocks at one resolution."""

    def __init__(self, config: ViLConfig, stage: int) -> None:
        super().__init__()
        dim, heads, prefix = config.dims[stage], config.heads[stage], config.global_tokens[stage]
        self.sparse = stage < config.sparse_stages
        self.window = config.window
        self.side = -(-(config.image_size // config.patch) // 2**stage)  # embedding rounds up
        self.embed = PatchEmbed(
            config.dims[stage - 1] if stage else 3, dim, 2 if stage else config.patch, prefix
        )
        self.blocks = nn.ModuleList(
            PreNormBlock(
                dim,
                ChunkAttention(dim, heads, config.window, prefix)
                if self.sparse
                else FullAttention(dim, heads, self.side, prefix),
                Mlp(dim, config.mlp_ratio),
            )
            for _ in range(config.depths[stage])
        )

    def forward(self, maps: Sequence[Tensor], fill: tuple[Tensor, Tensor] | None = None) -> Packed:
        """Embed maps and add what the blocks need to know of their sizes."""
        packed: Packed = self.embed(maps, fill)
        x = packed.x
        if self.sparse:
            layout = chunk_layout(packed.shapes, packed.prefix, self.window, x.device)
            return replace(packed, plan=layout)
        resizes = (resize_matrix(self.side, h, w, x.device, x.dtype) for _, h, w in packed.shapes)
        return replace(packed, plan=tuple(resizes))


class ViL(StagedBackbone):
    """Vision Longformer; region features: the final grid.

    View feature: the first global token, or the mean of the grid where a stage has none, as the
    last one of the published networks.
    """

    can: ClassVar[frozenset[str]] = frozenset({"fill", "logits", "neighbors"})
    config: ViLConfig

    def __init__(self, config: ViLConfig) -> None:
        super().__init__(config)
        self.stage_dims = config.dims
        self.stage_strides = tuple(config.patch * 2**stage for stage in range(len(config.dims)))
        self.stage_ends = tuple(blocks - 1 for blocks in accumulate(config.depths))
        self.stages = nn.ModuleList(ViLStage(config, stage) for stage in range(len(config.dims)))
        self.norm = LayerNorm(self.feature_dim)
        init_linear(self)

    @property
    def draws_neighbors(self) -> bool:
        """Whether a learner's chunks see one neighbour a step."""
        return self.config.neighbors == "one"

    def embed(self, views: Sequence[Tensor], ask: Ask) -> Packed:
        """Embed patches, hide, put the first stage's global tokens first."""
        packed: Packed = self.stages[0](views, ask.fill)
        return packed

    def after_block(self, index: int, packed: Packed) -> Packed:
        """Embed 2 x 2 neighbours at the end of every stage but the last; odd sides are padded.

        The stage's global tokens end here.
        """
        if index not in self.stage_ends[:-1]:
            return packed
        maps = [tokens.grid.permute(0, 3, 1, 2) for tokens in packed.tokens()]
        padded = [functional.pad(m, (0, m.shape[3] % 2, 0, m.shape[2] % 2)) for m in maps]
        following: Packed = self.stages[self.stage_ends.index(index) + 1](padded)
        return following

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the first global token; the mean of the grid where there is none."""
        return super().pool(tokens) if tokens.prefix is None else tokens.prefix[:, 0]
