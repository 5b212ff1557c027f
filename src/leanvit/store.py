"""The states of a run on disk: checkpoints, the backbones beside them, and what derailed it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import leanvit
from leanvit.backbones.base import Backbone
from leanvit.config import RunConfig, to_dict
from leanvit.config.convert import leaves
from leanvit.core.console import warn
from leanvit.core.distributed import rank
from leanvit.core.errors import CheckpointError
from leanvit.core.files import spared
from leanvit.folder import DERAILED, EVENTS
from leanvit.train.checkpoint import CHECKPOINTS, Checkpoint, newest_checkpoint, save_checkpoint
from leanvit.train.guard import Event
from leanvit.train.saving import Parts, Saver
from leanvit.train.state import TrainState
from leanvit.weights.file import facts_of_run, header, replace_file

STATE = "state"
"""The whole state, beside the backbones, in what is written."""


class Store:
    """Writes as the first process alone; the others only read."""

    def __init__(self, out: Path, config: RunConfig, networks: Mapping[str, Backbone]) -> None:
        """networks: the backbones that lie beside the checkpoints, by the names of their files."""
        self.out, self.config, self.networks = out, config, networks
        self.first = rank() == 0
        self.ahead: Callable[[], None] = _nobody_waits
        """Puts on disk what no state may be without: the rows up to it."""
        self._saver = Saver(self._write, warn)

    @property
    def saved(self) -> int:
        """Step of the newest checkpoint that this process wrote or read; 0 for none."""
        return self._saver.saved

    def __str__(self) -> str:
        if not self.saved:
            return "Nothing was saved yet."
        return f"The newest checkpoint is that of step {self.saved}."

    def save(self, state: TrainState) -> None:
        """Begin to write a run as it is now."""
        if self.first:
            networks = {name: network.state_dict() for name, network in self.networks.items()}
            self._saver.save(state.step, {STATE: state.tensors(), **networks})

    def settle(self, *, strict: bool = False) -> None:
        """Wait for the disk; unless strict, what it refuses is only said."""
        try:
            self._saver.finish()
        except CheckpointError as error:
            if strict:
                raise
            warn(str(error))

    def newest(self, *, before: float = math.inf) -> Checkpoint | None:
        """Return the newest whole checkpoint of a step below `before`; damaged ones are told of."""
        tell = warn if self.first else _nothing
        found = newest_checkpoint(self.out / CHECKPOINTS, tell, before=before)
        self._saver.saved = found.step if found else 0
        return found

    def note(self, event: Event, images: Sequence[int]) -> None:
        """Add a step that stood out to the list of them, with the numbers of its images."""
        path = self.out / EVENTS
        if self.first:
            with spared(path), path.open("a") as file:
                file.write(json.dumps({**asdict(event), "images": list(images)}) + "\n")

    def keep_derailed(self, state: TrainState) -> None:
        """Keep the state before the step that ends the run, or takes it back, for `replay`."""
        if self.first:
            try:
                save_checkpoint(
                    self.out / DERAILED, state.step, state.tensors(), to_dict(self.config), keep=1
                )
            except CheckpointError as error:
                warn(str(error))  # what derailed the run matters more

    def _write(self, step: int, parts: Parts) -> None:
        """Write the backbones of a step, then its checkpoint: none without its backbone."""
        self.ahead()
        config = self.config
        facts = {**facts_of_run(config, step), "version": leanvit.__version__}
        for name, network in self.networks.items():
            replace_file(self.out / name, parts[name], header(network, facts))
        save_checkpoint(
            self.out / CHECKPOINTS,
            step,
            parts[STATE],
            to_dict(config),
            config.train.keep,
            int(config.train.keep_every.amount),
        )


def _nobody_waits() -> None:
    """Put nothing on disk."""


def _nothing(_: str) -> None:
    """Leave it to the first process to say."""


def require_same_networks(saved: Mapping[str, Any], config: RunConfig, path: Path) -> None:
    """Raise ValueError, in one sentence, if a checkpoint holds other networks than the run."""

    def sizes(plain: Mapping[str, Any]) -> dict[str, Any]:
        heads = (name for name in ("head", "decoder") if name in plain["method"])
        parts = {f"method.{name}": plain["method"][name] for name in heads}
        parts["backbone"] = plain["backbone"]
        kinds = {"backbone": plain["backbone"]["kind"], "method": plain["method"]["kind"]}
        return kinds | dict(leaves(parts))

    before, now = sizes(saved), sizes(to_dict(config))
    differ = [name for name in before if name in now and before[name] != now[name]]
    differ = [name for name in differ if name in ("backbone", "method")] or differ
    if differ:
        named = ", ".join(f"{name} {before[name]} (run: {now[name]})" for name in differ)
        raise ValueError(f"The checkpoint {path} holds another network: {named}.")
