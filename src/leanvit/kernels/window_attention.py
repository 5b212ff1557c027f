"""Attention within (shifted) windows, for images of several sizes in one call.

A `WindowLayout` says for every window slot which token lies there. It is built once for a set of
image sizes by padding, rolling and partitioning a map of token numbers; after that, moving tokens
into windows and back is one gather each way, and so are the gradients.

Letters: N tokens of all images, S = windows * T slots, T = window side squared, C channels,
H heads, d = C / H, G = window patterns (a window's place in an image of one size).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from leanvit.core.precision import full

Shapes = tuple[tuple[int, int, int], ...]
"""(images, rows, columns) of each group of equally sized images."""

_MASKED = -100.0  # Swin's constant; kept because official weights were trained with it.


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """Which token lies in which slot of which window."""

    tokens: Tensor
    """[S] token of each slot; padding slots name token 0 and are listed in `padding`."""
    slots: Tensor
    """[N] slot of each token."""
    padding: Tensor
    """[p] slots that hold no token."""
    mask: Tensor | None
    """[S / T, T, T] 0 or -100 added to logits; None where no window wraps around."""
    places: tuple[Tensor, ...]
    """For each size [windows, T]: row-major place in the image of each slot, -1 for padding."""


@lru_cache(maxsize=128)
def window_layout(shapes: Shapes, window: int, shift: int, device: torch.device) -> WindowLayout:
    """Return the layout for images that are zero-padded right and below, then rolled (EsViT).

    The mask follows the real padded size. Cached: the same sizes share one layout.
    """
    with torch.inference_mode(False):
        tokens, masks, places, start = [], [], [], 0
        for images, rows, columns in shapes:
            place, mask = _one_image(rows, columns, window, shift)
            offset = start + torch.arange(images).view(-1, 1, 1) * rows * columns
            tokens.append(torch.where(place < 0, -1, place + offset).flatten())
            masks.append(mask.expand(images, -1, -1, -1).flatten(0, 1))
            places.append(place.to(device))
            start += images * rows * columns
        slot_tokens = torch.cat(tokens)
        real = slot_tokens >= 0
        slots = torch.empty(start, dtype=torch.long)
        slots[slot_tokens[real]] = real.nonzero().flatten()
        return WindowLayout(
            tokens=slot_tokens.clamp(min=0).to(device),
            slots=slots.to(device),
            padding=(~real).nonzero().flatten().to(device),
            mask=torch.cat(masks).to(device) if shift else None,
            places=tuple(places),
        )


def _one_image(rows: int, columns: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """Return places [G, T] and mask [G, T, T] of the windows of one image."""
    place = torch.arange(rows * columns).view(rows, columns)
    place = functional.pad(place, (0, -columns % window, 0, -rows % window), value=-1)
    place = _partition(place.roll((-shift, -shift), (0, 1)), window)
    padded = (rows + -rows % window, columns + -columns % window)
    down, right = (_regions(side, window, shift) for side in padded)
    region = _partition(down[:, None] * 3 + right[None, :], window)
    differ = region[:, :, None] != region[:, None, :]
    return place, torch.zeros(differ.shape).masked_fill(differ, _MASKED)


def _regions(side: int, window: int, shift: int) -> Tensor:
    """Number the parts of a rolled side that were not neighbours before rolling."""
    position = torch.arange(side)
    if not shift:
        return torch.zeros_like(position)
    return (position >= side - window).long() + (position >= side - shift).long()


def _partition(grid: Tensor, window: int) -> Tensor:
    """Cut [rows, columns] into [G, T]."""
    rows, columns = grid.shape
    grid = grid.view(rows // window, window, columns // window, window)
    return grid.transpose(1, 2).reshape(-1, window * window)


class _ToWindows(torch.autograd.Function):
    """[N, C] tokens -> [S, C] slots; padding slots take the row `fill` [C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fill: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout = layout
        slots = x.index_select(0, layout.tokens)
        return slots.index_copy_(0, layout.padding, fill.expand(len(layout.padding), -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        layout: WindowLayout = ctx.layout
        of_fill = gradient.index_select(0, layout.padding).sum(0)
        return gradient.index_select(0, layout.slots), of_fill, None


class _FromWindows(torch.autograd.Function):
    """[S, C] slots -> [N, C] tokens; what padding slots hold is dropped."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout = layout
        return slots.index_select(0, layout.slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout: WindowLayout = ctx.layout
        slots = gradient.index_select(0, layout.tokens)
        return slots.index_fill_(0, layout.padding, 0.0), None


def window_attention(
    qkv: Tensor, fill: Tensor, bias: Tensor, layout: WindowLayout, with_logits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attend within windows; padding slots give and receive attention as the row `fill`.

    qkv [N, 3C]; fill [3C]: the projection of a zero token, that is its bias; bias [H, T, T].
    Returns the attended values [N, C] and, if asked, the logits [S / T, H, T, T] whose softmax
    over the last axis is the attention.
    """
    heads, side = bias.shape[0], bias.shape[-1]
    slots = _ToWindows.apply(qkv, fill.to(qkv.dtype), layout)
    q, k, v = slots.view(-1, side, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)
    bias = bias[None] if layout.mask is None else bias[None] + layout.mask[:, None]
    logits = None
    if with_logits:
        logits = full(q) @ full(k).mT * q.shape[-1] ** -0.5 + bias
        attended = logits.softmax(-1).to(v.dtype) @ v
    else:
        attended = functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
    attended = attended.transpose(1, 2).reshape(-1, qkv.shape[1] // 3)
    return _FromWindows.apply(attended, layout), logits
