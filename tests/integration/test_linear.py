"""Linear probes of tiny networks: what trains, what chooses, what is reported."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Backbone
from leanvit.config.evaluation import LinearConfig
from leanvit.core import random
from leanvit.data.decode import to_pixels
from leanvit.data.sources import FolderSource, Source, hold_out
from leanvit.evaluation.features import Description, last_block_features
from leanvit.evaluation.grid import Choice, Grid
from leanvit.evaluation.inputs import Seen
from leanvit.evaluation.probing import augmented_batches
from leanvit.weights.file import STUDENT
from leanvit.weights.loading import load_backbone
from tests.tables import (
    CLASSES,
    linear,
    seen_by,
    write_run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def test_linear_has_a_row_for_each_network(data: Path, tmp_path: Path) -> None:
    result = linear(write_run(tmp_path / "run"), data, protocol="both")
    assert [(line["protocol"], line["features"]) for line in result.rows] == [
        (protocol, features)
        for protocol in ("color", "grey")
        for features in ("trained (teacher)", "trained (student)")
    ]
    keys = ["protocol", "features", "top1", "top5", "blocks", "pooling", "rate", "held-out top1"]
    assert all(list(line) == keys for line in result.rows)
    assert all(line["top5"] == 100.0 for line in result.rows), "there are three classes"
    assert {"solver": "sgd", "epochs": 5, "augment": False}.items() <= result.facts.items()
    assert result.facts["train_images"] == 45
    student = linear(tmp_path / "run" / STUDENT, data).rows[0]
    assert student == {**result.rows[1], "features": "trained"}
    assert student != {**result.rows[0], "features": "trained"}


def test_linear_learns_colors(model: Path, colored: Path) -> None:
    (found,) = linear(model, colored, rates=(1.0,), epochs=20).rows
    assert found["top1"] == found["held-out top1"] == 100.0


def test_baselines_need_no_network(model: Path, data: Path) -> None:
    """Beside them stands what the network said before its training, probed alike."""
    options = {"blocks": (2, 1), "pooling": ("view", "mean"), "epochs": 2}
    alone = linear(model, data, **options).rows
    rows = linear(model, data, baselines=True, **options).rows
    named = [row["features"] for row in rows]
    assert named == ["raw pixels", "histogram", "untrained", "trained"]
    assert rows[3:] == alone, "who else is probed changes nothing"
    assert [row["blocks"] is None for row in rows] == [True, True, False, False]
    assert [row["pooling"] is None for row in rows] == [True, True, False, False]


def test_colors_alone_tell_colors(model: Path, colored: Path) -> None:
    for augment in (False, True):
        found = linear(model, colored, baselines=True, rates=(3.0,), epochs=20, augment=augment)
        by_name = {row["features"]: row["top1"] for row in found.rows}
        assert by_name["histogram"] == 100.0


def plain_probe(
    rows: Tensor, target: Tensor, rate: float, epochs: int, batch: int
) -> Callable[[Tensor], Tensor]:
    """Train one linear layer with torch's own optimiser, in the order of the seed's draws."""
    layer = nn.Linear(rows.shape[1], 3)
    draw = random.generator(0, "linear probe").standard_normal((rows.shape[1], 3))
    layer.weight.data = 0.01 * torch.from_numpy(draw).float().T
    layer.bias.data.zero_()
    optim = torch.optim.SGD(layer.parameters(), lr=rate * batch / 256, momentum=0.9)
    steps = len(rows) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, epochs * steps)
    for epoch in range(epochs):
        order = random.permutation(0, "probe order", epoch, count=len(rows))
        for step in range(steps):
            chosen = torch.from_numpy(order[step * batch : (step + 1) * batch])
            optim.zero_grad()
            functional.cross_entropy(layer(rows[chosen]), target[chosen]).backward()
            optim.step()
            schedule.step()
    return layer


@torch.no_grad()
def describe(backbone: Backbone, source: Source) -> tuple[Tensor, Tensor]:
    seen = seen_by(backbone, source)
    return last_block_features(backbone, seen, 2), torch.from_numpy(source.targets)


def share(guesses: Tensor, target: Tensor) -> float:
    return 100 * float((guesses.argmax(1) == target).double().mean())


def test_linear_is_its_definition(model: Path, data: Path) -> None:
    """Each rate trained alone on what is not held out; the best there is reported on val."""
    rates, backbone = (0.01, 1.0, 20.0), load_backbone(model)
    source = FolderSource(data)
    kept, held = hold_out(source, 0.25)
    test = source.validation()
    assert test is not None
    rows, target = describe(backbone, kept)
    trained = [plain_probe(rows, target, rate, epochs=4, batch=8) for rate in rates]
    scores = [
        share(layer(describe(backbone, held)[0]), describe(backbone, held)[1]) for layer in trained
    ]
    best = int(np.argmax(scores))
    (found,) = linear(model, data, rates=rates, epochs=4, blocks=(2,)).rows
    assert found["held-out top1"] == pytest.approx(scores[best])
    assert found["rate"] == f"{rates[best]:g}"
    rows, target = describe(backbone, test)
    assert found["top1"] == pytest.approx(share(trained[best](rows), target))


def test_images_that_are_reported_do_not_choose_the_rate(
    model: Path, data: Path, tmp_path: Path
) -> None:
    """With the classes of val exchanged, the rate is the same, and the accuracy another."""
    for name, other in zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True):
        shutil.copytree(data / "val" / name, tmp_path / "val" / other)
    rates = tuple(10.0**power for power in range(-3, 3))
    (found,) = linear(model, data, rates=rates).rows
    (again,) = linear(model, data, rates=rates, val=str(tmp_path / "val")).rows
    for name in ("rate", "held-out top1"):
        assert found[name] == again[name]
    assert found["top1"] != again["top1"]


def test_images_that_choose_the_rate_do_not_train(model: Path, data: Path, tmp_path: Path) -> None:
    """With other classes on what is held out, the same classifier comes out."""
    source = FolderSource(data)
    _, held = hold_out(source, 0.25)
    swapped = tmp_path / "swapped"
    shutil.copytree(data, swapped)
    names = {
        name: [held.name(i) for i in range(len(held)) if held.name(i).startswith(name)]
        for name in CLASSES
    }
    for name, other in zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True):
        for one, two in zip(names[name], names[other], strict=True):
            shutil.copy(data / "train" / one, swapped / "train" / two)
    found, again = (linear(model, folder, rates=(1.0,)).rows[0] for folder in (data, swapped))
    assert found["top1"] == again["top1"]
    assert found["held-out top1"] != again["held-out top1"]


@pytest.mark.parametrize(
    ("rates", "word"),
    [((1e-9, 1e-8, 1.0), "highest"), ((1.0, 1e30, 1e31), "lowest"), ((1e-9, 1.0, 1e30), "")],
)
def test_a_rate_at_the_edge_is_noted(
    rates: tuple[float, ...], word: str, model: Path, colored: Path
) -> None:
    result = linear(model, colored, rates=rates, epochs=20)
    (found,) = result.rows
    assert found["rate"] == "1" and found["held-out top1"] == 100.0
    expected = (
        f"color, trained: the best rate 1 is the {word} that was tried; try more with --rates."
    )
    assert list(result.notes[1:]) == ([expected] if word else [])


def test_of_a_single_rate_nothing_is_noted(model: Path, colored: Path) -> None:
    assert len(linear(model, colored, rates=(1.0,)).notes) == 1, "what was held out, nothing else"


def test_linear_gives_the_same_again(model: Path, data: Path) -> None:
    for augment in (False, True):
        one, two = (linear(model, data, augment=augment, epochs=2) for _ in range(2))
        assert one.rows == two.rows
        assert one.facts["augment"] is augment


def test_augmented_epochs_show_every_image_anew(model: Path, data: Path) -> None:
    """Random crops and mirror images in [0, 1], no more: with their classes, each image once."""
    source, config = FolderSource(data), LinearConfig(epochs=2, batch=4, held_out=0.1)
    seen = Seen(config, CPU, size=16, crop=1.0, workers=0, keeps=False, quiet=True)
    looked: list[Tensor] = []

    def look(images: Tensor) -> Tensor:
        looked.append(images)
        return images.flatten(1)

    grid = Grid([Choice(1, "view")], {"a": Description(look)}, {"a": [3 * 16 * 16]})
    found = list(augmented_batches(config, seen, source, grid, 11))
    assert len(found) == 2 * (45 // 11)
    assert max(len(images) for images in looked) == 4
    pixels = torch.cat(looked)
    assert pixels.shape == (88, 3, 16, 16)
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert torch.equal(torch.cat([rows["a, last 1 view"] for rows, _ in found]), pixels.flatten(1))
    assert len(pixels.unique(dim=0)) == 88
    targets = torch.cat([target for _, target in found])
    for epoch in targets.split(44):
        assert (torch.bincount(epoch, minlength=3) >= 14).all()
    means = torch.stack([to_pixels(source[i].image).float().mean((1, 2)) / 255 for i in range(45)])
    nearest = torch.cdist(pixels.mean((2, 3)), means).topk(10, largest=False).indices
    hits = (torch.from_numpy(source.targets)[nearest] == targets[:, None]).double().mean()
    assert hits > 0.4, "colors tell which image a crop is of, so its class is the image's"


def test_linear_leaves_unreadable_images_out_too(model: Path, broken: Path) -> None:
    for augment in (False, True):
        (found,) = linear(model, broken, max_unreadable=20, augment=augment, epochs=1).rows
        assert 0 <= found["top1"] <= found["top5"] <= 100


def test_of_several_features_the_best_on_what_is_held_out_is_reported(
    model: Path, data: Path
) -> None:
    """Trained in one pass, each is what it would be alone."""
    alone = {
        (blocks, pooling): linear(model, data, blocks=(blocks,), pooling=(pooling,)).rows[0]
        for blocks in (4, 1)
        for pooling in ("view", "both")
    }
    (found,) = linear(model, data, blocks=(4, 1), pooling=("view", "both")).rows
    best = max(alone, key=lambda choice: float(alone[choice]["held-out top1"]))
    assert found == alone[best] and (found["blocks"], found["pooling"]) == best
    assert len({str(sorted(row.items())) for row in alone.values()}) == 4
    (streamed,) = linear(model, data, blocks=(4, 1), pooling=("view", "both"), augment=True).rows
    assert 0 <= streamed["top1"] <= 100


def test_regression_is_chosen_on_what_is_held_out_and_fitted_to_all(
    model: Path, data: Path
) -> None:
    """As scikit-learn does it, by the strength that was found."""
    result = linear(model, data, solver="lbfgs", blocks=(2,))
    (found,) = result.rows
    assert list(found)[-2:] == ["strength", "held-out top1"] and result.facts["solver"] == "lbfgs"
    source, backbone = FolderSource(data), load_backbone(model)
    kept, held = hold_out(source, 0.25)
    test = source.validation()
    assert test is not None

    def score(learn: Source, seen: Source, strength: float) -> float:
        (x, y), (rows, target) = describe(backbone, learn), describe(backbone, seen)
        other = LogisticRegression(C=strength, max_iter=1000)
        other.fit(x.double().numpy(), y.numpy())
        return 100 * float(other.score(rows.double().numpy(), target.numpy()))

    strength = 10 ** (round(8 * math.log10(float(found["strength"]))) / 8)
    assert found["held-out top1"] == pytest.approx(score(kept, held, strength))
    assert found["held-out top1"] >= max(score(kept, held, 10.0**p) for p in (-6, -2, 0, 2))
    assert found["top1"] == pytest.approx(score(source, test, strength))


def test_a_strength_at_the_edge_is_noted(model: Path, colored: Path) -> None:
    result = linear(model, colored, solver="lbfgs")
    assert result.rows[0]["top1"] == 100.0
    words = "color, trained: the best strength 1e-06 is at the edge of what is tried."
    assert (words in result.notes) == (result.rows[0]["strength"] == "1e-06")
