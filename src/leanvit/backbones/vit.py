"""Plain vision transformer with a class token (arXiv 2010.11929), and what was added to it.

Registers (arXiv 2309.16588), LayerScale (2103.17239), fixed sine-cosine positions (MAE,
2111.06377) and a relative position bias in every block (BEiT, 2106.08254).

Parameter names are timm's, those of the bias BEiT's. Letters as in base.py.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import (
    Ask,
    Backbone,
    Block,
    Logits,
    Packed,
    Tokens,
    end_to_end,
    hide,
)
from leanvit.backbones.layers import LayerNorm, Mlp, init_linear, mlp_of, residual
from leanvit.config import ViTConfig
from leanvit.core.precision import full
from leanvit.kernels.attention import attend
from leanvit.kernels.linear import Linear
from leanvit.kernels.relative_position import Pairs, pairs_of, relative_bias, table_rows


class Plan(NamedTuple):
    """What the blocks know of the tokens of each view."""

    where: tuple[Tensor, ...]
    """[1 or B, T] the tokens' numbers in the whole image."""
    pairs: tuple[Pairs, ...]
    """With a position bias: which entry of it each pair of tokens has."""


class PatchEmbed(nn.Module):
    """Cut a view into patches and embed them."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, view: Tensor) -> Tensor:
        """[B, 3, height, width] -> [B, h, w, dim]."""
        return full(self.proj(view).permute(0, 2, 3, 1))


class LayerScale(nn.Module):
    """A trained factor for every channel."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim] -> [N, dim]."""
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of an image.

    side: of the table's patch grid, where a bias for relative positions is learned; 0 for none.
    It begins with zeros, so that adding one to a trained network changes nothing at first.
    """

    undecayed: ClassVar[frozenset[str]] = frozenset({"relative_position_bias_table"})

    def __init__(self, dim: int, heads: int, side: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = (
            nn.Parameter(torch.zeros(table_rows(side), heads)) if side else None
        )
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Tensor]]:
        """[N, dim] -> [N, dim] and, if asked, each view's logits [B, H, T, T]."""
        attended, logits = [], []
        views = packed.views(self.qkv(packed.x))
        for qkv, bias in zip(views, self.biases(packed), strict=True):
            b, t, width = qkv.shape
            q, k, v = qkv.view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            out, values = attend(q, k, v, bias, with_logits=with_logits)
            logits += [] if values is None else [values]
            attended.append(out.transpose(1, 2).reshape(b * t, width // 3))
        return self.proj(end_to_end(attended)), logits

    def biases(self, packed: Packed) -> list[Tensor | None]:
        """Return the position bias of each view, [1 or B, H, T, T], or None."""
        table = self.relative_position_bias_table
        if table is None:
            return [None] * len(packed.shapes)
        return [relative_bias(table, pairs) for pairs in packed.plan.pairs]


class ViTBlock(Block):
    """Attention and an MLP, each after a norm and beside a residual.

    side: see Attention.
    """

    def __init__(self, config: ViTConfig, side: int) -> None:
        super().__init__()
        dim, scale, eps = config.dim, config.layer_scale, config.norm_eps
        self.norm1 = LayerNorm(dim, eps)
        self.attn = Attention(dim, config.heads, side)
        self.ls1 = LayerScale(dim, scale) if scale else nn.Identity()
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = Mlp(dim, config.mlp_ratio)
        self.ls2 = LayerScale(dim, scale) if scale else nn.Identity()

    def forward(
        self, packed: Packed, scales: tuple[Tensor, Tensor] | None, with_logits: bool
    ) -> tuple[Packed, list[Logits]]:
        """Run the block on the tokens of all views at once."""
        attended, logits = self.attn(packed.with_(self.norm1(packed.x)), with_logits)
        x = residual(packed.x, self.ls1(attended), scales and scales[0])
        found = mlp_of(packed, x, self.norm2, self.mlp)
        x = residual(x, self.ls2(found), scales and scales[1])
        return packed.with_(x), [
            Logits(values[:, None], where[:, None])
            for values, where in zip(logits, packed.plan.where, strict=False)
        ]


class ViT(Backbone):
    """Plain ViT; view feature: class token or mean of the patches, region features: the patches.

    The prefix holds the class token, then the registers. With the norm after the mean (`fc_norm`
    of fine-tuned networks) there is none before it: regions and prefix stay as the last block left
    them.
    """

    can: ClassVar[frozenset[str]] = frozenset({"keep", "fill", "logits"})
    undecayed: ClassVar[frozenset[str]] = frozenset({"cls_token", "reg_token", "pos_embed"})
    config: ViTConfig
    pos_embed: Tensor
    """[1, 1 + side^2, D] of the class token and the patches of a square image; a parameter where
    positions are learned, else a buffer, so that one kind loads what the other saved."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.stage_dims, self.stage_strides = (config.dim,), (config.patch,)
        self.stage_ends = (config.depth - 1,)
        self.grid_side = config.image_size // config.patch
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        self.cls_token = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, 1, config.dim), std=0.02)
        )
        if config.positions == "sincos":
            self.register_buffer("pos_embed", sincos_positions(self.grid_side, config.dim))
        else:
            positions = torch.empty(1, 1 + self.grid_side**2, config.dim)
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        registers = torch.empty(1, config.registers, config.dim)
        self.reg_token = (
            nn.Parameter(nn.init.normal_(registers, std=1e-6)) if config.registers else None
        )
        side = self.grid_side if config.position_bias else 0
        self.layers = nn.ModuleList(ViTBlock(config, side) for _ in range(config.depth))
        norm = LayerNorm(config.dim, config.norm_eps)
        self.norm: nn.Module = nn.Identity() if config.pool == "mean_norm" else norm
        self.fc_norm: nn.Module = norm if config.pool == "mean_norm" else nn.Identity()
        init_linear(self)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the patches' positions [1, rows, columns, D], bicubic where the grid differs.

        Plain bicubic as in DINO, not antialiased as in timm.
        """
        side = self.grid_side
        grid = self.pos_embed[:, 1:].view(1, side, side, -1)
        if (rows, columns) == (side, side):
            return grid
        grid = functional.interpolate(grid.permute(0, 3, 1, 2), (rows, columns), mode="bicubic")
        return grid.permute(0, 2, 3, 1)

    def embed(self, views: Sequence[Tensor], ask: Ask) -> Packed:
        """Embed patches, hide, add positions, drop what is not kept, put the prefix first."""
        sequences, shapes, where, pairs = [], [], [], []
        first = self.cls_token + self.pos_embed[:, :1]
        if self.reg_token is not None:
            first = torch.cat([first, self.reg_token], 1)
        prefix = first.shape[1]
        for number, view in enumerate(views):
            x: Tensor = self.patch_embed(view)
            numbers = torch.arange(x[0, ..., 0].numel() + prefix, device=x.device)[None]
            if ask.fill is not None:
                x = hide(x, ask.fill, (x.shape[0], x.shape[1], x.shape[2]))
            x = x + self.positions(*x.shape[1:3])
            b, h, w, d = x.shape
            if self.config.position_bias:
                pairs.append(pairs_of(h, w, prefix, x.device))
            if ask.keep is not None and number == 0:
                h, w = 1, ask.keep.shape[1]
                numbers = torch.cat([numbers[:, :prefix].expand(b, -1), ask.keep + prefix], 1)
                x = x.flatten(1, 2).gather(1, ask.keep[..., None].expand(-1, -1, d))
                pairs = [pair.among(numbers) for pair in pairs]
            tokens = torch.cat([first.expand(b, -1, -1), x.reshape(b, h * w, d)], 1)
            sequences.append(tokens.flatten(0, 1))
            shapes.append((b, h, w))
            where.append(numbers)
        return Packed(
            end_to_end(sequences),
            tuple(shapes),
            prefix=prefix,
            plan=Plan(tuple(where), tuple(pairs)),
        )

    def blocks(self) -> Iterator[ViTBlock]:
        """Yield the blocks in order."""
        yield from self.layers  # type: ignore[misc]

    def param_layers(self) -> Iterator[tuple[str, int]]:
        """Yield names and depths."""
        for name, _ in self.named_parameters():
            first, second, *_ = (*name.split("."), "")
            if first == "layers":
                yield name, int(second) + 1
            else:
                yield name, self.depth + 1 if first in ("norm", "fc_norm") else 0

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the class token or the mean of the patches, as the configuration says."""
        if self.config.pool == "class" and tokens.prefix is not None:
            return tokens.prefix[:, 0]
        pooled: Tensor = self.fc_norm(super().pool(tokens))
        return pooled


def sincos_positions(side: int, dim: int) -> Tensor:
    """Return fixed positions [1, 1 + side^2, dim] of a class token and side x side patches.

    MAE's: the first half of the channels says the column, the second the row, each by the sines
    and then the cosines of dim / 4 frequencies from 1 down to 1 / 10,000; the class token has 0.
    """
    frequency = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    column, row = wave.repeat(side, 1), wave.repeat_interleave(side, 0)
    return functional.pad(torch.cat([column, row], 1), (0, 0, 1, 0))[None].float()
