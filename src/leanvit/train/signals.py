"""What a person, a scheduler or the clock asks of a run: to save, or to save and stop.

Signals only leave a note; the loop reads it when a step is over, so that what is saved is always a
whole step.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from leanvit.core.distributed import Agreement, rank
from leanvit.core.errors import Stopped

STOPPING = (signal.SIGTERM, signal.SIGINT)
SAVING = signal.SIGUSR1


@dataclass(frozen=True, slots=True)
class Due:
    """What all processes of a run do after this step."""

    save: bool = False
    stop: int = 0
    """Number of the signal that asked for it, 0 for none."""


class Requests:
    """Listens while it is entered; `due` is asked once a step, by every process alike."""

    def __init__(self, save_minutes: float = 0.0) -> None:
        """save_minutes: how long after the last save the next one is due; 0 for never."""
        self._seconds = 60 * save_minutes if save_minutes and rank() == 0 else float("inf")
        self._saved = time.monotonic()
        self._save, self._stop = False, 0
        self._before: dict[int, Any] = {}
        self._agree = Agreement()

    def __enter__(self) -> "Requests":
        if threading.current_thread() is threading.main_thread():  # no other may listen
            for number in (*STOPPING, SAVING):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind in (None, Stopped):  # elsewhere others may never say what they were asked
            self._agree.settle()
        for number, handler in self._before.items():
            _handle(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == SAVING:
            self._save = True
            self._tell("SIGUSR1: saving after this step.")
        elif self._stop:  # asked again: at once, as if nobody listened
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            self._stop = number
            name = signal.Signals(number).name
            self._tell(f"{name}: finishing the step and saving; once more stops at once.")

    def _tell(self, text: str) -> None:
        """Say it once for all processes; not by print, which a signal may have interrupted."""
        if rank() == 0:
            os.write(
                sys.__stderr__.fileno() if sys.__stderr__ else 2, f"leanvit: {text}\n".encode()
            )

    def due(self) -> Due:
        """Return what is to happen now. Several processes do a step later what one was asked."""
        save = self._save or time.monotonic() - self._saved > self._seconds
        self._save = False
        if save:
            self._saved = time.monotonic()
        stop, saving = self._agree((self._stop, int(save)))
        return Due(save=bool(saving), stop=stop)

    def saved(self) -> None:
        """Hear that there is a checkpoint of this step, asked for or not."""
        self._saved = time.monotonic()


@contextmanager
def unharmed_by_saving() -> Iterator[None]:
    """Let SIGUSR1 pass where no step is to be saved: while a run sets out, and while it ends.

    It would end the process, as it does where nobody knows it.
    """
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(SAVING, signal.SIG_IGN) if alone else None
    try:
        yield
    finally:
        if alone:
            _handle(SAVING, before)


def _handle(number: int, handler: Any) -> None:
    """Give a signal back to who had it; one that no Python knows is left to the system."""
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def name_of(number: int) -> str:
    """Return SIGTERM for 15."""
    return signal.Signals(number).name
