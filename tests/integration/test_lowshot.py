"""Few images of each class: which are drawn, what they alone decide, what is reported."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import leanvit
from leanvit.config.evaluation import FinetuneConfig, LowshotConfig
from leanvit.core.files import save_tensors
from leanvit.data.named import ArraySource
from leanvit.data.sources import FolderSource, Source
from leanvit.evaluation.features import last_block_features
from leanvit.evaluation.logistic import strength_of
from leanvit.evaluation.lowshot import draw
from leanvit.evaluation.models import before_training
from leanvit.evaluation.result import Result
from leanvit.weights.file import header
from leanvit.weights.loading import load_backbone
from tests.tables import PLAIN, seen_by
from tests.tiny import write_classes

pytestmark = pytest.mark.usefixtures("one_thread")

LOWSHOT: Mapping[str, Any] = {
    **PLAIN,
    "shots": ("40%",),
    "repeats": 2,
    "probe": "knn",
    "k": (1, 3),
    "epochs": 5,
}


def lowshot(model: Path, data: Path, **options: Any) -> Result:
    options = {**LOWSHOT, **options}
    return leanvit.evaluate("lowshot", model, data=str(data), options=options, quiet=True)


# Draws


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return FolderSource(write_classes(tmp_path_factory.mktemp("few"), ants=40, bees=10, cats=3))


def drawn(source: Source, shots: str, repeat: int = 0, seed: int = 0) -> list[int]:
    one = draw(source, shots, repeat, seed=seed, held_out=0.2)
    for fit, choose in one.turns:
        assert sorted([*fit, *choose]) == one.images.tolist(), "none twice, none left out"
    return one.images.tolist()


@pytest.mark.parametrize(
    ("shots", "counts"),
    [
        ("1%", [1, 1, 1]),
        ("10%", [4, 1, 1]),
        ("50%", [20, 5, 2]),
        ("3", [3, 3, 3]),
        ("100%", [40, 10, 3]),
    ],
)
def test_every_class_has_its_images(uneven: FolderSource, shots: str, counts: list[int]) -> None:
    images = drawn(uneven, shots)
    assert images == sorted(set(images))
    assert np.bincount(uneven.targets[images]).tolist() == counts


def test_a_draw_is_a_function_of_seed_and_repeat(uneven: FolderSource) -> None:
    assert drawn(uneven, "20%") == drawn(uneven, "20%")
    others = [drawn(uneven, "20%", repeat=1), drawn(uneven, "20%", seed=1)]
    assert all(other != drawn(uneven, "20%") for other in others) and others[0] != others[1]


def test_fewer_images_are_among_more(uneven: FolderSource) -> None:
    nested = [
        set(drawn(uneven, shots, repeat=2)) for shots in ("1%", "2", "10%", "3", "50%", "100%")
    ]
    assert nested[0] < nested[1] < nested[3] and nested[0] < nested[2] < nested[4] < nested[5]


def test_images_that_choose_are_of_every_class(uneven: FolderSource) -> None:
    one = draw(uneven, "50%", 0, seed=0, held_out=0.2)
    assert len(one.turns) == 2, "of two cats, each chooses once"
    for fit, choose in one.turns:
        assert np.bincount(uneven.targets[choose]).tolist() == [4, 1, 1]
        assert np.bincount(uneven.targets[fit]).tolist() == [16, 4, 1]
    assert not set(one.turns[0][1]) & set(one.turns[1][1])
    for shots in ("1", "10%"):
        assert not draw(uneven, shots, 0, seed=0, held_out=0.2).turns, "a class has one image"


def test_few_images_choose_in_turn_and_many_once() -> None:
    source = ArraySource(np.zeros((12_000, 8, 8, 3), np.uint8), [n % 2 for n in range(12_000)])
    for shots, count in (("5", 5), ("50", 5), ("1000", 3), ("3000", 1), ("50%", 1)):
        turns = draw(source, shots, 0, seed=0, held_out=0.2).turns
        assert len(turns) == count
        assert len(set(np.concatenate([choose for _, choose in turns]))) == sum(
            len(choose) for _, choose in turns
        )


# What is reported


def described(model: Path, source: Source, blocks: int = 1) -> tuple[Tensor, Tensor]:
    backbone = load_backbone(model)
    with torch.no_grad():
        rows = last_block_features(backbone, seen_by(backbone, source), blocks)
    return rows, torch.from_numpy(source.targets)


def both(data: Path) -> tuple[Source, Source]:
    learn = FolderSource(data)
    test = learn.validation()
    assert test is not None
    return learn, test


def test_neighbours_are_chosen_by_leave_one_out(model: Path, data: Path) -> None:
    """As scikit-learn finds them, image after image."""
    ks = (1, 3, 9)
    result = lowshot(model, data, k=ks, shots=("40%",), repeats=3)
    learn, test = both(data)
    (every, targets), (rows, wanted) = described(model, learn), described(model, test)

    def voted(k: int, x: Tensor, y: Tensor, query: Tensor) -> Any:
        near = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp(-d / 0.07))
        return near.fit(x.double().numpy(), y.numpy()).predict(query.double().numpy())

    for repeat, found in enumerate(result.facts["draws"]):
        images = drawn(learn, "40%", repeat)
        x, y = every[images], targets[images]
        rest = [[j for j in range(len(x)) if j != i] for i in range(len(x))]
        hits = [
            sum(voted(k, x[r], y[r], x[i, None])[0] == y[i] for i, r in enumerate(rest)) for k in ks
        ]
        best = ks[int(np.argmax(hits))]
        assert found["chosen"] == f"k {best}"
        right = voted(best, x, y, rows) == wanted.numpy()
        assert found["top1"] == pytest.approx(100 * right.mean())


def test_regression_is_chosen_within_the_draw(model: Path, data: Path) -> None:
    """Every strength that the search reaches: the best of them on what chooses, fitted to all."""
    (found,) = lowshot(model, data, probe="lbfgs", repeats=1).facts["draws"]
    learn, test = both(data)
    rows, targets = described(model, learn)
    one = draw(learn, "40%", 0, seed=0, held_out=0.2)
    assert len(one.turns) > 1

    def worth(strength: float) -> float:
        found = 0.0
        for fit, choose in one.turns:
            regression = LogisticRegression(C=strength, max_iter=1000)
            regression.fit(rows[fit].double().numpy(), targets[fit].numpy())
            found += regression.score(rows[choose].double().numpy(), targets[choose].numpy())
        return found

    chosen = float(found["chosen"].removeprefix("strength "))
    assert worth(chosen) >= max(worth(strength_of(step)) for step in range(-48, 49, 8)) - 1e-9
    model_of = LogisticRegression(C=chosen, max_iter=1000)
    model_of.fit(rows[one.images].double().numpy(), targets[one.images].numpy())
    seen, wanted = described(model, test)
    expected = 100 * model_of.score(seen.double().numpy(), wanted.numpy())
    assert found["top1"] == pytest.approx(expected, abs=100 / len(wanted) + 1e-6)


@pytest.mark.parametrize("probe", ["knn", "linear", "lbfgs"])
def test_images_that_were_not_drawn_decide_nothing(
    probe: str, model: Path, data: Path, tmp_path: Path
) -> None:
    learn = FolderSource(data)
    images = {i for repeat in range(2) for i in drawn(learn, "40%", repeat)}
    other = tmp_path / "other"
    for index in range(len(learn)):
        path = other / learn.name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        if index in images:
            path.write_bytes((data / "train" / learn.name(index)).read_bytes())
        else:
            Image.new("RGB", (40, 40), (index, 0, 0)).save(path)
    found, again = (
        lowshot(model, folder, val=str(data / "val"), probe=probe, rates=(0.1, 1.0))
        for folder in (data / "train", other)
    )
    assert found.rows == again.rows and found.facts["draws"] == again.facts["draws"]


def test_the_table_is_mean_and_deviation(model: Path, data: Path) -> None:
    result = lowshot(model, data, shots=("2", "40%"), repeats=3)
    assert [row["shots"] for row in result.rows] == ["2", "40%"]
    for row in result.rows:
        own = [one for one in result.facts["draws"] if one["shots"] == row["shots"]]
        assert [one["repeat"] for one in own] == [0, 1, 2]
        assert row["top1"] == mean(one["top1"] for one in own)
        assert row["deviation"] == stdev(one["top1"] for one in own)
        assert {one["images"] for one in own} == {row["images"]} <= {6, 18}
    assert result.headline == {f"low-shot knn, {row['shots']}": row["top1"] for row in result.rows}
    assert lowshot(model, data, repeats=1).rows[0]["deviation"] == "-"


def test_colors_take_one_image(model: Path, colored: Path) -> None:
    """And where nothing can be chosen, it is said what was taken."""
    told = {
        "knn": "1: a class has a single image, so nothing was chosen; k is 1.",
        "linear": "1: a class has a single image, so nothing was chosen; the rate is 1.",
        "lbfgs": "1: a class has a single image, so nothing was chosen; the strength is 1.",
    }
    for probe, note in told.items():
        result = lowshot(
            model, colored, probe=probe, shots=("1",), rates=(0.1, 1.0, 2.0), epochs=50
        )
        assert result.rows[0]["top1"] == 100.0, probe
        assert list(result.notes[1:]) == [note]


@pytest.mark.parametrize("probe", ["knn", "linear", "lbfgs"])
def test_baselines_need_no_training(probe: str, model: Path, colored: Path, tmp_path: Path) -> None:
    options = {"probe": probe, "shots": ("4",), "rates": (0.1, 1.0, 3.0), "epochs": 20}
    result = lowshot(model, colored, **options, baselines=True)
    found = {row["features"]: row["top1"] for row in result.rows}
    assert list(found) == ["raw pixels", "histogram", "untrained", "trained"]
    assert found["histogram"] == 100.0, "an image of one color is told by its color"
    backbone = load_backbone(model)
    fresh, place = before_training(model, backbone), tmp_path / "fresh.safetensors"
    save_tensors(fresh.state_dict(), place, header(fresh, {}))
    for name, own in (("trained", model), ("untrained", place)):
        (row,) = lowshot(own, colored, **options).rows
        assert row["top1"] == found[name], name


def test_broken_images_are_left_out(model: Path, broken: Path) -> None:
    result = lowshot(model, broken, max_unreadable=20, shots=("100%",), repeats=1)
    assert [row["images"] for row in result.rows] == [42]


TUNED: Mapping[str, Any] = {"probe": "finetune", "shots": ("3",), "duration": "1ep"}


def test_all_weights_learn_from_few_images(model: Path, data: Path) -> None:
    result = lowshot(model, data, **TUNED, repeats=1)
    (row,) = result.rows
    assert row["features"] == "trained" and row["images"] == 9 and row["chosen"] == "improved"
    (note,) = result.notes
    assert note == "Nothing was chosen: every draw was trained by the recipe improved."
    assert result.facts["image_size"] == 32


def test_fresh_weights_learn_from_few_images_beside_them(model: Path, data: Path) -> None:
    result = lowshot(model, data, **TUNED, repeats=1, baselines=True)
    assert [row["features"] for row in result.rows] == ["trained", "untrained"]


def test_every_draw_is_a_fine_tuning(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[FinetuneConfig, list[str]]] = []

    def noted(config: FinetuneConfig, _: object, learn: Source, *__: object, quiet: bool) -> Result:
        asked.append((config, [learn.name(index) for index in range(len(learn))]))
        facts = {"image_size": 32, "crop": 1.0}
        return Result("finetune", facts, [{"network": "trained", "top1": 50.0 + len(asked)}])

    monkeypatch.setattr("leanvit.evaluation.lowshot.finetune", noted)
    options = {"recipe": "transfer", "crop": 0.5, "seed": 4, "max_unreadable": 7.0}
    result = lowshot(model, data, **TUNED, **options)
    assert result.rows[0]["top1"] == 51.5 and result.rows[0]["chosen"] == "transfer"
    learn = FolderSource(data)
    for repeat, (config, names) in enumerate(asked):
        assert names == [learn.name(i) for i in drawn(learn, "3", repeat, seed=4)]
        assert config.seeds == (4 + repeat,) and config.recipe == "transfer"
        assert str(config.duration) == "1ep" and config.data == str(data)
        assert (config.crop, config.max_unreadable) == (0.5, 7.0)
    assert len(asked) == 2


# Options

CHANGES: Mapping[str, tuple[object, Mapping[str, Any]]] = {
    "image_size": (24, {}),
    "crop": (0.5, {}),
    "val": ("val", {}),
    "protocol": ("grey", {}),
    "shots": (("3",), {}),
    "repeats": (1, {}),
    "probe": ("lbfgs", {}),
    "blocks": (4, {}),
    "seed": (1, {}),
    "baselines": (True, {}),
    "k": ((2,), {}),
    "temperature": (5.0, {"k": (18,)}),
    "held_out": (0.5, {"probe": "lbfgs", "repeats": 2}),
    "rates": ((0.01,), {"probe": "linear", "repeats": 2}),
    "epochs": (50, {"probe": "linear", "rates": (0.1,), "repeats": 2}),
    "probe_batch": (1, {"probe": "linear", "rates": (0.1,), "repeats": 2}),
}
"""Option -> (another value, what else must be set for it to matter)."""
ELSEWHERE = {
    *("data", "batch", "workers", "device", "max_unreadable", "results", "keep_features"),
    *("recipe", "duration"),
}
"""Options that change no figure, or are tested above."""


def test_the_table_names_every_option() -> None:
    assert set(CHANGES) == {field.name for field in fields(LowshotConfig)} - ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(name: str, model: Path, data: Path) -> None:
    value, base = CHANGES[name]
    base = {"repeats": 8, "val": str(data / "train"), **base}
    value = str(data / "val") if name == "val" else value
    found, other = (
        lowshot(model, data, **options).facts["draws"] for options in (base, {**base, name: value})
    )
    assert found != other


def test_the_same_is_found_again(model: Path, data: Path) -> None:
    for probe in ("knn", "linear", "lbfgs"):
        found, again = (lowshot(model, data, probe=probe, repeats=1) for _ in range(2))
        assert found.facts["draws"] == again.facts["draws"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shots": ()}, r"shots is \(\); expected at least one, such as 5 or 1%"),
        ({"shots": ("few",)}, "shots 'few': write the images of each class, such as 5"),
        ({"shots": ("0",)}, "shots '0': write"),
        ({"shots": ("0%",)}, "shots '0%': write"),
        ({"shots": ("101%",)}, "shots '101%': write"),
        ({"shots": ("1.5",)}, r"shots '1\.5': write"),
        ({"shots": ("16",)}, "shots 16: class 'ants' has 15 images to learn from; name no more"),
        ({"repeats": 0}, "repeats is 0; expected at least 1"),
        ({"k": ()}, r"k is \(\); expected at least one"),
        ({"temperature": 0.0}, "temperature is 0.0; expected above 0"),
        ({"blocks": 5}, "has 4 blocks, fewer than the last 5"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], expected: str, model: Path, data: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        lowshot(model, data, **options)
