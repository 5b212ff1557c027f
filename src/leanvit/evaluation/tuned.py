"""A training that an evaluation does: looked at on the way, in a folder that it continues from."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from torch import Tensor

from leanvit.config import DataConfig, RunConfig, to_dict
from leanvit.config.dense import DenseConfig
from leanvit.config.evaluation import FinetuneConfig
from leanvit.core.console import warn
from leanvit.core.files import refusals_named
from leanvit.data.batch import Batch, Unreadable
from leanvit.data.sampler import Order
from leanvit.evaluation.inputs import require_readable
from leanvit.methods.base import Method
from leanvit.train.checkpoint import CHECKPOINTS, newest_checkpoint, save_checkpoint
from leanvit.train.loop import train
from leanvit.train.metrics import JsonLines, Observer
from leanvit.train.state import TrainState
from leanvit.train.terminal import Terminal
from leanvit.weights.card import METRICS
from leanvit.weights.file import replace_file
from leanvit.weights.report import Weights

COMMON: Mapping[str, tuple[str, ...]] = {
    "duration": ("train.duration",),
    "accumulate": ("train.accumulate",),
    "precision": ("train.precision",),
    "device": ("train.device",),
    "warmup": ("optim.lr.warmup",),
    "layer_decay": ("optim.layer_decay",),
    "weight_decay": (
        "optim.weight_decay.start",
        "optim.weight_decay.peak",
        "optim.weight_decay.end",
    ),
    "clip": ("optim.clip",),
    "every": ("watch.every",),
}
"""Option of all such trainings -> what it is called in a run."""


def data_of(config: DenseConfig | FinetuneConfig, weights: Weights, workers: int) -> DataConfig:
    """Return the images of a run, with the channels that its weights know."""
    return DataConfig(
        source=config.data,
        workers=workers,
        mean=_three(weights.mean),
        std=_three(weights.std),
        max_unreadable=config.max_unreadable,
    )


def _three(channels: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = channels
    return red, green, blue


@contextmanager
def in_own_words(options: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
    """Name options of a run, in what is said of them, as an evaluation calls them."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for name, places in options.items():
            for place in places:
                text = text.replace(place, name)
        raise ValueError(text) from error


def begin(method: Method, state: Mapping[str, Tensor] | None, run: RunConfig) -> None:
    """Give a method's backbones the weights that they start from; None for those that they have."""
    for network in method.backbones():
        if state is not None:
            network.load_state_dict(state)
        network.mean, network.std = run.data.mean, run.data.std


class Replacing(Batch, Protocol):
    """A batch that says which of its images were replaced."""

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """Return the images that could not be decoded."""


B = TypeVar("B", bound=Replacing)

NEUTRAL: Mapping[str, Any] = {"workers": 0, "source": "", "max_unreadable": 0.0}
"""What changes no number of a training."""
BEST = "best."
"""What the names of kept tensors begin with, in a checkpoint."""
Files = Mapping[str, tuple[Mapping[str, Tensor], dict[str, str]]]
"""Name of a file of weights -> its tensors, and what it says of itself."""


@dataclass
class Folder:
    """Where a training is written, or nowhere if it has no name."""

    name: str
    resume: bool
    run: RunConfig
    decides: Mapping[str, Any]
    """What decides the numbers besides the run, such as the model that it began with."""
    measures: tuple[str, ...]
    """What the names of the curve's columns begin with; the first is in every row of it."""
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        """Raise ValueError if the folder holds something else than what is to be continued."""
        self.path = Path(self.name)
        if not self.name:
            return
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out {self.name!r} is a file; name a folder.")
        full = self.path.is_dir() and any(self.path.iterdir())
        if full and not self.resume:
            raise ValueError(
                f"The folder {self.name!r} is not empty: continue the training in it with "
                f"--resume, or name another --out."
            )
        if self.resume and not full:
            raise ValueError(f"There is no training to resume in {self.name!r}.")

    def restore(self, state: TrainState) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        """Bring a state where the newest checkpoint left it.

        Return the curve up to there, and the tensors that were kept beside the state.
        """
        found = newest_checkpoint(self.path / CHECKPOINTS, warn) if self.resume else None
        if found is None:
            return [], {}
        if self._asked(found.record["config"]) != self._asked(self._record()):
            raise ValueError(
                f"The training in {self.name!r} began with another model, other images or other "
                f"options; ask for the same, or name another --out."
            )
        tensors = found.tensors()
        state.restore(tensors, found.step)
        kept = {n.removeprefix(BEST): t for n, t in tensors.items() if n.startswith(BEST)}
        rows = map(json.loads, (self.path / METRICS).read_text().splitlines())
        return [
            {"step": row["step"], "epoch": row["epoch"]}
            | {name: value for name, value in row.items() if name.startswith(self.measures)}
            for row in rows
            if any(name.startswith(self.measures[0]) for name in row) and row["step"] <= found.step
        ], kept

    def observers(self, step: int) -> list[Observer]:
        """Return what writes the metrics of a training that begins at a step."""
        if not self.name:
            return []
        with refusals_named(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            return [JsonLines(self.path / METRICS, after=step if step else -1)]

    def save(
        self, state: TrainState, files: Files, kept: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        """Write files of weights, and a checkpoint with what is kept beside the state."""
        if not self.name:
            return
        for name, (tensors, about) in files.items():
            replace_file(self.path / name, tensors, about)
        save_checkpoint(
            self.path / CHECKPOINTS,
            state.step,
            {**state.tensors(), **{f"{BEST}{name}": tensor for name, tensor in kept.items()}},
            self._record(),
            self.run.train.keep,
        )

    def _record(self) -> dict[str, Any]:
        """Return what decides the numbers of the training."""
        return {**self.decides, "run": to_dict(self.run)}

    @staticmethod
    def _asked(record: Mapping[str, Any]) -> str:
        """Return a record as a word, without what changes no number."""
        run = {**record["run"], "data": {**record["run"]["data"], **NEUTRAL}}
        return json.dumps({**record, "run": run}, sort_keys=True)


class Tuning:
    """A training from one start with one seed."""

    config: RunConfig
    order: Order
    state: TrainState
    folder: Folder
    quiet: bool
    curve: list[dict[str, float]]
    """What every look found."""
    minutes: float = 0.0

    def run(self) -> None:
        """Train to the end, from the newest checkpoint where the folder has one to continue."""
        began = time.perf_counter()
        curve, kept = self.folder.restore(self.state)
        self.curve += curve
        self.take_up(kept)
        first = self.state.step
        shown = [] if self.quiet else [Terminal(self.state.run, first)]
        train(
            self.state,
            self.batches(),
            save=lambda: self.folder.save(self.state, self.files(), self.kept()),
            watch=self.look,
            observers=[*self.folder.observers(first), *shown],
        )
        self.minutes = (time.perf_counter() - began) / 60

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the steps that are left."""
        raise NotImplementedError

    def look(self) -> dict[str, float]:
        """Return what the images to evaluate on show, as the curve goes on."""
        raise NotImplementedError

    def files(self) -> Files:
        """Return the weights to write beside a checkpoint."""
        raise NotImplementedError

    def kept(self) -> Mapping[str, Tensor]:
        """Return the tensors that a checkpoint keeps beside the state."""
        return {}

    def take_up(self, kept: Mapping[str, Tensor]) -> None:
        """Take what a checkpoint kept."""

    def noted(self, **found: float) -> dict[str, float]:
        """Add what a look found to the curve, and return it."""
        epoch = self.state.step / self.order.epoch_steps
        self.curve.append({"step": self.state.step, "epoch": epoch, **found})
        return found


def with_readable(batches: Iterable[B], images: int, most: float) -> Iterator[B]:
    """Pass batches on. Raises ValueError once too many images turned out to be unreadable."""
    bad: dict[str, Unreadable] = {}
    for batch in batches:
        known = len(bad)
        bad |= {entry.name: entry for entry in batch.unreadable}
        if len(bad) > known:
            require_readable(list(bad.values()), images, most)
        yield batch
