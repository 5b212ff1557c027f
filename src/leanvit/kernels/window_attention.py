"""Attention within (shifted) windows, for images of several sizes in one call.

By kernels of our own on CUDA (triton_window_attention.py), in chunks on the CPU (window_chunks.py),
and by torch's operators where logits are asked, a graph is exported or a device has neither.

Letters: N tokens of all images, S = windows * T slots, T tokens of a window, C channels,
H heads, d = C / H.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from leanvit.core.tracing import exporting
from leanvit.kernels.attention import attend
from leanvit.kernels.window_chunks import attend_chunks
from leanvit.kernels.windows import MASKED, WindowLayout

_TRITON = find_spec("triton") is not None


def window_attention(
    qkv: Tensor, fill: Tensor, bias: Tensor, layout: WindowLayout, with_logits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Attend within windows; padding slots give and receive attention as the row `fill`.

    qkv [N, 3C]; fill [3C]: the projection of a zero token, that is its bias; bias [H, T, T].
    Returns the attended values [N, C] and, if asked, the logits [windows, H, T, T], whose
    softmax over the last axis is the attention.
    """
    if not with_logits and _has_kernels(qkv, len(bias)):
        from leanvit.kernels.triton_window_attention import attend_windows

        tables = layout.windows, layout.patterns
        return attend_windows(qkv, fill, bias, *tables, MASKED)[0], None
    fill = fill.to(qkv.dtype)
    if qkv.device.type == "cpu" and not with_logits and not exporting():
        return attend_chunks(qkv, fill, bias, layout), None
    return _attend(qkv, fill, bias, layout, with_logits)


def _has_kernels(qkv: Tensor, heads: int) -> bool:
    """Return whether Triton can attend here; exported graphs have torch's own operators alone."""
    if not _TRITON or not qkv.is_cuda or exporting():
        return False
    from leanvit.kernels.triton_window_attention import fits

    return fits(qkv, heads)


def _attend(
    qkv: Tensor, fill: Tensor, bias: Tensor, layout: WindowLayout, with_logits: bool
) -> tuple[Tensor, Tensor | None]:
    """The same by torch's own attention, for all windows at once."""
    heads, side = bias.shape[0], bias.shape[-1]
    slots = qkv.index_select(0, layout.tokens)
    slots = slots.index_copy(0, layout.padding, fill.expand(len(layout.padding), -1))
    q, k, v = slots.view(-1, side, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)
    attended, logits = attend(q, k, v, _with_masks(bias, layout), with_logits=with_logits)
    attended = attended.transpose(1, 2).reshape(-1, qkv.shape[1] // 3)
    return attended.index_select(0, layout.slots), logits


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
