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

from leanvit.core.precision import full, operands
from leanvit.kernels.branches import Layers, added, chunk_size, parameters
from leanvit.kernels.chunk_products import chunk_length
from leanvit.kernels.linear import product_dtype
from leanvit.kernels.window_chunks import attend_again, attend_windows, write
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
                    place, own = piece.rows, piece.of(biases)
                    attend_windows(entered[place], layers.enter_bias, own, attended[place])
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
                    place, bias = piece.rows, piece.of(biases)
                    weights, v = attend_again(
                        *(entered[place], layers.enter_bias, bias, piece.masked),
                        *(to_attended[place], to_entered[place], piece.of(to_biases), to_fill),
                    )
                    write(attended[place], [torch.bmm(weights, v)], len(bias))
                to_own, of_entering = layers.gradients(own, normed, to_entered)
                to_x.index_copy_(0, tokens, to_own)
                sums = added(sums, [*of_entering, given.T @ attended], ctx.kind)
        sums[3] += to_fill.to(ctx.kind)
        return to_x, None, None, None, to_biases, *sums, gradient.sum(0, dtype=ctx.kind)
