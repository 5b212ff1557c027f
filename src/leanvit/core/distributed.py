"""What the code needs to know of other processes. In a single process everything is a no-op."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce as _differentiable_all_reduce


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; gradients do not pass."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_max(tensor: Tensor) -> Tensor:
    """Return the maximum over all processes; gradients do not pass."""
    if world_size() == 1:
        return tensor
    largest = tensor.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def all_sum_with_grad(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; the gradient is summed over them too."""
    if world_size() == 1:
        return tensor
    total: Tensor = _differentiable_all_reduce(tensor)
    return total
