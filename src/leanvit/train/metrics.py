"""Numbers that a run writes down: kept on the device, read back once a row."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from leanvit.core.distributed import all_sum


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
    """Appends every row to a file, one JSON object a line."""

    def __init__(self, path: Path, *, after: int = -1) -> None:
        """Rows beyond step `after`, from a run that was cut off, are removed first."""
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if _step(line) <= after]
            path.write_text("".join(f"{line}\n" for line in rows))
        self._file = path.open("a")

    def on_step(self, step: int) -> None:
        """Wait for a row."""

    def on_row(self, row: Mapping[str, float]) -> None:
        """Write the row so that a reader sees it at once."""
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()

    def on_end(self) -> None:
        """Close the file."""
        self._file.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # the half-written last line of a run that was killed


class TensorBoard:
    """Writes every row as TensorBoard curves."""

    def __init__(self, folder: Path, *, after: int = -1) -> None:
        """Rows beyond step `after` are hidden from the curves."""
        from torch.utils.tensorboard import SummaryWriter

        purge = after + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def on_step(self, step: int) -> None:
        """Wait for a row."""

    def on_row(self, row: Mapping[str, float]) -> None:
        """Write every number but the step itself."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def on_end(self) -> None:
        """Write what is still in memory."""
        self._writer.close()
