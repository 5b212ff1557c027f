"""What a run does when it goes wrong, or is asked to save or to stop."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import leanvit
from leanvit.cli import main
from leanvit.config import MethodConfig, RunConfig, SupervisedConfig, compose, steps
from leanvit.core.errors import (
    CheckpointError,
    CollapseError,
    NonFiniteError,
    RunError,
    SpikeError,
    Stopped,
)
from leanvit.data.batch import ViewBatch
from leanvit.data.named import ArraySource
from leanvit.methods.catalogue import build_method
from leanvit.run import Run
from leanvit.store import Store
from leanvit.train.checkpoint import newest_checkpoint
from leanvit.train.guard import Guard
from leanvit.train.state import TrainState
from leanvit.unreadable import UnreadableList
from tests.disk import room
from tests.integration.command import TINY, Says
from tests.tiny import (
    CVT,
    SWIN,
    dino,
    draw_nothing,
    esvit,
    mocov3,
    run_config,
    supervised,
    view_batch,
    write_images,
)

LONG = [*TINY, "--train.duration", "10st", "--watch.images", "0"]
LATE = ("--train.save-every", "10st")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 14)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        pretrain(images, out)
    return out


def settings(images: Path, **options: Any) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in options.items()}
    return compose(
        run_config(save_every=steps(4)),
        data=str(images),
        options={"data.workers": 0, "watch.images": 0, **named},
    )


def pretrain(images: Path, out: Path, *, resume: bool = False, **options: Any) -> None:
    leanvit.pretrain(settings(images, **options), out=out, resume=resume, quiet=True)


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def tensors(out: Path) -> dict[str, Tensor]:
    found = newest_checkpoint(out / "checkpoints")
    assert found is not None
    return found.tensors()


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def poison(
    monkeypatch: pytest.MonkeyPatch, at: int, value: float = math.nan, times: int = 1
) -> None:
    """Put a value into an image of a step, the first times that the step comes."""
    load, left = Run.load, [times]

    def poisoned(self: Run, start: int, end: int) -> Iterator[ViewBatch]:
        for step, batch in enumerate(load(self, start, end), start):
            if step == at and left[0]:
                left[0] -= 1
                batch.groups[0][0, 0] = value
            yield batch

    monkeypatch.setattr(Run, "load", poisoned)


# A bad step leaves no trace

METHODS: dict[str, MethodConfig] = {
    "esvit": esvit(head=replace(esvit().head, batch_norm=True)),
    "dino": dino(),
    "mocov3": mocov3(),
    "supervised": SupervisedConfig(classes=2, average=0.9),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_bad_step_leaves_no_trace(name: str, policy: Any) -> None:
    config = run_config()
    config = replace(
        config,
        method=METHODS[name],
        backbone=CVT if name == "supervised" else SWIN,
        guard=replace(config.guard, bad_number=policy),
    )
    state = TrainState(build_method(config.method, config.backbone, 0), config, epoch_steps=5)

    def step(batch: ViewBatch) -> None:
        at = state.begin_step()
        state.backward(batch, at, 1)
        state.update(at)

    def everything() -> dict[str, Tensor]:
        found = {name: value.clone() for name, value in state.tensors().items()}
        del found["guard.skipped"]
        return found

    groups = tuple(group[:, :, :, :32, :32] for group in view_batch().groups[: len(METHODS)])
    good = replace(
        view_batch(), groups=groups if name not in ("mocov3", "supervised") else groups[:1]
    )
    if name == "supervised":
        good = replace(good, groups=(good.groups[0][:1],), target=torch.tensor([0, 1, 0, 1]))
    bad = replace(good, groups=(torch.full_like(good.groups[0], math.nan), *good.groups[1:]))
    for _ in range(2):  # prototypes thaw at the second
        step(good)
    before = everything()
    step(bad)
    assert same(before, everything())
    step(good)
    assert same(before, everything()) == (policy == "stop")


def test_a_bad_step_is_listed_with_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the batch holds, also where each stands in it several times."""
    seen: list[list[int]] = []
    noting = UnreadableList.noting

    def note(self: UnreadableList, batches: Iterable[ViewBatch]) -> Iterator[ViewBatch]:
        for batch in noting(self, batches):
            seen.append(batch.index.tolist())
            yield batch

    monkeypatch.setattr(UnreadableList, "noting", note)
    poison(monkeypatch, at=5)
    views = replace(supervised().views, repeats=2)
    config = replace(settings(Path(), guard__bad_number="skip"), method=supervised(views=views))
    source = ArraySource(np.zeros((14, 8, 8, 3), np.uint8), np.arange(14) % 2)
    leanvit.pretrain(config, out=tmp_path / "run", data=source, quiet=True)
    (event,) = events(tmp_path / "run")
    assert event["images"] == seen[5] and len(set(seen[5])) == 2


def test_skipped_steps_are_counted_listed_and_limited(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    poison(monkeypatch, at=5)
    pretrain(images, tmp_path / "one", guard__bad_number="skip", guard__most=1)
    assert "not finite at step 5, which was left out" in capsys.readouterr().err
    found = rows(tmp_path / "one")
    assert [row.get("skipped", 0) for row in found] == [0] * 6 + [1] * 5
    assert math.isnan(found[6]["loss"]) and not math.isnan(found[7]["loss"])
    (event,) = events(tmp_path / "one")
    assert event["step"] == 5 and not event["spike"] and len(event["images"]) == 4
    poison(monkeypatch, at=5)
    with pytest.raises(NonFiniteError, match=r"after 0 that were left out"):
        pretrain(images, tmp_path / "none", guard__bad_number="skip", guard__most=0)


# Going back


def test_a_run_goes_back_with_a_lower_rate(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    poison(monkeypatch, at=5)
    out = tmp_path / "run"
    pretrain(images, out, guard__bad_number="rollback", guard__lr_factor=0.25)
    assert "goes back to step 4, with 0.25 times its learning rate" in capsys.readouterr().err
    found = rows(out)
    assert [row["step"] for row in found] == list(range(11)), "each step once"
    assert [row["lr"] for row in found[1:]] == pytest.approx([1e-3] * 4 + [2.5e-4] * 6)
    assert found[-1]["rollbacks"] == 1 and "rollbacks" not in found[4]
    assert newest_checkpoint(out / "checkpoints").step == 10  # type: ignore[union-attr]
    pretrain(images, out, resume=True, guard__bad_number="rollback", guard__lr_factor=0.25)
    assert tensors(out)["guard.lr_scale"] == 0.25 and tensors(out)["guard.rollbacks"] == 1


def test_a_run_goes_back_so_often_and_no_more(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    poison(monkeypatch, at=6, times=9)
    with pytest.raises(NonFiniteError, match=r"went back 2 times, as often as guard\.most allows"):
        pretrain(images, tmp_path / "run", guard__bad_number="rollback", guard__most=2)
    assert [event["step"] for event in events(tmp_path / "run")] == [6, 6, 6]
    assert "with 0.25 times" in capsys.readouterr().err


def test_events_before_the_last_one_are_listed_too(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at=3)
    poison(monkeypatch, at=6)
    options: dict[str, Any] = {"guard__bad_number": "skip", "guard__most": 1}
    options |= {"train__log_every": "10st", "train__save_every": "10st"}
    with pytest.raises(NonFiniteError, match="at step 6, after 1 that were left out"):
        pretrain(images, tmp_path / "run", **options)
    assert [event["step"] for event in events(tmp_path / "run")] == [3, 6]


def test_a_run_that_saved_nothing_cannot_go_back(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at=2)
    with pytest.raises(NonFiniteError, match=r"at step 2.*No checkpoint is older"):
        pretrain(images, tmp_path / "run", guard__bad_number="rollback")


def test_a_run_goes_back_behind_the_state_that_derailed_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    poison(monkeypatch, at=8)
    pretrain(images, tmp_path / "run", guard__bad_number="rollback")
    assert "at step 8." in (said := capsys.readouterr().err) and "goes back to step 4" in said
    assert tensors(tmp_path / "run")["guard.rollbacks"] == 1


def test_the_state_before_a_bad_step_is_kept(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: the rows are ten steps apart, so that others follow the bad one."""
    poison(monkeypatch, at=4)
    out = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"at step 4.*newest checkpoint is that of step 3\.$"):
        pretrain(
            images, out, train__log_every="10st", train__save_every="3st", train__duration="20st"
        )
    kept = newest_checkpoint(out / "derailed")
    assert kept is not None and kept.step == 4
    poison(monkeypatch, at=-1)
    pretrain(
        images, tmp_path / "plain", train__save_every="4st", train__keep=9, train__duration="20st"
    )
    plain = newest_checkpoint(tmp_path / "plain" / "checkpoints")
    assert plain is not None
    expected = replace(plain, path=plain.path.with_name("step-00000004")).tensors()
    found = kept.tensors()
    assert same(
        {n: t for n, t in found.items() if "guard" not in n},
        {n: t for n, t in expected.items() if "guard" not in n},
    )


def jump(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the loss of a step be a hundred more the first time, and have a level early."""
    judge, left = Guard.judge, [1]

    def jumped(self: Guard, loss: Tensor, norm: Tensor, step: int) -> Tensor:
        far = 100.0 if step == at and left[0] else 0.0
        left[0] -= bool(far)
        return judge(self, loss + far, norm, step)

    monkeypatch.setattr(Guard, "judge", jumped)
    monkeypatch.setattr("leanvit.train.guard.WARMUP", 3)


@pytest.mark.parametrize("policy", ["warn", "skip", "stop", "rollback"])
def test_a_spike_is_told_left_out_or_takes_back(
    policy: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    jump(monkeypatch, at=6)
    out = tmp_path / "run"
    if policy == "stop":
        with pytest.raises(SpikeError, match="jumped far above its level at step 6"):
            pretrain(images, out, guard__spike=policy)
    else:
        pretrain(images, out, guard__spike=policy)
    said = capsys.readouterr().err
    assert ("is part of the run like any other" in said) == (policy == "warn")
    assert ("which was left out" in said) == (policy == "skip")
    assert ("goes back to step 4" in said) == (policy == "rollback")
    assert [(event["step"], event["spike"]) for event in events(out)] == [(6, True)]
    assert (out / "derailed" / "step-00000006").exists() == (policy in ("stop", "rollback"))


# Collapse


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a run look collapsed from a step on, until it went back."""

    def start(step: int) -> None:
        def collapses(row: Mapping[str, float]) -> dict[str, str]:
            return {"rank": "one dimension"} if row["step"] >= step and row["lr"] > 6e-4 else {}

        monkeypatch.setattr("leanvit.train.alarm.collapses", collapses)
        monkeypatch.setattr("leanvit.train.alarm.SHOWN_BY", {"rank": "loss"})

    return start


def test_a_collapse_ends_a_run_that_is_told_to_end(
    images: Path, tmp_path: Path, collapsing: Callable[[int], None]
) -> None:
    collapsing(5)
    with pytest.raises(
        CollapseError,
        match=r"collapsed by step 6: one dimension\. The newest checkpoint is that of step 4",
    ):
        pretrain(images, tmp_path / "stop", guard__collapse="stop")
    assert newest_checkpoint(tmp_path / "stop" / "checkpoints").step == 4  # type: ignore[union-attr]
    pretrain(images, tmp_path / "warn")
    assert json.loads((tmp_path / "warn" / "summary.json").read_text())["collapse"] == {
        "rank": "one dimension"
    }


def test_a_collapse_takes_a_run_back(
    images: Path, tmp_path: Path, collapsing: Callable[[int], None]
) -> None:
    collapsing(5)
    pretrain(images, tmp_path / "run", guard__collapse="rollback")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["collapse"] == {"rank": "one dimension"} and summary["last"]["rollbacks"] == 1


# Signals and the clock


def send(monkeypatch: pytest.MonkeyPatch, number: int, step: int) -> None:
    """Send this process a signal in the middle of a step."""
    update = TrainState.update

    def interrupted(self: TrainState, at: Any) -> None:
        if at.step == step:
            os.kill(os.getpid(), number)
        update(self, at)

    monkeypatch.setattr(TrainState, "update", interrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_stops(
    number: int, code: int, images: Path, tmp_path: Path, capfd: Says
) -> None:
    out, words = tmp_path / "run", ["pretrain", "esvit", "--data", str(images), *LONG, *LATE]
    with pytest.MonkeyPatch.context() as patch:
        send(patch, number, step=6)
        assert main([*words, "--out", str(out)]) == code
    said = capfd.readouterr().err
    assert "stopped at step 7; --resume continues from step 7" in said
    assert "Traceback" not in said
    assert newest_checkpoint(out / "checkpoints").step == 7  # type: ignore[union-attr]
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert same(tensors(out), tensors(tmp_path / "whole"))


def test_python_hears_of_a_signal_as_an_error(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(monkeypatch, signal.SIGTERM, step=3)
    with pytest.raises(
        Stopped, match="SIGTERM: stopped at step 4; --resume continues from step 4"
    ) as stopped:
        pretrain(images, tmp_path / "run")
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_saves_and_the_run_goes_on(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(monkeypatch, signal.SIGUSR1, step=5)
    pretrain(images, tmp_path / "run", train__keep=9)
    found = sorted(path.name[-2:] for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["04", "06", "08", "10"]
    assert same(tensors(tmp_path / "run"), tensors(whole))


def test_a_signal_to_save_harms_no_run_that_is_over(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who sends one every hour knows that only the pictures are left to draw."""
    finish, ignored = Run._finish, [False]

    def asked_late(self: Run, *words: Any) -> None:
        ignored[0] = signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        finish(self, *words)

    monkeypatch.setattr(Run, "_finish", asked_late)
    pretrain(images, tmp_path / "run")
    assert ignored == [True] and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert same(tensors(tmp_path / "run"), tensors(whole))


def test_the_clock_saves(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("leanvit.train.signals.time.monotonic", lambda: now[0])
    update = TrainState.update

    def slow(self: TrainState, at: Any) -> None:
        now[0] += 61.0
        update(self, at)

    monkeypatch.setattr(TrainState, "update", slow)
    pretrain(
        images, tmp_path / "run", train__keep=9, train__save_every="10st", train__save_minutes=3.0
    )
    found = sorted(path.name[-2:] for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["03", "06", "09", "10"]


# A disk that refuses


def fill(monkeypatch: pytest.MonkeyPatch, *steps_: int) -> None:
    """Let the disk be full while the state of these steps is written."""
    write = Store._write

    def refused(self: Store, step: int, parts: Any) -> None:
        if step in steps_:
            with room():
                write(self, step, parts)
        write(self, step, parts)

    monkeypatch.setattr(Store, "_write", refused)


def test_a_full_disk_is_said_and_the_run_goes_on(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    fill(monkeypatch, 4)
    pretrain(images, tmp_path / "run", train__keep=9)
    said = capsys.readouterr().err
    assert "Could not write" in said and "Training goes on, and the next save tries again." in said
    found = sorted(path.name[-2:] for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["08", "10"]
    assert same(tensors(tmp_path / "run"), tensors(whole))


def test_a_disk_that_is_full_at_the_end_fails_the_run(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckpointError, match="What was saved before is untouched"),
    ):
        fill(patch, 10)
        pretrain(images, tmp_path / "run")
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == 8  # type: ignore[union-attr]
    pretrain(images, tmp_path / "run", resume=True)
    assert same(tensors(tmp_path / "run"), tensors(whole))


def test_images_that_vanish_end_a_run_that_can_go_on(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Run.load

    def vanishing(self: Run, start: int, end: int) -> Iterator[ViewBatch]:
        yield from load(self, start, 6)
        raise ValueError("20 images in a row could not be read")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "load", vanishing)
        with pytest.raises(RunError, match=r"in a row .* step 4\. --resume continues once"):
            pretrain(images, tmp_path / "run")
    pretrain(images, tmp_path / "run", resume=True)
    assert same(tensors(tmp_path / "run"), tensors(whole))
