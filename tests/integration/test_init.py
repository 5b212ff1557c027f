"""Runs that start from weights that exist: what comes from there, what is fresh, what is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import leanvit
from leanvit.config import DinoConfig, resolve
from leanvit.core.random import seeded
from leanvit.data.sources import open_source
from leanvit.evaluation.models import before_training, open_networks
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.recipes import recipe
from leanvit.request import compose_request
from leanvit.run import Run
from leanvit.train.checkpoint import CHECKPOINTS, newest_checkpoint
from leanvit.train.facts import gather_facts
from leanvit.weights.file import FILE
from leanvit.weights.whole import strip
from tests.tiny import draw_nothing, view_batch, write_images

pytestmark = pytest.mark.usefixtures("undrawn")

BRIEF: dict[str, Any] = {
    "train.duration": "2st",
    "train.batch": 4,
    "train.save_every": "1st",
    "train.device": "cpu",
    "watch.images": 0,
    "data.workers": 0,
    "backbone.drop_path": 0.0,
}
SHARP = {f"method.teacher_temp.{word}": 0.04 for word in ("start", "peak", "end")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("data") / "photos", 8))


@pytest.fixture(scope="module")
def view_only(tmp_path_factory: pytest.TempPathFactory, photos: str) -> Path:
    """Return the folder of a finished run with the view loss alone."""
    out = tmp_path_factory.mktemp("runs") / "view"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        leanvit.pretrain("dino_laptop", out=out, data=photos, options=BRIEF, quiet=True)
    return out


def begun(recipe: str, init: object, photos: str, out: Path, **options: Any) -> Run:
    """Return a run that has its first weights."""
    optimizer = options.pop("optimizer", "")
    named = {name.replace("__", "."): value for name, value in options.items()}
    words = {**BRIEF, "init": str(init), **named}
    asked = compose_request(recipe, None, photos, "", optimizer, words)
    source = open_source(asked.data.source)
    run = Run(resolve(asked, gather_facts(source)), source, out, quiet=True)
    run.initialize()
    return run


def saved(folder: Path) -> dict[str, Tensor]:
    """Return the method in a run's newest checkpoint."""
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    assert checkpoint is not None
    return strip(checkpoint.tensors(), "method.")


# A whole method


def test_a_view_only_run_goes_on_with_regions(view_only: Path, photos: str, tmp_path: Path) -> None:
    run = begun("esvit_laptop", view_only, photos, tmp_path, init_from="method", **{
        name.replace(".", "__"): value for name, value in SHARP.items()
    })  # fmt: skip
    before, method = saved(view_only), run.state.method
    fresh = build_method(run.config.method, run.config.backbone, run.config.train.seed).state_dict()
    for name, value in method.state_dict().items():
        assert value.equal((fresh if "region" in name else before)[name]), name
    assert set(before) < set(fresh)
    students = [n for n in before if n.startswith("student.") and n.endswith("weight")]
    assert any(not before[n].equal(before[n.replace("student", "teacher")]) for n in students)
    assert before["center.value"].any()
    # the same next step of the view loss, bit for bit
    plain = recipe("dino_laptop").method
    assert isinstance(plain, DinoConfig)
    old = build_method(plain, run.config.backbone, seed=1)
    old.load_state_dict(before)
    batch, at = view_batch(4, plain.views), Moment(0, 2, 0, 0)
    losses = [method(batch, at).terms["view"] for method in (old.train(), method)]
    assert losses[0].equal(losses[1]) and losses[0] > 0


def test_a_run_says_what_it_started_from_and_is_continued_without_it(
    view_only: Path, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, out = Path(shutil.copytree(view_only, tmp_path / "start")), tmp_path / "out"
    words = {**BRIEF, "init": str(start), "init_from": "method"}
    leanvit.pretrain("esvit_laptop", out=out, data=photos, options=words)
    fresh = ["region_head", "region_center", "optimizer", "schedules"]
    assert (
        f"Starts from {start} (student and teacher: backbone, head, center of its step 2); fresh: "
        f"{', '.join(fresh)}.\n"
    ) in capsys.readouterr().err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["init"]["taken"] == ["backbone", "head", "center"]
    assert (summary["init"]["step"], summary["init"]["fresh"]) == (2, fresh)
    whole = load_file(out / FILE)
    shutil.rmtree(start)
    shutil.rmtree(out / CHECKPOINTS / "step-00000002")
    (out / "summary.json").unlink()
    leanvit.pretrain(out=out, resume=True, quiet=True)
    assert all(value.equal(whole[name]) for name, value in load_file(out / FILE).items())
    assert json.loads((out / "summary.json").read_text())["init"] == summary["init"]


def test_a_run_that_starts_fresh_says_so(view_only: Path) -> None:
    assert json.loads((view_only / "summary.json").read_text())["init"] is None


def test_what_holds_no_method_is_refused(view_only: Path, photos: str, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(view_only, tmp_path / "bare"))
    shutil.rmtree(bare / CHECKPOINTS)
    for place in (bare, view_only / FILE):
        with pytest.raises(ValueError, match=r"holds no student and teacher with heads, .* a bac"):
            begun("esvit_laptop", place, photos, tmp_path, init_from="method")
    with pytest.raises(
        ValueError, match=r"prototypes 256 \(run: 8\).*--method.head.prototypes 256"
    ):
        changes = {"init_from": "method", "method__head__prototypes": 8}
        begun("esvit_laptop", view_only, photos, tmp_path, **changes)
    with pytest.raises(ValueError, match="init_from is method, but no weights are named"):
        begun("esvit_laptop", "", photos, tmp_path, init_from="method")


# A backbone


def test_a_backbone_alone_leaves_the_rest_fresh(
    view_only: Path, photos: str, tmp_path: Path
) -> None:
    run = begun("esvit_laptop", view_only, photos, tmp_path)
    teacher = load_file(view_only / FILE)
    fresh = build_method(run.config.method, run.config.backbone, run.config.train.seed).state_dict()
    for name, value in run.state.method.state_dict().items():
        _, _, inner = name.partition(".backbone.")
        assert value.equal(teacher[inner] if inner else fresh[name]), name
    assert str(run.start) == (
        f"Starts from {view_only} (backbone of its step 2); fresh: head, region_head, center, "
        f"region_center, optimizer, schedules."
    )


def supervised(folder: Path) -> tuple[Any, Path]:
    """Write what timm's folder of a trained network with a classifier holds."""
    with seeded(0, "test"):
        model: Any = timm.create_model("test_resnet")
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    usual = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64]}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "pretrained_cfg": usual})
    )
    return model, folder


def test_a_network_of_timm_is_adapted_to_images(photos: str, tmp_path: Path) -> None:
    model, folder = supervised(tmp_path / "timm")
    run = begun("dino_laptop", folder, photos, tmp_path)
    assert (run.config.data.mean, run.config.data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert run.config.backbone.kind == "timm" and run.config.backbone.image_size == 64
    for network in ("student", "teacher"):
        state = strip(run.state.method.state_dict(), f"{network}.backbone.network.model.")
        assert state and all(value.equal(model.state_dict()[n]) for n, value in state.items())
    assert str(run.start) == (
        f"Starts from {folder} (backbone, layout timm); fresh: head, center, optimizer, schedules; "
        f"left out of it: head (2 tensors)."
    )
    method = run.config.method
    assert isinstance(method, DinoConfig)
    at = run.state.begin_step()
    run.state.backward(view_batch(4, method.views), at, 1)
    run.state.update(at)
    run.state.require_sound()
    stem = run.state.method.state_dict()["student.backbone.network.model.conv1.0.weight"]
    assert not stem.equal(model.state_dict()["conv1.0.weight"]), "it is trained"
    (said,) = [text for text in run.advice if "Muon" in text]
    assert "this backbone has none in its blocks, so that all weights take AdamW's steps" in said
    plain = begun("dino_laptop", folder, photos, tmp_path, optimizer="adamw")
    assert not any("Muon" in text for text in plain.advice)


def test_names_without_weights_are_no_start(photos: str, tmp_path: Path) -> None:
    such = {
        "swin_tiny": "'swin_tiny' names no trained weights to start from .init.: name the folder",
        "timm:test_vit": "names no trained weights .*: name timm:test_vit.r160_in1k.",
        "timm:test_vit4": "names no trained weights .*: name the folder of a run or a file.",
    }
    for name, message in such.items():
        with pytest.raises(ValueError, match=message):
            begun("dino_laptop", name, photos, tmp_path)


# Evaluations take the same


def test_the_rows_of_a_checkpoint_of_another_code(tmp_path: Path) -> None:
    _, folder = supervised(tmp_path / "timm")
    cpu = torch.device("cpu")
    (row,) = open_networks(folder, cpu).items()
    assert row[0] == "trained"
    first = before_training(folder, row[1])
    with seeded(0, "weights"):
        from leanvit.backbones.timm_adapter import TimmNetwork

        again = TimmNetwork(row[1].config)  # type: ignore[arg-type]
    assert all(v.equal(again.state_dict()[n]) for n, v in first.state_dict().items())
    assert (first.mean, first.training) == ((0.1, 0.2, 0.3), False)
