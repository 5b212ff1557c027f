"""Features that were kept are found again, never where anything has changed; results add up."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import leanvit
from leanvit.backbones.base import Backbone
from leanvit.cli import main
from leanvit.core import kept as on_disk
from leanvit.core.files import save_tensors
from leanvit.data.images import ImageBatch
from leanvit.evaluation import inputs
from leanvit.evaluation.features import Described, Description, describe_batch
from leanvit.evaluation.kept import KIND
from leanvit.evaluation.result import Result
from leanvit.weights.file import header
from leanvit.weights.loading import load_backbone
from tests.integration.command import Says, refused
from tests.tables import KNN

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = 5
PARTS = 9 + 4
"""Parts of 45 images to learn from and of 18 to test on."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; parts of a single batch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "LARGE", 1)
    return tmp_path / "cache" / "leanvit" / KIND


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each batch held that a network saw."""
    seen: list[int] = []

    def noted(
        images: ImageBatch, ways: Mapping[str, Description], known: Mapping[str, Tensor]
    ) -> Described:
        if {name for name, way in ways.items() if way.key()} - known.keys():
            seen.append(len(images.index))
        return describe_batch(images, ways, known)

    monkeypatch.setattr(inputs, "describe_batch", noted)
    return seen


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    """Images that a test may change."""
    return Path(shutil.copytree(data, tmp_path / "own"))


def evaluate(model: str | Path, data: Path, **options: Any) -> Result:
    options = {**KNN, "keep_features": True, "batch": BATCH, **options}
    return leanvit.evaluate("knn", model, data=str(data), options=options, quiet=True)


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def test_nothing_is_described_twice(
    model: Path, own: Path, cache: Path, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(model, own)
    assert sum(looked) == 45 + 18 and len(files(cache)) == 2 * PARTS, "of networks alone"
    looked.clear()
    assert evaluate(model, own).rows == first.rows
    assert evaluate(model, own, k=(2, 5), temperature=0.1).rows != first.rows
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "describe_batch", None)  # then no image is even decoded
        assert evaluate(model, own, baselines=False).rows == first.rows[-1:]
    assert looked == []
    assert evaluate(model, own, keep_features=False).rows == first.rows
    assert sum(looked) == 45 + 18


@pytest.mark.parametrize("baselines", [True, False])
def test_an_image_that_changed_is_seen(
    baselines: bool, model: Path, own: Path, cache: Path, looked: list[int]
) -> None:
    """Only its batch is described again, whether or not the others are read for baselines."""
    evaluate(model, own, baselines=baselines)
    path = next(own.rglob("train/*/003.png"))
    with Image.open(path) as image:
        image.rotate(180).save(path)
    looked.clear()
    found = evaluate(model, own, baselines=baselines)
    assert looked == [BATCH]
    shutil.rmtree(cache)
    assert evaluate(model, own, baselines=baselines).rows == found.rows


def changed_weights(model: Path, folder: Path) -> Path:
    network = load_backbone(model)
    with torch.no_grad():
        list(network.parameters())[-1][0] += 1e-3
    return saved(network, folder)


def changed_colors(model: Path, folder: Path) -> Path:
    network = load_backbone(model)
    network.mean = (0.4, 0.5, 0.61)
    return saved(network, folder)


def saved(network: Backbone, folder: Path) -> Path:
    place = folder / "other.safetensors"
    save_tensors(network.state_dict(), place, header(network, {}))
    return place


@pytest.mark.parametrize("change", [changed_weights, changed_colors])
def test_other_networks_are_described_anew(
    change: Any, model: Path, own: Path, tmp_path: Path, looked: list[int]
) -> None:
    other = change(model, tmp_path)
    plain = {"baselines": False}
    evaluate(model, own, **plain)
    looked.clear()
    found = evaluate(other, own, **plain)
    assert sum(looked) == 45 + 18
    assert evaluate(other, own, **plain, keep_features=False).rows == found.rows


@pytest.mark.parametrize("option", [{"image_size": 24}, {"crop": 0.5}, {"protocol": "grey"}])
def test_other_ways_to_look_are_described_anew(
    option: dict[str, Any], model: Path, own: Path, looked: list[int]
) -> None:
    evaluate(model, own)
    looked.clear()
    found = evaluate(model, own, **option)
    assert sum(looked) == 45 + 18
    assert evaluate(model, own, **option, keep_features=False).rows == found.rows


def test_other_code_describes_anew(
    model: Path, own: Path, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, own)
    looked.clear()
    monkeypatch.setattr("leanvit.evaluation.kept.code_digest", lambda: "another")
    evaluate(model, own)
    assert sum(looked) == 45 + 18


def test_damaged_files_are_no_features(
    model: Path, own: Path, cache: Path, looked: list[int]
) -> None:
    first = evaluate(model, own)
    cut, flipped, empty = files(cache)[:3]
    cut.write_bytes(cut.read_bytes()[:-7])
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    empty.write_bytes(b"")
    looked.clear()
    assert evaluate(model, own).rows == first.rows
    assert 0 < sum(looked) <= 3 * BATCH
    looked.clear()
    assert evaluate(model, own).rows == first.rows
    assert looked == [], "they were written again"


def test_an_interrupted_evaluation_goes_on(
    model: Path, own: Path, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def interrupted(*arguments: Any) -> Described:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(1)
        return describe_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "describe_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, own)
    looked.clear()
    found = evaluate(model, own)
    assert sum(looked) == 45 + 18 - 7 * BATCH
    assert evaluate(model, own, keep_features=False).rows == found.rows


def test_parts_with_broken_images_are_not_kept(
    model: Path, own: Path, looked: list[int], capsys: Says
) -> None:
    next(own.rglob("train/*/003.png")).write_bytes(b"no image")
    for described in (62, BATCH - 1):
        looked.clear()
        evaluate(model, own, max_unreadable=5)
        assert sum(looked) == described
        assert "1 of 45 images cannot be read" in capsys.readouterr().err


def test_the_cache_has_an_end(
    model: Path, own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, own)
    whole = sum(path.stat().st_size for path in files(cache))
    monkeypatch.setattr(inputs, "MOST", whole // 2)
    evaluate(model, own)
    left = sum(path.stat().st_size for path in files(cache))
    assert whole // 4 < left <= whole // 2
    on_disk.prune(KIND, 0)
    assert files(cache) == []


def test_a_place_that_cannot_be_written_harms_nobody(
    model: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert evaluate(model, own).rows


def test_features_that_are_not_finite_are_named(model: Path, own: Path, tmp_path: Path) -> None:
    network = load_backbone(model)
    with torch.no_grad():
        next(network.parameters()).fill_(1e30)  # finite, but not for long
    with pytest.raises(ValueError, match=r"color/trained: the features of .* not finite, such as"):
        evaluate(saved(network, tmp_path), own, baselines=False)


def test_a_network_that_tells_nothing_apart_is_noted(
    model: Path, own: Path, tmp_path: Path
) -> None:
    network = load_backbone(model)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    found = evaluate(saved(network, tmp_path), own, baselines=False)
    assert found.notes == [
        f"color/trained: the features of all images to {purpose} are the same."
        for purpose in ("learn from", "test on")
    ]


def test_images_left_out_and_images_seen_before_are_noted(
    model: Path, own: Path, capsys: Says
) -> None:
    next(own.rglob("train/*/003.png")).write_bytes(b"no image")
    (note,) = evaluate(model, own, max_unreadable=5).notes
    assert note.startswith("Images to learn from: 1 of 45 images cannot be read, such as ")
    found = evaluate(model, own / "val", val=str(own / "val"), baselines=False)
    assert found.notes == [
        "The images to test on have the names of those to learn from: the same ones?"
    ]


# results.jsonl


def test_results_add_up_in_the_folder_of_a_run(
    model: Path, own: Path, tmp_path: Path, capsys: Says
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(model, run / "backbone.safetensors")
    place = run / "results.jsonl"
    first = evaluate(run, own)
    place.write_text(place.read_text() + '{"name": "cut')
    second = evaluate(run, own, k=(2,))
    lines = place.read_text().splitlines()
    assert len(lines) == 3 and place.read_text().endswith("\n")
    for line, result in ((lines[0], first), (lines[2], second)):
        found = json.loads(line)
        assert found.items() >= json.loads(json.dumps(result.to_dict())).items()
        assert {"when", "seconds", "versions", "weights", "asked"} <= found.keys()
    assert json.loads(lines[2])["config"]["k"] == [2]
    asked = json.loads(lines[2])["asked"]
    assert asked["k"] == [2] and "workers" not in asked, "options that change no figure"
    capsys.readouterr()
    words = ("evaluate", "knn", model, "--data", own, "--results", place, "--workers", 0)
    assert main([*map(str, words)]) == 0
    assert len(place.read_text().splitlines()) == 4
    said = refused(capsys, "evaluate", "knn", model, "--data", own, "--results", place / "below")
    assert "Cannot write to" in said


def test_a_file_of_weights_has_no_results_beside_it(model: Path, own: Path) -> None:
    before = sorted(model.parent.iterdir())
    evaluate(model, own)
    assert sorted(model.parent.iterdir()) == before
