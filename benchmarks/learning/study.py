"""What the studies of this folder share: data that is split once, and runs of so many minutes.

A run has one core and so many minutes of it (`train.duration` is a time, here that of the
processor, whatever else the machine does), and goes on where it was cut off; what it reached is
measured once and kept beside it. Choices are made on images that were held out of the training
images; test images are for tables of what was chosen.
"""

import fcntl
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import leanvit
from leanvit import measuring
from leanvit.bench.machine import machine
from leanvit.data.sources import FolderSource

HERE = Path(__file__).parent
RUNS = Path("runs/learning")
ALONE = {
    "data.workers": 0,
    "watch.images": 0,
    "train.device": "cpu",
    "train.save_every": "20%",
    "train.log_every": "50st",
}
"""One core, and nothing beside the steps."""
K = 20
"""Neighbours."""


@dataclass(frozen=True)
class Split:
    """Images of a data set, as list files: the first of every class, and those behind them."""

    train: Path
    """What runs train on, without its classes."""
    bank: Path
    """What k-NN and linear layers learn from, with them."""
    held: Path
    """Images of the training set that nothing is trained on: choices are made on these."""
    test: Path
    """The test set."""


@dataclass(frozen=True)
class Study:
    """A data set, and how its images are split: so many of every class."""

    name: str
    archive: str
    """File in the folder of data."""
    folders: tuple[str, str]
    """Training and test images."""
    train: int
    bank: int
    held: int

    def split(self) -> Split:
        """Return the parts; the archive is unpacked once."""
        data = RUNS / "data" / self.name
        if not data.is_dir():
            _unpack(self.archive, data)
        train, test = (data / name for name in self.folders)
        return Split(
            train=listed(train, data / "train.txt", 0, self.train),
            bank=listed(train, data / "bank.txt", 0, self.bank),
            held=listed(train, data / "held.txt", self.train, self.train + self.held),
            test=listed(test, data / "test.txt", 0, None),
        )


CIFAR10 = Study("cifar10", "cifar10.tar.xz", ("train", "test"), train=4500, bank=1000, held=500)
TINY = Study("tiny", "tiny-imagenet-50.tar.xz", ("train", "val"), train=450, bank=450, held=50)


@dataclass(frozen=True)
class Trial:
    """A run to be done."""

    name: str
    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = ""
    minutes: float = 10.0
    """Of one core."""
    seed: int = 0
    optimizer: str = ""

    def folder(self, study: Study) -> Path:
        """Return where it lives."""
        return RUNS / study.name / f"{self.name}-{self.minutes:g}m-{self.seed}"


def _unpack(archive: str, data: Path) -> None:
    given = os.environ.get("LEANVIT_TEST_DATA")
    if not given:
        sys.exit(f"Set LEANVIT_TEST_DATA to the folder that holds {archive}.")
    beside = data.with_name(f"{data.name}.part{os.getpid()}")
    with tarfile.open(Path(given) / archive) as file:
        file.extractall(beside, filter="data")
    inner = [path for path in beside.iterdir() if path.is_dir()]
    (inner[0] if len(inner) == 1 else beside).rename(data)


def listed(folder: Path, file: Path, start: int, stop: int | None) -> Path:
    """Name images of every class in a list file beside the folder: those from start to stop."""
    if not file.exists():
        source, seen, lines = FolderSource(folder), dict[int, int](), []
        for index, target in enumerate(source.targets.tolist()):
            place = seen[target] = seen.get(target, -1) + 1
            if start <= place < (stop or len(source)):
                lines.append(f"{folder.name}/{source.name(index)}\t{source.classes[target]}")
        file.write_text("\n".join(lines) + "\n")
    return file


def pretrained(trial: Trial, study: Study) -> Path:
    """Train, or go on training; return the run's folder. One core: `taskset -c 0`."""
    out = trial.folder(study)
    if not (out / "summary.json").exists():
        torch.set_num_threads(1)
        setattr(measuring, "time", SimpleNamespace(perf_counter=time.process_time))  # noqa: B010
        options = {**ALONE, "train.duration": f"{trial.minutes:g}m", **trial.options}
        leanvit.pretrain(
            trial.recipe,
            data=str(study.split().train),
            out=out,
            backbone=trial.backbone,
            optimizer=trial.optimizer,
            options={**options, "train.seed": trial.seed},
            autoresume=True,
        )
    return out


def knn(out: Path, bank: Path, test: Path, *, baselines: bool = False) -> dict[str, float]:
    """Return k-NN accuracies in percent by features: those of the teacher, of the student, ..."""
    options = {"val": str(test), "k": (K,), "baselines": baselines, "keep_features": False}
    rows = leanvit.evaluate("knn", out, data=str(bank), options=options).rows
    return {row["features"]: row[f"k={K}"] for row in rows}


def linear(out: Path, bank: Path, test: Path, *, baselines: bool = False) -> dict[str, float]:
    """Return accuracies of a linear layer in percent by features."""
    options = {"val": str(test), "epochs": 30, "baselines": baselines, "keep_features": False}
    rows = leanvit.evaluate("linear", out, data=str(bank), options=options).rows
    return {row["features"]: row["top1"] for row in rows}


def finetuned(out: Path, bank: Path, test: Path, *, untrained: bool) -> dict[str, float]:
    """Return accuracies in percent of the whole network, trained on images with their classes."""
    options = {"val": str(test), "duration": "5ep", "train_batch": 64, "every": "100%"}
    options |= {"untrained": untrained}
    rows = leanvit.evaluate("finetune", out, data=str(bank), options=options).rows
    return {row["network"]: row["top1"] for row in rows}


def kept(out: Path, name: str, measure: Any) -> dict[str, Any]:
    """Return what was measured of a run, once."""
    file = out / f"{name}.json"
    if not file.exists():
        file.write_text(json.dumps(measure()))
    return dict(json.loads(file.read_text()))


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Yield whether this process may do a run, which no other one does meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def spread(values: Sequence[float]) -> str:
    """Return a mean with its deviation."""
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def seen(out: Path) -> str:
    """Return the images that a run has seen, in thousands, and its minutes."""
    summary = json.loads((out / "summary.json").read_text())
    config = json.loads((out / "resolved.json").read_text())["config"]["train"]
    return f"{summary['steps'] * config['batch'] / 1000:.0f}"


def heading() -> str:
    """Return what a table was made with."""
    words = ["git", "describe", "--always", "--dirty"]
    revision = subprocess.run(words, cwd=HERE, capture_output=True, text=True).stdout.strip()
    return (
        f"{datetime.now(UTC).date()}, revision {revision}, torch {torch.__version__}, "
        f"{machine('cpu')['device']} ({platform.machine()}), one core a run"
    )
