"""From a name to a table: k-NN of tiny networks, and what all evaluations have in common."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional

import leanvit
from leanvit.backbones.base import Backbone
from leanvit.config import compose
from leanvit.config.evaluation import KnnConfig, LinearConfig
from leanvit.data.images import PAPER_CROP
from leanvit.data.sources import FolderSource, Source, Subset
from leanvit.evaluation.inputs import empty_classes
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.linear import LinearProbe
from leanvit.evaluation.models import before_training
from leanvit.evaluation.result import Result
from leanvit.methods.catalogue import build_method
from leanvit.weights.file import FILE, STUDENT
from leanvit.weights.loading import load_backbone
from tests.tables import (
    SEED,
    knn,
    linear,
    seen_by,
)
from tests.tiny import draw_nothing, run_config, write_classes, write_images

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a run of two steps."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = {
        "train.seed": SEED,
        "train.duration": "2st",
        "data.workers": 0,
        "watch.images": 0,
        "optim.lr.peak": 0.05,
    }
    config = compose(run_config(), data=str(data), options=options)
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        leanvit.pretrain(config, out=out, quiet=True)
    return out


@torch.no_grad()
def described(backbone: Backbone, source: Source) -> tuple[Tensor, NDArray[np.int64]]:
    """Return view features and targets."""
    return backbone.eval().features(seen_by(backbone, source)).pooled, source.targets


@torch.no_grad()
def expected_knn(backbone: Backbone, data: Path, protocol: str = "color") -> dict[str, float]:
    learn = FolderSource(data)
    test = learn.validation()
    assert test is not None
    rows = [
        backbone.eval().features(seen_by(backbone, source, protocol)).pooled
        for source in (learn, test)
    ]
    targets = [torch.from_numpy(source.targets) for source in (learn, test)]
    found = knn_accuracy(rows[0], targets[0], rows[1], targets[1], ks=(1, 3))
    return {f"k={k}": accuracy[0] for k, accuracy in found.items()}


def row(result: Result, features: str, protocol: str = "color") -> dict[str, Any]:
    (found,) = [
        dict(line)
        for line in result.rows
        if (line["protocol"], line["features"]) == (protocol, features)
    ]
    return {name: found[name] for name in found if name not in ("protocol", "features")}


# k-NN


def test_knn_has_a_row_for_each_description(model: Path, data: Path) -> None:
    result = knn(model, data, protocol="both")
    assert [(line["protocol"], line["features"]) for line in result.rows] == [
        (protocol, features)
        for protocol in ("color", "grey")
        for features in ("raw pixels", "histogram", "untrained", "trained")
    ]
    assert all(list(line) == ["protocol", "features", "k=1", "k=3"] for line in result.rows)
    assert all(0 <= line["k=1"] <= 100 for line in result.rows)
    assert result.name == "knn"
    assert result.notes == []
    assert result.facts == {
        "model": str(model),
        "data": str(data),
        "classes": 3,
        "train_images": 45,
        "val_images": 18,
        "image_size": 32,
        "crop": PAPER_CROP,
        "temperature": 0.07,
    }


@pytest.mark.parametrize("protocol", ["color", "grey"])
def test_knn_is_that_of_the_network_on_these_images(protocol: str, model: Path, data: Path) -> None:
    result = knn(model, data, protocol=protocol, batch=7)
    trained = load_backbone(model)
    assert trained.mean == (0.4, 0.5, 0.6)
    assert row(result, "trained", protocol) == expected_knn(trained, data, protocol)
    fresh = before_training(model, trained)
    assert fresh.mean == trained.mean and not fresh.training
    assert row(result, "untrained", protocol) == expected_knn(fresh, data, protocol)


def test_the_untrained_row_is_the_run_s_network_before_its_first_step(
    run: Path, data: Path
) -> None:
    config = compose(run_config(), data=str(data), options={"train.seed": SEED})
    first = build_method(config.method, config.backbone, SEED).encoder()
    found = before_training(run, load_backbone(run))
    assert found.state_dict().keys() == first.state_dict().keys()
    for name, value in found.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name
    other = build_method(config.method, config.backbone, SEED + 1).encoder()
    assert not torch.equal(next(found.parameters()), next(other.parameters()))
    assert row(knn(run, data), "untrained") == expected_knn(first, data)


def test_a_run_shows_its_teacher_and_its_student(run: Path, data: Path) -> None:
    result = knn(run, data)
    assert [line["features"] for line in result.rows] == [
        "raw pixels",
        "histogram",
        "untrained",
        "trained (teacher)",
        "trained (student)",
    ]
    teacher, student = load_backbone(run / FILE), load_backbone(run / STUDENT)
    assert not torch.equal(next(teacher.parameters()), next(student.parameters()))
    assert row(result, "trained (teacher)") == expected_knn(teacher, data)
    assert row(result, "trained (student)") == expected_knn(student, data)


def test_a_run_without_a_student_has_no_row_for_it(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copy(run / FILE, tmp_path / FILE)
    found = [line["features"] for line in knn(tmp_path, data, baselines=False).rows]
    assert found == ["trained"]


def test_a_name_is_an_untrained_network(data: Path) -> None:
    result = knn("swin_nano", data, image_size=32)
    assert [line["features"] for line in result.rows] == ["raw pixels", "histogram", "untrained"]


def test_without_baselines_the_network_stands_alone(model: Path, data: Path) -> None:
    result = knn(model, data, baselines=False, protocol="both")
    assert [line["features"] for line in result.rows] == ["trained", "trained"]
    assert row(result, "trained") == row(knn(model, data), "trained")


def test_colors_are_seen_in_color_alone(model: Path, colored: Path) -> None:
    result = knn(model, colored, protocol="both")
    assert row(result, "histogram") == row(result, "raw pixels") == {"k=1": 100.0, "k=3": 100.0}
    assert row(result, "raw pixels", "grey")["k=3"] < 80


def test_what_was_held_out_is_noted(model: Path, colored: Path) -> None:
    result = knn(model, colored)
    assert result.facts["train_images"] == 30 and result.facts["val_images"] == 6
    assert result.facts["crop"] == 1.0, "images are as large as the input"
    (note,) = result.notes
    assert note.startswith("No images were set aside to evaluate on (--val), so a fifth of each")
    assert "6 images." in note
    assert str(result).endswith(note)


def test_images_to_evaluate_on_may_be_named(model: Path, data: Path) -> None:
    split, named = knn(model, data), knn(model, data / "train", val=str(data / "val"))
    assert named.rows == split.rows and named.notes == []
    other = knn(model, data / "train", val=str(data / "train"))
    assert row(other, "trained")["k=1"] == 100.0, "the images themselves are the nearest"


def test_the_embedded_images_are_seen_twice(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanvit.data.sample.TILES", {"train": 3, "val": 2})
    result = knn(model, Path("sample"), image_size=16)
    assert {line["protocol"] for line in result.rows} == {"color", "grey"}
    assert result.facts["train_images"] == 48 and result.facts["val_images"] == 32
    assert {line["protocol"] for line in linear(model, Path("sample"), image_size=16).rows} == {
        "color",
        "grey",
    }
    assert len(knn(model, Path("sample"), image_size=16, protocol="grey").rows) == 4


def test_images_may_be_tested_on_each_other(model: Path, data: Path) -> None:
    """Each on all the others: what scikit-learn finds, image after image."""
    result = knn(model, data, leave_one_out=True, k=(1, 100), baselines=False)
    rows, target = described(load_backbone(model), FolderSource(data))
    unit = functional.normalize(rows, dim=1).numpy()
    hits = [
        KNeighborsClassifier(1).fit(np.delete(unit, i, 0), np.delete(target, i)).predict([unit[i]])
        == target[i]
        for i in range(45)
    ]
    assert row(result, "trained")["k=1"] == pytest.approx(100 * np.mean(hits))
    assert result.facts["train_images"] == result.facts["val_images"] == 45
    assert list(result.notes) == [
        "Every image was tested on all the others (leave-one-out).",
        "There are 44 other images to learn from; a larger k means all of them.",
    ]


def test_classes_without_images_are_named(model: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "learn", cats=2, dogs=2, eels=2)
    write_classes(tmp_path / "test", cats=2, dogs=3)
    result = knn(model, tmp_path / "learn", val=str(tmp_path / "test"), baselines=False)
    assert "Class 'eels' has no image to test on." in result.notes
    learn, test = FolderSource(tmp_path / "learn"), FolderSource(tmp_path / "test")
    few = Subset(learn, [0, 1, 4, 5])
    told = empty_classes(few, Subset(learn, [0, 2, 3]))
    assert told[0] == (
        "Class 'dogs' has no image to learn from; its 2 images to test on count as wrong."
    )
    assert told[1] == "Class 'eels' has no image to test on."
    assert empty_classes(few, Subset(learn, [0]))[0] == "Class 'dogs' has no image to learn from."
    many = FolderSource(write_classes(tmp_path / "many", **{f"c{n}": 1 for n in range(9)}))
    assert empty_classes(many, Subset(many, [0, 1]))[5:] == ["So it is with 2 more classes."]
    assert len(test) == 5


# Options

LINEAR_BASE: Mapping[str, Any] = {"rates": (0.3, 3.0), "blocks": (2,)}
CHANGES: Mapping[str, tuple[object, Mapping[str, Any]]] = {
    "knn image_size": (24, {}),
    "knn crop": (0.5, {}),
    "knn val": ("train", {}),
    "knn protocol": ("grey", {}),
    "knn k": ((2,), {}),
    "knn temperature": (5.0, {"k": (45,)}),
    "knn baselines": (False, {}),
    "knn leave_one_out": (True, {}),
    "linear image_size": (24, {}),
    "linear crop": (0.5, {}),
    "linear val": ("train", {}),
    "linear protocol": ("grey", {}),
    "linear solver": ("lbfgs", {}),
    "linear blocks": ((3,), {}),
    "linear pooling": (("both",), {}),
    "linear rates": ((0.01,), {}),
    "linear epochs": (2, {}),
    "linear probe_batch": (3, {}),
    "linear augment": (True, {}),
    "linear baselines": (True, {}),
    "linear held_out": (0.5, {}),
    "linear seed": (1, {}),
}
"""Evaluation and option -> (another value, what else must be set for it to matter)."""

ELSEWHERE = {
    *("data", "batch", "workers", "device", "max_unreadable"),
    *("results", "keep_features"),
}
"""Options that change no figure, or have tests of their own."""


def test_the_table_names_every_option() -> None:
    every = {f"knn {field.name}" for field in fields(KnnConfig)}
    every |= {f"linear {field.name}" for field in fields(LinearConfig)}
    left = {name for name in every if name.split()[1] not in ELSEWHERE}
    assert set(CHANGES) == left


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(
    name: str, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table, or the classifiers behind it: few images have few accuracies."""
    value, base = CHANGES[name]
    kind, _, option = name.partition(" ")
    if option == "val":
        value = str(data / str(value))
    trained: list[LinearProbe] = []

    class Kept(LinearProbe):
        def accuracy(self, rows: Tensor, target: Tensor, chunk: int = 4096) -> Tensor:
            trained.append(self)
            return super().accuracy(rows, target, chunk)

    monkeypatch.setattr("leanvit.evaluation.probing.LinearProbe", Kept)

    def found(options: Mapping[str, Any]) -> object:
        trained.clear()
        rows = (knn if kind == "knn" else linear)(model, data, **options).rows
        return rows, [probe.weight.tolist() for probe in trained]

    base = base if kind == "knn" else {**LINEAR_BASE, **base}
    first = found(base)
    assert found(base) == first
    assert found({**base, option: value}) != first


def test_batches_and_workers_change_nothing(model: Path, data: Path) -> None:
    assert knn(model, data, batch=1).rows == knn(model, data, batch=64).rows
    assert knn(model, data, workers=1).rows == knn(model, data).rows


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("knn", {"k": ()}, r"k is \(\); expected at least one"),
        ("knn", {"k": (3, 0)}, r"k is \(3, 0\); expected at least 1"),
        ("knn", {"leave_one_out": True, "val": "sample"}, "so val has no part in it"),
        ("knn", {"temperature": 0.0}, r"temperature is 0\.0; expected above 0"),
        ("knn", {"crop": 1.5}, r"crop is a share of the image, at most 1, not 1\.5"),
        ("knn", {"crop": 0.0}, r"crop is 0\.0; expected above 0"),
        ("knn", {"image_size": 0}, "image_size is 0; expected at least 1"),
        ("knn", {"max_unreadable": -1.0}, "max_unreadable is -1.0; expected 0 to 100 percent"),
        ("knn", {"protocol": "gray"}, "protocol.*'gray'.*grey"),
        ("knn", {"tempreature": 1.0}, "'tempreature'; did you mean 'temperature'"),
        ("knn", {"epochs": 3}, "Unknown option 'epochs'"),
        ("linear", {"rates": ()}, r"rates is \(\); expected at least one"),
        ("linear", {"rates": (0.1, -1.0)}, r"rates is \(0\.1, -1\.0\); expected above 0"),
        ("linear", {"held_out": 1.0}, r"held_out is a share below 1, not 1\.0"),
        ("linear", {"held_out": 0.0}, r"held_out is 0\.0; expected above 0"),
        ("linear", {"blocks": ()}, r"blocks is \(\); expected at least one"),
        ("linear", {"pooling": ()}, r"pooling is \(\); expected at least one"),
        ("linear", {"pooling": ("max",)}, "pooling.*'max'.*view"),
        ("linear", {"solver": "lbfgs", "augment": True}, "solver lbfgs needs all features at once"),
        ("linear", {"epochs": 0}, "epochs is 0; expected at least 1"),
        ("linear", {"blocks": (1, 5)}, "has 4 blocks, fewer than the last 5"),
        ("liner", {}, "Unknown evaluation 'liner'; did you mean 'linear'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    name: str, options: dict[str, Any], expected: str, model: Path, data: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        leanvit.evaluate(name, model, data=str(data), options={"workers": 0, **options}, quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(model: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="torch finds no CUDA device here; use cpu"):
        knn(model, data, device="cuda")


def test_a_model_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    for name, expected in (
        ("swin_tinny", "'swin_tinny'; did you mean 'swin_tiny'"),
        (tmp_path / "no.safetensors", "There is no file or folder"),
        (tmp_path, "its weights cannot be read"),
    ):
        with pytest.raises(ValueError, match=expected):
            knn(name, data)


# Which images


def test_images_without_classes_are_refused(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 3)
    write_images(tmp_path / "one" / "cats", 3)
    for name in ("flat", "one"):
        for measure in (knn, linear):
            with pytest.raises(ValueError, match="needs classes, and the images have none"):
                measure(model, tmp_path / name)
    with pytest.raises(ValueError, match="give --data FOLDER"):
        leanvit.evaluate("knn", model)


def test_classes_to_evaluate_on_must_be_known(model: Path, data: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "val" / "bee", 2)
    with pytest.raises(ValueError, match=r"val' 'bee'; did you mean 'bees'\? Known: ants, bees"):
        knn(model, data, val=str(tmp_path / "val"))
    write_images(tmp_path / "flat", 2)
    with pytest.raises(ValueError, match="needs classes"):
        knn(model, data, val=str(tmp_path / "flat"))
    with pytest.raises(ValueError, match="classes of 'sample' are its own photographs"):
        knn(model, data, val="sample")


def test_too_many_unreadable_images_are_refused(model: Path, broken: Path, data: Path) -> None:
    expected = (
        r"^3 of 45 images cannot be read, such as 'ants/003\.png' \(UnidentifiedImageError: .*\); "
        r"at most 1 % may be \(max_unreadable\)\.$"
    )
    with pytest.raises(ValueError, match=expected):
        knn(model, broken)
    with pytest.raises(ValueError, match=r"^1 of 18 .* at most 5\.5 % may be"):
        shutil.copytree(data / "train", broken / "train", dirs_exist_ok=True)
        knn(model, broken, max_unreadable=5.5)


def test_a_few_unreadable_images_are_left_out(
    model: Path, broken: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = knn(model, broken, max_unreadable=7)
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert first.startswith("leanvit: 3 of 45 images cannot be read, such as 'ants/003.png'")
    assert second.startswith("leanvit: 1 of 18 images cannot be read, such as 'bees/001.png'")
    assert first.endswith("left out.") and not said.out
    without = tmp_path / "without"
    shutil.copytree(broken, without)
    for path in without.rglob("*.png"):
        if path.read_bytes() in (b"", b"no photograph"):
            path.unlink()
    assert len(list(without.rglob("*.png"))) == 45 + 18 - 4
    assert result.rows == knn(model, without).rows


# Results


def test_a_result_is_a_table_and_plain_values() -> None:
    rows = [
        {"features": "raw pixels", "k=1": 5.0, "rate": "0.1"},
        {"features": "x", "k=1": 100.0, "rate": "3"},
    ]
    result = Result("knn", {"data": "photos"}, rows, ["A note."])
    assert str(result).splitlines() == [
        "features      k=1  rate",
        "raw pixels    5.0  0.1",
        "x           100.0  3",
        "A note.",
    ]
    assert json.loads(json.dumps(result.to_dict())) == {
        "name": "knn",
        "facts": {"data": "photos"},
        "rows": rows,
        "notes": ["A note."],
        "config": {},
        "headline": {},
        "digits": {},
    }


def test_results_are_json(model: Path, data: Path) -> None:
    for result in (knn(model, data), linear(model, data, epochs=1)):
        plain = result.to_dict()
        assert json.loads(json.dumps(plain)) == plain
