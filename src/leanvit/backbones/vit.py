"""Plain vision transformer with a class token and learned positions (arXiv 2010.11929).

Parameter names are timm's. Letters as in base.py.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Ask, Backbone, Block, Logits, Packed, Tokens
from leanvit.backbones.layers import LayerNorm, Mlp, init_linear, residual
from leanvit.config import ViTConfig
from leanvit.core.precision import full


class PatchEmbed(nn.Module):
    """Cut a view into patches and embed them."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, view: Tensor) -> Tensor:
        """[B, 3, height, width] -> [B, h, w, dim]."""
        return full(self.proj(view).permute(0, 2, 3, 1))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of an image."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Tensor]]:
        """[N, dim] -> [N, dim] and, if asked, each view's logits [B, H, T, T]."""
        attended, logits = [], []
        for qkv in packed.views(self.qkv(packed.x)):
            b, t, width = qkv.shape
            q, k, v = qkv.view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            if with_logits:
                with torch.autocast(q.device.type, enabled=False):
                    logits.append(full(q) @ full(k).mT * q.shape[-1] ** -0.5)
                out = logits[-1].softmax(-1).to(v.dtype) @ v
            else:
                out = functional.scaled_dot_product_attention(q, k, v)
            attended.append(out.transpose(1, 2).reshape(b * t, width // 3))
        return self.proj(torch.cat(attended)), logits


class ViTBlock(Block):
    """Attention and an MLP, each after a norm and beside a residual."""

    def __init__(self, dim: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, ratio)

    def forward(
        self, packed: Packed, scales: tuple[Tensor, Tensor] | None, with_logits: bool
    ) -> tuple[Packed, list[Logits]]:
        """Run the block on the tokens of all views at once."""
        attended, logits = self.attn(packed.with_(self.norm1(packed.x)), with_logits)
        x = residual(packed.x, attended, scales and scales[0])
        x = residual(x, self.mlp(self.norm2(x)), scales and scales[1])
        return packed.with_(x), [
            Logits(values[:, None], where[:, None])
            for values, where in zip(logits, packed.where, strict=False)
        ]


class ViT(Backbone):
    """Plain ViT; view feature: class token or mean of the patches, as its options say."""

    can: ClassVar[frozenset[str]] = frozenset({"keep", "fill", "logits"})
    undecayed: ClassVar[frozenset[str]] = frozenset({"cls_token", "pos_embed"})
    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.stage_dims, self.stage_strides = (config.dim,), (config.patch,)
        self.stage_ends = (config.depth - 1,)
        self.grid_side = config.image_size // config.patch
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        self.cls_token = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, 1, config.dim), std=0.02)
        )
        positions = torch.empty(1, 1 + self.grid_side**2, config.dim)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        self.layers = nn.ModuleList(
            ViTBlock(config.dim, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = LayerNorm(config.dim)
        init_linear(self)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the patches' positions [1, rows, columns, D], bicubic where the grid differs."""
        side = self.grid_side
        grid = self.pos_embed[:, 1:].view(1, side, side, -1)
        if (rows, columns) == (side, side):
            return grid
        grid = functional.interpolate(grid.permute(0, 3, 1, 2), (rows, columns), mode="bicubic")
        return grid.permute(0, 2, 3, 1)

    def embed(self, views: Sequence[Tensor], ask: Ask) -> Packed:
        """Embed patches, hide, add positions, drop what is not kept, put the class token first."""
        sequences, shapes, where = [], [], []
        for view in views:
            x: Tensor = self.patch_embed(view)
            numbers = torch.arange(x[0, ..., 0].numel() + 1, device=x.device)[None]
            if ask.fill is not None:
                mask, token = ask.fill
                x = torch.where(mask[..., None], token.to(x.dtype), x)
            x = x + self.positions(*x.shape[1:3])
            b, h, w, d = x.shape
            if ask.keep is not None:
                h, w = 1, ask.keep.shape[1]
                numbers = functional.pad(ask.keep + 1, (1, 0))
                x = x.flatten(1, 2).gather(1, ask.keep[..., None].expand(-1, -1, d))
            first = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
            sequences.append(torch.cat([first, x.reshape(b, h * w, d)], 1).flatten(0, 1))
            shapes.append((b, h, w))
            where.append(numbers)
        return Packed(torch.cat(sequences), tuple(shapes), prefix=1, where=tuple(where))

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
                yield name, self.depth + 1 if first == "norm" else 0

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the class token or the mean of the patches."""
        if self.config.pool == "mean" or tokens.prefix is None:
            return super().pool(tokens)
        return tokens.prefix[:, 0]
