"""Average precision against torchmetrics, and by hand."""

import warnings
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from leanvit.data.batch import Objects
from leanvit.evaluation.precision import Precision, Told

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.detection import MeanAveragePrecision

H, W = 120, 200


def boxes(count: int, draw: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=draw) * torch.tensor([W - 60.0, H - 60.0])
    return torch.cat([corner, corner + 4 + 50 * torch.rand(count, 2, generator=draw)], 1)


def masks(found: Tensor) -> Tensor:
    drawn = torch.zeros(len(found), H, W, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(drawn, found.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return drawn


def case(seed: int, classes: int) -> list[tuple[Told, Objects]]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(5):
        count = int(torch.randint(0, 7, (), generator=draw))
        there = boxes(count, draw)
        labels = torch.randint(0, classes, (count,), generator=draw)
        crowd = torch.rand(count, generator=draw) < 0.15
        near = there + 3 * torch.randn(count, 4, generator=draw)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        told = torch.cat([near.clamp(min=0), boxes(3, draw)])
        guesses = torch.randint(0, classes, (count + 3,), generator=draw)
        guesses[:count] = torch.where(
            torch.rand(count, generator=draw) < 0.8, labels, guesses[:count]
        )
        scores = torch.rand(count + 3, generator=draw)
        found.append(
            (
                Told(told, guesses, scores, masks(told)),
                Objects(there, labels, crowd, masks(there)),
            )
        )
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_torchmetrics(seed: int) -> None:
    """Of masks, images with nothing but crowds are left out: torchmetrics counts nothing there.

    Its own thresholds are rounded to 32 bits and miss a recall that is exactly one of them.
    """
    classes = 1 + seed % 3
    kinds: dict[Literal["bbox", "segm"], str] = {"bbox": "", "segm": "mask "}
    for kind, prefix in kinds.items():
        ours, theirs = (
            Precision(tuple("abc"[:classes])),
            MeanAveragePrecision(iou_type=kind, rec_thresholds=np.linspace(0, 1, 101).tolist()),
        )
        for told, there in case(seed, classes):
            assert told.masks is not None and there.masks is not None
            if kind == "bbox" or not there.crowd.all():
                ours.add(told, there, H, W)
                one: dict[str, Any] = {"boxes": told.boxes, "scores": told.scores}
                one |= {"labels": told.labels, "masks": told.masks.bool()}
                two: dict[str, Any] = {"boxes": there.boxes, "labels": there.labels}
                two |= {"iscrowd": there.crowd.int(), "masks": there.masks.bool()}
                theirs.update([one], [two])
        scores, expected = ours.scores(), theirs.compute()
        names = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
        if kind == "bbox":
            names |= {"small": "map_small", "medium": "map_medium", "large": "map_large"}
        for name, key in names.items():
            assert scores[prefix + name] == pytest.approx(
                100 * float(expected[key]) if expected[key] >= 0 else -1, abs=1e-3
            )


def objects(*found: tuple[float, float, float, float], label: int = 0) -> Objects:
    count = len(found)
    return Objects(
        torch.tensor(found).reshape(-1, 4),
        torch.full((count,), label),
        torch.zeros(count, dtype=torch.bool),
        None,
    )


def told(*found: tuple[float, float, float, float], label: int = 0) -> Told:
    count = len(found)
    scores = torch.linspace(0.9, 0.5, count)
    return Told(torch.tensor(found).reshape(-1, 4), torch.full((count,), label), scores)


def test_by_hand() -> None:
    found = Precision(("a", "b"))
    found.add(told((0, 0, 50, 50)), objects((0, 0, 50, 50), (60, 60, 110, 110)), 120, 120)
    scores = found.scores()
    # half of the objects at precision 1: recalls 0 to 0.5 of the 101
    assert scores["ap"] == pytest.approx(100 * 51 / 101) == scores["ap50"]
    assert scores["medium"] == scores["ap"] and scores["small"] == -1 == scores["large"]
    assert "mask ap" not in scores
    assert found.of_classes() == {"a": pytest.approx(100 * 51 / 101), "b": -1.0}


def test_a_crowd_is_neither_missed_nor_wrong() -> None:
    crowd = objects((0, 0, 50, 50), (60, 60, 110, 110))
    crowd = Objects(crowd.boxes, crowd.labels, torch.tensor([False, True]), None)
    found = Precision(("a",))
    found.add(told((0, 0, 50, 50), (61, 61, 80, 80)), crowd, 120, 120)
    assert found.scores()["ap"] == pytest.approx(100.0)


def test_a_size_is_that_of_the_annotation() -> None:
    """A box of 60 pixels a side whose object has 100 pixels is small."""
    there = objects((0, 0, 60, 60))
    there = Objects(there.boxes, there.labels, there.crowd, None, torch.tensor([100.0]))
    found = Precision(("a",))
    found.add(told((0, 0, 60, 60)), there, 120, 120)
    scores = found.scores()
    assert scores["small"] == pytest.approx(100.0) and scores["medium"] == -1


def test_nothing_there_and_nothing_told() -> None:
    found = Precision(("a",))
    found.add(told(), objects(), 9, 9)
    with pytest.raises(ValueError, match="no object in the images to test on"):
        found.scores()
    found.add(told(), objects((0, 0, 5, 5)), 9, 9)
    assert found.scores()["ap"] == 0.0
