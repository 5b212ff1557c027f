"""Logistic regression on frozen features, and the search for how strongly it is regularised.

CLIP's protocol (arXiv 2103.00020, appendix A.3): L-BFGS of scikit-learn, at most 1000 iterations,
the strength found on a validation split among 97 values, 8 a decade.

Letters: N images, D columns, C classes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leanvit.evaluation.scores import Score

ITERATIONS = 1000
DECADES, A_DECADE = 6, 8
"""Strengths reach from 1e-6 to 1e6, in so many steps a decade."""
FIRST = 2 * A_DECADE
"""Steps between the strengths that are tried first."""
Labelled = tuple[Tensor, Tensor]
"""Rows [N, D], with their target [N] or labels [N, C]."""


@dataclass(frozen=True, slots=True)
class LinearScores:
    """A linear classifier."""

    weight: Tensor
    """[D, C]"""
    bias: Tensor
    """[C]"""
    converged: bool = True
    """Whether the training came to its end."""

    def scores(self, rows: Tensor) -> Tensor:
        """Return [N, C] of rows [N, D]."""
        return rows.to(self.weight) @ self.weight + self.bias


def fit_logistic(
    rows: Tensor, target: Tensor, *, strength: float, classes: int = 0
) -> LinearScores:
    """Train on rows [N, D]: one softmax over target [N], or one regression for each of labels.

    strength: C of scikit-learn, the weight of the loss against half the squared weights; classes:
    how many there are, if images of some may be missing, which then never win. Labels of -1 take no
    part. Raises ValueError if fewer than two classes occur.
    """
    if target.dim() == 2:
        found = [_one(rows[label >= 0], label[label >= 0], strength) for label in target.T]
        return LinearScores(
            torch.cat([each.weight for each in found], 1),
            torch.cat([each.bias for each in found]),
            all(each.converged for each in found),
        )
    there, number = target.unique(return_inverse=True)
    if len(there) < 2:
        raise ValueError("A classifier needs images of two classes or more.")
    weight, bias, converged = _fit(rows, number, strength)
    if len(there) == 2:  # scikit-learn scores the second alone
        weight, bias = torch.cat([-weight, weight], 1) / 2, torch.cat([-bias, bias]) / 2
    count = max(classes, int(there[-1]) + 1)
    every = weight.new_zeros(len(weight), count), bias.new_full((count,), -torch.inf)
    every[0][:, there], every[1][there] = weight, bias
    return LinearScores(*every, converged)


def _one(rows: Tensor, label: Tensor, strength: float) -> LinearScores:
    """Return a regression of one class against the rest; a constant if only one is there."""
    if len(label.unique()) < 2:
        sure = 1.0 if len(label) and label[0] else -1.0
        return LinearScores(torch.zeros(rows.shape[1], 1), torch.tensor([sure]))
    return LinearScores(*_fit(rows, label, strength))


def _fit(rows: Tensor, target: Tensor, strength: float) -> tuple[Tensor, Tensor, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=ITERATIONS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(rows.numpy().astype(np.float64), target.numpy())
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in said)
    weight, bias = torch.from_numpy(model.coef_.T.copy()), torch.from_numpy(model.intercept_)
    return weight.float(), bias.float(), converged


def sweep_logistic(
    turns: Sequence[tuple[Labelled, Labelled]], score: Score, *, classes: int = 0
) -> float:
    """Return the strength whose classifiers, trained on what learns, are best on what chooses.

    turns: what learns and what chooses, once or more often.
    """

    def worth(step: int) -> float:
        strength, found = strength_of(step), 0.0
        for learn, held_out in turns:
            model = fit_logistic(*learn, strength=strength, classes=classes)
            found += score(model.scores(held_out[0]), held_out[1])
        return found

    return strength_of(search(worth))


def strength_of(step: int) -> float:
    """Return the strength of a step: 1 at 0, ten times as much 8 steps on."""
    return float(10.0 ** (step / A_DECADE))


def search(worth: Callable[[int], float], *, first: int = FIRST) -> int:
    """Return the step from -48 to 48 that is worth most, by halving the distance around the best.

    Seven far apart are tried first, then the neighbours of the best at half the distance, and so
    on: 15 at most. Of equal ones the lowest is taken.
    """
    last = DECADES * A_DECADE
    found = {step: worth(step) for step in range(-last, last + 1, first)}
    distance = first // 2
    while distance:
        best = _highest(found)
        for step in (best - distance, best + distance):
            if abs(step) <= last and step not in found:
                found[step] = worth(step)
        distance //= 2
    return _highest(found)


def _highest(found: dict[int, float]) -> int:
    return min(found, key=lambda step: (-found[step], step))
