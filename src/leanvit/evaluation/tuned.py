"""The folder of a fine-tuning: the network and its head, the curve, checkpoints."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanvit.config import RunConfig, to_dict
from leanvit.core.console import warn
from leanvit.core.files import refusals_named
from leanvit.data.sources import Source
from leanvit.methods.supervised import Supervised
from leanvit.train.checkpoint import CHECKPOINTS, newest_checkpoint, save_checkpoint
from leanvit.train.metrics import JsonLines, Observer
from leanvit.train.state import TrainState
from leanvit.weights.card import METRICS
from leanvit.weights.file import (
    FILE,
    HEAD_FILE,
    HEADER,
    facts_of_run,
    header,
    replace_file,
)


@dataclass
class Folder:
    """Where a fine-tuning is written, or nowhere if it has no name."""

    name: str
    resume: bool
    run: RunConfig
    model: str
    keep_blocks: int | str
    learn: Source
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

    def restore(self, state: TrainState) -> list[dict[str, float]]:
        """Bring a state where the newest checkpoint left it; return the curve up to there."""
        found = newest_checkpoint(self.path / CHECKPOINTS, warn) if self.resume else None
        if found is None:
            return []
        if self._asked(found.record["config"]) != self._asked(self._record()):
            raise ValueError(
                f"The training in {self.name!r} began with another model, other images or other "
                f"options; ask for the same, or name another --out."
            )
        state.restore(found.tensors(), found.step)
        rows = map(json.loads, (self.path / METRICS).read_text().splitlines())
        return [
            {"step": row["step"], "epoch": row["epoch"]}
            | {name: value for name, value in row.items() if name.startswith("top")}
            for row in rows
            if "top1" in row and row["step"] <= found.step
        ]

    def observers(self, step: int) -> list[Observer]:
        """Return what writes the metrics of a training that begins at a step."""
        if not self.name:
            return []
        with refusals_named(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            return [JsonLines(self.path / METRICS, after=step if step else -1)]

    def save(self, state: TrainState, method: Supervised, classes: tuple[str, ...]) -> None:
        """Write the network with its head, the averaged one if there is one, and a checkpoint."""
        if not self.name:
            return
        *_, (backbone, head) = method.classifiers().values()
        about = header(backbone, facts_of_run(self.run, state.step))
        replace_file(self.path / FILE, backbone.state_dict(), about)
        named = {HEADER: json.dumps({"classes": classes})}
        replace_file(self.path / HEAD_FILE, head.state_dict(), named)
        save_checkpoint(
            self.path / CHECKPOINTS,
            state.step,
            state.tensors(),
            self._record(),
            self.run.train.keep,
        )

    def _record(self) -> dict[str, Any]:
        """Return what decides the numbers of the training."""
        return {
            "model": self.model,
            "keep_blocks": self.keep_blocks,
            "images": self.learn.fingerprint(),
            "run": to_dict(self.run),
        }

    @staticmethod
    def _asked(record: Mapping[str, Any]) -> str:
        """Return a record as a word, without what changes no number."""
        run = {**record["run"], "data": {**record["run"]["data"], "workers": 0, "source": ""}}
        return json.dumps({**record, "run": run}, sort_keys=True)
