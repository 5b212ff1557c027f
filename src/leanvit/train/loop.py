"""The training loop."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from leanvit.config import settled
from leanvit.core.errors import Stopped
from leanvit.data.batch import Batch
from leanvit.train.guard import Event
from leanvit.train.metrics import Observer
from leanvit.train.signals import Due, name_of
from leanvit.train.state import TrainState

T = TypeVar("T")


def train(
    state: TrainState,
    batches: Iterable[Batch],
    *,
    save: Callable[[], None],
    watch: Callable[[], dict[str, float]] = dict,
    observers: Sequence[Observer] = (),
    asked: Callable[[], Due] = Due,
    heed: Callable[[Sequence[Event]], None] = lambda _: None,
) -> None:
    """Train until the run's last step, or until the batches end.

    save: writes a checkpoint; watch: looks at the features, before the first step and every
    `watch.every`, and says what a row should hold of them; asked: says after every step what
    signals and the clock want; heed: hears after every row which steps stood out. Raises, before
    anything is saved, DerailedError if a bad number, a spike or `heed` ends the run or takes it
    back, and Stopped, after a save, if it was asked to stop.
    """
    config, every = state.config.train, int(state.config.watch.every.amount)
    parts = settled(config.accumulate)
    try:
        if state.step == 0:
            _tell(observers, state.row() | watch())
        clock = Clock()
        for batch in clock.waiting(batches):
            at = state.begin_step()
            for micro in batch.split(parts):
                state.backward(micro, at, parts)
            state.update(at)
            for observer in observers:
                observer.on_step(state.step)
            due, last = asked(), state.step == state.run
            saving = last or due.save or due.stop or state.step % int(config.save_every.amount) == 0
            watching = last or state.step % every == 0
            if saving or watching or state.step % int(config.log_every.amount) == 0:
                events = state.require_sound()
                row = state.row() | clock.row(settled(config.batch))
                _tell(observers, row | watch() if watching else row)
                heed(events)
                clock.restart()
            if saving:  # after a row, so that none covers steps on both sides of a checkpoint
                save()
            if due.stop and not last:
                raise Stopped(name_of(due.stop), due.stop)
    finally:
        for observer in observers:
            observer.on_end()


def _tell(observers: Sequence[Observer], row: Mapping[str, float]) -> None:
    for observer in observers:
        observer.on_row(row)


class Clock:
    """How fast the run is, and how much of its time it waits for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to measure now."""
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
        """Return images a second and the share of waiting since the clock started."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        return {
            "images_per_s": self._steps * batch / seconds,
            "data_wait": self._waited / seconds,
        }
