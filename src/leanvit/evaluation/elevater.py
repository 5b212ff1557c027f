"""ELEVATER's linear probe (arXiv 2204.08790): batch norm, a linear layer, SGD, a search for both.

The norm has neither scale nor shift. The search is over learning rates and, for each of them, over
97 weight decays from 1e-6 to 1e6: seven far apart first, then the neighbours of the best.

Letters: N images, B of a batch, D columns, T trials, C classes. `labels` are numbers of classes
[N], or where an image may have several [N, C]: 1, 0, or -1 for left open.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core import random
from leanvit.core.console import track
from leanvit.evaluation.logistic import A_DECADE, DECADES, FIRST, Labelled, strength_of
from leanvit.evaluation.scores import Score

BATCH = 64
MOMENTUM = 0.9
STATISTICS = 0.1
"""How much of the norm's running mean and variance a batch replaces."""
EPSILON = 1e-5
TOGETHER = 2**27
"""Weights that are trained side by side; what is more takes another pass."""
WORTHLESS = -1.0
"""What a trial is worth whose weights are no longer finite: less than any score."""


class Trial(NamedTuple):
    """What is searched for."""

    rate: float
    step: int
    """The weight decay, as `strength_of` counts them."""

    def __str__(self) -> str:
        return f"rate {self.rate:g}, decay {strength_of(self.step):.2g}"


class Trials:
    """T linear layers that see the same batches through the same norm, each with its own trial.

    Each is what torch's BatchNorm1d, Linear and SGD would train alone: weights from N(0, 0.01),
    zero biases, which decay too, a constant rate; cross-entropy, or its binary form for labels.
    """

    def __init__(self, trials: Sequence[Trial], columns: int, classes: int, seed: int) -> None:
        draw = random.generator(seed, "linear probe").standard_normal((columns, 1, classes))
        weight = 0.01 * torch.from_numpy(draw).float()
        self.weight = weight.repeat(1, len(trials), 1)  # [D, T, C]
        self.bias = torch.zeros(len(trials), classes)
        self._rate = torch.tensor([[trial.rate] for trial in trials])
        self._decay = torch.tensor([[strength_of(trial.step)] for trial in trials])
        self._speed = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        self.mean, self.variance = torch.zeros(columns), torch.ones(columns)

    @torch.no_grad()
    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Learn from a batch [B, D] with labels [B] or [B, C]; B is at least two."""
        variance, mean = torch.var_mean(rows, 0, correction=0)
        unbiased = variance * (len(rows) / (len(rows) - 1))
        self.mean.lerp_(mean, STATISTICS)
        self.variance.lerp_(unbiased, STATISTICS)
        rows = (rows - mean) / (variance + EPSILON).sqrt()
        error = gradient_of(self._logits(rows), labels)  # [B, T, C]
        gradients = ((rows.T @ error.flatten(1)).view_as(self.weight), error.sum(0))
        for value, speed, gradient in zip(
            (self.weight, self.bias), self._speed, gradients, strict=True
        ):
            speed.mul_(MOMENTUM).add_(gradient).add_(self._decay * value)
            value.sub_(self._rate * speed)

    def _logits(self, rows: Tensor) -> Tensor:
        """Return [B, T, C] of rows that are normed."""
        return (rows @ self.weight.flatten(1)).view(-1, *self.bias.shape) + self.bias

    @torch.no_grad()
    def worth(self, held_out: Labelled, score: Score) -> list[float]:
        """Return what each of the T is worth on other images."""
        return [
            score(self.scores(held_out[0], place), held_out[1]) if fine else WORTHLESS
            for place, fine in enumerate(self.finite())
        ]

    def finite(self) -> list[bool]:
        """Return which of the T have not diverged."""
        found: list[bool] = self.weight.isfinite().all(2).all(0).tolist()
        return found

    @torch.no_grad()
    def scores(self, rows: Tensor, place: int = 0) -> Tensor:
        """Return [N, C] of rows [N, D] by one of the T."""
        normed = (rows - self.mean) / (self.variance + EPSILON).sqrt()
        return normed @ self.weight[:, place] + self.bias[place]


def gradient_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean loss of each trial with respect to logits [B, T, C]."""
    if labels.dim() == 1:
        ones = functional.one_hot(labels, logits.shape[2])[:, None]
        return (logits.softmax(2) - ones) / len(labels)
    known = (labels >= 0)[:, None]
    return (logits.sigmoid() - labels[:, None]) * known / known.sum().clamp_min(1)


def train_trials(
    trials: Sequence[Trial],
    learn: Labelled,
    *,
    classes: int,
    epochs: int,
    seed: int,
    text: str,
    quiet: bool,
) -> Trials:
    """Return trained layers. A last batch that is not full is left out.

    text: what a bar shows. Raises ValueError for fewer than two images.
    """
    rows, labels = learn
    if len(rows) < 2:
        raise ValueError(f"A batch norm needs two images or more, not {len(rows)}.")
    batch = min(BATCH, len(rows))
    steps = len(rows) // batch
    found = Trials(trials, rows.shape[1], classes, seed)
    for step in track(range(epochs * steps), text, epochs * steps, quiet=quiet):
        epoch, place = divmod(step, steps)
        if place == 0:
            order = torch.from_numpy(
                random.permutation(seed, "probe order", epoch, count=len(rows))
            )
        chosen = order[place * batch : (place + 1) * batch]
        found.update(rows[chosen], labels[chosen])
    return found


def search_trials(
    rates: Sequence[float],
    learn: Labelled,
    held_out: Labelled,
    score: Score,
    *,
    classes: int,
    epochs: int,
    seed: int,
    text: str,
    quiet: bool,
) -> Trial:
    """Return the trial that is worth most on `held_out`.

    Every rate has its own search for the decay, all side by side: five passes instead of 15 a rate.
    Of equal trials the first rate's lowest decay is taken.
    """
    found: dict[Trial, float] = {}

    def best(rate: float) -> Trial:
        mine = [trial for trial in found if trial.rate == rate]
        return max(mine, key=lambda trial: (found[trial], -trial.step))

    def attempt(wanted: Sequence[Trial]) -> None:
        together = max(TOGETHER // (learn[0].shape[1] * classes), 1)
        fresh = [trial for trial in wanted if trial not in found]
        for start in range(0, len(fresh), together):
            part = fresh[start : start + together]
            layers = train_trials(
                part, learn, classes=classes, epochs=epochs, seed=seed, text=text, quiet=quiet
            )
            found.update(zip(part, layers.worth(held_out, score), strict=True))

    last = DECADES * A_DECADE
    attempt([Trial(rate, step) for rate in rates for step in range(-last, last + 1, FIRST)])
    distance = FIRST // 2
    while distance:
        near = [
            Trial(rate, step)
            for rate in rates
            for step in (best(rate).step - distance, best(rate).step + distance)
        ]
        attempt([trial for trial in near if abs(trial.step) <= last])
        distance //= 2
    return max((best(rate) for rate in rates), key=lambda trial: found[trial])
