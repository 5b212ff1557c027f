"""The training loop."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from leanvit.data.batch import Batch
from leanvit.train.metrics import Observer
from leanvit.train.state import TrainState

T = TypeVar("T")


def train(
    state: TrainState,
    batches: Iterable[Batch],
    *,
    save: Callable[[], None],
    observers: Sequence[Observer] = (),
) -> None:
    """Train until the run's last step, or until the batches end.

    save: writes a checkpoint. Raises NonFiniteError, before anything is saved, if a number was
    not finite.
    """
    config = state.config.train
    clock = Clock()
    try:
        for batch in clock.waiting(batches):
            at = state.begin_step()
            for micro in batch.split(config.accumulate):
                state.backward(micro, at, config.accumulate)
            state.update(at)
            last = state.step == state.run
            saving = last or state.step % int(config.save_every.amount) == 0
            if saving or state.step % int(config.log_every.amount) == 0:
                state.require_finite()
                row = state.row() | clock.row(config.batch)
                for observer in observers:
                    observer.on_row(row)
            if saving:  # after a row, so that none covers steps on both sides of a checkpoint
                save()
    finally:
        for observer in observers:
            observer.on_end()


class Clock:
    """How fast the run is, and how much of its time it waits for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items and measure how long each is waited for."""
        source = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            self._steps += 1
            yield item

    def row(self, batch: int) -> dict[str, float]:
        """Return images a second and the share of waiting since the last row."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        row = {
            "images_per_s": self._steps * batch / seconds,
            "data_wait": self._waited / seconds,
        }
        self._start, self._waited, self._steps = now, 0.0, 0
        return row
