"""`evaluate correspondence`: from a name to a table, on images and on the stereo pair."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import leanvit
from leanvit.backbones.base import Backbone, Features
from leanvit.config.evaluation import CorrespondenceConfig
from leanvit.data.decode import to_pixels
from leanvit.data.images import PAPER_CROP, middle
from leanvit.data.sample import stereo_pair
from leanvit.data.sources import FolderSource
from leanvit.evaluation.correspondence import chance, found_again, second_view
from leanvit.evaluation.inputs import Seen
from leanvit.evaluation.models import before_training
from leanvit.evaluation.result import Result
from leanvit.weights.loading import load_backbone
from tests.distributed.launch import in_processes
from tests.tables import PLAIN, write_run
from tests.tiny import FAMILIES, build, write_backbone

pytestmark = pytest.mark.usefixtures("one_thread")


def found(model: str | Path, data: str | Path, **options: Any) -> Result:
    options = {**PLAIN, "pairs": 3, **options}
    return leanvit.evaluate("correspondence", model, data=str(data), options=options, quiet=True)


def plain_row(model: Path, data: Path, *, trained: bool, seed: int = 0) -> list[float]:
    """Return accuracy, distance and similarity, one image after the other."""
    backbone = load_backbone(model)
    network = backbone if trained else before_training(model, backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    source = FolderSource(data)
    scores = []
    for index in range(len(source)):
        first = middle(to_pixels(source[index].image), 32, PAPER_CROP)
        views = torch.stack([first, second_view(first, seed, index)])
        with torch.no_grad():
            grids = network.eval().features((views - mean) / std).grid
        scores.append(found_again(grids[:1], grids[1:], 3, 32)[0])
    return torch.stack(scores).double().mean(0).tolist()


def test_the_table_is_the_mean_over_images(model: Path, data: Path) -> None:
    result = found(model, data)
    h, w = result.facts["grid"]
    expected: dict[str, list[Any]] = {
        "chance": [*chance(h, w, 32).values()],
        "untrained": plain_row(model, data, trained=False),
        "trained": plain_row(model, data, trained=True),
    }
    assert [row["network"] for row in result.rows] == list(expected)
    for row in result.rows:
        assert list(row) == ["network", "accuracy", "distance", "similarity"]
        assert list(row.values())[1:-1] == pytest.approx(expected[row["network"]][:-1], rel=1e-5)
    assert [row["similarity"] for row in result.rows] == [
        None,
        *(pytest.approx(expected[name][-1], rel=1e-5) for name in ("untrained", "trained")),
    ]
    assert result.facts == {
        "model": str(model),
        "data": str(data),
        "images": 45,
        "image_size": 32,
        "crop": PAPER_CROP,
        "grid": [h, w],
        "pairs": 3,
    }
    assert result.headline == {"correspondence": result.rows[-1]["accuracy"]}
    assert result.notes == [] and json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_a_run_shows_its_teacher_and_its_student(data: Path, tmp_path: Path) -> None:
    rows = found(write_run(tmp_path / "run"), data).rows
    names = ["chance", "untrained", "trained (teacher)", "trained (student)"]
    assert [row["network"] for row in rows] == names
    assert rows[2]["similarity"] != rows[3]["similarity"]
    assert (tmp_path / "run" / "results.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_evaluated(family: str, data: Path, tmp_path: Path) -> None:
    """Images need no classes; a network with few regions shows them all."""
    backbone = build(FAMILIES[family])
    model = write_backbone(tmp_path, backbone)
    result = found(model, data / "val" / "ants", baselines=False, pairs=10_000, image_size=32)
    h, w = backbone.features(torch.zeros(1, 3, 32, 32)).grid.shape[1:3]
    assert result.facts["grid"] == [h, w] and result.facts["pairs"] == h * w
    (note,) = result.notes
    assert note.startswith(f"A view has {h * w} regions, fewer than 10000")
    (row,) = result.rows
    assert 0 <= row["accuracy"] <= 100 and -100 <= row["similarity"] <= 100


@pytest.mark.parametrize("change", [{"batch": 1}, {"batch": 7}, {"workers": 1}])
def test_how_images_are_read_changes_nothing(
    change: Mapping[str, Any], model: Path, data: Path
) -> None:
    for ours, other in zip(found(model, data).rows, found(model, data, **change).rows, strict=True):
        assert list(ours.values()) == [
            value if isinstance(value, str | None) else pytest.approx(value, rel=1e-5)
            for value in other.values()
        ]


def test_what_is_kept_is_found_again(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the draws' seed and the number of pairs too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options: Mapping[str, Any] = {"keep_features": True, "baselines": False}
    first = found(model, data, **options)
    for other in ({"seed": 1}, {"pairs": 2}):
        assert found(model, data, **options, **other).rows != first.rows
    plain = {**PLAIN, "baselines": False}
    assert found(model, data, **plain, seed=1).rows == found(model, data, **options, seed=1).rows

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("images are looked at again")

    monkeypatch.setattr("leanvit.evaluation.inputs.describe_batch", refuse)
    assert found(model, data, **options).rows == first.rows


ROBUST: Mapping[str, Any] = {
    **PLAIN,
    "k": 3,
    "corruptions": ("gaussian_noise", "pixelate"),
    "severities": (5,),
}


def corrupted(model: Path, data: Path, **options: Any) -> Any:
    options = {**ROBUST, **options}
    return leanvit.evaluate("robust", model, data=str(data), options=options, quiet=True).rows


def _in_a_process(model: Path, data: Path) -> tuple[Any, int, Any]:
    shares = []
    describe = Seen.describe_share

    def noted(*arguments: Any) -> Any:
        share = describe(*arguments)
        shares.append(len(share.index))
        return share

    Seen.describe_share = noted  # type: ignore[method-assign, assignment]
    rows = found(model, data, batch=4).rows
    return rows, sum(shares), corrupted(model, data, batch=4)


@pytest.mark.long
def test_two_processes_share_the_images(model: Path, data: Path) -> None:
    """The evaluation of corrupted images too: each keeps its draw, whoever reads it."""
    (ours, some, bad), (theirs, rest, as_bad) = in_processes(2, _in_a_process, model, data)
    assert ours == theirs and some + rest == 45 and min(some, rest) > 0
    for row, alone in zip(ours, found(model, data).rows, strict=True):
        assert row["network"] == alone["network"]
        assert row["distance"] == pytest.approx(alone["distance"], rel=1e-5)
        assert row["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-5)
    assert bad == as_bad == corrupted(model, data)


# The stereo pair


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the pair, which takes seconds less."""
    left, right, disparity = (array[200:300, 300:460] for array in stereo_pair())
    monkeypatch.setattr("leanvit.evaluation.stereo.stereo_pair", lambda: (left, right, disparity))


@pytest.mark.usefixtures("part")
def test_the_stereo_pair_has_rows_of_its_own(model: Path) -> None:
    result = found(model, "stereo")
    names = ["chance", "same place", "untrained", "trained"]
    assert [row["network"] for row in result.rows] == names
    keys = ["network", "error", "median error", "within a cell", "strongest"]
    assert all(list(row) == keys for row in result.rows)
    same = result.rows[1]
    assert 7 < same["median error"] < 60, "the pair's disparities"
    assert result.rows[0]["within a cell"] < 10
    facts = result.facts
    assert facts["pictures"] == [100, 160] and 0 < facts["regions"] < facts["candidates"]
    assert result.headline == {"stereo": result.rows[-1]["within a cell"]}
    assert str(result).splitlines()[2].split()[-1] == "-"
    again = found(model, "stereo", batch=2)
    assert again.rows[-1]["error"] == pytest.approx(result.rows[-1]["error"], rel=1e-3)


def test_a_folder_called_stereo_has_another_name(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "stereo").symlink_to(data / "val")
    assert "images" in found(model, tmp_path / "stereo").facts


# Options and mistakes

CHANGES: Mapping[str, tuple[object, str]] = {
    "image_size": (24, ""),
    "crop": (0.5, ""),
    "pairs": (2, ""),
    "baselines": (False, ""),
    "seed": (1, ""),
    "stereo image_size": (48, "stereo"),
    "stereo pairs": (500, "stereo"),
    "stereo baselines": (False, "stereo"),
}
ELSEWHERE = {"data", "batch", "workers", "device", "max_unreadable", "results", "keep_features"}


def test_the_table_names_every_option() -> None:
    every = {field.name for field in fields(CorrespondenceConfig)} - ELSEWHERE
    assert {name for name in CHANGES if " " not in name} == every


@pytest.mark.usefixtures("part")
@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(name: str, model: Path, data: Path) -> None:
    value, other = CHANGES[name]
    first = found(model, other or data)
    assert found(model, other or data).rows == first.rows
    assert found(model, other or data, **{name.split()[-1]: value}).rows != first.rows


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pairs": 0}, "pairs is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"val": "x"}, "Unknown option 'val'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: Mapping[str, Any], expected: str, model: Path, data: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        found(model, data, **options)


def test_images_that_cannot_be_read_are_named(model: Path, broken: Path) -> None:
    with pytest.raises(ValueError, match="3 of 45 images cannot be read"):
        found(model, broken)
    assert found(model, broken, max_unreadable=10).facts["images"] == 42


@pytest.mark.usefixtures("part")
def test_features_that_are_not_finite_are_named(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that hold no number are refused before; finite ones can overflow."""
    features = Backbone.features

    def endless(self: Backbone, images: Tensor) -> Features:
        seen = features(self, images)
        return replace(seen, grid=seen.grid / 0)

    monkeypatch.setattr(Backbone, "features", endless)
    with pytest.raises(ValueError, match=r"not finite, such as those of 'ants/000\.png'"):
        found(model, data)
    with pytest.raises(ValueError, match="stereo pair hold numbers that are not finite"):
        found(model, "stereo")


def test_an_image_s_mirror_image_says_little_of_a_flat_one(model: Path, tmp_path: Path) -> None:
    """Where all regions are alike, what is found is the lowest one, and chance is not beaten."""
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40), (90, 120, 150)).save(tmp_path / "flat" / "one.png")
    rows = found(model, tmp_path / "flat", pairs=100).rows
    assert all(0 <= row["accuracy"] <= 100 for row in rows)
    assert rows[-1]["distance"] > 0
