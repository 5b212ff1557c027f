"""Arithmetic of the networks, and full precision where numbers are fragile."""

import torch
from torch import Tensor


def autocast(precision: str, device: str) -> torch.autocast:
    """Return the context in which a network runs: bf16 matrix products, or everything as it is."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def full(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32 if it is narrower; fp32 and fp64 pass unchanged."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
