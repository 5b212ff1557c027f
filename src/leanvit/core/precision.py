"""Arithmetic of the networks, full precision where numbers are fragile, and moving numbers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from leanvit.core.tracing import exporting

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What the operands of a network's matrix products are, by the name of a precision."""


def autocast(precision: str, device: str) -> torch.autocast:
    """Return the context in which a network runs: bf16 matrix products, or everything as it is."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to the device without waiting for what the device is doing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory would wait
    return tensor.to(device, non_blocking=True)


def full(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32 if it is narrower; fp32 and fp64 pass unchanged."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def unrounded(tensor: Tensor) -> AbstractContextManager[object]:
    """Return the context in which operations on such a tensor leave autocast out.

    The meta device, on which networks are counted and not run, has no autocast to leave out, and
    an exported graph notes the context only where there is one.
    """
    device = tensor.device.type
    if device == "meta" or (exporting() and not torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, enabled=False)


@contextmanager
def operands(dtype: torch.dtype) -> Iterator[None]:
    """Let fp32 matrix products on the CPU round their operands to bf16 where it has units for that.

    Sums and results stay fp32, which products of bf16 tensors would not give. Without such units,
    and for any other dtype, products are exact fp32, by the faster of two libraries: oneDNN, which
    torch asks only if rounding is allowed, does not round without units, and took less than half
    of MKL's time on an AMD CPU (benchmarks/loss.md). A GPU's fp32 products stay as torch is set.
    """
    allowed = dtype == torch.bfloat16 or not cpu_rounds()
    with _rounding("bf16" if allowed else "ieee"):
        yield


@lru_cache
def cpu_rounds() -> bool:
    """Return whether fp32 products on this CPU round to bf16 where they may."""
    if torch.cpu._is_amx_tile_supported():
        return True
    with _rounding("bf16"):  # 1 + 2^-12 is 1 in bf16
        product = torch.full((512, 256), 1 + 2.0**-12) @ torch.ones(256, 128)
    return bool((product <= 256).any())


@contextmanager
def _rounding(precision: str) -> Iterator[None]:
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        yield
    finally:
        setting.fp32_precision = before
