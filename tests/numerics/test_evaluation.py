"""k-NN and effective rank against plain forms."""

import math

import pytest
import torch
from torch.nn import functional

from leanvit.analysis.rank import effective_rank
from leanvit.evaluation.knn import knn_accuracy
from tests.tiny import noise


def test_knn_is_its_definition() -> None:
    train, test = noise(40, 6, seed=0), noise(30, 6, seed=1)
    train_target, test_target = torch.arange(40) % 7, torch.arange(30) % 7
    found = knn_accuracy(train, train_target, test, test_target, ks=(1, 5, 40), chunk=7)
    for k in (1, 5, 40):
        hits = [0, 0]
        for row, target in zip(test, test_target.tolist(), strict=True):
            like = functional.cosine_similarity(row[None], train)
            votes = torch.zeros(7)
            for near in like.argsort(descending=True)[:k].tolist():
                votes[train_target[near]] += math.exp(float(like[near]) / 0.07)
            order = votes.argsort(descending=True, stable=True).tolist()
            hits[0] += target == order[0]
            hits[1] += target in order[: min(5, k)]
        assert found[k] == pytest.approx((100 * hits[0] / 30, 100 * hits[1] / 30))


def test_knn_with_few_rows_and_classes() -> None:
    rows, target = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_accuracy(rows, target, rows, target, ks=(1, 20)) == {
        1: (100.0, 100.0),
        20: (100.0, 100.0),
    }


def test_knn_refuses_what_it_cannot_compare() -> None:
    rows, target = torch.eye(3), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="rows on both sides: 0 to learn"):
        knn_accuracy(rows[:0], target[:0], rows, target)
    with pytest.raises(ValueError, match="needs one target"):
        knn_accuracy(rows, target[:2], rows, target)


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8)
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert math.isfinite(effective_rank(torch.zeros(5, 5)))
