"""Every method but self-distillation in the loop: exact resume, no reading back, and learning."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import leanvit
from leanvit.config import (
    MixConfig,
    RunConfig,
    SGDConfig,
    compose,
    constant,
    replace_options,
    steps,
)
from leanvit.core.files import save_tensors
from leanvit.data.batch import ViewBatch
from leanvit.methods.catalogue import build_method
from leanvit.train.checkpoint import newest_checkpoint
from leanvit.train.start import start_method
from leanvit.train.state import TrainState
from leanvit.weights.file import header
from tests.integration.test_training import Counter, losses, rows, step
from tests.tiny import (
    CLASSES,
    SWIN,
    VIT,
    build,
    d2mae,
    dmae,
    draw_nothing,
    mae,
    mocov3,
    noise,
    run_config,
    simmim,
    supervised,
    write_classes,
)

pytestmark = pytest.mark.usefixtures("one_thread")

RUNS: dict[str, dict[str, Any]] = {
    "mae": {"method": mae(), "backbone": VIT},
    "mae of a Swin": {"method": mae(), "backbone": SWIN},
    "dmae": {"method": dmae(hidden_layers=(-1,)), "backbone": VIT},
    "d2mae": {"method": d2mae(), "backbone": VIT},
    "mocov3": {"method": mocov3(), "backbone": SWIN},
    "mocov3 of a ViT": {"method": mocov3(), "backbone": VIT},
    "simmim": {"method": simmim(), "backbone": SWIN},
    "simmim of a ViT": {"method": simmim(), "backbone": VIT},
    "supervised": {"method": supervised(average=0.9), "backbone": VIT},
    "supervised with CutMix": {
        "method": supervised(mix=MixConfig(views=1, switch=1.0)),
        "backbone": SWIN,
    },
}
GOLDEN = Path(__file__).parent.parent / "golden" / "losses"
FILES = {"supervised": ("backbone.safetensors", "student.safetensors")}


def config_of(name: str, drop_path: float = 0.3, **train: object) -> RunConfig:
    entry = RUNS[name]
    backbone = replace(entry["backbone"], drop_path=drop_path)
    return replace(
        run_config(**train), recipe=entry["method"].kind, **entry | {"backbone": backbone}
    )


def fresh(config: RunConfig) -> TrainState:
    method = build_method(config.method, config.backbone, config.train.seed)
    return TrainState(method, config, epoch_steps=5)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the methods that imitate one a teacher: wider, deeper, with other heads."""
    network = build(replace(VIT, dim=24, depth=4, heads=3))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_tensors(network.state_dict(), path, header(network, {}))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("dmae", "d2mae"):
            named = replace(RUNS[name]["method"], teacher=str(path))
            patch.setitem(RUNS[name], "method", named)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("images"), cats=8, dogs=6)


def options(images: Path) -> dict[str, Any]:
    return {"data": str(images), "options": {"data.workers": 0, "watch.images": 0}}


@pytest.mark.parametrize("name", RUNS)
def test_five_and_five_steps_are_ten(name: str, tmp_path: Path, images: Path) -> None:
    config = compose(config_of(name), **options(images))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    leanvit.pretrain(config, out=whole, quiet=True)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000010")
    files = FILES.get(name, ("backbone.safetensors",))
    assert {path.name for path in whole.glob("*.safetensors")} == set(files)
    for file in files:
        (cut / file).unlink()
    leanvit.pretrain(config, out=cut, resume=True, quiet=True)
    for file in ("checkpoints/step-00000010/state.safetensors", *files):
        assert (whole / file).read_bytes() == (cut / file).read_bytes(), file
    assert rows(whole) == rows(cut)
    assert [row["step"] for row in rows(whole)] == list(range(11))


@pytest.mark.parametrize("name", ["mae", "dmae", "d2mae", "mocov3", "simmim", "supervised"])
def test_golden_losses(name: str, tmp_path: Path, images: Path) -> None:
    """Ten steps from pixels to losses; a change that moves them says so on purpose.

    Batch norm over few images that still look alike makes much of rounding.
    """
    config = compose(config_of(name, batch=14), **options(images))
    if name == "supervised":  # RandAugment is Pillow's, and moves with its version
        config = replace_options(config, {"method.views.randaugment": 0.0})
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    golden = (GOLDEN / f"{name}_tiny.txt").read_text().split()
    tolerance = 1e-3 if name == "mocov3" else 1e-5
    assert losses(tmp_path / "run") == pytest.approx(list(map(float, golden)), rel=tolerance)


@pytest.mark.parametrize("name", RUNS)
def test_a_step_reads_nothing_back(name: str) -> None:
    state = fresh(config_of(name))
    for number in range(2):  # the first steps fill caches
        step(state, batch_of(4, number))
    at, batch = state.begin_step(), batch_of(4, 9)
    with Counter() as counted:
        state.backward(batch, at, 1)
        state.update(at)
    assert counted.operations > 100
    assert counted.reads == 0


def batch_of(count: int, seed: int) -> ViewBatch:
    """Return two views of images, each a smooth pattern of its own under a little noise."""
    patterns = noise(count, 3, 4, 4, seed=100)
    images = torch.nn.functional.interpolate(patterns, (32, 32), mode="bilinear")
    views = images + 0.3 * noise(2, count, 3, 32, 32, seed=seed)
    return ViewBatch((views,), torch.arange(count), torch.arange(count) % CLASSES)


@pytest.mark.parametrize("name", RUNS)
def test_thirty_steps_on_sixteen_images_teach(name: str) -> None:
    """The loss falls, the task is solved better than at first, and features do not collapse."""
    config = config_of(name, drop_path=0.0, batch=16, duration=steps(30))
    if name.startswith("supervised"):
        config = replace(config, method=supervised(mix=MixConfig(views=0), smoothing=0.0))
    config = replace(config, optim=replace(config.optim, lr=constant(1e-2)))
    state, shown = fresh(config), []
    for number in range(30):
        step_once(state, batch_of(16, number))
        shown.append(state.meter.read())
    first, last, contrast = shown[0], shown[-1], name.startswith("mocov3")
    assert last["loss"] < (0.4 if contrast else 0.85) * first["loss"]
    if "accuracy" in last:
        assert last["accuracy"] > first["accuracy"] + (0.6 if contrast else 0.1)
        assert last["feature_std"] > 0.1


def step_once(state: TrainState, batch: ViewBatch) -> None:
    at = state.begin_step()
    state.backward(batch, at, 1)
    state.update(at)


def test_a_collapsed_contrast_shows() -> None:
    """One feature for all images: no deviation, and one image in so many is found by chance."""
    state = fresh(config_of("mocov3"))
    norm = state.method.encoder().norm
    assert isinstance(norm, torch.nn.LayerNorm)
    norm.weight.data.zero_()
    norm.bias.data.fill_(0.5)
    step_once(state, batch_of(16, 0))
    row = state.meter.read()
    assert row["feature_std"] < 0.01
    assert row["accuracy"] <= 0.2


def test_initial_weights_reach_every_network(tmp_path: Path, images: Path) -> None:
    """Those that make the keys too, which nothing else would bring in line for long."""
    start, facts = build(VIT), {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    save_tensors(start.state_dict(), tmp_path / "start.safetensors", header(start, facts))
    config = compose(
        config_of("mocov3 of a ViT", duration=steps(1), save_every=steps(1)),
        data=str(images),
        options={
            **options(images)["options"],
            "init": str(tmp_path / "start.safetensors"),
            "backbone.drop_path": 0.0,
            "optim.lr.start": 0.0,
            "optim.lr.peak": 0.0,
            "optim.lr.end": 0.0,
        },
    )
    begun = start_method(build_method(config.method, VIT, 0), config)
    assert begun is not None and begun.taken == ("backbone",)
    assert begun.fresh == ("projector", "predictor", "optimizer", "schedules")
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    checkpoint = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    saved = checkpoint.tensors()
    for network in ("student", "teacher"):
        for key, value in start.state_dict().items():
            found = saved[f"method.{network}.backbone.{key}"]
            torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7, msg=key)


def test_images_without_classes_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "images", only=6)
    for path in sorted((folder / "only").iterdir()):
        path.rename(folder / path.name)
    (folder / "only").rmdir()
    config = replace(config_of("supervised"), method=supervised(classes="auto"))
    with pytest.raises(ValueError, match="learns classes and these images have none"):
        leanvit.pretrain(config, data=str(folder), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_number_of_classes_is_that_of_the_images(tmp_path: Path, images: Path) -> None:
    config = replace(config_of("supervised", duration=steps(1)), method=supervised(classes="auto"))
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True, **options(images))
    resolved = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert resolved["config"]["method"]["classes"] == 2
    assert resolved["origins"]["method.classes"] == "recipe; the images have so many"


def test_batch_norm_in_the_contrast_refuses_micro_batches() -> None:
    """Also where nobody resolved the request."""
    with pytest.raises(ValueError, match=r"set train\.accumulate to 1"):
        fresh(config_of("mocov3", accumulate=2))


@pytest.mark.parametrize("name", [name for name in RUNS if "mocov3" not in name])
def test_micro_batches_change_nothing(name: str) -> None:
    ends = []
    for parts in (1, 2):
        config = replace(
            config_of(name, batch=8, accumulate=parts),
            optim=SGDConfig(lr=constant(1e-2), lr_rule="none"),
        )
        method = build_method(config.method, config.backbone, 0).double()
        state = TrainState(method, config, epoch_steps=5)
        for number in range(3):
            batch = batch_of(8, number)
            step(state, replace(batch, groups=(batch.groups[0].double(),)))
        ends.append(state.tensors())
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-7, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_bf16_trains_every_parameter(name: str) -> None:
    state = fresh(config_of(name, precision="bf16"))
    before = {n: p.clone() for n, p in state.method.named_parameters() if p.requires_grad}
    for number in range(3):
        step(state, batch_of(4, number))
    state.require_sound()
    now = dict(state.method.named_parameters())
    still = [n for n, value in before.items() if now[n].equal(value)]
    assert not still
