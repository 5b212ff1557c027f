"""What it costs to save every minute: steps a second with and without, in turns in one run.

    python benchmarks/safety.py [--recipe esvit] [--batch 2] [--minutes 1] [--pairs 5]

The sample, a whole training step and the real writer: the state is copied, then a thread writes and
hashes it while steps go on. Windows with a checkpoint every minute take turns with windows without.
Prints a table in Markdown; benchmarks/safety.md keeps it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from leanvit.bench.machine import machine
from leanvit.config import compose, resolve
from leanvit.core.errors import Stopped
from leanvit.recipes import recipe
from leanvit.request import open_images
from leanvit.run import Run
from leanvit.store import Store
from leanvit.train.facts import gather_facts
from leanvit.train.loop import train
from leanvit.train.saving import Parts
from leanvit.train.signals import Due

OPTIONS = {"train.duration": "1000000st", "watch.images": 0, "data.source": "sample"}
EVERY = 60.0
"""Seconds between checkpoints."""


class Windows:
    """Asks for a checkpoint every minute in every other window, and counts the steps of each."""

    def __init__(self, seconds: float, pairs: int) -> None:
        self.times: list[list[float]] = [[] for _ in range(2 * pairs)]
        """Seconds of the steps that ended in each window."""
        self.saves = [0] * (2 * pairs)
        self._seconds, self._began, self._last = seconds, 0.0, 0.0

    def on_step(self, step: int) -> None:
        """Time a step."""
        if not self._began:  # the first one fills caches
            self._began = self._last = time.monotonic()
            return
        number, now = self.now(), time.monotonic()
        if number < len(self.times):
            self.times[number].append(now - self._last)
        self._last = now

    def on_row(self, row: Mapping[str, float]) -> None:
        """Rows are nothing to it."""

    def on_end(self) -> None:
        """Nothing is left to do."""

    def now(self) -> int:
        """Return the number of the present window."""
        return int((time.monotonic() - self._began) / self._seconds)

    def due(self) -> Due:
        """Ask for what the present window is there to show, or for the end."""
        if not self._began or (number := self.now()) >= len(self.times):
            return Due(stop=15 if self._began else 0)
        into = time.monotonic() - self._began - number * self._seconds
        if number % 2 or into < EVERY * (self.saves[number] + 0.5):
            return Due()
        self.saves[number] += 1
        return Due(save=True)


class TimedStore(Store):
    """Measures what the thread that writes takes of a processor."""

    seconds: float = 0.0

    def _write(self, step: int, parts: Parts) -> None:
        began = time.thread_time()
        super()._write(step, parts)
        self.seconds = time.thread_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="esvit")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    config = compose(recipe(asked.recipe), options={**OPTIONS, "train.batch": asked.batch})
    source = open_images(config, "sample")
    windows = Windows(60 * asked.minutes, asked.pairs)
    copied: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(resolve(config, gather_facts(source)), source, Path(folder), quiet=True)
        run.store = store = TimedStore(run.out, run.config, run.networks)

        def save() -> None:
            began = time.perf_counter()
            store.save(run.state)
            copied.append(time.perf_counter() - began)

        try:
            train(
                run.state,
                run.load(0, run.state.run),
                save=save,
                observers=[windows],
                asked=windows.due,
            )
        except Stopped:
            store.settle()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / 2**20
    per_minute = [60 / statistics.fmean(times) for times in windows.times]
    with_, without = statistics.fmean(per_minute[::2]), statistics.fmean(per_minute[1::2])
    pairs = [one / other for one, other in zip(per_minute[::2], per_minute[1::2], strict=True)]
    print(f"{', '.join(map(str, machine('cpu').values()))}\n")
    print("| window | steps a minute | checkpoints |\n|---|---|---|")
    for number, (rate, saves) in enumerate(zip(per_minute, windows.saves, strict=True)):
        print(f"| {number + 1} | {rate:.1f} | {saves} |")
    print(
        f"\n{asked.recipe}, batch {asked.batch}: means of {with_:.1f} steps a minute with "
        f"checkpoints and {without:.1f} without, a ratio of {with_ / without:.3f}, "
        f"of neighbours {min(pairs):.3f} to {max(pairs):.3f}. A step waits "
        f"{1000 * statistics.median(copied[:-1]):.0f} ms for the copy, the thread "
        f"takes {store.seconds:.2f} s of a processor; {size:.0f} MiB on disk at the end."
    )


if __name__ == "__main__":
    main()
