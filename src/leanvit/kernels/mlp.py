"""Two linear layers with GELU between them, on the CPU some tokens at a time.

The hidden rows are four times as wide as the tokens, and for all tokens at once their memory is new
every time. Here a chunk's hidden rows are made, used and forgotten; the backward pass keeps them
before GELU alone, and computes GELU again.

Letters: N tokens, C channels, D hidden channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from leanvit.core.precision import operands
from leanvit.kernels.linear import Linear, linear, product, product_dtype

CHUNK = 4096
"""Tokens of a chunk for every thread."""


def mlp(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """Return second(gelu(first(x))) of x [N, C]: [N, C].

    In chunks if both layers are plain; what stands in their place, or has hooks, is called.
    """
    if not (isinstance(first, Linear) and isinstance(second, Linear)) or _changed(first, second):
        out: Tensor = second(functional.gelu(first(x)))
        return out
    weights = first.weight, first.bias, second.weight, second.bias
    dtype = product_dtype(x, first.weight)
    if dtype is None:
        return linear(functional.gelu(linear(x, *weights[:2])), *weights[2:])
    if torch.is_grad_enabled() and any(each.requires_grad for each in (x, *weights)):
        trained: Tensor = _Mlp.apply(x, *weights, dtype)
        return trained
    x, enter, shift, leave, offset = (each.to(dtype) for each in (x, *weights))
    out = torch.empty_like(x)
    for part in _chunks(len(x)):
        out[part] = product(product(x[part], enter, shift, "gelu"), leave, offset)
    return out


def _changed(*layers: Linear) -> bool:
    """Whether a layer is not ours alone, has no bias, or something listens to it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(
        type(layer) is not Linear
        or layer.bias is None
        or any(getattr(layer, name) for name in hooks)
        for layer in layers
    )


def _chunks(tokens: int) -> list[slice]:
    step = CHUNK * torch.get_num_threads()
    return [slice(start, start + step) for start in range(0, tokens, step)]


class _Mlp(torch.autograd.Function):
    """Products in `dtype`; gradients keep the types of what they belong to."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        enter: Tensor,
        shift: Tensor,
        leave: Tensor,
        offset: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.dtypes = x.dtype, enter.dtype
        x, enter, shift, leave, offset = (e.to(dtype) for e in (x, enter, shift, leave, offset))
        hidden, out = x.new_empty(len(x), len(enter)), torch.empty_like(x)
        for part in _chunks(len(x)):
            hidden[part] = product(x[part], enter, shift)
            out[part] = product(functional.gelu(hidden[part]), leave, offset)
        ctx.save_for_backward(x, hidden, enter, leave)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, enter, leave = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        to_x = torch.empty_like(x)
        sums: list[Tensor] = []
        with operands(x.dtype):
            for part in _chunks(len(x)):
                given, before = gradient[part], hidden[part]
                to_leave = given.T @ functional.gelu(before)
                to_before = torch.ops.aten.gelu_backward(given @ leave, before)
                torch.mm(to_before, enter, out=to_x[part])
                found = (to_before.T @ x[part], to_before.sum(0, dtype=of_weight), to_leave)
                sums = _added(sums, [each.to(of_weight) for each in found])
        to_offset = gradient.sum(0, dtype=of_weight)
        to_enter, to_shift, to_leave = sums
        return to_x.to(of_x), to_enter, to_shift, to_leave, to_offset, None


def _added(sums: list[Tensor], found: list[Tensor]) -> list[Tensor]:
    """Add what a chunk found to the sums over those before; the first one makes them."""
    if not sums:
        return found
    torch._foreach_add_(sums, found)
    return sums
