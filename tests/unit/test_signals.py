"""A signal leaves a note that is read between steps; a second one does what it always did."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from leanvit.train.signals import SAVING, STOPPING, Due, Requests, unharmed_by_saving


@pytest.fixture
def handlers() -> dict[int, object]:
    return {number: signal.getsignal(number) for number in (*STOPPING, SAVING)}


@pytest.mark.parametrize("number", STOPPING)
def test_asked_to_stop(
    number: int, handlers: dict[int, object], capfd: pytest.CaptureFixture[str]
) -> None:
    with Requests() as requests:
        assert requests.due() == Due()
        os.kill(os.getpid(), number)
        assert requests.due() == Due(stop=number) == requests.due()
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert f"{signal.Signals(number).name}: finishing the step" in capfd.readouterr().err


def test_asked_to_save_once(handlers: dict[int, object]) -> None:
    with Requests() as requests:
        os.kill(os.getpid(), SAVING)
        assert requests.due() == Due(save=True)
        assert requests.due() == Due()
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_the_clock_asks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Requests(save_minutes=2) as requests:
        now += 119
        assert requests.due() == Due()
        now += 2
        assert requests.due() == Due(save=True)
        assert requests.due() == Due()
        now += 100
        requests.saved()
        now += 100
        assert requests.due() == Due()
        now += 21
        assert requests.due() == Due(save=True)
    with Requests(save_minutes=0) as never:
        now += 1e9
        assert never.due() == Due()


def test_another_thread_may_train_but_not_listen(handlers: dict[int, object]) -> None:
    found: list[Due] = []

    def work() -> None:
        with Requests() as requests:
            found.append(requests.due())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [Due()]


def test_asked_to_save_where_no_step_is_left(handlers: dict[int, object]) -> None:
    with unharmed_by_saving():
        os.kill(os.getpid(), SAVING)
        with Requests() as requests:
            os.kill(os.getpid(), SAVING)
            assert requests.due() == Due(save=True)
        os.kill(os.getpid(), SAVING)
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_thread_that_trains_leaves_signals_alone(handlers: dict[int, object]) -> None:
    found: list[object] = []

    def work() -> None:
        with unharmed_by_saving():
            found.append(signal.getsignal(SAVING))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [handlers[SAVING]]


def test_a_handler_that_no_python_wrote_is_not_given_back_as_one() -> None:
    """faulthandler's, say: Python cannot put it back, and must not fail over it."""
    faulthandler.register(SAVING)
    try:
        with unharmed_by_saving(), Requests() as requests:
            os.kill(os.getpid(), SAVING)
            assert requests.due() == Due(save=True)
    finally:
        faulthandler.unregister(SAVING)
        signal.signal(SAVING, signal.SIG_DFL)


TWICE = """
import os, sys
from leanvit.train.signals import Requests
with Requests():
    for _ in range(2):
        os.kill(os.getpid(), int(sys.argv[1]))
    print("still here")
"""


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_time_stops_at_once(number: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TWICE, str(number)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -number and ended.stdout == ""
