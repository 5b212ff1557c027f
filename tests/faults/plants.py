"""Faults that are planted in a process before its command begins. No torch is imported here."""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

Trace = Callable[[FrameType, str, Any], Any]


def _trace_lines(files: Sequence[str], on_line: Callable[[], object]) -> None:
    """Call on_line before every line of these files of leanvit that any thread runs."""

    def inside(frame: FrameType, event: str, _: Any) -> Trace:
        if event == "line":
            on_line()
        return inside

    def entered(frame: FrameType, _: str, __: Any) -> Trace | None:
        return inside if frame.f_code.co_filename.endswith(tuple(files)) else None

    threading.settrace(entered)
    sys.settrace(entered)


def count_lines(files: Sequence[str], place: Path) -> None:
    """Keep in a file how many lines of these files were run."""
    handle = os.open(place, os.O_WRONLY | os.O_CREAT)
    _trace_lines(files, lambda: os.write(handle, b"."))


def kill_at_line(files: Sequence[str], line: int) -> None:
    """kill -9 before a certain of the lines that are run of these files."""
    left = [line]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _trace_lines(files, count)


def _before_save(
    number: int, then: Callable[[], object], last: int = 0, undo: Callable[[], object] | None = None
) -> None:
    """Do something when the save of a number (from 1) begins, undo it when that after `last` does.

    A save is one call of what writes backbones and checkpoint, in the thread that saves.
    """
    from leanvit.store import Store

    write, seen = Store._write, [0]

    def counted(self: Store, step: int, parts: Any) -> None:
        seen[0] += 1
        if seen[0] == number:
            then()
        if undo is not None and seen[0] == last + 1:
            undo()
        write(self, step, parts)

    Store._write = counted  # type: ignore[method-assign]


def hold_at(step: int) -> None:
    """Let a run wait at a step until it is killed."""
    from leanvit.train.state import TrainState

    begin = TrainState.begin_step

    def held(self: TrainState) -> Any:
        while self.step == step:
            time.sleep(0.01)
        return begin(self)

    TrainState.begin_step = held  # type: ignore[method-assign]


def kill_in_save(number: int, seconds: float) -> None:
    """End the process, as kill -9 does, so long after a save began, also inside compiled code."""
    _before_save(number, lambda: signal.setitimer(signal.ITIMER_REAL, seconds))


def kill_at_byte(number: int, byte: int) -> None:
    """Let the kernel end the process once a file of a save, or later, grows beyond a byte."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _before_save(number, lambda: _limit(byte))


def full_disk(number: int, last: int, byte: int) -> None:
    """Let every file beyond a byte meet a full disk, from the save of a number to a later one."""
    _before_save(number, lambda: _limit(byte), last, lambda: _limit(resource.RLIM_INFINITY))


def _limit(byte: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte, resource.RLIM_INFINITY))


def refuse(name: str, error: int, number: int, times: int, after: int) -> None:
    """Let a function of `os` fail some times with an error, from a call in a save on."""
    real, left = getattr(os, name), [after, 0]

    def refusing(*args: Any, **options: Any) -> Any:
        if left[1]:
            left[0] -= 1
            if -times <= left[0] < 0:
                raise OSError(error, os.strerror(error))
        return real(*args, **options)

    def begin() -> None:
        left[1] = 1

    setattr(os, name, refusing)
    _before_save(number, begin)


def as_anybody() -> None:
    """Give up root's right to write where the mode of a file says no; others have none."""
    words = ctypes.c_uint32
    who, rights = (words * 2)(0x20080522, 0), (words * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.capget(who, rights)
    rights[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(who, rights):
        raise OSError(ctypes.get_errno(), "capset")


def bad_loss(step: int, factor: float, twice: bool = False) -> None:
    """Multiply the loss of a step by a number, the first time it comes, or every time."""
    from leanvit.methods.esvit import EsViT

    forward, left = EsViT.forward, [-1 if twice else 1]

    def faulty(self: EsViT, batch: Any, at: Any) -> Any:
        out = forward(self, batch, at)
        if at.step == step and left[0]:
            left[0] -= 1
            object.__setattr__(out, "total", out.total * factor)
        return out

    EsViT.forward = faulty  # type: ignore[assignment, method-assign]


def bad_pixels(step: int, twice: bool = False) -> None:
    """Put one number that is none into the images of a step, the first time or every time."""
    from leanvit.methods.esvit import EsViT

    forward, left = EsViT.forward, [-1 if twice else 1]

    def faulty(self: EsViT, batch: Any, at: Any) -> Any:
        if at.step == step and left[0]:
            left[0] -= 1
            batch.groups[0].view(-1)[7] = float("nan")
        return forward(self, batch, at)

    EsViT.forward = faulty  # type: ignore[assignment, method-assign]


def bad_gradient(step: int) -> None:
    """Let one gradient of a step be infinite, as an overflow leaves it."""
    from leanvit.train.state import TrainState

    backward = TrainState.backward

    def faulty(self: TrainState, micro: Any, at: Any, parts: int) -> None:
        backward(self, micro, at, parts)
        if at.step == step:
            gradient = next(p.grad for p in self.method.parameters() if p.grad is not None)
            gradient.view(-1)[0] = float("inf")

    TrainState.backward = faulty  # type: ignore[method-assign]


def spike_early(step: int, factor: float) -> None:
    """Let a loss jump in a run too short for the guard to know the loss's level yet."""
    from leanvit.train import guard

    guard.WARMUP = 3
    bad_loss(step, factor)


def worker_fails(call: int) -> None:
    """Raise an error that nobody expects in a process that reads images, at one of its batches."""
    from leanvit.data.loader import Views

    plans, left = Views.plans, [call]

    def faulty(self: Views, epoch: int, image: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("a planted fault")
        return plans(self, epoch, image)

    Views.plans = faulty  # type: ignore[method-assign]


def clock_jumps(call: int, seconds: float) -> None:
    """Set the time of day, but not the clock that only goes on, after so many looks at it."""
    real, left = time.time, [call]

    def jumped() -> float:
        left[0] -= 1
        return real() + (seconds if left[0] < 0 else 0.0)

    time.time = jumped
