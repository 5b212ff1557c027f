"""Linear probe of frozen features: many learning rates in one pass (EsViT, `eval_linear`).

Letters: R learning rates, B rows of a batch, D columns, C classes.
"""

import math

import torch
from torch import Tensor

from leanvit.core import random


class LinearProbe:
    """R linear classifiers that see the same batches, each with a learning rate of its own.

    Cross-entropy, SGD with momentum, no weight decay; weights from N(0, 0.01), zero biases; every
    rate falls to zero along a cosine over `steps`. Each of the R is the classifier that torch's
    own SGD would train alone.
    """

    def __init__(
        self,
        columns: int,
        classes: int,
        rates: tuple[float, ...],
        *,
        steps: int,
        momentum: float = 0.9,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Rates are those of the first step, for the batch at hand. Raises ValueError if none."""
        if not rates:
            raise ValueError("A linear probe needs at least one learning rate.")
        self.steps, self.momentum, self.step = steps, momentum, 0
        draw = random.generator(seed, "linear probe").standard_normal((columns, classes))
        weight = 0.01 * torch.from_numpy(draw).float().to(device)
        self.rates = torch.tensor(rates, device=device)
        self.weight = weight.repeat(len(rates), 1, 1)  # [R, D, C], all R alike at first
        self.bias = torch.zeros(len(rates), 1, classes, device=device)
        self._speed = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    @torch.no_grad()
    def update(self, rows: Tensor, target: Tensor) -> None:
        """Learn from a batch: rows [B, D], target [B]."""
        share = self.logits(rows).softmax(2)
        share[:, torch.arange(len(target)), target] -= 1
        error = share / len(target)  # [R, B, C], the gradient of the mean cross-entropy
        gradients = (rows.T @ error, error.sum(1, keepdim=True))
        factor = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        rates = (factor * self.rates).view(-1, 1, 1)
        for value, speed, gradient in zip(
            (self.weight, self.bias), self._speed, gradients, strict=True
        ):
            speed.mul_(self.momentum).add_(gradient)
            value.sub_(rates * speed)
        self.step += 1

    def logits(self, rows: Tensor) -> Tensor:
        """Return [R, B, C] of rows [B, D]."""
        return rows @ self.weight + self.bias

    @torch.no_grad()
    def accuracy(self, rows: Tensor, target: Tensor, chunk: int = 4096) -> Tensor:
        """Return top-1 and top-5 accuracy in percent of each classifier, [R, 2].

        Of equal scores the lower class comes first. A classifier whose weights are not finite
        scores 0.
        """
        hits = torch.zeros(len(self.rates), 2, dtype=torch.double, device=rows.device)
        for part, wanted in zip(rows.split(chunk), target.split(chunk), strict=True):
            scores = self.logits(part)
            guesses = scores.sort(dim=2, descending=True, stable=True).indices[..., :5]
            right = guesses == wanted[:, None]
            hits += torch.stack([right[..., 0].sum(1), right.any(2).sum(1)], 1)
        finite = self.weight.isfinite().all(2).all(1)
        return 100 * hits / len(target) * finite[:, None]
