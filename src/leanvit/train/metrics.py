"""Numbers that a run writes down: kept on the device, read back once a row."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any, Protocol

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from leanvit.core.console import warn
from leanvit.core.distributed import all_sum
from leanvit.core.files import Replacing, refusals_named, write_synced


class Meter:
    """Means of scalars since the last row, without reading any back in between."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names -> their sums and counts [2, N]

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one scalar tensor to each mean; what is not finite is left out of it."""
        if not values:
            return
        names = tuple(values)
        found = torch.stack([value.detach().double() for value in values.values()])
        finite = found.isfinite()
        seen = torch.stack([torch.where(finite, found, 0.0), finite.double()])
        self._sums[names] = self._sums[names] + seen if names in self._sums else seen

    def read(self) -> dict[str, float]:
        """Return the means of all processes and start afresh: the one transfer from the device.

        A mean of nothing is not a number.
        """
        if not self._sums:
            return {}
        together = all_sum(torch.cat(list(self._sums.values()), dim=1)).T.tolist()
        every = [name for names in self._sums for name in names]
        means: dict[str, tuple[float, float]] = {}
        for name, (total, count) in zip(every, together, strict=True):
            before = means.get(name, (0.0, 0.0))
            means[name] = (before[0] + total, before[1] + count)
        self._sums = {}
        return {
            name: total / count if count else math.nan for name, (total, count) in means.items()
        }


class Observer(Protocol):
    """Somebody who watches a run. The loop knows no other kind."""

    def on_step(self, step: int) -> None:
        """Hear that so many steps were given to the device; nothing may be read back from it."""

    def on_row(self, row: Mapping[str, float]) -> None:
        """See a row of metrics; which ones it holds differs from row to row."""

    def on_end(self) -> None:
        """Hear that the run is over, finished or not."""


class JsonLines:
    """Appends every row to a file, one JSON object a line.

    Rows wait in memory for a disk that refuses them, and follow once it takes them again.
    """

    def __init__(self, path: Path, *, after: int = -1) -> None:
        """Rows beyond step `after`, from a run that was cut off, are removed first.

        Raises CheckpointError if the disk refuses that.
        """
        with refusals_named(path):
            rows = path.read_bytes().splitlines() if path.exists() else []
            kept = b"".join(row + b"\n" for row in rows if _step(row) <= after)
            with Replacing(path) as beside:  # all of them, should the process be killed here
                write_synced(beside, kept)
        self._path, self._waiting, self._refused = path, b"", False
        self._lock = Lock()

    def on_step(self, step: int) -> None:
        """Wait for a row."""

    def on_row(self, row: Mapping[str, float]) -> None:
        """Write the row so that a reader sees it at once."""
        with self._lock:
            self._waiting += json.dumps(dict(row)).encode() + b"\n"
            try:
                self._write()
                self._refused = False
            except OSError as error:
                if not self._refused:
                    warn(f"Could not write {self._path}: {error.strerror}. Its rows wait for room.")
                self._refused = True

    def on_end(self) -> None:
        """Hear that no row is to come."""

    def sync(self) -> None:
        """Put all rows on the disk, from any thread. Raises CheckpointError if it refuses."""
        with self._lock, refusals_named(self._path):
            self._write(synced=True)

    def _write(self, *, synced: bool = False) -> None:
        with self._path.open("ab", buffering=0) as file:
            while self._waiting:  # a disk may take a part
                self._waiting = self._waiting[file.write(self._waiting) :]
            if synced:
                os.fsync(file.fileno())


def _step(row: bytes) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the half-written last line of a run that was killed


class TensorBoard:
    """Writes every row as TensorBoard curves, as long as the disk takes them.

    In this thread: torch's writer has one of its own, which ends with a traceback where a disk is
    full, and would be half there in processes that are forked beside it.
    """

    def __init__(self, folder: Path, *, after: int = -1) -> None:
        """Rows beyond step `after` are hidden from the curves."""
        self._folder = folder
        self._file: BufferedWriter | None = None
        name = f"events.out.tfevents.{time.time():.0f}.{gethostname()}.{os.getpid()}"
        start = SessionLog(status=SessionLog.START)
        with self._going_on():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / name).open("ab")
            self._write(Event(file_version="brain.Event:2"))
            self._write(Event(step=after + 1, session_log=start))

    def on_step(self, step: int) -> None:
        """Wait for a row."""

    def on_row(self, row: Mapping[str, float]) -> None:
        """Write every number but the step itself."""
        with self._going_on():
            for name, value in row.items():
                if name != "step":
                    shown = Summary.Value(tag=name, simple_value=value)
                    self._write(Event(step=int(row["step"]), summary=Summary(value=[shown])))
            if self._file is not None:
                self._file.flush()

    def on_end(self) -> None:
        """Close the file."""
        if self._file is not None:
            with self._going_on():
                self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        if self._file is not None:
            RecordWriter(self._file).write(event.SerializeToString())

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Let a disk that refuses end the curves and not the run."""
        try:
            yield
        except OSError as error:
            if self._file is not None:
                self._file.raw.close()  # with what it still had to write
            self._file = None
            warn(f"Could not write {self._folder}: {error.strerror}. The curves end here.")
