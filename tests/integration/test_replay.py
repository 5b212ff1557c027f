"""`leanvit replay`: a step done once more is the run's own, is explained, and leaves no trace."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import leanvit
from leanvit.analysis.inside import Fault, Inside
from leanvit.analysis.pictures import view_grid
from leanvit.cli import main
from leanvit.config import GuardConfig, compose
from leanvit.core.errors import DerailedError, NonFiniteError
from leanvit.methods.base import Method, Moment, StepOutput
from leanvit.train import guard
from leanvit.train.guard import Guard
from tests.integration.command import Says, contents, refused
from tests.tiny import VIT, draw_nothing, mae, run_config, write_images

pytestmark = pytest.mark.usefixtures("one_thread")


def rate(value: float) -> dict[str, float]:
    """Return the options of a learning rate that stays as it is."""
    return {f"optim.lr.{when}": value for when in ("start", "peak", "end")}


HUGE = rate(1e30)
"""After the first step nothing is finite."""
WILD = rate(30.0)
"""From its fourth step on the loss jumps, to stay finite."""
BACK = ("bad number", "bad number")

Losses = list[tuple[int, float]]


@pytest.fixture(autouse=True)
def undrawn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    monkeypatch.setattr("leanvit.replaying.view_grid", lambda *_: None)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    """Every step that is judged and its loss, of runs and of replays."""
    found: Losses = []
    judge = Guard.judge

    def noted(self: Guard, loss: Tensor, norm: Tensor, step: int) -> Tensor:
        found.append((step, float(loss)))
        return judge(self, loss, norm, step)

    monkeypatch.setattr(Guard, "judge", noted)
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """14 pictures, one of them broken: three batches of four in an epoch."""
    folder = write_images(tmp_path / "images", 14)
    (folder / "003.png").write_bytes(b"no image")
    return folder


def derailed(images: Path, out: Path, options: Mapping[str, Any], **policy: Any) -> None:
    """Train, to the end or until the run derails."""
    config = replace(run_config(), guard=GuardConfig(**policy))
    quiet = {"data.workers": 0, "watch.images": 0, "watch.every": "10st", "train.keep": 9}
    quiet["data.max_unreadable"] = 50
    asked = compose(config, data=str(images), options={**quiet, **options})
    with suppress(DerailedError):
        leanvit.pretrain(asked, out=out, quiet=True)


def spiking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every loss above its level, from the third step on, for a spike."""
    monkeypatch.setattr(guard, "WARMUP", 2)
    monkeypatch.setattr(guard, "LEAST_JUMP", 0.0)


SPIKES = {"spike_deviations": 1e-6, "most": 100}


# The same step


def test_the_step_that_stopped_a_run(images: Path, tmp_path: Path, losses: Losses) -> None:
    out = tmp_path / "run"
    derailed(images, out, HUGE)
    before, then = contents(out), dict(losses)
    losses.clear()
    report = leanvit.replay(out, out=tmp_path / "again", quiet=True)
    assert contents(out) == before
    assert (report.step, report.redone) == (1, 0) and "derailed" in report.state
    assert (report.recorded, report.found, report.same) == (*BACK, True)
    assert [step for step, _ in losses] == [1] and math.isnan(then[1]) and math.isnan(report.loss)
    assert report.fault == Fault("teacher.backbone.patch_embed.norm", finite_input=True)
    assert report.gradient.startswith("student.")
    assert all(math.isnan(norm) for norm in report.norms.values())
    assert report.level["steps"] == 1


@pytest.mark.parametrize("policy", ["skip", "stop", "rollback", "warn"])
def test_the_loss_of_a_spike_to_the_last_bit(
    images: Path, tmp_path: Path, losses: Losses, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    spiking(monkeypatch)
    out = tmp_path / "run"
    derailed(
        images, out, {**WILD, "train.save_every": "1st"}, spike=policy, **{**SPIKES, "most": 2}
    )
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    then = dict(losses)
    for since in (None, 0):
        losses.clear()
        step = events[0]["step"] if policy != "rollback" else None
        report = leanvit.replay(out, step, since=since, out=tmp_path / "again", quiet=True)
        assert report.found == "spike" and report.same, report.verdict
        assert report.loss == then[report.step] > report.level["mean"]
        assert report.redone == (0 if since is None else report.step) == len(losses) - 1
        assert losses[-1] == (report.step, report.loss)
    wanted = next(event for event in events if event["step"] == report.step)["images"]
    replaced = [image for image in report.images if image.instead_of]
    kept = [image.index for image in report.images if not image.instead_of]
    assert sorted(kept) == sorted(set(wanted) - {3}) and len(replaced) == (3 in wanted)


def test_a_skipped_step_is_reached_from_the_checkpoint_before(
    images: Path, tmp_path: Path, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the steps between, those that the run skipped are skipped again."""
    spiking(monkeypatch)
    out = tmp_path / "run"
    derailed(images, out, WILD, spike="skip", **SPIKES)
    then = dict(losses)
    assert len(then) == 10
    for step in range(3, 7):
        report = leanvit.replay(out, step, out=tmp_path / "again", quiet=True)
        assert report.loss == then[step] and report.same
        assert report.redone == step % 5


def test_a_run_that_went_back_goes_on_at_its_lower_rate(
    images: Path, tmp_path: Path, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    spiking(monkeypatch)
    out = tmp_path / "run"
    options = {**WILD, "train.save_every": "2st"}
    derailed(images, out, options, spike="rollback", spike_deviations=1.0, lr_factor=1e-3)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 10 and rows[-1]["rollbacks"] > 0
    then = dict(losses)  # those of the last time
    for since, redone in ((3, 7), (0, 9)):  # from step 2, not from the derailed 3
        report = leanvit.replay(out, 9, since=since, out=tmp_path / "again", quiet=True)
        assert report.loss == then[9] and report.redone == redone


def test_micro_batches_and_masked_patches(images: Path, tmp_path: Path, losses: Losses) -> None:
    """Noting where gradients come from changes no loss: another method, another family."""
    out = tmp_path / "run"
    config = replace(run_config(accumulate=2), method=mae(), backbone=VIT)
    options = {"data.workers": 0, "watch.images": 0, "data.max_unreadable": 50}
    leanvit.pretrain(compose(config, data=str(images), options=options), out=out, quiet=True)
    then = dict(losses)
    report = leanvit.replay(out, 6, out=tmp_path / "again", quiet=True)
    assert report.loss == then[6]
    assert len(report.images) == 4 and all(image.gradient > 0 for image in report.images)
    assert report.blocks.keys() == {f"backbone.layers.{k}" for k in range(3)}


# What is said


def test_an_unreadable_image_is_named_with_what_stood_in(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    derailed(images, out, {})
    found = [
        image
        for step in range(3)
        for image in leanvit.replay(out, step, out=tmp_path / "again", quiet=True).images
        if image.instead_of
    ]
    assert found and all("'003.png' (UnidentifiedImageError" in i.instead_of for i in found)
    assert all(image.name != "003.png" for image in found)


def test_a_report_has_a_picture_and_plain_values(
    images: Path, tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanvit.replaying.view_grid", view_grid)
    out, again = tmp_path / "run", tmp_path / "again"
    derailed(images, out, HUGE)
    before = contents(out)
    capsys.readouterr()
    assert main(["replay", str(out), "--out", str(again), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail) == json.loads(
        (again / "replay.json").read_text()
    )
    assert json.loads(printed)["loss"] == "nan"
    with Image.open(again / "views.png") as picture:
        assert min(picture.size) > 100
    assert main(["replay", str(out), "--out", str(again)]) == 0
    text = capsys.readouterr().out
    assert "not finite, as in the run" in text
    assert "first output: teacher.backbone.patch_embed.norm, whose input is finite" in text
    assert contents(out) == before


def test_a_remedy_is_tried(images: Path, tmp_path: Path, capsys: Says) -> None:
    """Exit code 1: what was bad is not any more, and why."""
    out, again = tmp_path / "run", tmp_path / "again"
    derailed(images, out, HUGE)
    words = ["replay", str(out), "--out", str(again)]
    lower = ["--optim.lr.start", "1e-3", "--optim.lr.peak", "1e-3", "--optim.lr.end", "1e-3"]
    assert main([*words, "--from", "0", *lower]) == 1
    said = capsys.readouterr()
    assert "but in the run the loss or a gradient was not finite: optim.lr" in said.out
    assert "optim.lr.peak is 0.001, not 1e+30" in said.out
    assert "Steps 0 to 0 are done again first, 1 in all" in said.err
    assert "changes what follows a step" in refused(capsys, *words, *lower)
    assert main([*words, "--train.precision", "bf16"]) == 0
    assert "bf16 on cpu" in capsys.readouterr().out


def test_a_step_that_is_bad_only_here(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    derailed(images, out, {})
    for name in ("metrics.jsonl", "events.jsonl"):  # killed while it wrote
        with (out / name).open("a") as file:
            file.write('{"step": 1')
    report = leanvit.replay(out, 2, since=0, out=tmp_path / "again", quiet=True)
    assert report.same and report.verdict == "an ordinary step, of which the run noted nothing"
    again = {"out": tmp_path / "again", "quiet": True}
    report = leanvit.replay(out, 1, since=0, options=HUGE, **again)  # type: ignore[arg-type]
    assert (report.recorded, report.found, report.same) == ("", "bad number", False)
    with pytest.raises(NonFiniteError, match=r"On the way to step 2: .* at step 1"):
        leanvit.replay(out, 2, since=0, options=HUGE, **again)  # type: ignore[arg-type]


class Steps(Method):
    """Linear, then a logarithm, then a loss that no module computes."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.logarithm, self.last = nn.Linear(2, 2), _Logarithm(), nn.Linear(2, 1)
        self.scale = scale

    def forward(self, batch: Any, at: Moment) -> StepOutput:
        total = self.last(self.logarithm(self.first(batch))).sum() * self.scale
        return StepOutput(total, {})


class _Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


@pytest.mark.parametrize(
    ("bias", "scale", "batch", "fault", "gradient"),
    [
        (1.0, 1.0, 0.0, None, ""),
        (0.0, 1.0, 0.0, Fault("logarithm", finite_input=True), "first.bias"),
        (1.0, 1.0, math.nan, Fault("first", finite_input=False), "last.weight"),
        (1.0, math.inf, 0.0, Fault("", finite_input=True), "last.bias"),
    ],
)
def test_the_first_fault_is_found(
    bias: float, scale: float, batch: float, fault: Fault | None, gradient: str
) -> None:
    method = Steps(scale)
    for name, parameter in method.named_parameters():
        nn.init.constant_(parameter, bias if name == "first.bias" else 0.5)
    with Inside(method) as inside:
        method(torch.full((3, 2), batch), Moment(0, 1, 0, 0)).total.backward()
    assert inside.fault == fault
    assert bool(inside.gradient) == bool(gradient), inside.gradient
    assert len(inside.outputs) == 1
    method(torch.full((3, 2), math.nan), Moment(0, 1, 0, 0))
    assert len(inside.outputs) == 1  # nobody listens any more


# What is refused


def test_what_cannot_be_replayed(images: Path, tmp_path: Path, capsys: Says) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    words = ["replay", str(out), "--out", str(again)]
    assert "There is no run in" in refused(capsys, *words)
    assert "Name a run first" in refused(capsys, "replay")
    derailed(images, out, {})
    before = contents(out)
    assert "met no bad step; --step N replays any other" in refused(capsys, *words)
    assert "has the steps 0 to 9, so none is 10" in refused(capsys, *words, "--step", "10")
    said = refused(capsys, *words, "--step", "4", "--from", "5")
    assert "A replay of step 4 begins at a step from 0 to 4, not 5" in said
    said = refused(capsys, *words, "--step", "4", "--train.batch", "2")
    assert "train.batch cannot be tried" in said
    said = refused(capsys, *words, "--step", "4", "--train.precison", "fp32")
    assert "did you mean 'train.precision'" in said
    assert "leaves runs as they are" in refused(
        capsys, "replay", out, "--step", "1", "--out", out / "again"
    )
    assert "leaves runs as they are" in refused(capsys, "replay", out, "--step", "1", "--out", out)
    if not torch.cuda.is_available():
        said = refused(capsys, *words, "--step", "1", "--train.device", "cuda")
        assert "torch finds no CUDA device here" in said
    (images / "more.png").write_bytes((images / "000.png").read_bytes())
    assert "began with 14 images and there are 15 now" in refused(capsys, *words, "--step", "1")
    images.rename(tmp_path / "elsewhere")
    assert str(images) in refused(capsys, *words, "--step", "1")
    assert contents(out) == before and not again.exists()


def test_one_step_too_many_that_was_left_out(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sparse = {"train.log_every": "4st", "train.save_every": "4st"}
    derailed(images, out, {**HUGE, **sparse}, bad_number="skip", most=1)
    for since, redone in ((None, 0), (0, 2)):
        report = leanvit.replay(out, since=since, out=tmp_path / "again", quiet=True)
        assert (report.step, report.redone) == (2, redone)  # the second that is bad
        assert (report.recorded, report.found) == BACK
