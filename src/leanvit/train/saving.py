"""Saving beside the training: the step waits for one copy of the state, a thread for the disk."""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from leanvit.core.errors import CheckpointError

NICENESS = 10
"""Of the thread that writes: it takes what the steps leave, and all that is once they wait."""

Parts = Mapping[str, Mapping[str, Tensor]]
"""Tensors of each file by their names."""


class Saver:
    """Writes one state after another; whoever asks for the next waits until the last is written.

    A disk that refuses is said aloud and ends nothing: the next save tries again. Only `finish`
    raises, for the last one.
    """

    def __init__(self, write: Callable[[int, Parts], None], tell: Callable[[str], None]) -> None:
        """write: puts the state of a step on disk, or raises CheckpointError."""
        self._write, self._tell = write, tell
        self._copies: dict[Any, Tensor] = {}
        self._job: Future[None] | None = None
        self.saved = 0
        """Step of the newest state that is on disk."""

    def save(self, step: int, parts: Parts) -> None:
        """Copy a state and begin to write it."""
        try:
            self.finish()
        except CheckpointError as error:
            self._tell(f"{error} Training goes on, and the next save tries again.")
        thread = ThreadPoolExecutor(1, "leanvit-save")
        self._job = thread.submit(self._run, step, self._copied(parts))
        thread.shutdown(wait=False)  # it ends with its job, so that nothing forks beside it

    def finish(self) -> None:
        """Wait until all is on disk. Raises CheckpointError if the last state is not."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _run(self, step: int, parts: Parts) -> None:
        _give_way()
        self._write(step, parts)
        self.saved = step

    def _copied(self, parts: Parts) -> Parts:
        """Return the tensors on the host, each copied once, into the memory of the last time."""
        known, self._copies = self._copies, {}

        def copied(tensor: Tensor) -> Tensor:
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if key not in self._copies:
                kept = known.get(key)
                if kept is None:
                    kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._copies[key] = kept.copy_(tensor, non_blocking=True)
            return self._copies[key]

        found = {
            file: {name: copied(tensor.detach()) for name, tensor in tensors.items()}
            for file, tensors in parts.items()
        }
        if any(tensor.is_cuda for tensors in parts.values() for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return found


def _give_way() -> None:
    """Let the steps go first: Linux gives a thread a priority of its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(
            os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
        )
