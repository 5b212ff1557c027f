"""ELEVATER's probe: each trial is what torch trains alone, and the search finds the best."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.core import random
from leanvit.evaluation import elevater
from leanvit.evaluation.elevater import Trial, Trials, search_trials, train_trials
from leanvit.evaluation.logistic import strength_of
from leanvit.evaluation.scores import top1
from tests.tiny import noise

N, D, C = 150, 6, 4
PLAIN: dict[str, Any] = {"classes": C, "seed": 3, "text": "", "quiet": True}
TRIALS = (Trial(0.1, -8), Trial(0.01, -48), Trial(0.1, -16))


def rows() -> Tensor:
    return 3 + noise(N, D) * torch.arange(1, D + 1)


def single() -> Tensor:
    return (rows() @ noise(D, C, seed=1)).argmax(1)


def several() -> Tensor:
    """Labels of which some are left open."""
    return (rows() @ noise(D, C, seed=1) > 0).long() - (noise(N, C, seed=2) > 1).long()


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 1:
        return functional.cross_entropy(logits, labels)
    known = labels >= 0
    return functional.binary_cross_entropy_with_logits(logits[known], labels[known].float())


def by_torch(trial: Trial, start: Trials, labels: Tensor, epochs: int) -> nn.Module:
    """Train a layer with torch's own parts on the same batches."""
    layer = nn.Linear(D, C)
    layer.weight.data = start.weight[:, 0].T.clone()
    layer.bias.data.zero_()
    network = nn.Sequential(nn.BatchNorm1d(D, affine=False), layer)
    sgd = torch.optim.SGD(
        layer.parameters(), lr=trial.rate, momentum=0.9, weight_decay=strength_of(trial.step)
    )
    for epoch in range(epochs):
        order = torch.from_numpy(random.permutation(3, "probe order", epoch, count=N))
        for chosen in order[:128].split(64):  # 150 images are two whole batches
            sgd.zero_grad()
            plain_loss(network(rows()[chosen]), labels[chosen]).backward()
            sgd.step()
    return network.eval()


@pytest.mark.parametrize("labels", [single(), several()], ids=["single", "several"])
def test_trials_are_those_of_torch(labels: Tensor) -> None:
    assert labels.dim() == 1 or set(labels.unique().tolist()) >= {-1, 0, 1}
    found = train_trials(TRIALS, (rows(), labels), epochs=3, **PLAIN)
    for place, trial in enumerate(TRIALS):
        network = by_torch(trial, Trials(TRIALS, D, C, 3), labels, 3)
        with torch.no_grad():
            torch.testing.assert_close(found.scores(rows(), place), network(rows()))
    assert not torch.allclose(found.scores(rows(), 0), found.scores(rows(), 2))


def test_a_trial_that_diverges_is_worth_nothing() -> None:
    found = train_trials([Trial(0.1, 48), Trial(0.1, -48)], (rows(), single()), epochs=9, **PLAIN)
    assert found.finite() == [False, True]
    worth = found.worth((rows(), single()), top1)
    assert worth[0] == -1 and worth[1] > 60


def test_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two images or more, not 1"):
        train_trials(TRIALS, (rows()[:1], single()[:1]), epochs=1, **PLAIN)


@pytest.mark.parametrize("together", [1, 2**27])
def test_the_search_goes_to_the_best_of_every_rate(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {0.1: 13, 0.2: -7}
    passes: list[int] = []

    class Told:
        def __init__(self, trials: Sequence[Trial]) -> None:
            self.trials = trials
            passes.append(len(trials))

        def worth(self, *_: object) -> list[float]:
            return [100 * t.rate - abs(t.step - peaks[t.rate]) for t in self.trials]

    monkeypatch.setattr(elevater, "train_trials", lambda trials, *_, **__: Told(trials))
    monkeypatch.setattr(elevater, "TOGETHER", together)
    both = (rows(), single())
    found = search_trials((0.1, 0.2), both, both, top1, epochs=1, **PLAIN)
    assert found == Trial(0.2, -7)
    if together > 1:
        assert passes == [14, 4, 4, 4, 4]
    else:
        assert passes == [1] * 30
    peaks[0.2] = -48
    passes.clear()
    assert search_trials((0.1, 0.2), both, both, top1, epochs=1, **PLAIN) == Trial(0.2, -48)
    assert sum(passes) == 26, "there is nothing beyond the lowest decay"


def test_the_search_learns() -> None:
    learn, held = (rows()[:100], single()[:100]), (rows()[100:], single()[100:])
    trial = search_trials((1e-3, 1e-1), learn, held, top1, epochs=4, **PLAIN)
    best = train_trials([trial, Trial(1e-3, 8)], learn, epochs=4, **PLAIN).worth(held, top1)
    assert trial.rate == 0.1 and best[0] > 70 and best[0] > best[1] + 10
    assert str(Trial(0.1, -16)) == "rate 0.1, decay 0.01"
