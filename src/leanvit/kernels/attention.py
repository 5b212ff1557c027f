"""Attention whose logits can be asked for."""

from torch import Tensor
from torch.nn import functional

from leanvit.core.precision import full, unrounded


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

    q, k, v [B, H, rows, d]; bias [1 or B, H, rows of q, rows of k]; scale: d^-0.5 by default.
    Logits are fp32 or wider.
    """
    if not with_logits:
        bias = None if bias is None else bias.to(q.dtype)
        return functional.scaled_dot_product_attention(q, k, v, bias, scale=scale), None
    with unrounded(q):
        logits = full(q) @ full(k).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = logits if bias is None else logits + bias
    return logits.softmax(-1).to(v.dtype) @ v, logits
