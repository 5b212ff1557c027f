"""The best linear classifier of one description, chosen on images that did not train it.

Letters: N images, D columns of a description, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.evaluation.linear import LinearProbe
from leanvit.evaluation.logistic import (
    A_DECADE,
    DECADES,
    Labelled,
    fit_logistic,
    strength_of,
    sweep_logistic,
)
from leanvit.evaluation.scores import top1


@dataclass(frozen=True, slots=True)
class Head:
    """A trained classifier, and how it was chosen."""

    accuracy: Callable[[Tensor, Tensor], tuple[float, float]]
    """Rows [N, D], target [N] -> top-1 and top-5 accuracy in percent."""
    held_out: float
    """Top-1 accuracy on the images that chose it."""
    chosen: Mapping[str, str]
    """What was chosen, by the name of its column."""
    doubt: str = ""
    """What a reader should know of the choice."""


def best_rate(probe: LinearProbe, rates: Sequence[float], held_out: Labelled) -> Head:
    """Return the classifier whose learning rate, as it was asked for, is best on `held_out`."""
    found = probe.accuracy(*held_out)[:, 0]
    best = int(found.argmax())

    def accuracy(rows: Tensor, target: Tensor) -> tuple[float, float]:
        first, five = probe.accuracy(rows, target)[best].tolist()
        return first, five

    doubt = ""
    if len(rates) > 1 and best in (0, len(rates) - 1):
        doubt = (
            f"the best rate {rates[best]:g} is the {'highest' if best else 'lowest'} that was "
            f"tried; try more with --rates."
        )
    return Head(accuracy, float(found[best]), {"rate": f"{rates[best]:g}"}, doubt)


def best_strength(learn: Labelled, held_out: Labelled, classes: int) -> Head:
    """Return a logistic regression on both, of the strength that is best on `held_out`."""
    strength = sweep_logistic([(learn, held_out)], top1, classes=classes)
    first = fit_logistic(*learn, strength=strength, classes=classes)
    rows, target = (torch.cat(parts) for parts in zip(learn, held_out, strict=True))
    model = fit_logistic(rows, target, strength=strength, classes=classes)
    doubts = []
    if strength in (strength_of(-DECADES * A_DECADE), strength_of(DECADES * A_DECADE)):
        doubts.append(f"the best strength {strength:g} is at the edge of what is tried.")
    if not model.converged:
        doubts.append("the regression did not converge.")
    return Head(
        lambda rows, target: tops(model.scores(rows), target),
        top1(first.scores(held_out[0]), held_out[1]),
        {"strength": f"{strength:.2g}"},
        " ".join(doubts),
    )


def tops(scores: Tensor, target: Tensor) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy in percent; of equal scores the lower class comes first."""
    ranked = scores.sort(dim=1, descending=True, stable=True).indices[:, :5] == target[:, None]
    first, five = (100 * float(hits.double().mean()) for hits in (ranked[:, 0], ranked.any(1)))
    return first, five
