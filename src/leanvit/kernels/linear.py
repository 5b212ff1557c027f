"""Linear layers on the CPU, by the faster of the two libraries that torch has.

torch asks MKL for fp32, which takes its slow path on CPUs of other makers, and spreads the bias
over the output before a product in bf16. oneDNN's fp32 is exact too.
benchmarks/forward.md has whole networks beside timm's, which ask MKL.

Letters: N tokens, C and D channels.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from leanvit.core.precision import operands

_OPERATOR = "_linear_pointwise"


@lru_cache
def _onednn() -> bool:
    """Whether oneDNN is the faster one here: an x86 CPU that is not Intel's, and torch has it."""
    cpu = Path("/proc/cpuinfo")
    maker = cpu.read_text().partition("vendor_id")[2].partition("\n")[0] if cpu.exists() else ""
    return bool(maker) and "GenuineIntel" not in maker and hasattr(torch.ops.mkldnn, _OPERATOR)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none") -> Tensor:
    """Return act(x [N, C] times weight [D, C], transposed, plus bias [D]): [N, D].

    act: none, or gelu.
    """
    if not _onednn():
        out = functional.linear(x, weight, bias)
        return functional.gelu(out) if act == "gelu" else out
    fused: Tensor = getattr(torch.ops.mkldnn, _OPERATOR)(x, weight, bias, act, [], "none")
    return fused


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the type of the operands of `product` for a layer on x; None: it is torch's own."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype == torch.float64:
        return None
    if x.dtype != weight.dtype and not torch.is_autocast_enabled("cpu"):
        return None  # torch says what is wrong
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in (torch.float32, torch.bfloat16) else None


class _Linear(torch.autograd.Function):
    """The layer and its gradients, each a product of oneDNN in `dtype`; gradients keep theirs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.dtypes = x.dtype, weight.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        return product(x, weight, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        of_x, of_weight = ctx.dtypes
        with operands(x.dtype):
            return (
                (gradient @ weight).to(of_x) if to_x else None,
                (gradient.T @ x).to(of_weight) if to_weight else None,
                gradient.sum(0, dtype=of_weight) if to_bias else None,
                None,
            )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `functional.linear` of x [..., C], weight [D, C] and bias [D]: [..., D]."""
    dtype = product_dtype(x, weight)
    if dtype is None or not _onednn():
        return functional.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, dtype)
    return out.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., D]."""
        return linear(input, self.weight, self.bias)
