"""Detection from the command line to the table: choosing, testing, continuing, refusing."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leanvit
from leanvit.cli import main
from leanvit.config.dense import DetectConfig
from leanvit.core.errors import Stopped
from leanvit.evaluation import dense_task as module
from leanvit.evaluation.object_pictures import ObjectPicture, draw_objects
from leanvit.evaluation.record import read_results
from leanvit.evaluation.result import Result
from leanvit.recipes.detect import DETECT_RECIPES
from leanvit.train.state import TrainState
from leanvit.weights.file import DENSE_FILE, FILE
from leanvit.weights.loading import load_backbone
from tests.integration.command import Says
from tests.tables import write_discs, write_network, write_run

pytestmark = pytest.mark.usefixtures("one_thread")
FAST: Mapping[str, Any] = {
    **{"workers": 0, "device": "cpu", "duration": "4st", "every": "2st", "train_batch": 2},
    **{"crop": 48, "channels": 8, "hidden": 16, "precision": "fp32", "average": 0.0},
    **{"masks": False},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("model") / "backbone.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("data") / "discs")


def detect(model: Path | str, data: Path, **options: Any) -> Result:
    return leanvit.evaluate(
        "detect", model, data=str(data), options={**FAST, **options}, quiet=True
    )


def test_the_table(model: Path, data: Path) -> None:
    found = detect(model, data, untrained=True, masks="auto")
    assert [row["network"] for row in found.rows] == ["trained", "untrained"]
    assert list(found.rows[0]) == [
        *("network", "seed", "epoch", "val ap", "ap", "ap50", "ap75", "small", "medium", "large"),
        *("mask ap", "mask ap50", "mask ap75", "minutes"),
    ]
    assert found.facts["masks"] is True and found.facts["test_images"] == 3
    assert found.facts["ap"][0]["classes"].keys() == {"disc", "square"}
    assert "looked at once" in found.notes[0]
    assert found.headline == {"detection": found.rows[0]["ap"]}


@pytest.mark.long
def test_it_learns(model: Path, data: Path) -> None:
    options = {"duration": "40st", "every": "40st", "lr": 4e-3, "min_scale": 0.9, "max_scale": 1.1}
    found = detect(model, data, **options, train_batch=4, channels=16, hidden=32)
    assert found.rows[0]["ap50"] > 10


CHANGES: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "train_split": ("test", {"test_split": ""}),
    "val_split": ("test", {"test_split": ""}),
    "test_split": ("", {}),
    "recipe": ("vitdet_coco_100ep", {}),
    "duration": ("6st", {}),
    "train_batch": (3, {}),
    "accumulate": (2, {}),
    "precision": ("bf16", {}),
    "lr": (1e-2, {}),
    "warmup": ("2st", {}),
    "decay": ("steps", {"duration": "12st"}),
    "layer_decay": (0.5, {}),
    "weight_decay": (0.9, {"lr": 1e-2}),
    "clip": (1e-3, {}),
    "drop_path": (0.6, {}),
    "average": (0.5, {}),
    "frozen": (True, {}),
    "untrained": (True, {}),
    "seeds": ((1,), {}),
    "every": ("4st", {}),
    "masks": (True, {}),
    "channels": (16, {}),
    "hidden": (32, {}),
    "crop": (32, {}),
    "min_scale": (1.3, {}),
    "max_scale": (0.7, {}),
    "distort": (0.0, {}),
}
"""Option -> (another value, what else must be set for it to matter)."""
ELSEWHERE = {"data", "workers", "device", "max_unreadable", "pictures", "out", "resume", "results"}
"""Options that change no figure, or have tests of their own."""


def test_the_table_names_every_option() -> None:
    assert set(CHANGES) == {field.name for field in fields(DetectConfig)} - ELSEWHERE


def found(model: Path, data: Path, patch: pytest.MonkeyPatch, options: Mapping[str, Any]) -> str:
    """Return table, curves and weights as a word."""
    trained: list[Any] = []
    result = module._result

    def noted(*words: Any) -> Result:
        for name, training in words[2]:
            values = [v.double().sum().item() for v in training.method.state_dict().values()]
            trained.append([name, values])
        return result(*words)

    patch.setattr(module, "_result", noted)
    table = detect(model, data, **options)
    patch.setattr(module, "_result", result)
    rows = [{**row, "minutes": 0} for row in table.rows]
    return json.dumps([trained, rows, table.facts["curve"], sorted(table.facts)])


@pytest.fixture(scope="module")
def usual(model: Path, data: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        first = found(model, data, patch, {})
        assert found(model, data, patch, {"workers": 1}) == first
        return first


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(
    name: str, model: Path, data: Path, usual: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, base = CHANGES[name]
    first = found(model, data, monkeypatch, base) if base else usual
    assert found(model, data, monkeypatch, {**base, name: value}) != first


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_as_it_is(
    frozen: bool, model: Path, data: Path, tmp_path: Path
) -> None:
    detect(model, data, frozen=frozen, lr=1e-2, out=str(tmp_path / "out"))
    before, after = (load_backbone(path).state_dict() for path in (model, tmp_path / "out"))
    assert all(before[name].equal(after[name]) for name in before) == frozen


def test_what_was_cut_off_continues_as_if_it_had_not_been(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"duration": "8st", "lr": 1e-2, "average": 0.9, "masks": True}
    whole = detect(model, data, out=str(tmp_path / "whole"), **options)
    update = TrainState.update

    def cut(self: TrainState, at: Any) -> None:
        if at.step == 5:
            raise Stopped("cut off", 15)
        update(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "update", cut)
        with pytest.raises(Stopped):
            detect(model, data, out=str(tmp_path / "cut"), **options)
    again = detect(model, data, out=str(tmp_path / "cut"), resume=True, **options)
    assert again.facts["curve"] == whole.facts["curve"] and again.facts["ap"] == whole.facts["ap"]
    for name in (FILE, DENSE_FILE):
        first, second = ((tmp_path / each / name).read_bytes() for each in ("whole", "cut"))
        assert first == second
    with Image.open(tmp_path / "cut" / "objects.png") as drawn:
        assert drawn.width == 2 * 488 + 8


def test_an_edited_annotation_is_another(model: Path, tmp_path: Path) -> None:
    data = write_discs(tmp_path / "discs")
    detect(model, data, out=str(tmp_path / "out"))
    file = data / "annotations" / "instances_val.json"
    text = file.read_text()
    file.write_text(text.replace('"category_id": 1', '"category_id": 2', 1))
    assert file.read_text() != text
    with pytest.raises(ValueError, match="began with another model, other images or other"):
        detect(model, data, out=str(tmp_path / "out"), resume=True)


def test_pictures_show_what_is_there(tmp_path: Path) -> None:
    pixels = torch.full((3, 48, 48), 90, dtype=torch.uint8)
    mask = torch.zeros(1, 48, 48, dtype=torch.uint8)
    mask[0, 10:20, 10:20] = 1
    there = (torch.tensor([[10.0, 10, 20, 20]]), torch.tensor([1]), mask)
    none = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), None)
    draw_objects([ObjectPicture(pixels, there, none)], ("a", "b"), tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn:
        sheet = np.asarray(drawn).astype(int)
    left, right = sheet[20 + 150 + 30, 8 + 170], sheet[20 + 150 + 30, 8 + 488 + 170]
    assert (right == 90).all() and abs(left - 90).max() > 20


def test_the_command_writes_what_it_says(data: Path, tmp_path: Path, capsys: Says) -> None:
    run = write_run(tmp_path / "run")
    words = [
        *("evaluate", "detect", str(run), "--data", str(data), "--duration", "2st"),
        *("--train-batch", "2", "--crop", "48", "--channels", "8", "--workers", "0"),
        *("--masks", "false"),
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "trained, seed 0: boxes of 2 classes in 9 images, 2 steps of 2 crops" in said.err
    assert "val ap" in said.out and "looked at once" in said.out
    (line,) = read_results(run / "results.jsonl")
    assert line["name"] == "detect" and line["headline"].keys() == {"detection"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"recipe": "smal"}, "Unknown recipe 'smal'.*small"),
        ({"train_batch": 64}, "There are 9 images, fewer than one batch of 64; lower train_batch"),
        ({"min_scale": 2.0}, "min_scale is 2, above max_scale, which is 1.4"),
        ({"train_split": "test", "test_split": "test"}, "learned from or chosen by already"),
        ({"val_split": "train"}, "9 images are in train_split 'train' and in val_split 'train'"),
        ({"hidden": 0}, "hidden is 0; expected at least 1"),
        ({"val_split": "dev"}, "has no split 'dev'; it has: "),
        ({"resume": True}, "name it: --out FOLDER"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], expected: str, model: Path, data: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        detect(model, data, **options)


def test_masks_that_are_missing(model: Path, tmp_path: Path) -> None:
    data = write_discs(tmp_path / "discs", outlines=False)
    with pytest.raises(
        ValueError, match="masks are asked for, but not every object has an outline"
    ):
        detect(model, data, masks=True)
    assert "mask ap" not in detect(model, data, masks="auto").rows[0]


def test_unreadable_images_are_counted(model: Path, tmp_path: Path, capsys: Says) -> None:
    data = write_discs(tmp_path / "discs")
    (data / "val" / "1.png").write_bytes(b"no photograph")
    with pytest.raises(ValueError, match=r"at most 1 % may be \(max_unreadable\)"):
        detect(model, data)
    assert detect(model, data, max_unreadable=50.0).rows
    assert "1 of 4 images cannot be read" in capsys.readouterr().err


def test_without_pycocotools_it_says_what_to_install(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "pycocotools is not installed"
    monkeypatch.setattr("leanvit.evaluation.precision.missing", lambda *_: said)
    with pytest.raises(ValueError, match=r"pip install 'leanvit\[detect\]'"):
        detect(model, data)


def test_recipes_settle_everything() -> None:
    for name, recipe in DETECT_RECIPES.items():
        settled = recipe()
        left = {f.name for f in fields(settled) if getattr(settled, f.name) == "auto"}
        assert settled.recipe == name
        assert left == {"test_split", "precision", "workers", "device", "masks"}
