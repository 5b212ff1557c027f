"""Metrics and logistic regression against scikit-learn and against plain forms."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor

from leanvit.evaluation.logistic import fit_logistic, search, strength_of, sweep_logistic
from leanvit.evaluation.scores import eleven_point_map, mean_per_class, roc_auc, top1

SEEDS = range(20)


def draw(seed: int, n: int = 60, c: int = 5, coarse: bool = False) -> tuple[Tensor, Tensor]:
    """Return random scores [n, c], many of them equal if coarse, and classes [n]."""
    numbers = np.random.default_rng(seed)
    scores = numbers.integers(0, 4, (n, c)) if coarse else numbers.normal(size=(n, c))
    return torch.from_numpy(scores).float(), torch.from_numpy(numbers.integers(0, c, n))


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracies_are_those_of_scikit_learn(seed: int) -> None:
    scores, target = draw(seed, coarse=seed % 2 == 0)
    guess = scores.numpy().argmax(1)  # the first of equal ones
    assert top1(scores, target) == pytest.approx(100 * accuracy_score(target, guess))
    balanced = balanced_accuracy_score(target, guess)
    assert mean_per_class(scores, target) == pytest.approx(100 * balanced)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_area_is_that_of_scikit_learn(seed: int) -> None:
    scores, target = draw(seed, c=2, coarse=seed % 2 == 0)
    margin = scores[:, 1] - scores[:, 0]
    assert roc_auc(scores, target) == pytest.approx(100 * roc_auc_score(target, margin))


def plain_map(scores: Tensor, labels: Tensor) -> float:
    """Go down the list of each class, as VOC2007's own code does, with whole numbers."""
    found = []
    for c in range(scores.shape[1]):
        pairs = [(-float(s), i) for i, s in enumerate(scores[:, c]) if labels[i, c] >= 0]
        order = [int(labels[i, c]) for _, i in sorted(pairs)]
        if not sum(order):
            continue
        points = [0.0] * 11
        hits = 0
        for place, hit in enumerate(order, 1):
            hits += hit
            for level in range(11):
                if 10 * hits >= level * sum(order):
                    points[level] = max(points[level], hits / place)
        found.append(sum(points) / 11)
    return 100 * sum(found) / len(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_eleven_points_are_those_of_a_walk_down_the_list(seed: int) -> None:
    scores, _ = draw(seed, n=50, c=4)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, (50, 4)))
    assert eleven_point_map(scores, labels) == pytest.approx(plain_map(scores, labels))


def test_a_class_that_is_nowhere_counts_nothing() -> None:
    scores, labels = torch.tensor([[2.0, 0.0], [1.0, 5.0]]), torch.tensor([[1, 0], [0, 0]])
    assert eleven_point_map(scores, labels) == 100
    with pytest.raises(ValueError, match="No image has any"):
        eleven_point_map(scores, torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("scores", "target", "text"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "reach from 0 to 3; there are scores of 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "reach from -1"),
        (torch.zeros(2, 3), torch.tensor([0]), "expected pairs"),
        (torch.zeros(0, 3), torch.empty(0, dtype=torch.long), "expected pairs"),
        (torch.tensor([[0.0, float("nan")]]), torch.tensor([0]), "not numbers"),
    ],
)
def test_what_cannot_be_scored_is_named(scores: Tensor, target: Tensor, text: str) -> None:
    for score in (top1, mean_per_class, roc_auc):
        with pytest.raises(ValueError, match=text):
            score(scores, target)


def test_an_area_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="images of both"):
        roc_auc(torch.zeros(3, 2), torch.tensor([1, 1, 1]))


# Logistic regression


def clouds(seed: int, classes: int = 3, n: int = 90) -> tuple[Tensor, Tensor]:
    """Return points [n, 4] around a center for each class."""
    numbers = np.random.default_rng(seed)
    target = numbers.integers(0, classes, n)
    rows = numbers.normal(size=(classes, 4))[target] + 0.8 * numbers.normal(size=(n, 4))
    return torch.from_numpy(rows).float(), torch.from_numpy(target)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_the_regression_of_scikit_learn(classes: int) -> None:
    rows, target = clouds(0, classes)
    plain = LogisticRegression(C=0.3, max_iter=1000).fit(rows.double().numpy(), target.numpy())
    found = fit_logistic(rows, target, strength=0.3)
    share = torch.from_numpy(plain.predict_proba(rows.double().numpy())).float()
    torch.testing.assert_close(found.scores(rows).softmax(1), share, atol=1e-5, rtol=1e-4)
    assert found.converged


def test_classes_without_images_never_win() -> None:
    rows, target = clouds(1, 2)
    found = fit_logistic(rows, 3 * target + 1, strength=1.0, classes=6)
    assert found.weight.shape == (4, 6)
    assert set(found.scores(rows).argmax(1).tolist()) == {1, 4}
    with pytest.raises(ValueError, match="two classes or more"):
        fit_logistic(rows, torch.zeros_like(target), strength=1.0)


def test_labels_have_a_regression_each() -> None:
    rows, target = clouds(2)
    labels = torch.nn.functional.one_hot(target, 4)
    labels[:5, 0] = -1
    found = fit_logistic(rows, labels, strength=2.0).scores(rows)
    plain = LogisticRegression(C=2.0).fit(rows[5:].double().numpy(), labels[5:, 0].numpy())
    expected = torch.from_numpy(plain.decision_function(rows.double().numpy())).float()
    torch.testing.assert_close(found[:, 0], expected, atol=1e-4, rtol=1e-3)
    assert (found[:, 3] == -1).all(), "a class that no image has"


def test_a_regression_that_does_not_end_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanvit.evaluation.logistic.ITERATIONS", 1)
    assert not fit_logistic(*clouds(3), strength=1e6).converged


@pytest.mark.parametrize("peak", [-48, -31, 0, 5, 17, 48])
def test_the_search_finds_a_single_peak(peak: int) -> None:
    tried: list[int] = []

    def worth(step: int) -> float:
        tried.append(step)
        return -abs(step - peak)

    assert search(worth) == peak
    assert len(tried) == len(set(tried)) <= 15


def test_of_equal_strengths_the_weakest_is_taken() -> None:
    assert search(lambda step: 1.0) == -48
    assert strength_of(-48) == pytest.approx(1e-6) and strength_of(8) == pytest.approx(10)


def test_the_strength_is_chosen_on_what_is_held_out() -> None:
    rows, target = clouds(4, n=120)
    rows = torch.cat([rows, torch.from_numpy(np.random.default_rng(5).normal(size=(120, 60)))], 1)
    learn, held = (rows[:40].float(), target[:40]), (rows[40:].float(), target[40:])
    found = sweep_logistic([(learn, held)], top1)

    def worth(strength: float) -> float:
        return top1(fit_logistic(*learn, strength=strength).scores(held[0]), held[1])

    assert worth(found) >= max(worth(10.0**power) for power in (-6, -4, -2, 0, 2, 4, 6))
