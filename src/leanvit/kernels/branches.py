"""What branches of blocks share on the CPU: norm, layer in and layer out, some tokens at once.

`mlp_branch` and `window_branch` take a chunk of tokens through the whole branch and keep its input,
and what the layer in makes only where that is dear to make again; the backward pass takes the chunk
through it once more. That is for memory: the peak of a Swin-T's step is a fifth lower, at about the
same time (benchmarks/step.md).

Letters: N tokens, C channels, I channels after the layer in, O channels before the layer out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanvit.kernels.linear import Linear, product, product_dtype

CHUNK = 4096
"""Tokens of a chunk for every thread."""
WIDE = 384
"""Channels from which the layer in is not done again in the backward pass: wide products cost more
than memory does."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def chunk_size() -> int:
    """Return how many tokens make a chunk."""
    return CHUNK * torch.get_num_threads()


def fits(x: Tensor, whole: nn.Module, norm: nn.Module, *layers: nn.Module) -> bool:
    """Return whether a branch of these modules on tokens x [N, C] can be done in chunks.

    whole: the branch, without its norm. Its layers are ours alone, with biases, and nothing listens
    to any of them; what stands in their place is called.
    """
    return (
        isinstance(norm, nn.LayerNorm)
        and all(type(layer) is Linear and layer.bias is not None for layer in layers)
        and not any(getattr(module, name) for module in (whole, norm, *layers) for name in HOOKS)
        and x.dtype == norm.weight.dtype
        and all(product_dtype(x, layer.weight) is not None for layer in layers)  # type: ignore[arg-type]
    )


@dataclass(frozen=True, slots=True)
class Layers:
    """Norm and layers of a branch, these in the type of the products' operands."""

    gain: Tensor
    """[C] of the norm."""
    shift: Tensor
    """[C] of the norm."""
    eps: float
    enter: Tensor
    """[I, C]"""
    enter_bias: Tensor
    """[I]"""
    leave: Tensor
    """[C, O]"""
    leave_bias: Tensor
    """[C]"""

    @classmethod
    def of(cls, eps: float, dtype: torch.dtype, tensors: Sequence[Tensor]) -> "Layers":
        """Return the layers of `parameters`, narrowed."""
        gain, shift, *weights = tensors
        return cls(gain, shift, eps, *(each.to(dtype) for each in weights))

    @property
    def dtype(self) -> torch.dtype:
        """Of the operands."""
        return self.enter.dtype

    def normed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normed tokens [N, C], narrowed, and mean and inverse deviation of each."""
        rows, mean, inverse = torch.native_layer_norm(
            x, self.gain.shape, self.gain, self.shift, self.eps
        )
        return rows.to(self.dtype), mean, inverse

    def keeps(self, tokens: int) -> bool:
        """Whether what the layer in makes is kept: it is dear to make again, or little."""
        return self.enter.shape[1] >= WIDE or tokens <= chunk_size()

    def entered(self, rows: Tensor) -> Tensor:
        """Return what the layer in makes of normed tokens: [N, I]."""
        return product(rows, self.enter, self.enter_bias)

    def left(self, rows: Tensor) -> Tensor:
        """Return what the layer out makes of rows [N, O]: [N, C]."""
        return product(rows, self.leave, self.leave_bias)

    def gradients(
        self, x: Tensor, found: tuple[Tensor, Tensor, Tensor], to_entered: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient of tokens x [N, C], and those of gain, shift, enter and its bias.

        found: what `normed` returned of x; to_entered [N, I]: the gradient of what `entered` did.
        """
        rows, mean, inverse = found
        to_rows = (to_entered @ self.enter).to(x.dtype)
        to_x, to_gain, to_shift = torch.ops.aten.native_layer_norm_backward(
            to_rows, x, self.gain.shape, mean, inverse, self.gain, self.shift, [True] * 3
        )
        to_bias = to_entered.sum(0, dtype=x.dtype)
        return to_x, [to_gain, to_shift, to_entered.T @ rows, to_bias]


def parameters(norm: nn.Module, enter: nn.Module, leave: nn.Module) -> list[Tensor]:
    """Return the weights of a norm and of both layers, in the order of `Layers`."""
    return [each for module in (norm, enter, leave) for each in (module.weight, module.bias)]  # type: ignore[misc]


def added(sums: list[Tensor], found: Sequence[Tensor], kind: torch.dtype) -> list[Tensor]:
    """Add what a chunk found to the sums over those before, in a type; the first one makes them."""
    wide = [each.to(kind) for each in found]
    if not sums:
        return wide
    torch._foreach_add_(sums, wide)
    return sums
