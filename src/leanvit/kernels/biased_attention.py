"""Attention with a trained bias on the CPU: some items at a time, logits forgotten and made again.

torch's own attention stores the logits of everything where the bias has a gradient. Logits and
softmax are fp32 or wider.

Letters: B items, b items that have biases of their own, H heads, n queries, m keys, d = C / H.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from leanvit.core.precision import full, operands
from leanvit.kernels.chunk_products import (
    attention_gradients,
    attention_weights,
    chunk_length,
)


def _chunks(items: int, bias: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the items of each chunk and their biases."""
    own = len(bias)
    step = chunk_length(bias[0].numel())
    length = items if own == 1 else own
    for first in range(0, items, length):
        for start in range(0, length, step):
            end = min(start + step, length)
            yield slice(first + start, first + end), slice(0, 1) if own == 1 else slice(start, end)


@custom_op("leanvit::biased_attention", mutates_args=(), device_types="cpu")
def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * q k' + bias) v [B, H, n, d]; gradients reach all four, once.

    q [B, H, n, d], k and v [B, H, m, d]; bias [b, H, n, m] in fp32 or wider, for b items after
    another again and again: B is a multiple of b.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    with operands(q.dtype), torch.autocast("cpu", enabled=False):
        for items, own in _chunks(len(q), bias):
            queries, keys, values = (full(x[items]).flatten(0, 1) for x in (q, k, v))
            attended = torch.bmm(attention_weights(queries, keys, bias[own], scale), values)
            out[items] = attended.view(-1, *q.shape[1:])
    return out


@custom_op("leanvit::biased_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and bias."""
    contiguous = torch.contiguous_format
    to_q, to_k, to_v = (torch.empty_like(x, memory_format=contiguous) for x in (q, k, v))
    to_bias = torch.zeros_like(bias)
    with operands(q.dtype), torch.autocast("cpu", enabled=False):
        for items, own in _chunks(len(q), bias):
            queries, keys, values, out = (full(x[items]).flatten(0, 1) for x in (q, k, v, gradient))
            weights = attention_weights(queries, keys, bias[own], scale)
            to_logits, *found = attention_gradients(out, queries, keys, values, weights, scale)
            to_bias[own] += to_logits.view(-1, *bias[own].shape).sum(0)
            for target, part in zip((to_q, to_k, to_v), found, strict=True):
                target[items] = part.view(-1, *target.shape[1:])
    return to_q, to_k, to_v, to_bias


@biased_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


@_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Any:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, bias))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(gradient, *ctx.saved_tensors, ctx.scale), None


biased_attention.register_autograd(_differentiate, setup_context=_keep)
