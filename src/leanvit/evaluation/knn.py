"""Weighted k-nearest-neighbour classification of frozen features (EsViT, `eval_knn`).

Letters: N training rows, M test rows, m of them at a time, D channels, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.evaluation.nearest import nearest
from leanvit.evaluation.scores import eleven_point_map

AT_A_TIME = 1024
"""Test rows whose neighbours vote at a time."""


@dataclass(frozen=True, slots=True)
class Bank:
    """What neighbours are looked for in. Raises ValueError where labels are missing."""

    rows: Tensor
    """[n, D] of the images to learn from, or of this process's share of them."""
    target: Tensor
    """Of all of them: class numbers [N], or labels [N, C] of 1, 0 and -1 for left out."""
    first: int | None = None
    """Place of this share's first row among all; None: there are no other shares."""
    leave_one_out: bool = False
    """Whether test row i is row i of all, which is not its own neighbour."""

    def __post_init__(self) -> None:
        rows = len(self.rows) if self.first is None else len(self.target)
        _require_labels(self.target, rows, "to learn from")

    @property
    def voters(self) -> int:
        """How many rows may vote on each test row."""
        return max(len(self.target) - self.leave_one_out, 0)


def knn_accuracy(
    train: Tensor,
    train_target: Tensor,
    test: Tensor,
    test_target: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> Mapping[int, tuple[float, float]]:
    """Return top-1 and top-5 accuracy in percent for each k, of rows that this process has alone.

    train [N, D], test [M, D], targets [N] and [M]: as for `accuracy_of`. Raises ValueError for
    empty or mismatched inputs, missing labels, and features that are not finite.
    """
    return accuracy_of(Bank(train, train_target), test, test_target, ks=ks, temperature=temperature)


def accuracy_of(
    bank: Bank,
    test: Tensor,
    target: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> Mapping[int, tuple[float, float]]:
    """Return top-1 and top-5 accuracy in percent for each k.

    test [M, D] is the same in every process; targets are class numbers from 0. Rows are compared
    by their direction, whatever their length. The k nearest training rows vote with exp(cosine /
    temperature). Of k beyond N all N vote. Top-5 looks at min(5, k, C) classes; of equal votes,
    none included, the lower class comes first.
    """
    _require_labels(target, len(test), "to test on")
    _require_both(bank, test)
    classes = int(max(bank.target.max(), target.max())) + 1
    correct = {k: torch.zeros(2, dtype=torch.long, device=test.device) for k in ks}
    for some, k, score in _votes(bank, test, classes, ks, temperature):
        guesses = score.sort(stable=True, dim=1, descending=True).indices[:, : min(5, k)]
        hits = guesses == target[some, None]
        correct[k] += torch.stack([hits[:, :1].sum(), hits.sum()])
    share = {k: (100 * count.double() / len(test)).tolist() for k, count in correct.items()}
    return {k: (top1, top5) for k, (top1, top5) in share.items()}


def precision_of(
    bank: Bank,
    test: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> Mapping[int, float]:
    """Return mean average precision in percent for each k, where an image may have many classes.

    test [M, D] and labels [M, C] are the same in every process; labels are 1, 0, or -1 where left
    out. A class's score is the share of its neighbours' votes that have it, among those whose label
    is not left out.
    """
    _require_labels(labels, len(test), "to test on")
    if bank.target.dim() != 2 or bank.target.shape[1] != labels.shape[1]:
        raise ValueError(
            f"The images to test on have labels {list(labels.shape)}, those to learn from "
            f"{list(bank.target.shape)}; expected as many classes."
        )
    _require_both(bank, test)
    scores = {k: test.new_empty(labels.shape) for k in ks}
    for some, k, score in _votes(bank, test, labels.shape[1], ks, temperature):
        scores[k][some] = score
    return {k: eleven_point_map(scores[k], labels) for k in ks}


@torch.no_grad()
def _votes(
    bank: Bank, test: Tensor, classes: int, ks: Sequence[int], temperature: float
) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield test rows, a k, and the votes [m, C] of their k nearest; every k for all rows."""
    most = min(max(ks), bank.voters)
    found = nearest(bank.rows, test, most, first=bank.first, leave_one_out=bank.leave_one_out)
    for near in found:
        for start in range(0, len(near.place), AT_A_TIME):
            like, place = (x[start : start + AT_A_TIME] for x in (near.similarity, near.place))
            # relative to the nearest, so that no temperature is too low for fp32
            votes = ((like - like[:, :1]) / temperature).exp()
            label = bank.target[place]
            begin = near.queries.start + start
            for k in ks:
                score = _score(label[:, :k], votes[:, :k], classes)
                yield slice(begin, begin + len(like)), k, score


def _score(label: Tensor, votes: Tensor, classes: int) -> Tensor:
    """Return votes by class [m, C] of neighbours with labels [m, k] or [m, k, C]."""
    if label.dim() == 2:
        return votes.new_zeros(len(votes), classes).scatter_add_(1, label, votes)
    has, known = ((votes[:, None] @ part.float())[:, 0] for part in (label == 1, label >= 0))
    return has / known.clamp_min(torch.finfo(known.dtype).tiny)


def _require_both(bank: Bank, test: Tensor) -> None:
    if not bank.voters or not len(test):
        raise ValueError(
            f"k-NN needs rows on both sides: {bank.voters} to learn, {len(test)} to test."
        )


def _require_labels(target: Tensor, rows: int, what: str) -> None:
    """Raise ValueError unless each of so many rows has a class, or labels of known meaning."""
    if rows != len(target):
        raise ValueError(
            f"Every row of features needs one target: there are {rows} rows and {len(target)} "
            f"targets of images {what}."
        )
    outside = (target < 0) if target.dim() == 1 else ((target < -1) | (target > 1)).any(1)
    if outside.any():
        bad = int(outside.nonzero()[0])
        raise ValueError(
            f"Image number {bad} {what} has the label {target[bad].tolist()}; expected a class "
            f"from 0, or for each of many classes 1, 0, or -1 for left out."
        )
