"""Fine-tuning from a name to a table: what it learns, what it reports, what it writes."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import leanvit
from leanvit.cli import main
from leanvit.config import BackboneConfig, TimmConfig, ViTConfig
from leanvit.config.evaluation import FinetuneConfig
from leanvit.core.files import save_tensors
from leanvit.data.sources import FolderSource
from leanvit.evaluation import finetune as module
from leanvit.evaluation.finetune import Training, run_config, settle, start, told
from leanvit.evaluation.inputs import see
from leanvit.evaluation.result import Result
from leanvit.evaluation.tuned import Folder
from leanvit.recipes.finetuning import FINETUNE_RECIPES
from leanvit.train.checkpoint import CHECKPOINTS
from leanvit.train.state import TrainState
from leanvit.weights.file import FILE, HEAD_FILE, HEADER, header, read_header
from leanvit.weights.loading import load_backbone, open_weights
from tests.integration.command import refused
from tests.tables import CLASSES, seen_by
from tests.tiny import FAMILIES, VIT, build, write_tuned

pytestmark = pytest.mark.usefixtures("one_thread")

BRIEF: Mapping[str, Any] = {
    "workers": 0,
    "device": "cpu",
    "duration": "3st",
    "train_batch": 4,
    "every": "100%",
    "lr": 0.1,
}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain ViT in a file, its class token as view feature."""
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    network = build(VIT)
    facts = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    save_tensors(network.state_dict(), path, header(network, facts))
    return path


def tune(model: str | Path, data: Path, **options: Any) -> Result:
    options = {**BRIEF, **options}
    return leanvit.evaluate("finetune", model, data=str(data), options=options, quiet=True)


# Learning


def test_it_learns_from_a_run(colored: Path, tmp_path: Path) -> None:
    """Pre-trained by MAE for a moment, three colors are told apart in seconds."""
    options = {
        **{"backbone.dim": 16, "backbone.depth": 2, "backbone.heads": 2, "method.decoder.dim": 8},
        **{"method.decoder.heads": 2, "train.duration": "2st", "train.batch": 4},
        **{"watch.images": 0, "data.workers": 0, "train.device": "cpu"},
    }
    leanvit.pretrain(
        "mae_laptop", data=str(colored), out=tmp_path / "run", options=options, quiet=True
    )
    result = tune(
        tmp_path / "run",
        colored,
        **{"duration": "30ep", "train_batch": 6, "every": "50%", "untrained": True},
        **{"recipe": "transfer", "optimizer": "adamw", "lr": 0.2},
    )
    rows = {row["network"]: row for row in result.rows}
    assert list(rows) == ["trained", "untrained"]
    assert rows["trained"]["top1"] > 60 and rows["untrained"]["top1"] > 60, "33 is chance"
    assert all(
        list(row) == ["network", "seed", "top1", "epochs", "minutes"] for row in rows.values()
    )
    curve = result.facts["curve"]
    assert [entry["epoch"] for entry in curve] == [0.0, 15.0, 30.0] * 2
    assert rows["trained"]["top1"] == curve[2]["top1"], "the last, not the best"
    assert any("that of the last step" in note for note in result.notes)


def test_every_seed_is_a_training(vit: Path, data: Path) -> None:
    result = tune(vit, data, seeds=(0, 1, 0))
    assert [row["seed"] for row in result.rows] == [0, 1, 0]
    first, other, again = ({**row, "minutes": 0} for row in result.rows)
    assert first == again
    (said,) = [note for note in result.notes if "over 3 seeds" in note]
    tops = [row["top1"] for row in result.rows]
    assert f"top-1 {sum(tops) / 3:.1f}" in said
    assert other["seed"] == 1


def test_the_average_has_a_row_of_its_own(vit: Path, data: Path, tmp_path: Path) -> None:
    """Its figures are those of the averaged network with the averaged head."""
    result = tune(vit, data, average=0.5, out=str(tmp_path / "out"))
    assert [row["network"] for row in result.rows] == ["trained", "trained, averaged"]
    assert result.rows[1]["top1"] == measured(tmp_path / "out", data)
    plain = tune(vit, data, out=str(tmp_path / "plain"))
    assert plain.rows[0]["top1"] == measured(tmp_path / "plain", data) == result.rows[0]["top1"]
    one, other = (load_backbone(tmp_path / name).state_dict() for name in ("out", "plain"))
    assert not one["fc_norm.weight"].equal(other["fc_norm.weight"])


KINDS = {name: FAMILIES[name] for name in FAMILIES if name not in ("swin_skip", "vit_full")}
KINDS["timm_batch_norm"] = TimmConfig(image_size=32, name="test_resnet", drop_path=0.0)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_every_family_is_tuned(config: BackboneConfig, data: Path, tmp_path: Path) -> None:
    """And tested as it is used: batch norm by its running statistics, which testing moves not."""
    network, path, out = build(config), tmp_path / "network.safetensors", tmp_path / "out"
    save_tensors(network.state_dict(), path, header(network, {}))
    (row,) = tune(path, data, out=str(out), average=0.0, every="1st", lr=0.02).rows
    assert row["top1"] == measured(out, data)
    seldom = tmp_path / "seldom"
    tune(path, data, out=str(seldom), average=0.0, every="100%", lr=0.02)
    assert (out / FILE).read_bytes() == (seldom / FILE).read_bytes()
    after = load_backbone(out).state_dict()
    shared = {name: value for name, value in network.state_dict().items() if name in after}
    moved = [name for name, value in shared.items() if not value.equal(after[name])]
    assert len(moved) > len(shared) / 2


@torch.no_grad()
def measured(folder: Path, data: Path) -> float:
    """Return the accuracy of what was written, image by image."""
    backbone = load_backbone(folder)
    from safetensors.torch import load_file

    head = load_file(folder / HEAD_FILE)
    test = FolderSource(data).validation()
    assert test is not None
    rows = backbone.features(seen_by(backbone, test)).pooled @ head["weight"].T + head["bias"]
    hits = rows.argmax(1) == torch.from_numpy(test.targets)
    return 100 * hits.double().mean().item()


def test_accuracy_is_its_definition() -> None:
    logits = torch.tensor([[3.0, 1, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0]])
    assert told(logits, torch.tensor([0, 5, 1])) == pytest.approx(
        {"top1": 100 / 3, "top5": 200 / 3}
    )
    assert told(logits[:, :5], torch.tensor([0, 0, 0])) == pytest.approx({"top1": 100.0})


# What begins


GENERAL = ("improved", "deit", "transfer")


def at(config: FinetuneConfig) -> float:
    """Return the highest rate at the recipe's own batch."""
    assert config.lr != "auto" and config.train_batch != "auto"
    return config.lr * config.train_batch / 256


def test_recipes_are_those_of_the_paper(vit: Path, data: Path) -> None:
    """At 1024 images a step the highest rate is 4e-3, as in the paper."""
    learn = FolderSource(data)

    def run(**options: Any) -> Any:
        config = FinetuneConfig(data=str(data), workers=0, device="cpu", **options)
        config = settle(config, len(learn))
        seen = see(config, 32, learn, True)
        return run_config(config, seen, open_weights(vit), learn, 0)

    assert [at(FINETUNE_RECIPES[name]()) for name in GENERAL] == [4e-3, 4e-3, 0.03]
    improved, deit, transfer = (run(recipe=name) for name in GENERAL)
    views = improved.method.views
    assert (views.randaugment, views.erase, improved.method.smoothing) == (10.0, 0.0, 0.0)
    assert (improved.method.mix.mixup, improved.method.mix.cutmix) == (0.2, 0.0)
    assert (improved.optim.layer_decay, improved.optim.weight_decay.end) == (0.85, 0.05)
    assert improved.optim.lr.peak == 1e-3 * 4 / 256, "an eighth of 45 images, by pairs"
    assert (deit.method.mix.mixup, deit.method.mix.cutmix, deit.method.smoothing) == (0.8, 1.0, 0.1)
    assert (deit.method.views.randaugment, deit.method.views.erase) == (9.0, 0.25)
    assert transfer.optim.kind == "sgd" and transfer.optim.nesterov
    assert (transfer.optim.clip, transfer.optim.clip_by) == (1.0, "global")
    assert transfer.method.mix.views == 0 and transfer.method.views.randaugment == 0.0
    assert [r.train.duration.amount for r in (improved, deit, transfer)] == [3300, 1100, 550]
    assert run(recipe="transfer", layer_decay=0.5).optim.layer_decay == 0.5


def test_a_name_begins_from_scratch(data: Path) -> None:
    result = tune("timm:test_vit", data, image_size=160, duration="1st", drop_path=0.0)
    assert [row["network"] for row in result.rows] == ["untrained"]


# Options

TAUGHT: Mapping[str, Any] = {"teacher": "tuned"}
CHANGES: Mapping[str, tuple[object, Mapping[str, Any]]] = {
    "image_size": (24, {}),
    "crop": (0.5, {}),
    "val": ("train", {}),
    "recipe": ("transfer", {}),
    "duration": ("4st", {}),
    "train_batch": (6, {}),
    "accumulate": (2, {}),
    "precision": ("bf16", {}),
    "optimizer": ("sgd", {}),
    "lr": (0.01, {}),
    "warmup": ("2st", {}),
    "layer_decay": (0.5, {}),
    "weight_decay": (0.5, {}),
    "clip": (0.01, {}),
    "randaugment": (0.0, {}),
    "erase": (1.0, {}),
    "mixup": (0.9, {}),
    "cutmix": (1.0, {}),
    "repeats": (2, {}),
    "smoothing": (0.3, {}),
    "drop_path": (0.5, {}),
    "average": (0.9, {}),
    "teacher": ("tuned", {}),
    "distillation": ("soft", TAUGHT),
    "distillation_weight": (0.1, TAUGHT),
    "distillation_temperature": (2.0, {**TAUGHT, "distillation": "soft"}),
    "position_bias": (True, {}),
    "keep_blocks": (1, {}),
    "untrained": (True, {}),
    "seeds": ((1,), {}),
    "every": ("1st", {}),
}
"""Option -> (another value, what else must be set for it to matter)."""

ELSEWHERE = {
    *("data", "batch", "workers", "device", "max_unreadable", "out", "resume"),
    *("results", "keep_features"),
}
"""Options that change no figure, or have tests of their own."""


def test_the_table_names_every_option() -> None:
    assert set(CHANGES) == {field.name for field in fields(FinetuneConfig)} - ELSEWHERE


Found = tuple[Any, list[dict[str, Tensor]]]


def found(model: Path, data: Path, patch: pytest.MonkeyPatch, options: Mapping[str, Any]) -> str:
    """Return curves and weights as a word."""
    trained: list[Any] = []

    class Kept(Training):
        def table(self, name: str) -> list[dict[str, Any]]:
            values = [value.double().sum().item() for value in self.method.state_dict().values()]
            trained.append([name, values, self.curve])
            return super().table(name)

    patch.setattr(module, "Training", Kept)
    tune(model, data, **options)
    return json.dumps(trained)


@pytest.fixture(scope="module")
def usual(vit: Path, data: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        first = found(vit, data, patch, {})
        assert found(vit, data, patch, {"batch": 5}) == first
        return first


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(
    name: str,
    vit: Path,
    data: Path,
    usual: str,
    tuned: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value, base = CHANGES[name]
    value = str(data / "train") if name == "val" else value
    first = found(vit, data, monkeypatch, placed(base, tuned)) if base else usual
    assert found(vit, data, monkeypatch, placed({**base, name: value}, tuned)) != first


def placed(options: Mapping[str, Any], tuned: Path) -> Mapping[str, Any]:
    """Return options with the teacher's folder."""
    return {**options, "teacher": str(tuned)} if "teacher" in options else options


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of three classes, a network of convolutions."""
    network = build(TimmConfig(image_size=32, name="test_resnet", drop_path=0.0))
    network.mean = (0.1, 0.2, 0.3)
    return write_tuned(tmp_path_factory.mktemp("teacher") / "tuned", network, classes=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"recipe": "improve"}, "recipe.*'improve'.*improved"),
        ({"recipe": "mae_vit_tiny_in1k"}, "recipe 'mae_vit_tiny_in1k'.*mae_vit_tiny_in1k_300ep"),
        (
            {"repeats": 3},
            "^repeats is 3, .* too few for two different ones: raise train_batch to 6",
        ),
        ({"repeats": 0}, "repeats is 0; expected at least 1"),
        ({"lr": 0.0}, r"lr is 0\.0; expected above 0"),
        ({"layer_decay": 1.5}, r"layer_decay is 1\.5; expected within \[0, 1\]"),
        ({"layer_decay": 0.0}, r"layer_decay is 0\.0; expected above 0"),
        ({"seeds": ()}, r"seeds is \(\); expected at least one"),
        ({"keep_blocks": 4}, "keep_blocks is 4, and the network has 3 blocks"),
        ({"train_batch": 5}, "a micro-batch has 5: make it even"),
        ({"train_batch": 64}, "There are 45 images, fewer than one batch of 64"),
        ({"resume": True}, "name it: --out FOLDER"),
        ({"out": "x", "seeds": (0, 1)}, "out holds one training"),
        ({"epochs": 3}, "Unknown option 'epochs'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], expected: str, vit: Path, data: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        tune(vit, data, **options)


def test_a_name_has_no_blocks_to_keep(data: Path) -> None:
    with pytest.raises(ValueError, match="keeps trained blocks, and 'vit_tiny' has none"):
        tune("vit_tiny", data, keep_blocks=3)


def test_too_many_unreadable_images_are_refused(
    vit: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "of 45 images cannot be read, such as .*; at most 1 % may be"
    for path in (broken / "val").rglob("*.png"):
        if not path.read_bytes():
            path.unlink()
    with pytest.raises(ValueError, match=expected):
        tune(vit, broken, duration="2ep")
    assert tune(vit, broken, duration="2ep", max_unreadable=7.0).rows


# The folder


def test_what_is_written_can_be_used(vit: Path, data: Path, tmp_path: Path) -> None:
    tune(vit, data, out=str(tmp_path / "out"), duration="4st", every="50%")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {FILE, HEAD_FILE, "metrics.jsonl", CHECKPOINTS}
    assert isinstance(load_backbone(out).config, ViTConfig)
    assert load_backbone(out).mean == (0.4, 0.5, 0.6)
    with safe_open(out / HEAD_FILE, "pt") as file:
        assert json.loads(file.metadata()[HEADER]) == {"classes": list(CLASSES)}
    assert {"recipe": "finetune improved", "step": 4, "seed": 0}.items() <= read_header(
        out / FILE
    ).items()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "top1" in row] == [0, 2, 4]


def test_what_was_cut_off_continues_exactly(
    vit: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"duration": "6st", "every": "50%", "average": 0.5, "repeats": 2}
    whole = tune(vit, data, out=str(tmp_path / "whole"), **options)
    cut, saved = tmp_path / "cut", Folder.save

    def interrupted(self: Any, state: Any, *rest: Any) -> None:
        saved(self, state, *rest)
        if state.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(vit, data, out=str(cut), **options)
    with pytest.raises(ValueError, match="is not empty: continue the training in it with --resume"):
        tune(vit, data, out=str(cut), **options)
    with pytest.raises(ValueError, match="began with another model, other images or other options"):
        tune(vit, data, out=str(cut), resume=True, **{**options, "lr": 0.2})
    again = tune(vit, data, out=str(cut), resume=True, **options)
    assert again.facts == whole.facts
    assert [{**row, "minutes": 0} for row in again.rows] == [
        {**row, "minutes": 0} for row in whole.rows
    ]
    for name in (FILE, HEAD_FILE):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    finished = tune(vit, data, out=str(cut), resume=True, **options)
    assert finished.facts["curve"] == whole.facts["curve"]
    shutil.rmtree(cut)
    with pytest.raises(ValueError, match="There is no training to resume"):
        tune(vit, data, out=str(cut), resume=True, **options)


def test_the_command_tunes(
    vit: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in BRIEF.items()]
    out = tmp_path / "out"
    arguments = ["evaluate", "finetune", str(vit), "--data", str(data), *words]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["name"] == "finetune"
    assert "trained, seed 0: 45 images, 3 steps of 4, fp32 on cpu" in said.err
    assert "is not empty" in refused(capsys, *arguments, "--out", out)


def test_a_configuration_settles_once() -> None:
    config = FinetuneConfig(recipe="deit", mixup=0.5, position_bias=True)
    settled = settle(config, 10**6)
    assert (settled.mixup, settled.cutmix) == (0.5, 1.0) and settled == settle(settled, 10**6)
    assert settled.position_bias is True
    assert settle(replace(config, recipe="improved"), 10**6).cutmix == 0.0
    assert settle(replace(config, train_batch=6), 45).train_batch == 6


@pytest.mark.parametrize("name", FINETUNE_RECIPES)
def test_a_recipe_leaves_nothing_open_that_is_its_own(name: str) -> None:
    settled = settle(FinetuneConfig(recipe=name), 10**6)
    left = {field.name for field in fields(settled) if getattr(settled, field.name) == "auto"}
    assert left == {"image_size", "crop", "workers", "device", "precision", "keep_blocks"}
    batches = {images: settle(FinetuneConfig(recipe=name), images).train_batch for images in SIZES}
    assert batches == {images: min(most, settled.train_batch) for images, most in SIZES.items()}


SIZES = {3: 2, 45: 4, 160: 20, 10**6: 10**6}
"""Images, and what a step takes of them: an eighth, an even number."""


@pytest.mark.parametrize(
    ("name", "decay"), [("mae_vit_tiny_in1k_300ep", 0.85), ("mocov3_vit_tiny_in1k_300ep", 0.75)]
)
def test_the_ladder_of_a_published_fine_tuning(name: str, decay: float, data: Path) -> None:
    """A narrow ViT of twelve blocks as it really trains: 14 rungs, of the rate at this batch."""
    learn, weights = FolderSource(data), open_weights("vit_tiny_h12")
    assert isinstance(weights.config, ViTConfig)
    weights = replace(weights, config=replace(weights.config, image_size=32, dim=24))
    config = settle(FinetuneConfig(recipe=name, workers=0, device="cpu"), len(learn))
    run = run_config(config, see(config, 32, learn, True), weights, learn, 0)
    state = TrainState(start(run, None), run, epoch_steps=11)
    scales = {group["scale"] for group in state.optimizer.param_groups}
    assert sorted(scales) == pytest.approx([decay**rung for rung in range(13, -1, -1)])
    assert min(scales) == pytest.approx({0.85: 0.1209, 0.75: 0.02376}[decay], rel=1e-3)
    assert run.optim.lr.peak == pytest.approx(4e-3 * 4 / 1024)
    assert (run.optim.lr.warmup.amount, run.train.duration.amount) == (5 * 11, 300 * 11)


def test_a_published_fine_tuning_is_chosen_by_name(vit: Path, data: Path, tmp_path: Path) -> None:
    """With its position bias, and every option to be replaced as ever."""
    name = "mae_vit_tiny_in1k_1000ep_bias"
    out = tmp_path / "out"
    result = tune(vit, data, recipe=name, warmup="1st", out=str(out))
    assert result.facts["recipe"] == name
    config = load_backbone(out).config
    assert isinstance(config, ViTConfig) and config.position_bias
    tune(vit, data, recipe=name, warmup="1st", position_bias=False, out=str(tmp_path / "without"))
    without = load_backbone(tmp_path / "without").config
    assert isinstance(without, ViTConfig) and not without.position_bias
