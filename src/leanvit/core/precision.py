"""Arithmetic of the networks, full precision where numbers are fragile, and moving numbers."""

import torch
from torch import Tensor

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
