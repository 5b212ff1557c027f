"""What a person sees of a run: rows on stderr, and a bar where there is a terminal."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from leanvit.core import console
from leanvit.train import terminal as module
from leanvit.train.terminal import Terminal, spoken

FIRST = {"step": 0, "epoch": 0.0, "images": 0, "effective_rank": 18.25, "knn": 31.25}
ROW = {
    "step": 30,
    "epoch": 1.5,
    "images": 120,
    "lr": 5e-4,
    "weight_decay": 0.04,
    "loss": 4.5,
    "view": 5.25,
    "region": 3.75,
    "feature_std": 0.7,
    "grad_norm/backbone": 1.0,
    "images_per_s": 12.34,
    "data_wait": 0.256,
}


class Pretended(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """Make stderr a terminal; not a fixture, since pytest sets stderr anew after those."""
    pretended = Pretended()
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", pretended)
    return pretended


def running(observer: Terminal) -> bool:
    assert observer._bar is not None
    return observer._bar.live.is_started


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, error = capsys.readouterr()
    assert out == "", "stdout holds results alone"
    return error.splitlines()


def test_the_first_row_tells_what_there_was_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    observer = Terminal(200)
    observer.on_row(FIRST)
    assert lines(capsys) == ["step   0/200  before training:  k-NN 31.2 %  effective rank 18.2"]


def test_a_row_tells_what_a_person_follows(
    capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    observer = Terminal(200)
    clock.seconds += 60
    observer.on_row(ROW)
    assert lines(capsys) == [
        "step  30/200  epoch 1.50  loss 4.5000  view 5.2500  region 3.7500  lr 5.00e-04  "
        "12.3 images/s  waiting for data 26 %  5 min 40 s left"
    ]
    clock.seconds += 140  # 150 steps more, so 200 s for 180 of them
    observer.on_row({**ROW, "step": 180, "knn": 50.0, "effective_rank": 9.96})
    (line,) = lines(capsys)
    assert line.endswith("waiting for data 26 %  22 s left  k-NN 50.0 %  effective rank 10.0")


def test_the_last_row_has_nothing_left(
    capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    observer = Terminal(30)
    clock.seconds += 5
    observer.on_row(ROW)
    (line,) = lines(capsys)
    assert line.startswith("step 30/30  epoch") and line.endswith("waiting for data 26 %")


def test_a_resumed_run_takes_its_time_from_its_own_steps(
    capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    observer = Terminal(130, start=20)
    clock.seconds += 60  # for 10 steps
    observer.on_row(ROW)
    assert "  10 min 0 s left" in lines(capsys)[0]


def test_a_method_without_regions_has_no_region_loss(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(200).on_row({name: value for name, value in ROW.items() if name != "region"})
    (line,) = lines(capsys)
    assert "view 5.2500" in line and "region" not in line


def test_a_first_row_that_measured_nothing_is_not_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Terminal(200).on_row({"step": 0, "epoch": 0.0, "images": 0})
    assert lines(capsys) == []


def test_what_was_compiled_is_told_once_and_whenever_there_is_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    observer = Terminal(200)
    for kinds, seconds in ((8, 63.25), (8, 63.25), (9, 70.0)):
        observer.on_row({**ROW, "compiled": kinds, "compile_s": seconds})
    found = [line for line in lines(capsys) if not line.startswith("step")]
    assert found == ["compiled 8 kinds of blocks in 63.2 s", "compiled 9 kinds of blocks in 70.0 s"]


def test_long_rows_stay_on_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    Terminal(200).on_row(ROW)
    assert len(lines(capsys)) == 1


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    observer = Terminal(200)
    for step in range(1, 4):
        observer.on_step(step)
    observer.on_end()
    assert lines(capsys) == []


def test_a_terminal_has_a_bar_until_the_end(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    screen = pretend(monkeypatch)
    observer = Terminal(200)
    assert observer._bar is not None and running(observer)
    clock.seconds += 10
    observer.on_step(50)
    observer._bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "step 50/200" in shown and "25 %  30 s left" in shown
    observer.on_row({**ROW, "step": 50})
    assert "step  50/200  epoch 1.50  loss 4.5000" in screen.getvalue()
    assert running(observer), "a row is printed above the bar"
    observer.on_end()
    assert not running(observer)
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1
    before = screen.getvalue()
    observer.on_end()
    assert screen.getvalue() == before


def test_a_bar_goes_on_where_a_run_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = pretend(monkeypatch)
    observer = Terminal(200, start=120)
    assert observer._bar is not None
    observer._bar.refresh()
    assert "step 120/200" in screen.getvalue()
    observer.on_end()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86_400, "1 d 0 h"),
        (1.2e6, "13 d 21 h"),
    ],
)
def test_a_length_of_time_is_spoken(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


# The console of everything else


def test_words_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("read")
    console.warn("look")
    assert lines(capsys) == ["read", "leanvit: look"]


@pytest.mark.parametrize("quiet", [False, True])
def test_without_a_terminal_items_just_pass(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(console.track("abc", "letters", 3, quiet=quiet)) == ["a", "b", "c"]
    assert lines(capsys) == []


def test_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = pretend(monkeypatch)
    assert list(console.track("abc", "letters", 3)) == ["a", "b", "c"]
    assert "letters" in screen.getvalue()
    before = screen.getvalue()
    assert list(console.track("abc", "letters", 3, quiet=True)) == ["a", "b", "c"]
    assert screen.getvalue() == before


def test_without_classes_the_features_speak(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "step": 10,
        "epoch": 1.0,
        "loss": 5.0,
        "lr": 1e-3,
        "feature_std": 0.63,
        "teacher_entropy": 0.8,
        "distinct_matches": 0.57,
    }
    terminal = Terminal(20)
    terminal.on_row(row)
    terminal.on_row(row | {"effective_rank": 8.6})
    terminal.on_row(row | {"effective_rank": 8.6, "knn": 57.2})
    plain, looked, labelled = capsys.readouterr().err.splitlines()
    said = "effective rank 8.6  feature deviation 0.63  teacher entropy 0.80  distinct matches 0.57"
    assert looked.endswith(said)
    assert "deviation" not in plain and labelled.endswith("k-NN 57.2 %  effective rank 8.6")
