"""Muon: for the matrices of a backbone's blocks an orthogonal step, AdamW for all else.

The momentum of a matrix is replaced by the nearest matrix whose directions all count alike, by a
few Newton-Schulz rounds, and scaled to the usual size of AdamW's steps, so that learning rate and
decay are AdamW's (arXiv 2502.16982). torch's Muon cannot be told on the device to leave out a step.

Letters: m matrices [A, B] of one shape.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of x, x^3 and x^5 in a round: singular values from 0.01 on come to lie between 0.7 and 1.2."""
ROUNDS = 5
RMS = 0.2
"""Size of an entry of a step of AdamW's."""


def orthogonal(x: Tensor) -> Tensor:
    """Return nearly the orthogonal factor of matrices [m, A, B]: singular values close to 1."""
    tall = x.shape[1] > x.shape[2]
    y = (x.mT if tall else x).to(torch.bfloat16 if x.is_cuda else x.dtype)
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp_min(1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = y @ y.mT
        higher = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        y = torch.baddbmm(y, higher, y, beta=first)
    return (y.mT if tall else y).to(x.dtype)


class Muon(AdamW):
    """AdamW but for groups that are marked `orthogonal`."""

    def __init__(self, params: Any, *, betas: tuple[float, float], momentum: float) -> None:
        super().__init__(params, lr=0.0, betas=betas, fused=True)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, unless `found_inf` is set."""
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group["orthogonal"]]
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["orthogonal"]:
                for alike in _by_shape(group["params"]):
                    self._turn(alike, group["lr"], group["weight_decay"])

    def _turn(self, matrices: list[Tensor], lr: float, decay: float) -> None:
        """Take an orthogonal step with matrices of one shape."""
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        before = torch.stack(buffers)
        gradient = torch.stack([matrix.grad for matrix in matrices])  # type: ignore[misc]
        moved = before.lerp(gradient, 1 - self.momentum)
        ahead = gradient.lerp(moved, self.momentum)  # Nesterov's look ahead
        step = orthogonal(ahead.flatten(2))  # CvT keeps matrices as kernels of one pixel
        step = (step * (lr * RMS * max(step.shape[1:]) ** 0.5)).view_as(ahead)
        shrink = torch.tensor(lr * decay)
        skipped = getattr(self, "found_inf", None)
        if skipped is not None:
            step = torch.where(skipped > 0, 0.0, step)
            moved = torch.where(skipped > 0, before, moved)
            shrink = torch.where(skipped > 0, 0.0, shrink)
        torch._foreach_copy_(buffers, [*moved])
        torch._foreach_mul_(matrices, 1 - shrink)
        torch._foreach_sub_(matrices, [*step])


def _by_shape(parameters: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Return the matrices that have a gradient, those of one shape together."""
    found: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            found.setdefault(parameter.shape, []).append(parameter)
    return found.values()
