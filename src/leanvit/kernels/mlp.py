"""Norm, two linear layers and GELU between them, on the CPU some tokens at a time: see `branches`.

Letters: N tokens, C channels, D hidden channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from leanvit.core.precision import operands
from leanvit.kernels.branches import Layers, added, chunk_size, parameters
from leanvit.kernels.linear import product_dtype


def mlp_branch(
    x: Tensor, norm: nn.LayerNorm, first: nn.Linear, second: nn.Linear, *, keep: bool = True
) -> Tensor:
    """Return second(gelu(first(norm(x)))) of x [N, C]: [N, C], where `branches.fits` says yes.

    keep: hidden rows, where that pays; else the backward pass always makes them again.
    """
    dtype = product_dtype(x, first.weight)
    found: Tensor = _Branch.apply(x, norm.eps, dtype, keep, *parameters(norm, first, second))
    return found


class _Branch(torch.autograd.Function):
    """Products in `dtype`; gradients keep the types of what they belong to."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, dtype: torch.dtype, keep: bool, *tensors: Tensor
    ) -> Tensor:
        layers = Layers.of(eps, dtype, tensors)
        ctx.layers, ctx.kind = layers, tensors[2].dtype
        keep, kept = keep and layers.keeps(len(x)), []
        out = torch.empty_like(x, dtype=dtype)
        with operands(dtype), torch.autocast("cpu", enabled=False):
            for own, done in zip(x.split(chunk_size()), out.split(chunk_size()), strict=True):
                rows, *_ = layers.normed(own)
                hidden = layers.entered(rows)
                kept += [hidden] if keep else []
                done.copy_(layers.left(functional.gelu(hidden)))
        ctx.save_for_backward(x, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, *kept), layers = ctx.saved_tensors, ctx.layers
        to_x = torch.empty_like(x)
        sums: list[Tensor] = []
        every = (each.split(chunk_size()) for each in (x, to_x, gradient))
        with operands(layers.dtype):
            for own, to_own, given in zip(*every, strict=True):
                normed = layers.normed(own)
                hidden = kept.pop(0) if kept else layers.entered(normed[0])
                to_leave = given.T @ functional.gelu(hidden)
                to_hidden = torch.ops.aten.gelu_backward(given @ layers.leave, hidden)
                found, of_entering = layers.gradients(own, normed, to_hidden)
                to_own.copy_(found)
                sums = added(sums, [*of_entering, to_leave], ctx.kind)
        return to_x, None, None, None, *sums, gradient.sum(0, dtype=ctx.kind)
