"""The loop, the state and what they promise: exactness, safety, silence on the step path."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import leanvit
from leanvit.backbones.base import Ask
from leanvit.config import (
    AdamWConfig,
    BackboneConfig,
    DinoConfig,
    LARSConfig,
    MethodConfig,
    MixConfig,
    MuonConfig,
    OptimConfig,
    Resolved,
    RunConfig,
    SGDConfig,
    compose,
    constant,
    resolve,
    settled,
    steps,
    to_dict,
)
from leanvit.core.errors import NonFiniteError
from leanvit.data.batch import ViewBatch
from leanvit.data.sources import open_source
from leanvit.losses.koleo import koleo
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.run import Run
from leanvit.store import require_same_networks
from leanvit.train.checkpoint import newest_checkpoint
from leanvit.train.facts import gather_facts
from leanvit.train.loop import train
from leanvit.train.state import TrainState
from tests.tiny import (
    CVT,
    SWIN,
    VIEWS,
    VIT,
    dino,
    draw_nothing,
    esvit,
    run_config,
    view_batch,
    write_classes,
    write_images,
)


def fresh(config: RunConfig, dtype: torch.dtype = torch.float32) -> TrainState:
    method = build_method(config.method, config.backbone, config.train.seed).to(dtype)
    return TrainState(method, config, epoch_steps=5)


def step(state: TrainState, batch: ViewBatch) -> float:
    at = state.begin_step()
    parts = settled(state.config.train.accumulate)
    for micro in batch.split(parts):
        state.backward(micro, at, parts)
    state.update(at)
    return state.meter.read()["loss"]


def weights(state: TrainState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.tensors().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 14)


def eventful(backbone: BackboneConfig = SWIN) -> RunConfig:
    """A run in which everything random is on: views, order, stochastic depth, mixing."""
    config = run_config()
    return replace(
        config,
        backbone=replace(backbone, drop_path=0.3),
        method=replace(config.method, mix=MixConfig(views=2), region_start=steps(3)),  # type: ignore[call-arg]
    )


@pytest.mark.parametrize(
    ("workers", "backbone", "optim", "small"),
    [
        (0, SWIN, AdamWConfig(), 0.0),
        (1, SWIN, MuonConfig(), 0.7),
        (0, CVT, MuonConfig(), 0.0),
        (0, SWIN, LARSConfig(lr=constant(0.1), lr_rule="none"), 0.0),
        (0, SWIN, SGDConfig(lr=constant(0.1), lr_rule="none"), 0.0),
    ],
    ids=["adamw", "muon, worker, small views first", "muon, cvt", "lars", "sgd"],
)
def test_five_and_five_steps_are_ten(
    tmp_path: Path, workers: int, backbone: BackboneConfig, optim: OptimConfig, small: float
) -> None:
    """Weights, optimiser and rows; the features are looked at on both sides of the cut."""
    images = write_classes(tmp_path / "images", cats=8, dogs=6)
    watching = {"watch.every": "2st", "watch.k": 3}
    options = {"data.workers": workers, "train.progressive": small, **watching}
    config = replace(eventful(backbone), optim=optim)
    config = compose(config, data=str(images), options=options)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    leanvit.pretrain(config, out=whole, quiet=True)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000010")
    for name in NETWORKS:
        (cut / name).unlink()
    leanvit.pretrain(config, out=cut, resume=True, quiet=True)
    for name in ("checkpoints/step-00000010/state.safetensors", *NETWORKS):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    assert rows(whole) == rows(cut)
    assert [row["step"] for row in rows(whole)] == list(range(11))
    assert [row["step"] for row in rows(whole) if "knn" in row] == [0, 2, 4, 6, 8, 10]


NETWORKS = ("backbone.safetensors", "student.safetensors")


def rows(out: Path) -> list[dict[str, float]]:
    """What a run wrote, without what depends on the machine."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "data_wait")} for row in found
    ]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out) if row["step"]]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("method", [esvit(), dino(), esvit(mix=MixConfig(views=3))])
def test_micro_batches_change_nothing(method: MethodConfig, parts: int) -> None:
    config = replace(run_config(batch=8), method=method, backbone=replace(SWIN, drop_path=0.3))
    batch = [view_batch(8, seed=n, dtype=torch.float64) for n in range(3)]
    ends = []
    for accumulate in (1, parts):
        state = fresh(
            replace(config, train=replace(config.train, accumulate=accumulate)), torch.float64
        )
        for views in batch:
            step(state, views)
        ends.append(weights(state))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("rendering", ["host", "device"])
def test_views_are_small_at_first(images: Path, rendering: str) -> None:
    """Crops, their places and colours stay; only the pixels that they become are fewer."""
    options = {"data.workers": 0, "data.rendering": rendering}
    source = open_source(str(images))
    runs = [
        Run(
            Resolved(compose(run_config(), options={**options, "train.progressive": small}), {}),
            *(source, Path()),
            quiet=True,
        )
        for small in (0.3, 0.0)
    ]
    for first, last in ((0, 10), (1, 3), (2, 5), (7, 9)):
        batches = [list(run.load(first, last)) for run in runs]
        for step, (one, other) in enumerate(zip(*batches, strict=True), start=first):
            assert one.index.equal(other.index)
            sides = [[group.shape[-1] for group in batch.groups] for batch in (one, other)]
            assert sides == [[16, 8] if step < 3 else [32, 16], [32, 16]]
            for few, many in zip(one.groups, other.groups, strict=True):
                like = functional.interpolate(many.flatten(0, 1), few.shape[-1], mode="area")
                error = (like - few.flatten(0, 1)).abs().mean() / many.abs().mean()
                assert error < (0.35 if step < 3 else 1e-6)


@torch.no_grad()
def test_the_student_misses_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of global crops; draws belong to an image and a view, whatever the batch."""
    config = replace(run_config(), method=esvit(token_dropout=0.3), backbone=VIT)
    state, batch, asks = fresh(config), view_batch(), list[Ask]()
    assert isinstance(state.method, DINO)
    student, teacher = state.method.student.backbone, state.method.teacher.backbone
    for network in (student, teacher):
        network.register_forward_pre_hook(
            lambda _, given: asks.append(given[1] if len(given) > 1 else Ask())
        )
    at = state.begin_step()
    out = state.method(batch, at)
    assert asks[0].keep is None and asks[1].keep is not None  # teacher, student
    kept = asks[1].keep
    assert kept.shape == (8, 45) and all(len(row.unique()) == 45 for row in kept)  # of 64 patches
    half = next(batch.split(2))
    state.method(half, at)
    assert asks[3].keep is not None
    assert asks[3].keep.equal(kept.view(2, 4, -1)[:, :2].flatten(0, 1))
    found = student([group.flatten(0, 1) for group in batch.groups], asks[1])
    assert [one.grid.shape[1:3] for one in found] == [(1, 45), (4, 4)]
    seen = teacher([batch.groups[0].flatten(0, 1)])[0]
    expected = state.method.objective(found, seen, None, at)
    torch.testing.assert_close(out.total, expected.total)


def test_golden_losses(images: Path, tmp_path: Path) -> None:
    """Ten steps of EsViT from pixels to losses; a change that moves them says so on purpose."""
    config = compose(eventful(), data=str(images), options={"data.workers": 0})
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    expected = Path(__file__).parent.parent / "golden" / "losses" / "esvit_tiny.txt"
    golden = [float(line) for line in expected.read_text().split()]
    assert losses(tmp_path / "run") == pytest.approx(golden, rel=1e-5)


def poisoned(batch: ViewBatch, image: int) -> ViewBatch:
    groups = [group.clone() for group in batch.groups]
    groups[0][0, image] = float("nan")
    return replace(batch, groups=tuple(groups))


@pytest.mark.parametrize("image", [0, 3], ids=["first micro-batch", "last"])
def test_a_bad_loss_stops_before_the_weights_change(image: int) -> None:
    state = fresh(run_config(accumulate=2))
    step(state, view_batch(seed=0))
    before = {k: v for k, v in weights(state).items() if "student" in k or "optimizer" in k}
    step(state, poisoned(view_batch(seed=1), image))
    step(state, view_batch(seed=2))
    after = weights(state)
    assert same(before, {name: after[name] for name in before})
    with pytest.raises(NonFiniteError, match="not finite at step 1"):
        state.require_sound()


def test_a_bad_gradient_stops_before_the_weights_change() -> None:
    state = fresh(run_config())
    parameter = state.parts["backbone"][0]
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = parameter.detach().clone()
    step(state, view_batch())
    assert parameter.equal(before)
    with pytest.raises(NonFiniteError, match="not finite at step 0"):
        state.require_sound()


def test_a_bad_loss_saves_nothing_more() -> None:
    state, saved = fresh(run_config(save_every=steps(2), log_every=steps(100))), []
    batches = [view_batch(seed=n) for n in range(10)]
    batches[4] = poisoned(batches[4], 0)
    with pytest.raises(NonFiniteError, match="No such step changed a weight"):
        train(state, batches, save=lambda: saved.append(state.step))
    assert saved == [2, 4]


class Counter(TorchDispatchMode):
    """Counts operations, and scalars that are read back from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.reads += func in (torch.ops.aten._local_scalar_dense.default,)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("by", ["tensor", "module", "global"])
def test_a_step_reads_nothing_back(by: Literal["tensor", "module", "global"]) -> None:
    """In the form of the loss that a GPU has, too; that of a CPU looks at its numbers."""
    config = eventful()
    method = replace(config.method, attention="chunks")  # type: ignore[call-arg]
    state = fresh(replace(config, method=method, optim=replace(config.optim, clip_by=by)))
    for number in range(4):  # the first steps fill caches
        step(state, view_batch(seed=number))
    at, batch = state.begin_step(), view_batch(seed=9)
    with Counter() as counted:
        state.backward(batch, at, 1)
        state.update(at)
    assert counted.operations > 100
    assert counted.reads == 0


VARIANTS: dict[str, dict[str, Any]] = {
    "view only": {"method": dino()},
    "vit": {"method": dino(), "backbone": VIT},
    "vit with regions": {"backbone": VIT},
    "cvt": {"backbone": CVT},
    "no local crops": {
        "method": esvit(views=replace(VIEWS, local_sizes=(), local_counts=())),
    },
    "several local sizes": {
        "method": esvit(views=replace(VIEWS, local_sizes=(20, 16), local_counts=(1, 2))),
    },
    "batch norm in heads": {"method": esvit(head=replace(esvit().head, batch_norm=True))},
    "frozen gain": {"method": esvit(head=replace(esvit().head, train_gain=False))},
    "mixing": {"method": esvit(mix=MixConfig(views=4))},
    "sinkhorn": {"method": esvit(targets="sinkhorn")},
    "koleo": {"method": esvit(koleo=0.1)},
    "token dropout": {"method": esvit(token_dropout=0.5), "backbone": VIT},
    "transport": {"method": esvit(matching="transport")},
    "squared distance": {"method": esvit(region_loss="mse")},
    "flash": {"method": esvit(attention="flash")},
    "sgd": {"optim": SGDConfig(lr=constant(0.1), lr_rule="none")},
    "lars": {"optim": LARSConfig(lr=constant(0.1), lr_rule="none")},
    "muon": {"optim": MuonConfig(lr=constant(1e-3), lr_rule="none")},
    "muon, cvt": {"optim": MuonConfig(lr=constant(1e-3), lr_rule="none"), "backbone": CVT},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_trains(name: str, precision: str) -> None:
    config = replace(run_config(precision=precision), **VARIANTS[name])
    state = fresh(config)
    views = config.method.views  # type: ignore[attr-defined]
    before = weights(state)
    for number in range(3):
        step(state, view_batch(views=views, seed=number))
    state.require_sound()
    after = weights(state)
    trained = [n for n, p in state.method.named_parameters() if p.requires_grad]
    moved = {n for n in trained if not after[f"method.{n}"].equal(before[f"method.{n}"])}
    assert moved == set(trained)
    assert all(value.isfinite().all() for value in after.values())


def test_regions_join_when_they_are_told_to() -> None:
    config = replace(run_config(), method=esvit(region_start=steps(2)))
    state, plain = fresh(config), fresh(replace(config, method=dino()))
    plain.method.load_state_dict(
        {k: v for k, v in state.method.state_dict().items() if "region" not in k}
    )
    head = {k: v for k, v in weights(state).items() if "student.region_head" in k}
    rows = []
    for number in range(4):
        batch = view_batch(seed=number)
        at = state.begin_step()
        state.backward(batch, at, 1)
        state.update(at)
        rows.append(state.meter.read())
        if number < 2:
            assert rows[-1]["loss"] == pytest.approx(step(plain, batch), rel=1e-6)
            now = weights(state)
            assert same(head, {name: now[name] for name in head})
    assert ["region" in row for row in rows] == [False, False, True, True]
    assert rows[3]["loss"] == pytest.approx(0.5 * rows[3]["view"] + 0.5 * rows[3]["region"])
    assert not same(head, {name: weights(state)[name] for name in head})


@pytest.mark.parametrize("method", [dino, esvit])
def test_koleo_is_added_whole_for_the_global_views_of_the_student(
    method: Callable[..., DinoConfig],
) -> None:
    base = run_config(precision="fp32")
    state = fresh(replace(base, method=method(koleo=0.3)))
    plain = fresh(replace(base, method=method()))
    batch = view_batch()
    at = state.begin_step()
    assert isinstance(state.method, DINO)
    with torch.no_grad():
        found, expected = state.method(batch, at), plain.method(batch, at)
        features = state.method.student.backbone(list(batch.groups[0]))
    term = sum(koleo(one.pooled) for one in features) / 2
    torch.testing.assert_close(found.terms["koleo"], term)
    torch.testing.assert_close(found.total, expected.total + 0.3 * term)


def test_prototypes_are_frozen_first() -> None:
    state = fresh(replace(run_config(), method=esvit(freeze_prototypes=steps(2))))
    frozen = [n for n, _ in state.method.named_parameters() if "student" in n and "last_layer" in n]
    assert len(frozen) == 4
    seen = [weights(state)]
    for number in range(3):
        step(state, view_batch(seed=number))
        seen.append(weights(state))
    for name in (f"method.{n}" for n in frozen):
        assert seen[2][name].equal(seen[0][name]) and not seen[3][name].equal(seen[2][name])


def test_the_teacher_follows_the_student() -> None:
    state = fresh(run_config())
    before = weights(state)
    step(state, view_batch())
    after = weights(state)
    for name in before:
        if name.startswith("method.teacher.") and name.endswith(("weight", "bias", "weight_v")):
            student = after[name.replace("teacher", "student", 1)]
            expected = 0.9 * before[name] + 0.1 * student
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-7)


def test_another_architecture_is_one_clear_sentence(tmp_path: Path, images: Path) -> None:
    out, other = tmp_path / "swin", tmp_path / "other"
    config = compose(run_config(), data=str(images), options={"data.workers": 0})
    leanvit.pretrain(config, out=out, quiet=True)
    wide = replace(config, backbone=replace(SWIN, dim=16))
    leanvit.pretrain(wide, out=other, quiet=True)
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(out / "checkpoints", other / "checkpoints")
    (other / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"holds another network: backbone\.dim 8 \(run: 16\)\.$"):
        leanvit.pretrain(wide, out=other, resume=True, quiet=True)
    saved = to_dict(config)
    with pytest.raises(ValueError, match=r"another network: backbone swin \(run: vit\)\.$"):
        require_same_networks(saved, replace(config, backbone=VIT), out)
    checkpoint = newest_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    with pytest.raises(ValueError, match="weights do not fit this run"):
        fresh(wide).restore(checkpoint.tensors(), checkpoint.step)


def test_rows_hold_what_a_person_follows(tmp_path: Path, images: Path) -> None:
    config = compose(run_config(), data=str(images), options={"data.workers": 0})
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 11
    first, row = json.loads(lines[0]), json.loads(lines[-1])
    looks = {"effective_rank", "correct_matches"}
    assert first.keys() == {"step", "epoch", "images"} | looks, "nothing was trained yet"
    assert (first["step"], first["images"]) == (0, 0)
    expected = {"step", "epoch", "images", "lr", "weight_decay", "loss", "view", "region"}
    expected |= {f"grad_norm/{part}" for part in ("backbone", "head", "region_head")}
    expected |= {"feature_std", "teacher_entropy", "teacher_information", "distinct_matches"}
    expected |= {"images_per_s"}
    assert expected | {"data_wait"} | looks == row.keys()
    assert (row["step"], row["images"]) == (10, 40)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_the_source_must_be_the_same_on_resume(tmp_path: Path, images: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    config = compose(run_config(), data=str(folder), options={"data.workers": 0})
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    write_images(folder, 20)
    with pytest.raises(ValueError, match="began with 14 images and there are 20 now"):
        leanvit.pretrain(config, out=tmp_path / "run", resume=True, quiet=True)


def test_a_method_sees_whole_runs_of_a_source(images: Path, tmp_path: Path) -> None:
    config = compose(run_config(), data=str(images), options={"data.workers": 0})
    source = open_source(str(images))
    run = Run(resolve(config, gather_facts(source)), source, tmp_path, quiet=True)
    assert run.order.epoch_steps == 3 and run.state.run == 10


def test_rows_are_exact_on_resume(tmp_path: Path, images: Path) -> None:
    options = {"data.workers": 0, "watch.every": "10st"}
    config = compose(run_config(log_every=steps(4)), data=str(images), options=options)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    leanvit.pretrain(config, out=whole, quiet=True)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000010")
    leanvit.pretrain(config, out=cut, resume=True, quiet=True)
    assert losses(cut) == losses(whole) and len(losses(cut)) == 4  # steps 4, 5, 8, 10


@pytest.mark.parametrize("optim", [AdamWConfig(lr=constant(1e-3)), MuonConfig(lr=constant(1e-3))])
def test_an_incomplete_optimiser_state_is_refused(optim: OptimConfig) -> None:
    config = replace(run_config(), optim=optim)
    state = fresh(config)
    step(state, view_batch())
    step(state, view_batch(seed=1))
    tensors = state.tensors()
    fresh(config).restore(tensors, 2)
    name = next(name for name in tensors if name.endswith("exp_avg_sq"))
    for broken in (
        {n: t for n, t in tensors.items() if n != name},
        tensors | {name: torch.zeros(1, 2, 3)},
        tensors | {"optimizer.nobody.exp_avg": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match="optimiser state"):
            fresh(config).restore(broken, 2)


def test_damaged_checkpoints_do_not_restart_a_run(tmp_path: Path, images: Path) -> None:
    config = compose(run_config(), data=str(images), options={"data.workers": 0})
    leanvit.pretrain(config, out=tmp_path, quiet=True)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").unlink()
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ValueError, match="is whole, so the run cannot be continued"):
        leanvit.pretrain(config, out=tmp_path, resume=True, quiet=True)


class Heard:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []
        self.steps: list[int] = []
        self.ended = 0

    def on_step(self, step: int) -> None:
        self.steps.append(step)

    def on_row(self, row: Mapping[str, float]) -> None:
        self.rows.append(row)

    def on_end(self) -> None:
        self.ended += 1


def watched_run(every: int, log: int, run: int, batches: int) -> tuple[Heard, list[int]]:
    config = run_config(log_every=steps(log), save_every=steps(100), duration=steps(run))
    state = fresh(replace(config, watch=replace(config.watch, every=steps(every))))
    heard, looked = Heard(), []

    def watch() -> dict[str, float]:
        looked.append(state.step)
        return {"knn": 7.0}

    views = [view_batch(seed=number) for number in range(batches)]
    train(state, views, save=lambda: None, watch=watch, observers=[heard])
    return heard, looked


def test_features_are_looked_at_first_last_and_in_between() -> None:
    heard, looked = watched_run(every=4, log=3, run=10, batches=10)
    assert looked == [0, 4, 8, 10]
    assert [row["step"] for row in heard.rows] == [0, 3, 4, 6, 8, 9, 10]
    assert [row["step"] for row in heard.rows if "knn" in row] == looked
    assert heard.steps == list(range(1, 11)) and heard.ended == 1


def test_the_look_before_training_costs_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("leanvit.train.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))
    heard = Heard()
    monkeypatch.setattr(heard, "on_step", lambda step: now.__setitem__(0, now[0] + 1.5))

    def watch() -> dict[str, float]:
        now[0] += 100
        return {}

    def batches() -> Iterator[ViewBatch]:
        for number in range(4):
            now[0] += 0.5
            yield view_batch(seed=number)

    state = fresh(run_config(log_every=steps(2), duration=steps(4)))
    train(state, batches(), save=lambda: None, watch=watch, observers=[heard])
    assert [row["images_per_s"] for row in heard.rows[1:]] == [2.0, 2.0]
    assert [row["data_wait"] for row in heard.rows[1:]] == [0.25, 0.25]


def test_observers_hear_the_end_of_a_run_that_breaks_off() -> None:
    heard = Heard()

    def batches() -> Iterator[ViewBatch]:
        yield view_batch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fresh(run_config()), batches(), save=lambda: None, observers=[heard])
    assert heard.ended == 1 and heard.steps == [1]


def test_every_trained_parameter_counts_to_a_part() -> None:
    state = fresh(run_config())
    counted = {id(p) for part in state.parts.values() for p in part}
    assert counted == {id(p) for p in state.method.parameters() if p.requires_grad}
    assert set(state.parts) == {"backbone", "head", "region_head"}
