"""What a classifier's scores are worth, in percent.

Letters: N images, C classes. `target` [N] holds class numbers, `labels` [N, C] holds 1 for a class
that is in an image, 0 for one that is not, and -1 where that is left open.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], float]
"""Scores [N, C], and target [N] or labels [N, C] -> percent."""
RECALLS = 11
"""Levels of recall at which VOC2007 looks at precision."""


def top1(scores: Tensor, target: Tensor) -> float:
    """Return how many images have their own class on top; of equal scores the lower class is."""
    _require(scores, target)
    return 100 * float((_best(scores) == target).double().mean())


def mean_per_class(scores: Tensor, target: Tensor) -> float:
    """Return the mean, over the classes that occur, of the accuracy of their images."""
    _require(scores, target)
    right = (_best(scores) == target).double()
    count = torch.bincount(target, minlength=scores.shape[1])
    hits = torch.bincount(target, right, minlength=scores.shape[1])
    there = count > 0
    return 100 * float((hits[there] / count[there]).mean())


def eleven_point_map(scores: Tensor, labels: Tensor) -> float:
    """Return VOC2007's mean average precision: at recalls 0, 0.1, ... 1, the best precision there.

    The mean is over the classes that occur. Raises ValueError if none does.
    """
    _require_finite(scores)
    if scores.shape != labels.shape:
        raise ValueError(f"Scores {list(scores.shape)} and labels {list(labels.shape)} differ.")
    found = []
    for score, label in zip(scores.double().T, labels.T, strict=True):
        known = label >= 0
        if (label == 1).any():
            found.append(_eleven_points(score[known], label[known]))
    if not found:
        raise ValueError("No image has any of the classes.")
    return 100 * sum(found) / len(found)


def _eleven_points(score: Tensor, label: Tensor) -> float:
    hits = label[score.argsort(descending=True, stable=True)].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    levels = torch.linspace(0, 1, RECALLS, dtype=torch.double)
    # hits are whole numbers: a recall that is reached exactly must count as reached
    reached = hits >= (levels[:, None] * hits[-1] - 1e-9)
    return float((reached * precision).amax(1).mean())


def roc_auc(scores: Tensor, target: Tensor) -> float:
    """Return the area under the ROC curve of the second of two classes.

    The chance that an image of it scores higher than one of the first; equal scores count half.
    Raises ValueError unless there are two classes and both occur.
    """
    _require(scores, target)
    if scores.shape[1] != 2 or len(target.unique()) != 2:
        raise ValueError("ROC-AUC needs two classes, and images of both.")
    margin = (scores[:, 1] - scores[:, 0]).double()
    _, place, count = margin.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    ranks = (last - (count - 1) / 2)[place]  # equal scores share their ranks
    second = target == 1
    wins = ranks[second].sum() - second.sum() * (second.sum() + 1) / 2
    return 100 * float(wins / (second.sum() * (~second).sum()))


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "accuracy": top1,
        "mean per class": mean_per_class,
        "11-point mAP": eleven_point_map,
        "ROC-AUC": roc_auc,
    }
)
"""Metrics of the transfer sets by the names that tables give them."""


def _best(scores: Tensor) -> Tensor:
    return scores.sort(dim=1, descending=True, stable=True).indices[:, 0]


def _require(scores: Tensor, target: Tensor) -> None:
    _require_finite(scores)
    if len(scores) != len(target) or not len(target):
        raise ValueError(f"{len(scores)} rows of scores and {len(target)} classes: expected pairs.")
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(
            f"Classes reach from {low} to {high}; there are scores of 0 to {scores.shape[1] - 1}."
        )


def _require_finite(scores: Tensor) -> None:
    if scores.isnan().any():
        raise ValueError("Some scores are not numbers.")
