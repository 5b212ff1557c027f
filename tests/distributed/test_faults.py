"""A process that dies, stalls or does not come ends all, within seconds and with its own words."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from leanvit.train.state import TrainState
from tests.distributed.by_hand import Ended, by_hand, numbered
from tests.integration.command import TINY
from tests.tiny import draw_nothing, write_images

GONE = "Another process, rank 1, is gone or does not answer; its own message says why."
ODD = "This machine has odd memory."


def brisk() -> None:
    """Draw nothing, and let who waits for ever end sooner."""
    draw_nothing(pytest.MonkeyPatch())
    pytest.MonkeyPatch().setattr("leanvit.core.lifeline.GRACE", 2.0)


def failing(fault: Callable[[], None], step: int = 2) -> None:
    """Let a fault happen just before a step's gradients are used."""
    brisk()
    update = TrainState.update

    def faulty(state: TrainState, at: object) -> None:
        if state.step == step:
            fault()
        update(state, at)  # type: ignore[arg-type]

    pytest.MonkeyPatch().setattr(TrainState, "update", faulty)


def mistake() -> None:
    raise ValueError(ODD)


def defect() -> None:
    raise LookupError(ODD)


def stop() -> None:
    os._exit(7)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stall() -> None:
    time.sleep(1000)


def looking_for_ever() -> None:
    """Let the first process look at its features, which takes its time, when the other dies."""
    brisk()
    pytest.MonkeyPatch().setattr("leanvit.looks.Looks.look", lambda _: time.sleep(1000))


def dying_in_it() -> None:
    """Die while the first process looks."""
    brisk()
    pytest.MonkeyPatch().setattr("leanvit.core.distributed.wait_for_all", die)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    images = write_images(tmp_path_factory.mktemp("images"), 12)
    return ["pretrain", "esvit", "--data", str(images), *TINY, "--watch.images", "0"]


@pytest.mark.parametrize(
    ("fault", "code", "own"),
    [
        (mistake, 2, f"leanvit: rank 1: {ODD}\n"),
        (defect, 1, f"LookupError: {ODD}\n"),
        (stop, 7, ""),
        (die, -signal.SIGKILL, ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_that_dies_ends_the_others(
    fault: Callable[[], None], code: int, own: str, words: list[str], tmp_path: Path
) -> None:
    survivors = (0, 2) if fault is mistake else (0,)  # more take more time and show no more
    environments = numbered(1 + len(survivors))
    out = [*words, "--out", str(tmp_path / "out"), "--train.batch", "6"]
    out += ["--data.workers", "1"] if fault is die else []  # who inherits its connections
    faults = dict.fromkeys(survivors, brisk) | {1: partial(failing, fault)}
    found = by_hand(tmp_path / "logs", out, environments, faults)
    assert found[1].code == code
    assert found[1].error.endswith(own) and GONE not in found[1].error
    ended_by_another(found[0])
    for other in found[2:]:
        assert (other.code, other.error) == (1, ""), "survivors say it once"


def ended_by_another(process: Ended) -> None:
    """Require one sentence as the end of what a survivor says, and none of torch's inside."""
    assert process.code == 1, process
    assert process.error.endswith(f"leanvit: {GONE}\n") and process.error.count(GONE) == 1
    assert "gloo" not in process.error and "Traceback" not in process.error


def test_one_that_computes_alone_notices(words: list[str], tmp_path: Path) -> None:
    """No sum fails then: the connection to the dead one does."""
    out = [*words, "--out", str(tmp_path / "out")]
    found = by_hand(tmp_path / "logs", out, numbered(2), {0: looking_for_ever, 1: dying_in_it})
    assert [process.code for process in found] == [1, -signal.SIGKILL]
    assert found[0].error.endswith(f"leanvit: {GONE} Rank 0 waited for it and ends too.\n")


def test_one_that_stalls_is_waited_for_no_longer_than_the_limit(
    words: list[str], tmp_path: Path
) -> None:
    environments = [one | {"LEANVIT_STEP_SECONDS": "2"} for one in numbered(2)]
    out = [*words, "--out", str(tmp_path / "out")]
    found = by_hand(tmp_path / "logs", out, environments, {0: brisk, 1: partial(failing, stall)})
    assert [process.code for process in found] == [1, 1]
    assert "leanvit: Another process is gone or does not answer" in found[0].error
    said = "Another process, rank 0, is gone or does not answer; its own message says why."
    assert f"{said} Rank 1 waited for it and ends too." in found[1].error


def test_one_that_does_not_come_is_named(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    environments = [one | {"LEANVIT_START_SECONDS": "2"} for one in numbered(3)]
    places = [one for one in environments if one["RANK"] != "1"]
    for present in (places, environments[1:2]):
        found = by_hand(tmp_path / "logs", [*words, "--out", str(out), "--train.batch=6"], present)
        missing = "1" if present is places else "0"
        said = f"3 processes should train together, but rank {missing} did not come to 127.0.0.1:"
        assert {process.code for process in found} == {1}
        assert said in found[0].error and "LEANVIT_START_SECONDS" in found[0].error
        assert sum(process.error.count(said) for process in found) == 1
        assert all("[c10d]" not in process.error for process in found)
    assert not out.exists()


def test_a_mistake_of_one_ends_those_who_wait_for_it(words: list[str], tmp_path: Path) -> None:
    environments = numbered(2)
    environments[1]["LEANVIT_START_SECONDS"] = "soon"
    found = by_hand(tmp_path / "logs", [*words, "--out", str(tmp_path / "out")], environments)
    said = "The environment says LEANVIT_START_SECONDS='soon'; expected a whole number."
    assert (found[1].code, found[1].error) == (2, f"leanvit: rank 1: {said}\n")
    ended_by_another(found[0])


def test_what_all_get_wrong_is_said_once(words: list[str], tmp_path: Path) -> None:
    out = [*words, "--out", str(tmp_path / "out"), "--train.batch", "5"]
    found = by_hand(tmp_path / "logs", out, numbered(2))
    assert [process.code for process in found] == [2, 2]
    assert found[0].error.startswith("leanvit: train.batch 5 does not split")
    assert found[1].error == ""
