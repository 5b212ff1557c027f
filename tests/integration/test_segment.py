"""Segmentation from the command line to the table: choosing, testing, continuing, refusing."""

import json
import shutil
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
from leanvit.config.dense import SegmentConfig
from leanvit.core.errors import Stopped
from leanvit.evaluation import dense_task as module
from leanvit.evaluation.map_pictures import MapPicture, draw_maps, palette
from leanvit.evaluation.record import read_results
from leanvit.evaluation.result import Result
from leanvit.evaluation.segment import SegmentTraining
from leanvit.recipes.segment import SEGMENT_RECIPES
from leanvit.train.state import TrainState
from leanvit.weights.file import DENSE_FILE, FILE
from leanvit.weights.loading import load_backbone
from tests.integration.command import Says
from tests.tables import write_maps, write_network, write_run
from tests.tiny import CVT

pytestmark = pytest.mark.usefixtures("one_thread")
FAST: Mapping[str, Any] = {
    **{"workers": 0, "device": "cpu", "duration": "4st", "every": "2st", "train_batch": 2},
    **{"crop": 24, "channels": 8, "precision": "fp32", "average": 0.0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("model") / "backbone.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_maps(tmp_path_factory.mktemp("data") / "maps")


def segment(model: Path | str, data: Path, **options: Any) -> Result:
    return leanvit.evaluate(
        "segment", model, data=str(data), options={**FAST, **options}, quiet=True
    )


def test_the_table(model: Path, data: Path) -> None:
    found = segment(model, data, untrained=True, seeds=(0, 1))
    assert [(row["network"], row["seed"]) for row in found.rows] == [
        *(("trained", 0), ("trained", 1), ("untrained", 0), ("untrained", 1))
    ]
    assert list(found.rows[0]) == [
        *("network", "seed", "epoch", "val miou", "miou", "pixels", "classes", "minutes")
    ]
    assert all(0 <= row["miou"] <= 100 for row in found.rows)
    assert found.facts["test_images"] == 3 and found.facts["classes"] == ("sky", "disc", "edge")
    assert [row["step"] for row in found.facts["curve"]] == [2, 4] * 4
    assert "looked at once" in found.notes[0] and "over 2 seeds" in found.notes[1]
    assert found.headline == {"segmentation": found.rows[0]["miou"]}
    overlaps = found.facts["iou"][0]["classes"]
    assert sum(overlaps.values()) / 3 == pytest.approx(found.rows[0]["miou"])


def test_it_learns(model: Path, data: Path) -> None:
    found = segment(model, data, duration="60st", every="20st", lr=3e-3, warmup="5st")
    assert found.rows[0]["miou"] > 55, "one class alone has about 30"


def test_the_best_look_is_tested(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the second of three looks be the best, and see that its weights are what counts."""
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([10.0, 30.0, 20.0])

    def found(self: SegmentTraining) -> dict[str, float]:
        seen.append({n: v.clone() for n, v in self.method.tested.state_dict().items()})
        return {"miou": next(scores), "pixels": 1.0, "classes": 2.0}

    monkeypatch.setattr(SegmentTraining, "found", found)
    tested: list[dict[str, torch.Tensor]] = []
    result = module._result

    def noted(*words: Any) -> Result:
        table = result(*words)
        tested.append(words[2][0][1].method.tested.state_dict())
        return table

    monkeypatch.setattr(module, "_result", noted)
    out = tmp_path / "out"
    row = segment(model, data, duration="6st", out=str(out)).rows[0]
    assert row["val miou"] == 30.0 and row["epoch"] == pytest.approx(4 / 4)
    assert all(tested[0][name].equal(value) for name, value in seen[1].items())
    assert any(not seen[2][name].equal(value) for name, value in seen[1].items())
    kept = load_backbone(out).state_dict()
    assert all(seen[1][f"backbone.{name}"].equal(value) for name, value in kept.items())


def test_without_a_test_split_the_table_says_so(model: Path, tmp_path: Path) -> None:
    data = write_maps(tmp_path / "maps", test=False)
    found = segment(model, data)
    assert "they flatter a little" in found.notes[0] and "test_images" not in found.facts
    assert found.rows[0]["miou"] == pytest.approx(found.rows[0]["val miou"])


CHANGES: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "train_split": ("test", {"test_split": ""}),
    "val_split": ("test", {"test_split": ""}),
    "test_split": ("", {}),
    "recipe": ("upernet_ade20k_160k", {}),
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
    "head": ("linear", {}),
    "channels": (16, {}),
    "crop": (16, {}),
    "scale": ((1.0, 1.0), {}),
    "distort": (0.0, {}),
    "short_side": (24, {}),
    "slide": (True, {"lr": 1e-2, "duration": "20st"}),
    "ignore": ((3,), {}),
}
"""Option -> (another value, what else must be set for it to matter)."""
ELSEWHERE = {"data", "workers", "device", "max_unreadable", "pictures", "out", "resume", "results"}
"""Options that change no figure, or have tests of their own."""


def test_the_table_names_every_option() -> None:
    assert set(CHANGES) == {field.name for field in fields(SegmentConfig)} - ELSEWHERE


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
    table = segment(model, data, **options)
    patch.setattr(module, "_result", result)
    rows = [{**row, "minutes": 0} for row in table.rows]
    return json.dumps([trained, rows, table.facts["curve"]])


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
    segment(model, data, frozen=frozen, head="linear", lr=1e-2, out=str(tmp_path / "out"))
    before, after = (load_backbone(path).state_dict() for path in (model, tmp_path / "out"))
    assert all(before[name].equal(after[name]) for name in before) == frozen


def test_a_step_on_frozen_batch_norms_may_be_split(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_network(tmp_path / "cvt.safetensors", config=CVT)
    options = {"scale": (1.0, 1.0), "distort": 0.0, "frozen": True}
    first, split = (segment(model, data, **options, accumulate=n).rows[0] for n in (1, 2))
    assert split["miou"] == pytest.approx(first["miou"], abs=5)
    with pytest.raises(ValueError, match="Batch norm in the backbone couples the images"):
        segment(model, data, accumulate=2)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_was_cut_off_continues_as_if_it_had_not_been(
    average: float, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"duration": "8st", "every": "2st", "lr": 1e-2, "average": average}
    whole = segment(model, data, out=str(tmp_path / "whole"), **options)
    update = TrainState.update

    def cut(self: TrainState, at: Any) -> None:
        if at.step == 5:
            raise Stopped("cut off", 15)
        update(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "update", cut)
        with pytest.raises(Stopped):
            segment(model, data, out=str(tmp_path / "cut"), **options)
    again = segment(model, data, out=str(tmp_path / "cut"), resume=True, **options)
    assert again.facts["curve"] == whole.facts["curve"]
    assert again.facts["iou"] == whole.facts["iou"]
    for name in (FILE, DENSE_FILE):
        first, second = ((tmp_path / each / name).read_bytes() for each in ("whole", "cut"))
        assert first == second
    with pytest.raises(ValueError, match="began with another model, other images or other"):
        segment(model, data, out=str(tmp_path / "cut"), resume=True, **options, slide=True)
    with pytest.raises(ValueError, match="is not empty: continue the training in it"):
        segment(model, data, out=str(tmp_path / "cut"), **options)


def test_an_edited_mask_is_another_and_a_copied_folder_is_not(model: Path, tmp_path: Path) -> None:
    data = write_maps(tmp_path / "maps")
    file = data / "train" / "masks" / "0.png"
    mapped = np.asarray(Image.open(file))
    Image.fromarray(mapped).save(file, compress_level=0)
    options = {"out": str(tmp_path / "out"), "test_split": ""}
    segment(model, data, **options)
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    segment(model, copy, **options, resume=True)
    size = file.stat().st_size
    Image.fromarray(1 - mapped.clip(max=1)).save(file, compress_level=0)
    assert file.stat().st_size == size
    with pytest.raises(ValueError, match="began with another model, other images or other"):
        segment(model, data, **options, resume=True)


def test_pictures_show_what_is_told(model: Path, data: Path, tmp_path: Path) -> None:
    segment(model, data, out=str(tmp_path / "out"), pictures=2)
    with Image.open(tmp_path / "out" / "maps.png") as drawn:
        sheet = np.asarray(drawn)
    assert sheet.shape[1] == 4 * 328 + 8
    segment(model, data, out=str(tmp_path / "none"), pictures=0)
    assert not (tmp_path / "none" / "maps.png").exists()
    truth = torch.tensor([[0, 1], [1, 255]], dtype=torch.uint8)
    told = torch.tensor([[0, 0], [1, 1]])
    picture = MapPicture(torch.full((3, 2, 2), 100, dtype=torch.uint8), truth, told)
    draw_maps([picture], ("sky", "disc"), tmp_path / "by_hand.png")
    with Image.open(tmp_path / "by_hand.png") as drawn:
        sheet = np.asarray(drawn)
    sky, disc = palette(2)
    left, quarter = [8 + 328 * column for column in range(4)], (20 + 80, 20 + 240)
    assert (sheet[quarter[0], left[1] + 80] == sky).all()
    assert (sheet[quarter[0], left[1] + 240] == disc).all()
    assert (sheet[quarter[1], left[1] + 240] == 255).all(), "no class"
    assert (sheet[quarter[0], left[3] + 240] == sky).all(), "wrong, and what was told instead"
    assert (sheet[quarter[1], left[3] + 240] == 177).all(), "not counted, so not wrong"
    assert len({tuple(color) for color in palette(150).tolist()}) > 140


def test_the_command_writes_what_it_says(
    data: Path, tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    words = [
        *("evaluate", "segment", str(run), "--data", str(data), "--duration", "2st"),
        *("--train-batch", "2", "--crop", "24", "--channels", "8", "--workers", "0"),
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "trained, seed 0: 9 images of 3 classes, 2 steps of 2 crops of 24" in said.err
    assert "val miou" in said.out and "looked at once" in said.out
    (line,) = read_results(run / "results.jsonl")
    assert line["name"] == "segment" and line["headline"].keys() == {"segmentation"}
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["classes"] == ["sky", "disc", "edge"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"recipe": "smal"}, "Unknown recipe 'smal'.*small"),
        ({"train_batch": 64}, "There are 9 images, fewer than one batch of 64; lower train_batch"),
        ({"head": "unet"}, "head"),
        ({"lr": -1.0}, r"lr is -1\.0; expected above 0"),
        ({"scale": (2.0, 1.0)}, "scale goes from small to large"),
        ({"seeds": ()}, r"seeds is \(\); expected at least one"),
        ({"out": "x", "untrained": True}, "out holds one training"),
        ({"resume": True}, "name it: --out FOLDER"),
        ({"test_split": "val"}, "test_split is 'val', which is learned from or chosen by"),
        ({"frozen": True, "layer_decay": 0.5}, "backbone's learning rate, and it is frozen"),
        ({"val_split": "dev"}, "no images for the split 'dev'"),
        ({"accumulate": 3}, "train_batch 2 does not split into 3 micro-batches"),
        ({"warmup": "9st"}, "warmup takes 9 steps, but the whole run has 4"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], expected: str, model: Path, data: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        segment(model, data, **options)


def test_a_wrong_mask_is_said_before_the_training(model: Path, tmp_path: Path) -> None:
    data = write_maps(tmp_path / "maps")
    Image.new("L", (3, 3)).save(data / "test/masks/2.png")
    with pytest.raises(ValueError, match=r"mask 'test/masks/2.png' has 3 x 3 pixels"):
        segment(model, data)


def test_unreadable_images_are_counted(model: Path, tmp_path: Path, capsys: Says) -> None:
    data = write_maps(tmp_path / "maps")
    for split in ("train", "val"):
        (data / split / "images" / "1.png").write_bytes(b"no photograph")
    with pytest.raises(ValueError, match=r"at most 1 % may be \(max_unreadable\)"):
        segment(model, data)
    found = segment(model, data, max_unreadable=50.0)
    assert "1 of 9 images cannot be read" in capsys.readouterr().err
    assert found.rows


def test_recipes_settle_everything(data: Path) -> None:
    for name, recipe in SEGMENT_RECIPES.items():
        settled = recipe()
        left = {f.name for f in fields(settled) if getattr(settled, f.name) == "auto"}
        assert settled.recipe == name
        assert left == {"test_split", "precision", "workers", "device"}
