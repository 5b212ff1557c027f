"""Norm, projections and window attention, on the CPU some windows at a time: see `branches`.

Letters: N tokens, n tokens of a window, m keys of a window: n, and one more where there is padding,
C channels, H heads, d = C / H.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from leanvit.core.precision import full, operands
from leanvit.kernels.branches import Layers, added, chunk_size, parameters
from leanvit.kernels.chunk_products import attention_gradients, attention_weights, chunk_length
from leanvit.kernels.linear import product_dtype
from leanvit.kernels.window_chunks import by_head, queries, write
from leanvit.kernels.windows import KernelTables


@dataclass(frozen=True, slots=True)
class Piece:
    """Windows alike, of one chunk."""

    rows: slice
    """Their tokens, counted within the chunk."""
    logits: slice
    """Their biases, of those of all runs."""
    shape: tuple[int, int]
    """n, m."""
    masked: bool
    """Whether some pairs of tokens are masked."""

    def of(self, biases: Tensor) -> Tensor:
        """Return the part of biases [H, all n * m] that is theirs: [H, n, m]."""
        return biases[:, self.logits].unflatten(1, self.shape)


def chunks(tables: KernelTables, heads: int) -> Iterator[tuple[Tensor, list[Piece]]]:
    """Yield the tokens of each chunk, run after run, and the pieces that it is made of."""
    room, tokens = chunk_size(), tables.tokens_by_run
    begin = end = logits = 0
    held: list[Piece] = []
    for run in tables.runs:
        n, m, left = run.queries, run.keys, run.windows
        own = slice(logits, logits + n * m)
        while left:
            if held and end - begin + n > room:
                yield tokens[begin:end], held
                begin, held = end, []
            count = min(left, chunk_length(heads * n * m), max((room - end + begin) // n, 1))
            rows = slice(end - begin, end - begin + count * n)
            held.append(Piece(rows, own, (n, m), run.masked))
            end, left = end + count * n, left - count
        logits = own.stop
    yield tokens[begin:end], held


def window_branch(
    x: Tensor,
    norm: nn.LayerNorm,
    enter: nn.Linear,
    leave: nn.Linear,
    bias: Tensor,
    tables: KernelTables,
) -> Tensor:
    """Return leave(attention within windows(enter(norm(x)))) of x [N, C]: [N, C].

    enter: to queries, keys and values; a padded token has its bias in their place. bias [H, T, T].
    Where `branches.fits` says yes.
    """
    dtype, biases = product_dtype(x, enter.weight), tables.biases(full(bias))
    layers = parameters(norm, enter, leave)
    found: Tensor = _Branch.apply(x, norm.eps, dtype, tables, biases, *layers)
    return found


class _Branch(torch.autograd.Function):
    """Products in `dtype`; gradients keep the types of what they belong to."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        eps: float,
        dtype: torch.dtype,
        tables: KernelTables,
        biases: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        layers = Layers.of(eps, dtype, tensors)
        ctx.layers, ctx.tables, ctx.kind = layers, tables, tensors[2].dtype
        keep, kept = layers.keeps(len(x)), []
        out = torch.empty_like(x, dtype=dtype)
        with operands(dtype), torch.autocast("cpu", enabled=False):
            for tokens, pieces in chunks(tables, len(biases)):
                rows, *_ = layers.normed(x.index_select(0, tokens))
                entered, attended = layers.entered(rows), torch.empty_like(rows)
                kept += [entered] if keep else []
                for piece in pieces:
                    own = piece.of(biases)
                    _attend(entered[piece.rows], layers.enter_bias, own, attended[piece.rows])
                out.index_copy_(0, tokens, layers.left(attended))
        ctx.save_for_backward(x, biases, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, biases, *kept), layers, tables = ctx.saved_tensors, ctx.layers, ctx.tables
        to_x, to_biases = torch.empty_like(x), torch.zeros_like(biases)
        to_fill = full(torch.zeros_like(layers.enter_bias))
        sums: list[Tensor] = []
        with operands(layers.dtype):
            for tokens, pieces in chunks(tables, len(biases)):
                own, given = (each.index_select(0, tokens) for each in (x, gradient))
                normed = layers.normed(own)
                entered = kept.pop(0) if kept else layers.entered(normed[0])
                to_attended = given @ layers.leave
                attended, to_entered = torch.empty_like(given), torch.empty_like(entered)
                for piece in pieces:
                    rows = piece.rows
                    sides = entered[rows], to_attended[rows]
                    found = _attention(piece, *sides, layers.enter_bias, biases, to_biases, to_fill)
                    write(attended[rows], found[:1], len(biases))
                    write(to_entered[rows], found[1:], len(biases))
                to_own, of_entering = layers.gradients(own, normed, to_entered)
                to_x.index_copy_(0, tokens, to_own)
                sums = added(sums, [*of_entering, given.T @ attended], ctx.kind)
        sums[3] += to_fill.to(ctx.kind)
        return to_x, None, None, None, to_biases, *sums, gradient.sum(0, dtype=ctx.kind)


def _attend(entered: Tensor, fill: Tensor, bias: Tensor, out: Tensor) -> None:
    """Attend by torch's operator, which needs no copy of queries, keys and values [w * n, 3C]."""
    heads, n, m = bias.shape
    q, k, v = entered.view(-1, n, 3, heads, out.shape[1] // heads).permute(2, 0, 3, 1, 4)
    if m > n:
        _, key, value = fill.view(3, 1, heads, 1, -1).expand(-1, len(q), -1, -1, -1)
        k, v = torch.cat([k, key], 2), torch.cat([v, value], 2)
    found = functional.scaled_dot_product_attention(q, k, v, bias[None])
    out.view(-1, n, heads, q.shape[-1]).copy_(found.transpose(1, 2))


def _attention(
    piece: Piece,
    entered: Tensor,
    to_attended: Tensor,
    fill: Tensor,
    biases: Tensor,
    to_biases: Tensor,
    to_fill: Tensor,
) -> list[Tensor]:
    """Attend again; return the output and the gradients of q, k and v [w * H, n or m, d].

    Adds to the gradients of biases [H, all n * m] and fill [3C]. Masked pairs have some e^-100,
    below fp32's normal numbers, with which products take up to a hundred times as long on Intel's
    CPUs; they are 0 here, which moves no result by more than 1e-37.
    """
    bias, to_bias = piece.of(biases), piece.of(to_biases)
    heads, (n, m) = len(bias), piece.shape
    q, k, v = queries(entered, fill, bias)
    scale = q.shape[-1] ** -0.5
    weights = attention_weights(q, k, bias, scale)
    if piece.masked:
        functional.threshold(weights, torch.finfo(weights.dtype).tiny, 0.0, inplace=True)
    (out,) = by_head(to_attended, heads, n, 1)
    to_logits, *found = attention_gradients(out, q, k, v, weights, scale)
    to_bias += to_logits.view(-1, *bias.shape).sum(0)
    if m > n:
        last = torch.stack([each[:, n] for each in found[1:]])
        to_fill.view(3, heads, -1)[1:] += last.unflatten(1, (-1, heads)).sum(1)
    return [torch.bmm(weights, v), *found]
