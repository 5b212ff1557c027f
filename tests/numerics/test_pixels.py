"""Scores and loss of segmentation against torchmetrics, torch, and by hand."""

import warnings
from typing import Any

import pytest
import torch
from torch.nn import functional

from leanvit.data.masks import IGNORED
from leanvit.evaluation.pixels import Confusion
from leanvit.losses.pixels import pixel_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex


@pytest.mark.parametrize("seed", range(12))
def test_scores_are_those_of_torchmetrics(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    classes = 2 + seed
    found = Confusion(tuple(map(str, range(classes))))
    settings: dict[str, Any] = {"num_classes": classes, "ignore_index": IGNORED}
    theirs = {
        "miou": MulticlassJaccardIndex(**settings, average="macro"),
        "pixels": MulticlassAccuracy(**settings, average="micro"),
        "classes": MulticlassAccuracy(**settings, average="macro"),
    }
    for number in range(3):
        size = (17 + number, 23)
        truth = torch.randint(0, classes, size, generator=draw)
        told = torch.where(
            torch.rand(size, generator=draw) < 0.6,
            truth,
            torch.randint(0, classes, size, generator=draw),
        )
        truth[torch.rand(size, generator=draw) < 0.2] = IGNORED
        found.add(told, truth.to(torch.uint8))
        for metric in theirs.values():
            metric.update(told[None], truth[None])
    for name, value in found.scores().items():
        assert value == pytest.approx(100 * float(theirs[name].compute()), abs=1e-4), name


def test_scores_by_hand() -> None:
    found = Confusion(("a", "b", "c", "d"))
    truth = torch.tensor([[0, 0, 1, 1, 255]], dtype=torch.uint8)
    found.add(torch.tensor([[0, 1, 1, 2, 3]]), truth)
    assert found.overlaps() == [50.0, pytest.approx(100 / 3), 0.0, None]
    assert found.of_classes() == dict(zip("abcd", found.overlaps(), strict=True))
    assert found.scores() == {
        "miou": pytest.approx((50 + 100 / 3) / 3),
        "pixels": 50.0,
        "classes": 50.0,
    }


def test_nothing_to_count() -> None:
    found = Confusion(("a", "b"))
    found.add(torch.zeros(2, 2), torch.full((2, 2), IGNORED, dtype=torch.uint8))
    with pytest.raises(ValueError, match="No pixel of the images to test on has a class"):
        found.scores()


def test_the_loss_is_the_mean_over_what_has_a_class() -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    maps = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    maps[0, :2] = IGNORED
    loss, right = pixel_loss(scores, maps, IGNORED)
    expected = functional.cross_entropy(scores, maps.long(), ignore_index=IGNORED)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    (ours,) = torch.autograd.grad(loss, scores)
    (theirs,) = torch.autograd.grad(expected, scores)
    assert (ours - theirs).abs().max() < 1e-12
    told = scores.argmax(1)
    assert right.item() == pytest.approx(((told == maps) & (maps != IGNORED)).sum().item() / 30)


def test_a_crop_without_classes_teaches_nothing() -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss, right = pixel_loss(scores, torch.full((1, 4, 4), IGNORED), IGNORED)
    loss.backward()
    assert loss == 0 and right == 0 and scores.grad is not None and not scores.grad.any()


def test_scores_of_half_precision_are_summed_in_full() -> None:
    scores = torch.randn(1, 3, 64, 64)
    maps = torch.randint(0, 3, (1, 64, 64))
    exact, _ = pixel_loss(scores.bfloat16().float(), maps, IGNORED)
    rounded, _ = pixel_loss(scores.bfloat16(), maps, IGNORED)
    assert rounded.dtype == torch.float32 and rounded == pytest.approx(exact.item(), abs=1e-6)
    large, _ = pixel_loss(1e4 * scores, maps, IGNORED)
    assert large.isfinite()
