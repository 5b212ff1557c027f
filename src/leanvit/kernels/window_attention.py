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

        assert layout.tables is not None
        tables = layout.tables.windows, layout.tables.patterns
        return attend_windows(qkv, fill, bias, *tables, MASKED)[0], None
    fill = fill.to(qkv.dtype)
    if qkv.device.type == "cpu" and not with_logits and layout.tables is not None:
        return attend_chunks(qkv, fill, bias, layout.tables), None
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
    """The same by torch's own attention, for all windows of a size at once."""
    heads, side, width = *bias.shape[:2], qkv.shape[1]
    attended, found = [], []
    counts = [b * place.numel() for b, place in zip(layout.images, layout.slots, strict=True)]
    tables = zip(layout.images, layout.places, layout.slots, layout.masks, strict=True)
    for tokens, (images, places, slots, mask) in zip(qkv.split(counts), tables, strict=True):
        place = places.flatten()
        rows = tokens.view(images, -1, width).index_select(1, place.clamp(min=0))
        if place.numel() > slots.numel():
            rows = torch.where(place[:, None] < 0, fill, rows)
        q, k, v = rows.view(-1, side, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
        biases = bias[None] if mask is None else bias + mask[:, None]
        out, logits = attend(q, k, v, biases, with_logits=with_logits)
        out = out.transpose(1, 2).reshape(images, -1, width // 3).index_select(1, slots)
        attended.append(out.flatten(0, 1))
        found += [] if logits is None else [logits]
    return torch.cat(attended), torch.cat(found) if found else None
