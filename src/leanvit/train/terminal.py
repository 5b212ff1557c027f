"""What a person sees of a run, on stderr: one line a row, and on a terminal a bar below them."""

import sys
import time
from collections.abc import Mapping
from itertools import pairwise

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from leanvit.core.console import say

TERMS = ("loss", "view", "region")
"""Loss and its parts."""
LEARNED = {
    "knn": "k-NN {:.1f} %",
    "effective_rank": "effective rank {:.1f}",
    "top1": "top-1 {:.1f} %",
}
"""What shows that a run learns, in words."""
WITHOUT_CLASSES = {
    "feature_std": "feature deviation {:.2f}",
    "teacher_entropy": "teacher entropy {:.2f}",
    "teacher_information": "teacher information {:.2f}",
    "distinct_matches": "distinct matches {:.2f}",
}
"""What stands beside the effective rank where there is no k-NN."""


class Terminal:
    """Prints one line a row; on a terminal, also a bar with the time that is left."""

    def __init__(self, run: int, start: int = 0) -> None:
        self._run, self._start, self._began = run, start, time.perf_counter()
        self._compiled = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty():
            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
            self._bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f} %  {task.fields[left]}"),
                console=self._console,
                transient=True,
                expand=True,
            )
            self._task = self._bar.add_task("", total=run, completed=start, left="")
            self._bar.start()

    def on_step(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, left=self._left(step))

    def on_row(self, row: Mapping[str, float]) -> None:
        """Print what a person follows."""
        step = int(row["step"])
        if row.get("compiled", 0.0) > self._compiled:
            self._compiled = row["compiled"]
            seconds = row["compile_s"]
            self._print(f"compiled {row['compiled']:.0f} kinds of blocks in {seconds:.1f} s")
        shown = [f"step {step:{len(str(self._run))}}/{self._run}"]
        if "loss" in row:
            shown.append(f"epoch {row['epoch']:.2f}")
            shown += [f"{name} {row[name]:.4f}" for name in TERMS if name in row]
            shown.append(f"lr {row['lr']:.2e}")
        if "images_per_s" in row:
            shown += [
                f"{row['images_per_s']:.1f} images/s",
                f"waiting for data {100 * row['data_wait']:.0f} %",
                self._left(step),
            ]
        looked, labelled = "effective_rank" in row, "knn" in row
        words = LEARNED if labelled or not looked else LEARNED | WITHOUT_CLASSES
        found = [text.format(row[name]) for name, text in words.items() if name in row]
        if found and "loss" not in row:
            shown.append("before training:")
        shown += found
        if len(shown) > 1:
            self._print("  ".join(word for word in shown if word))

    def _print(self, line: str) -> None:
        if self._bar is None:
            say(line)
        else:
            self._console.print(line)

    def on_end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _left(self, step: int) -> str:
        """Return how long the rest takes at the speed so far, everything included."""
        done = step - self._start
        if not done or step >= self._run:
            return ""
        seconds = (time.perf_counter() - self._began) / done * (self._run - step)
        return f"{spoken(seconds)} left"


def spoken(seconds: float) -> str:
    """Return a length of time in its two largest units, such as `2 h 5 min`."""
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (large, size), (small, part) in pairwise(units):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"
