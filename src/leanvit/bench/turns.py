"""Things that are measured in turn, so that what else a machine does meets all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch

from leanvit.core.compiling import NOT_COMPILED, reason
from leanvit.core.console import track

K = TypeVar("K")


class Timed(Protocol):
    """Something that can be done again and again."""

    def step(self) -> float:
        """Do it once; return the seconds that took."""


def seconds_of(action: Callable[[], object], device: str) -> float:
    """Do something once; return the seconds until the device was done with it."""
    _wait(device)
    start = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turn(
    tasks: Mapping[K, Timed], rounds: int, text: str, quiet: bool
) -> tuple[dict[K, list[float]], dict[K, tuple[str, str]]]:
    """Return the seconds of each task in every round, of which the first does not count.

    And of those that could not be done, what is to be said and why.
    """
    seconds: dict[K, list[float]] = {key: [] for key in tasks}
    failed: dict[K, tuple[str, str]] = {}
    turns = [key for _ in range(rounds + 1) for key in tasks]
    for key in track(turns, text, len(turns), quiet=quiet):
        if key in failed:
            continue
        try:
            seconds[key].append(tasks[key].step())
        except NOT_COMPILED as error:
            failed[key] = "torch cannot compile it here", reason(error)
        except torch.OutOfMemoryError as error:
            failed[key] = "finds too little memory", reason(error)
    return {key: found[1:] for key, found in seconds.items() if key not in failed}, failed
