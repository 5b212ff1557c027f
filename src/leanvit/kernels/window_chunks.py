"""Window attention on the CPU, a few windows at a time.

Nothing but the output is stored, and the backward pass attends again: where the bias is trained,
torch's own attention stores the logits of all windows. Padding is one key of a window
(`KernelTables.biases`). Logits and softmax are fp32 or wider.

Letters: N tokens, n tokens of a window, m keys of a window: n, and one more where there is
padding, C channels, H heads, d = C / H, w windows of a chunk.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional

from leanvit.core.precision import full, operands
from leanvit.kernels.chunk_products import (
    attention_gradients,
    attention_weights,
    chunk_length,
)
from leanvit.kernels.windows import KernelTables


def attend_chunks(qkv: Tensor, fill: Tensor, bias: Tensor, tables: KernelTables) -> Tensor:
    """Return the attended values [N, C] of qkv [N, 3C]; arguments as in `window_attention`."""
    sizes = [
        size
        for run in tables.runs
        for size in (run.windows, run.queries, run.keys, int(run.masked))
    ]
    places = tables.tokens_by_run, tables.places_by_run
    out: Tensor = _attend(qkv, fill, tables.biases(full(bias)), *places, sizes)
    return out


def _chunks(sizes: Sequence[int], *every: Tensor) -> Iterator[tuple[slice, bool, list[Tensor]]]:
    """Yield the tokens of some windows alike, whether some of their pairs are masked, and their
    part [H, n, m] of each [H, all n * m]."""
    first, start = 0, 0
    for windows, n, m, masked in zip(*(iter(sizes),) * 4, strict=True):
        own = [part[:, start : start + n * m].unflatten(1, (n, m)) for part in every]
        step = chunk_length(len(every[0]) * n * m)
        for begin in range(0, windows, step):
            end = min(begin + step, windows)
            yield slice(first + begin * n, first + end * n), bool(masked), own
        first, start = first + windows * n, start + n * m


def attend_windows(qkv: Tensor, fill: Tensor, bias: Tensor, out: Tensor) -> None:
    """Attend within windows alike, of qkv [w * n, 3C], into out [w * n, C].

    By torch's operator, which needs no copy of queries, keys and values; fill [3C] stands for
    padding; bias [H, n, m].
    """
    heads, n, m = bias.shape
    q, k, v = qkv.view(-1, n, 3, heads, out.shape[1] // heads).permute(2, 0, 3, 1, 4)
    if m > n:
        _, key, value = fill.view(3, 1, heads, 1, -1).expand(-1, len(q), -1, -1, -1)
        k, v = torch.cat([k, key], 2), torch.cat([v, value], 2)
    # torch would write out all logits for a bias that is trained, whoever differentiates
    found = functional.scaled_dot_product_attention(q, k, v, bias.detach()[None])
    out.view(-1, n, heads, q.shape[-1]).copy_(found.transpose(1, 2))


def attend_again(
    qkv: Tensor,
    fill: Tensor,
    bias: Tensor,
    masked: bool,
    to_out: Tensor,
    to_qkv: Tensor,
    to_bias: Tensor,
    to_fill: Tensor,
) -> tuple[Tensor, Tensor]:
    """Differentiate what `attend_windows` did; return weights [w * H, n, m] and v [w * H, m, d].

    to_out [w * n, C]: the gradient of its output. Writes that of qkv, adds to those of bias
    [H, n, m] and fill [3C]. Masked pairs have some e^-100, below fp32's normal numbers, with which
    products take up to a hundred times as long on Intel's CPUs (benchmarks/step.md); they are 0
    here, which moves no result by more than 1e-37.
    """
    heads, n, m = bias.shape
    q, k, v = _queries(qkv, fill, bias)
    scale = q.shape[-1] ** -0.5
    weights = attention_weights(q, k, bias, scale)
    if masked:
        functional.threshold(weights, torch.finfo(weights.dtype).tiny, 0.0, inplace=True)
    (out,) = _by_head(to_out, heads, n, 1)
    to_logits, *found = attention_gradients(out, q, k, v, weights, scale)
    to_bias += to_logits.view(-1, *bias.shape).sum(0)
    if m > n:
        last = torch.stack([each[:, n] for each in found[1:]])
        to_fill.view(3, heads, -1)[1:] += last.unflatten(1, (-1, heads)).sum(1)
    write(to_qkv, found, heads)
    return weights, v


def _by_head(rows: Tensor, heads: int, n: int, parts: int) -> Tensor:
    """[w * n, parts * C] -> [parts, w * H, n, d], in fp32 or wider."""
    slots = rows.view(-1, n, parts, heads, rows.shape[1] // (parts * heads)).permute(2, 0, 3, 1, 4)
    wide = torch.promote_types(rows.dtype, torch.float32)
    packed = slots.to(wide, memory_format=torch.contiguous_format)  # in one copy
    return packed.reshape(parts, -1, n, slots.shape[-1])


def _queries(rows: Tensor, fill: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q [w * H, n, d], k and v [w * H, m, d] of rows [w * n, 3C] and fill [3C]."""
    heads, n, m = bias.shape
    q, k, v = _by_head(rows, heads, n, 3)
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
    """biases: [H, all n * m], those of all runs; sizes: windows, n, m and masked of each run."""
    out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
    with operands(qkv.dtype), torch.autocast("cpu", enabled=False):
        for part, _, (bias,) in _chunks(sizes, biases):
            attend_windows(qkv.index_select(0, tokens[part]), fill, bias, out[part])
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
    to_qkv, to_biases = torch.empty_like(qkv), torch.zeros_like(biases)
    to_fill = full(torch.zeros_like(fill))
    with operands(qkv.dtype), torch.autocast("cpu", enabled=False):
        for part, masked, (bias, to_bias) in _chunks(sizes, biases, to_biases):
            own, given = (each.index_select(0, tokens[part]) for each in (qkv, gradient))
            attend_again(own, fill, bias, masked, given, to_qkv[part], to_bias, to_fill)
    return to_qkv.index_select(0, places), to_fill.to(fill.dtype), to_biases


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
