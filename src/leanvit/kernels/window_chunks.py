"""Window attention on the CPU, a few windows at a time.

torch's own attention asks MKL for one small product after another and, where the bias is trained,
stores the logits of all windows. Here a chunk's products are one batch, by the faster library,
nothing but the output is stored, and the backward pass computes the attention again. Padding is
one key of a window (`KernelTables.biases`). Logits and softmax are fp32 or wider.

Letters: N tokens, n tokens of a window, m keys of a window: n, and one more where there is
padding, C channels, H heads, d = C / H, w windows of a chunk.
"""

from collections.abc import Iterator, Sequence
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
from leanvit.kernels.windows import KernelTables


def attend_chunks(qkv: Tensor, fill: Tensor, bias: Tensor, tables: KernelTables) -> Tensor:
    """Return the attended values [N, C] of qkv [N, 3C]; arguments as in `window_attention`."""
    sizes = [size for run in tables.runs for size in (run.windows, run.queries, run.keys)]
    places = tables.tokens_by_run, tables.places_by_run
    out: Tensor = _attend(qkv, fill, tables.biases(full(bias)), *places, sizes)
    return out


def _chunks(sizes: Sequence[int], *every: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield the tokens of some windows alike, and their part [H, n, m] of each [H, all n * m]."""
    first, start = 0, 0
    for windows, n, m in zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True):
        own = [part[:, start : start + n * m].unflatten(1, (n, m)) for part in every]
        step = chunk_length(len(every[0]) * n * m)
        for begin in range(0, windows, step):
            end = min(begin + step, windows)
            yield slice(first + begin * n, first + end * n), own
        first, start = first + windows * n, start + n * m


def by_head(rows: Tensor, heads: int, n: int, parts: int) -> Tensor:
    """[w * n, parts * C] -> [parts, w * H, n, d], in fp32 or wider."""
    slots = rows.view(-1, n, parts, heads, rows.shape[1] // (parts * heads))
    return full(slots.permute(2, 0, 3, 1, 4)).reshape(parts, -1, n, slots.shape[-1])


def queries(rows: Tensor, fill: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q [w * H, n, d], k and v [w * H, m, d] of rows [w * n, 3C] and fill [3C]."""
    heads, n, m = bias.shape
    q, k, v = by_head(rows, heads, n, 3)
    if m > n:
        _, key, value = full(fill).view(3, heads, 1, -1).repeat(1, len(q) // heads, 1, 1)
        k, v = torch.cat([k, key], 1), torch.cat([v, value], 1)
    return q, k, v


def write(target: Tensor, found: Sequence[Tensor], heads: int) -> None:
    """Copy the first n rows of parts [w * H, n or m, d] into rows [w * n, parts * C].

    The first part has n.
    """
    n = found[0].shape[1]
    places = target.view(-1, n, len(found), heads, found[0].shape[-1])
    for number, part in enumerate(found):
        places[:, :, number].copy_(part[:, :n].unflatten(0, (-1, heads)).transpose(1, 2))


@custom_op("leanvit::window_chunks", mutates_args=(), device_types="cpu")
def _attend(
    qkv: Tensor,
    fill: Tensor,
    biases: Tensor,
    tokens: Tensor,
    places: Tensor,
    sizes: Sequence[int],
) -> Tensor:
    """biases: [H, all n * m], those of all runs; sizes: windows, n and m of each run."""
    heads = len(biases)
    out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
    with operands(qkv.dtype), torch.autocast("cpu", enabled=False):
        for part, (bias,) in _chunks(sizes, biases):
            q, k, v = queries(qkv.index_select(0, tokens[part]), fill, bias)
            weights = attention_weights(q, k, bias, q.shape[-1] ** -0.5)
            write(out[part], [torch.bmm(weights, v)], heads)
    return out.index_select(0, places)


@custom_op("leanvit::window_chunks_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor,
    qkv: Tensor,
    fill: Tensor,
    biases: Tensor,
    tokens: Tensor,
    places: Tensor,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of qkv, fill and biases for that of the output [N, C]."""
    heads = len(biases)
    to_qkv, to_biases = torch.empty_like(qkv), torch.zeros_like(biases)
    to_fill = full(torch.zeros_like(fill)).view(3, heads, -1)
    with operands(qkv.dtype), torch.autocast("cpu", enabled=False):
        for part, (bias, to_bias) in _chunks(sizes, biases, to_biases):
            n, padded = bias.shape[1], bias.shape[2] > bias.shape[1]
            q, k, v = queries(qkv.index_select(0, tokens[part]), fill, bias)
            (out,) = by_head(gradient.index_select(0, tokens[part]), heads, n, 1)
            weights = attention_weights(q, k, bias, q.shape[-1] ** -0.5)
            to_logits, *found = attention_gradients(out, q, k, v, weights, q.shape[-1] ** -0.5)
            to_bias += to_logits.view(-1, *bias.shape).sum(0)
            write(to_qkv[part], found, heads)
            if padded:
                last = torch.stack([each[:, n] for each in found[1:]])
                to_fill[1:] += last.unflatten(1, (-1, heads)).sum(1)
    return to_qkv.index_select(0, places), to_fill.flatten().to(fill.dtype), to_biases


@_attend.register_fake
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(len(qkv), qkv.shape[1] // 3)


@_backward.register_fake
def _(gradient: Tensor, qkv: Tensor, fill: Tensor, biases: Tensor, *_: Any) -> Any:
    return torch.empty_like(qkv), torch.empty_like(fill), torch.empty_like(biases)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found = _backward(gradient, *ctx.saved_tensors, ctx.sizes)
    return (*found, None, None, None)


_attend.register_autograd(_differentiate, setup_context=_keep)
