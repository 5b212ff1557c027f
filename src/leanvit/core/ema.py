"""Exponential moving average of a network's parameters."""

import torch
from torch import nn


@torch.no_grad()
def ema_update(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move every parameter of `average` to momentum * itself + (1 - momentum) * the network's.

    Both have the same parameters in the same order, in fp32 or wider: in half precision the
    average stalls. Buffers are left alone, as in DINO and EsViT.
    """
    torch._foreach_lerp_(
        list(average.parameters()), list(network.parameters()), weight=1.0 - momentum
    )
