"""Attention whose logits can be asked for."""

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.precision import full, unrounded
from leanvit.core.tracing import exporting
from leanvit.kernels.biased_attention import biased_attention


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    with_logits: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return softmax(scale * q k' + bias) v and, if asked, the logits before the softmax.

    q, k, v [B, H, rows, d]; bias [b, H, rows of q, rows of k], for b items after another again and
    again: B is a multiple of b; scale: d^-0.5 by default. Logits are fp32 or wider.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if bias is not None and q.device.type == "cpu" and not with_logits | exporting():
        trained = bias.requires_grad and torch.is_grad_enabled()
        if trained or len(bias) > 1:  # torch's own would keep logits, or repeat the bias
            return biased_attention(q, k, v, full(bias), scale), None
    if not with_logits:
        return _fused(q, k, v, bias, scale), None
    logits = attention_logits(q, k, scale)
    if bias is not None:
        logits = (logits.unflatten(0, (-1, len(bias))) + bias).flatten(0, 1)
    return logits.softmax(-1).to(v.dtype) @ v, logits


def attention_logits(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Return scale * q k' [B, H, rows of q, rows of k] in fp32 or wider; scale: as in `attend`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with unrounded(q):
        return full(q) @ full(k).mT * scale


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return the attention by torch's operator; biases of several items become those of heads.

    An exported graph does not know whether there is but one item a bias.
    """
    if bias is None or len(bias) == 1 or (not exporting() and len(bias) == len(q)):
        bias = None if bias is None else bias.to(q.dtype)
        return functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    q_, k_, v_ = (x.unflatten(0, (-1, len(bias))).flatten(1, 2) for x in (q, k, v))
    out = _fused(q_, k_, v_, bias.flatten(0, 1)[None], scale)
    return out.reshape(q.shape)
