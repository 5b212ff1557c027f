"""`evaluate robust`: accuracy under corruptions, from a name to a table."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import leanvit
from leanvit.config.evaluation import RobustConfig
from leanvit.core.files import save_tensors
from leanvit.data.corrupt import Corruption
from leanvit.data.decode import to_pixels
from leanvit.data.images import PAPER_CROP, middle
from leanvit.data.sources import FolderSource
from leanvit.evaluation import robust
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.models import before_training
from leanvit.evaluation.result import Result
from leanvit.weights.file import HEAD_FILE, HEADER
from leanvit.weights.loading import load_backbone
from tests.integration.test_purity import global_states
from tests.tables import CLASSES, PLAIN, knn, linear, seen_by
from tests.tiny import SWIN, build, noise, write_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
FEW: Mapping[str, Any] = {
    **PLAIN,
    "k": 3,
    "corruptions": ("gaussian_noise", "pixelate"),
    "severities": (1, 5),
    "epochs": 5,
    "probe_batch": 8,
    "held_out": 0.25,
}


def found(model: str | Path, data: Path, **options: Any) -> Result:
    options = {**FEW, **options}
    return leanvit.evaluate("robust", model, data=str(data), options=options, quiet=True)


def accuracies(result: Result, network: str, corruption: str) -> list[float]:
    (row,) = [
        row for row in result.rows if (row["network"], row["corruption"]) == (network, corruption)
    ]
    return [*row.values()][3:]


@torch.no_grad()
def plain_accuracy(model: Path, data: Path, name: str, severity: int, *, trained: bool) -> float:
    """Return k-NN's accuracy on one corruption, one image after the other."""
    network = load_backbone(model)
    network = (network if trained else before_training(model, network)).eval()
    learn = FolderSource(data)
    test = learn.validation()
    assert test is not None
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    rows = []
    for index in range(len(test)):
        seen = middle(to_pixels(test[index].image), 32, PAPER_CROP)
        (bad,) = Corruption(name, (severity,), 0)(seen, index)
        rows.append(network.features((bad[None] / 255 - mean) / std).pooled)
    bank = network.features(seen_by(network, learn)).pooled
    targets = [torch.from_numpy(source.targets) for source in (learn, test)]
    return knn_accuracy(bank, targets[0], torch.cat(rows), targets[1], ks=(3,))[3][0]


def test_the_table_is_its_definition(model: Path, data: Path) -> None:
    before = global_states()
    result = found(model, data)
    assert global_states() == before
    assert [(row["network"], row["corruption"]) for row in result.rows] == [
        (network, corruption)
        for network in ("untrained", "trained")
        for corruption in ("clean", "mean", "gaussian_noise", "pixelate")
    ]
    heads = ["protocol", "network", "corruption", "accuracy", "severity 1", "severity 5"]
    assert all(list(row) == heads for row in result.rows)
    clean = {row["features"]: row["k=3"] for row in knn(model, data).rows}
    for name in ("untrained", "trained"):
        assert accuracies(result, name, "clean") == [clean[name], None, None]
        every = []
        for corruption in ("gaussian_noise", "pixelate"):
            levels = [
                plain_accuracy(model, data, corruption, level, trained=name == "trained")
                for level in (1, 5)
            ]
            assert accuracies(result, name, corruption) == [sum(levels) / 2, *levels]
            every.append(levels)
        means = [(one + two) / 2 for one, two in zip(*every, strict=True)]
        assert accuracies(result, name, "mean") == pytest.approx([sum(means) / 2, *means])
    assert result.facts == {
        "model": str(model),
        "data": str(data),
        "classes": 3,
        "train_images": 45,
        "val_images": 18,
        "image_size": 32,
        "crop": PAPER_CROP,
        "probe": "knn",
    }
    assert result.headline == {"corrupted, knn": accuracies(result, "trained", "mean")[0]}
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_the_linear_probe_is_that_of_evaluate_linear(model: Path, data: Path) -> None:
    """Its rate is chosen on clean images that are held out."""
    options = {"epochs": 20, "rates": (0.01, 1.0, 20.0)}
    result = found(model, data, probe="linear", baselines=False, **options)
    (clean,) = linear(model, data, **options, blocks=(1,)).rows
    assert accuracies(result, "trained", "clean")[0] == pytest.approx(clean["top1"])
    assert accuracies(result, "trained", "gaussian_noise")[0] < clean["top1"]
    assert result.facts["probe"] == "linear"


def test_both_protocols_are_told_apart(model: Path, data: Path) -> None:
    """What only changes contrast and brightness is gone from grey, standardised images."""
    result = found(model, data, protocol="both", corruptions=("contrast",), severities=(1,))
    assert [row["protocol"] for row in result.rows] == ["color"] * 6 + ["grey"] * 6
    assert result.headline.keys() == {"corrupted, knn", "corrupted, knn, grey"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as fine-tuning writes it."""
    folder = tmp_path_factory.mktemp("tuned")
    backbone = build(SWIN)
    write_backbone(folder, backbone)
    head = {"weight": noise(3, backbone.feature_dim), "bias": noise(3)}
    save_tensors(head, folder / HEAD_FILE, {HEADER: json.dumps({"classes": CLASSES})})
    return folder


def test_a_fine_tuned_network_tells_by_its_own_head(tuned: Path, data: Path) -> None:
    result = found(tuned, data, baselines=False)
    network = load_backbone(tuned).eval()
    test = FolderSource(data).validation()
    assert test is not None
    with torch.no_grad():
        pooled = network.features(seen_by(network, test)).pooled
    scores = pooled @ noise(3, network.feature_dim).T + noise(3)
    right = (scores.argmax(1) == torch.from_numpy(test.targets)).double().mean()
    assert accuracies(result, robust.HEAD, "clean")[0] == pytest.approx(100 * float(right))
    assert [row["network"] for row in result.rows] == ["trained"] * 4 + [robust.HEAD] * 4
    assert result.headline == {"corrupted, knn": accuracies(result, "trained", "mean")[0]}


def test_a_head_of_other_classes_is_refused(tuned: Path, data: Path) -> None:
    names = sorted(path.name for path in (data / "val").iterdir())
    other = data.parent / "other"
    other.mkdir()
    for name in names:
        (other / name.upper()).symlink_to(data / "val" / name)
    expected = r"tells 3 classes \(ants, bees, crows\), and the images are of 3 classes \(ANTS"
    with pytest.raises(ValueError, match=expected):
        found(tuned, other)


def test_what_is_kept_is_found_again(
    tuned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By corruption, severity and seed; an interrupted evaluation goes on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options: Mapping[str, Any] = {"keep_features": True}
    first = found(tuned, data, **options)
    assert first.rows == found(tuned, data).rows

    def refuse(*_: object) -> None:
        raise AssertionError("an image is corrupted again")

    monkeypatch.setattr(Corruption, "__call__", refuse)
    assert found(tuned, data, **options).rows == first.rows
    half = found(tuned, data, **options, corruptions=("pixelate",))
    assert accuracies(half, "trained", "pixelate") == accuracies(first, "trained", "pixelate")
    for other in ({"severities": (2, 5)}, {"corruption_seed": 1}, {"corruptions": ("fog",)}):
        with pytest.raises(AssertionError, match="corrupted again"):
            found(tuned, data, **{**options, **other})


@pytest.mark.parametrize("change", [{"batch": 1}, {"batch": 7}, {"workers": 1}])
def test_how_images_are_read_changes_nothing(
    change: Mapping[str, Any], model: Path, data: Path
) -> None:
    assert found(model, data, **change).rows == found(model, data).rows


# Options and mistakes

LINEAR: Mapping[str, Any] = {"probe": "linear", "rates": (0.3, 3.0)}
CHANGES: Mapping[str, tuple[object, Mapping[str, Any]]] = {
    "image_size": (40, {}),
    "crop": (0.5, {}),
    "val": ("train", {}),
    "protocol": ("grey", {}),
    "probe": ("linear", {}),
    "k": (1, {}),
    "corruptions": (("fog",), {}),
    "severities": ((2,), {}),
    "corruption_seed": (1, {}),
    "baselines": (False, {}),
    "rates": ((0.01,), LINEAR),
    "epochs": (2, LINEAR),
    "probe_batch": (3, LINEAR),
    "held_out": (0.5, LINEAR),
    "seed": (1, LINEAR),
}
ELSEWHERE = {"data", "batch", "workers", "device", "max_unreadable", "results", "keep_features"}


def test_the_table_names_every_option() -> None:
    assert set(CHANGES) == {field.name for field in fields(RobustConfig)} - ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(
    name: str, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table, or the rows behind it: few images have few accuracies."""
    value, base = CHANGES[name]
    value = str(data / "train") if name == "val" else value
    looked: list[Any] = []
    rows_of = robust.corrupted

    def noting(judge: robust.Judge) -> robust.Judge:
        def accuracy(rows: Tensor, target: Tensor) -> float:
            looked.append(rows.sum().item())
            return judge.accuracy(rows, target)

        return robust.Judge(judge.way, accuracy)

    def noted(config: Any, seen: Any, judges: Mapping[str, robust.Judge], test: Any) -> Any:
        return rows_of(config, seen, {name: noting(judges[name]) for name in judges}, test)

    monkeypatch.setattr(robust, "corrupted", noted)

    def all_found(options: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        looked.clear()
        return found(model, data, **options).rows, [*looked]

    first = all_found(base)
    assert all_found(base) == first
    assert all_found({**base, name: value}) != first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"corruptions": ("frog",)}, "Unknown corruption 'frog'; did you mean 'fog'"),
        ({"corruptions": ()}, "names at least one corruption, and each once"),
        ({"corruptions": ("fog", "fog")}, "names at least one corruption, and each once"),
        ({"severities": ()}, r"severities is \(\); expected some of 1, 2, 3, 4, 5"),
        ({"severities": (0, 1)}, r"severities is \(0, 1\); expected some of 1, 2, 3, 4, 5"),
        ({"k": 0}, "k is 0; expected at least 1"),
        ({"corruption_seed": -1}, "corruption_seed is -1; expected 0 or more"),
        ({"image_size": 24}, "need images of 32 pixels or more, and the network sees 24"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: Mapping[str, Any], expected: str, model: Path, data: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        found(model, data, **options)


def test_fewer_images_than_neighbours_are_noted(model: Path, data: Path) -> None:
    (note,) = found(model, data, k=46, corruptions=("pixelate",)).notes
    assert note == "There are 45 images to learn from; a larger k means all."
