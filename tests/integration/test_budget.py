"""A length of training that is a time: a few steps say how many it is worth."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import leanvit
from leanvit import measuring
from leanvit.cli import main
from leanvit.config import Duration, compose, resolve
from leanvit.data.sources import open_source
from leanvit.run import Run
from tests.integration.command import TINY, Says, contents, refused
from tests.tiny import draw_nothing, run_config, write_images

QUIET = {"data.workers": 0, "watch.images": 0}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 12)


@pytest.fixture(autouse=True)
def undrawn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that take half a second, but for the first ones; returns how often some were done."""
    asked: list[int] = []

    def found(run: Run, _: Any, count: int) -> Iterator[tuple[Any, float]]:
        asked.append(count)
        warm = 1 + 2 * run.workers
        for number, batch in enumerate(run.load(0, count)):
            yield batch, 0.1 if number < warm - 1 else 0.5

    monkeypatch.setattr(measuring, "timed_steps", found)
    return asked


def pretrain(images: Path, out: Path, duration: str, **more: Any) -> dict[str, Any]:
    """Train, and return what `resolved.json` holds."""
    asked = compose(run_config(), data=str(images), options={**QUIET, "train.duration": duration})
    leanvit.pretrain(asked, out=out, quiet=True, **more)
    found: dict[str, Any] = json.loads((out / "resolved.json").read_text())
    return found


def test_a_time_is_worth_the_steps_that_were_measured(
    images: Path, tmp_path: Path, paced: list[int]
) -> None:
    timed = pretrain(images, tmp_path / "timed", "0.05m")
    assert timed["config"]["train"]["duration"] == "6st" and len(paced) == 1
    assert timed["origins"]["train.duration"].endswith("0.05m at 0.5 s a step, measured")
    assert timed["asked"]["train"]["duration"] == "0.05m"
    pretrain(images, tmp_path / "counted", "6st")
    files = ("backbone.safetensors", "student.safetensors")
    for file in files:  # what was done to measure leaves no trace
        assert (tmp_path / "timed" / file).read_bytes() == (
            tmp_path / "counted" / file
        ).read_bytes()
    assert len(paced) == 1


def test_real_steps_are_done(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    timed = pretrain(images, tmp_path / "timed", "0.02m")
    assert not list(here.iterdir()), "steps that are tried write nothing"
    steps = Duration.parse(timed["config"]["train"]["duration"]).amount
    seconds = float(timed["origins"]["train.duration"].split(" at ")[1].split()[0])
    assert seconds > 0 and abs(steps - 1.2 / seconds) <= 1 + 0.01 * steps
    assert json.loads((tmp_path / "timed" / "summary.json").read_text())["steps"] == steps


def test_a_run_that_goes_on_measures_nothing_again(
    images: Path, tmp_path: Path, paced: list[int]
) -> None:
    out = tmp_path / "run"
    first = pretrain(images, out, "0.05m")
    (out / "backbone.safetensors").unlink()
    assert pretrain(images, out, "0.05m", resume=True)["config"] == first["config"]
    assert len(paced) == 1
    longer = pretrain(images, out, "0.1m", resume=True, allow=["train.duration"])
    assert longer["config"]["train"]["duration"] == "12st" and len(paced) == 2


def test_a_folder_that_is_taken_is_named_before_anything_is_measured(
    images: Path, tmp_path: Path, paced: list[int]
) -> None:
    pretrain(images, tmp_path / "run", "4st")
    with pytest.raises(ValueError, match="run"):
        pretrain(images, tmp_path / "run", "0.05m")
    assert paced == []


def test_steps_that_are_done_are_few(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as take ten seconds, 3 at least and 30 at most, once what lay ready is gone."""
    source = open_source(str(images))
    asked = compose(run_config(), options={**QUIET, "train.duration": "1h"})
    for seconds, wanted in ((100.0, 3), (1.0, 10), (0.001, 30)):
        done: list[float] = []

        def found(
            run: Run, _: Any, count: int, seconds: float = seconds, done: list[float] = done
        ) -> Iterator[tuple[None, float]]:
            for _ in range(count):
                done.append(seconds)
                yield None, seconds

        monkeypatch.setattr(measuring, "timed_steps", found)
        facts = measuring.measured_facts(asked, source, quiet=True)
        assert facts.seconds == pytest.approx(seconds) and len(done) == 1 + wanted


def test_small_views_take_their_own_time(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(images))
    options = {**QUIET, "train.duration": "1h", "train.progressive": 0.25}
    asked = compose(run_config(), options=options)

    def found(run: Run, spec: Any, count: int) -> Iterator[tuple[None, float]]:
        for _ in range(count):
            yield None, spec.groups[0][0].size / 32

    monkeypatch.setattr(measuring, "timed_steps", found)
    facts = measuring.measured_facts(asked, source, quiet=True)
    assert facts.seconds == pytest.approx(0.25 * 0.5 + 0.75 * 1)


def test_waiting_for_images_counts_and_what_lies_between_does_not(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    load = Run.load_as

    def slowly(self: Run, spec: Any, start: int, end: int) -> Iterator[Any]:
        for batch in load(self, spec, start, end):
            clock[0] += 2
            yield batch

    monkeypatch.setattr(Run, "load_as", slowly)
    source = open_source(str(images))
    asked = compose(run_config(), options={**QUIET, "train.duration": "1h"})
    resolved = resolve(asked, measuring.measured_facts(asked, source, quiet=True))
    run = Run(resolved, source, Path(), quiet=True)
    for _, seconds in measuring.timed_steps(run, run.views, 3):
        assert seconds == 2
        clock[0] += 7
    assert run.state.step == 3


def test_a_budget_on_the_command_line(
    images: Path, tmp_path: Path, capsys: Says, paced: list[int]
) -> None:
    words = ["esvit", "--data", str(images), *TINY]
    short = [word for word in words if word not in ("--train.duration", "4st")]
    out = tmp_path / "run"
    assert main(["pretrain", *short, "--out", str(out), "--budget", "0.05m"]) == 0
    assert "Doing a few steps, to see how many the time is worth ..." in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["steps"] == 6
    before = contents(out)
    assert main(["check", *short, "--out", str(tmp_path / "check"), "--budget", "0.05m"]) == 0
    assert "whole run" in capsys.readouterr().out and contents(out) == before
    again = tmp_path / "again"
    said = refused(capsys, "pretrain", *words, "--out", again, "--budget", "1h")
    assert "--budget and --train.duration both say how long a run is: give one" in said
    for word in ("9ep", "soon", "0m"):
        said = refused(capsys, "pretrain", *short, "--out", again, "--budget", word)
        assert f"A budget is a time, such as 30m or 2h, not {word!r}" in said
    assert main(["pretrain", *short, "--out", str(again), "--budget", "0.000001m"]) == 2
    assert "train.duration 1e-06m is less than one step of 4 images" in capsys.readouterr().err
    assert not again.exists()
