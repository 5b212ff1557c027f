"""Batch norm whose statistics cover all processes, on any device (torch's own refuses the CPU)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leanvit.core.distributed import all_sum_with_grad, world_size
from leanvit.core.precision import full
from leanvit.core.recompute import Again, Remembering


class SyncBatchNorm(_BatchNorm, Remembering):
    """`nn.BatchNorm1d`, 2d and 3d over the images and places of all processes.

    Parameters, buffers and values are torch's. Input [N, C, ...]; the processes may bring
    different numbers of images. In one process, and in evaluation, it is torch's batch norm itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every channel by its statistics in training, or by the running ones."""
        if self.training and world_size() == 1 and input.numel() == self.num_features:
            raise ValueError(
                "Batch norm cannot learn from a single value a channel: raise train.batch, or the "
                "size or number of views."
            )
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = full(input)
        others = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.new_full((1,), x.numel() // x.shape[1])
        sums = all_sum_with_grad(torch.cat([count, x.sum(others)]))
        rows, mean = sums[0].detach(), sums[1:] / sums[0].detach()
        centered = x - mean.view(shape)
        variance = all_sum_with_grad(centered.square().sum(others)) / rows
        self._track(rows, mean.detach(), variance.detach())
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centered * scale.view(shape)).to(input.dtype)
        out = centered * (self.weight * scale).view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def remember(self) -> Again:
        """Return a context in which copies of the running statistics move, and not they."""
        return self._still

    @contextmanager
    def _still(self) -> Iterator[None]:
        own = dict(self.named_buffers(recurse=False))
        try:
            for name, value in own.items():
                setattr(self, name, value.clone())
            yield
        finally:
            for name, value in own.items():
                setattr(self, name, value)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Batch norm takes [N, C, ...], not {list(input.shape)}.")

    @torch.no_grad()
    def _track(self, rows: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; the variance is unbiased there, as in torch."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            weight = torch.full_like(rows, self.momentum)
        else:  # a mean of all batches so far
            assert self.num_batches_tracked is not None
            weight = 1 / self.num_batches_tracked
        unbiased = variance * rows / (rows - 1).clamp_min(1)
        weight = weight.to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)
