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

import numpy as np
import torch
from numpy.typing import NDArray
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
    images: tuple[int, ...]
    """Images of each size."""
    places: tuple[Tensor, ...]
    """For each size [G, T]: row-major place in the image of each slot, -1 for padding."""
    masks: tuple[Tensor, ...]
    """For each size [G, T, T]: 0 or -100 added to logits; empty where no window wraps around."""


def window_layout(shapes: Shapes, window: int, shift: int, device: torch.device) -> WindowLayout:
    """Return the layout for images that are zero-padded right and below, then rolled (EsViT).

    The mask follows the real padded size. The same sizes share one layout, except while torch
    traces a graph: its stand-ins for tensors must not outlive the trace.
    """
    if torch.compiler.is_compiling():
        return _build(shapes, window, shift, device)
    with torch.inference_mode(False):
        return _cached(shapes, window, shift, device)


def _build(shapes: Shapes, window: int, shift: int, device: torch.device) -> WindowLayout:
    tokens, start = [], 0
    patterns = [_one_image(rows, columns, window, shift) for _, rows, columns in shapes]
    for (images, rows, columns), (place, _) in zip(shapes, patterns, strict=True):
        offset = start + np.arange(images).reshape(-1, 1, 1) * rows * columns
        tokens.append(np.where(place < 0, -1, place + offset).ravel())
        start += images * rows * columns
    slot_tokens = np.concatenate(tokens)
    real = np.flatnonzero(slot_tokens >= 0)
    slots = np.empty(start, dtype=np.int64)
    slots[slot_tokens[real]] = real

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return WindowLayout(
        tokens=tensor(slot_tokens.clip(min=0)),
        slots=tensor(slots),
        padding=tensor(np.flatnonzero(slot_tokens < 0)),
        images=tuple(images for images, _, _ in shapes),
        places=tuple(tensor(place) for place, _ in patterns),
        masks=tuple(tensor(mask) for _, mask in patterns) if shift else (),
    )


_cached = lru_cache(maxsize=32)(_build)


def _one_image(
    rows: int, columns: int, window: int, shift: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return places [G, T] and mask [G, T, T] of the windows of one image."""
    place = np.arange(rows * columns).reshape(rows, columns)
    place = np.pad(place, ((0, -rows % window), (0, -columns % window)), constant_values=-1)
    down, right = (_regions(side, window, shift) for side in place.shape)
    place = partition(np.roll(place, (-shift, -shift), (0, 1)), window)
    region = partition(down[:, None] * 3 + right[None, :], window)
    differ = region[:, :, None] != region[:, None, :]
    return place, np.where(differ, np.float32(_MASKED), np.float32(0))


def _regions(side: int, window: int, shift: int) -> NDArray[np.int64]:
    """Number the parts of a rolled side that were not neighbours before rolling."""
    position = np.arange(side)
    if not shift:
        return np.zeros_like(position)
    return (position >= side - window).astype(np.int64) + (position >= side - shift)


def partition(grid: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Cut [rows, columns] into [G, T]."""
    rows, columns = grid.shape
    grid = grid.reshape(rows // window, window, columns // window, window)
    return grid.swapaxes(1, 2).reshape(-1, window * window)


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
    bias = _with_masks(bias, layout)
    logits = None
    if with_logits:
        with torch.autocast(qkv.device.type, enabled=False):
            logits = full(q) @ full(k).mT * q.shape[-1] ** -0.5 + bias
        attended = logits.softmax(-1).to(v.dtype) @ v
    else:
        attended = functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
    attended = attended.transpose(1, 2).reshape(-1, qkv.shape[1] // 3)
    return _FromWindows.apply(attended, layout), logits


def _with_masks(bias: Tensor, layout: WindowLayout) -> Tensor:
    """Return [1 or S / T, H, T, T]: the bias, and the mask of each window that wraps around."""
    if not layout.masks:
        return bias[None]
    return torch.cat(
        [
            (bias[None] + mask[:, None]).expand(images, -1, -1, -1, -1).flatten(0, 1)
            for images, mask in zip(layout.images, layout.masks, strict=True)
        ]
    )
