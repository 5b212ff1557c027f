"""Attention of a few items as batches of products: what the kernels in chunks on the CPU share.

Letters: p problems (an item and a head), n queries, m keys, d channels of a head.
"""

import torch
from torch import Tensor

_LOGITS = 2**18
"""Logits of a chunk for every thread: 1 MiB in fp32."""


def chunk_length(logits: int) -> int:
    """Return how many items, of so many logits each, make a chunk."""
    return max(1, _LOGITS * torch.get_num_threads() // logits)


def attention_weights(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * q k' + bias) [p, n, m] of q [p, n, d], k [p, m, d].

    bias [..., n, m]: its leading dimensions make up p, or the last of p's.
    """
    logits = torch.bmm(q, k.mT).view(-1, *bias.shape)
    torch.add(bias, logits, alpha=scale, out=logits)
    return logits.softmax(-1).view(-1, *bias.shape[-2:])


def attention_gradients(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the biased logits, q, k and v, for that of the output [p, n, d]."""
    to_logits = torch.ops.aten._softmax_backward_data(
        torch.bmm(out, v.mT), weights, -1, weights.dtype
    )
    scaled = to_logits * scale
    return to_logits, torch.bmm(scaled, k), torch.bmm(scaled.mT, q), torch.bmm(weights.mT, out)
