"""Batch norm whose statistics cover all processes, on any device (torch's own refuses the CPU)."""

import torch
from torch import Tensor, nn

from leanvit.core.distributed import all_sum_with_grad, world_size
from leanvit.core.precision import full


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the rows of all processes; same parameters, buffers and values.

    Input [N, C]; the processes may bring different numbers of rows. In one process it is
    `nn.BatchNorm1d` itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C] over the N rows of all processes (training) or the running mean."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = full(input)
        sums = all_sum_with_grad(torch.cat([x.new_tensor([len(x)]), x.sum(0)]))
        rows, mean = sums[0].detach(), sums[1:] / sums[0].detach()
        variance = all_sum_with_grad((x - mean).square().sum(0)) / rows
        self._track(rows, mean.detach(), variance.detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((x - mean) * scale + self.bias).to(input.dtype)

    @torch.no_grad()
    def _track(self, rows: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; the variance is unbiased there, as in torch."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        unbiased = variance * rows / (rows - 1).clamp_min(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
