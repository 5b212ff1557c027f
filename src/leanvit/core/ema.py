"""Exponential moving average of a network's parameters."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(average: nn.Module, network: nn.Module, momentum: float, sound: Tensor) -> None:
    """Move every parameter of `average` to momentum * itself + (1 - momentum) * the network's.

    sound: a scalar on the device, 1, or 0 to leave the average where it is. Both networks have the
    same parameters in the same order, in fp32 or wider: in half precision the average stalls.
    Buffers are left alone, as in DINO and EsViT.
    """
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(network.parameters())
    weight = sound.to(ours[0].dtype) * (1.0 - momentum)
    if weight.is_cuda:  # where torch has no fused lerp by a weight that lies on the device
        moves = list(torch._foreach_sub(theirs, ours))
        torch._foreach_mul_(moves, weight)
        torch._foreach_add_(ours, moves)
    else:
        torch._foreach_lerp_(ours, theirs, [weight] * len(ours))


def follow_buffers(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """Average the buffers that are numbers with a fraction, and copy counters."""
    for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - momentum)
        else:
            ours.copy_(theirs)
