"""Checkpoints that are whole or not there: written beside, synced, renamed.

A checkpoint is a directory: `state.safetensors` (all tensors) and `state.json` (step,
configuration, versions, checksums). The newest complete one is found by looking at all.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from leanvit.core.files import (
    Replacing,
    forget,
    refusals_named,
    save_tensors,
    sync,
    write_synced,
)

CHECKPOINTS = "checkpoints"
"""Where a run keeps them, in its folder."""
TENSORS, RECORD = "state.safetensors", "state.json"
FORMAT = 2
BROKEN = (OSError, ValueError, LookupError, TypeError, RecursionError)
"""What reading a record that holds anything raises."""
BLANK = "0" * 64
"""In place of a record's own checksum while that is taken."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    record: Mapping[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Read the tensors, to the CPU. Raises ValueError if they are none."""
        try:
            loaded: dict[str, Tensor] = load_file(self.path / TENSORS)
        except SafetensorError as error:
            raise ValueError(f"{self.path / TENSORS} cannot be read: {error}.") from error
        return loaded


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write a checkpoint of a step, then remove those that are not `retained`.

    config is kept as it is (`resolved.json`'s content). Raises CheckpointError, with everything
    older untouched, if the disk refuses.
    """
    path = folder / _name(step)
    with refusals_named(path):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".step-*.tmp"):  # by a process that was killed while it saved
            shutil.rmtree(left)
        with Replacing(path) as beside:
            beside.mkdir()
            save_tensors(tensors, beside / TENSORS)
            record = {
                "format": FORMAT,
                "step": step,
                "config": config,
                "torch": torch.__version__,
                "files": {TENSORS: _fingerprint(beside / TENSORS)},
            }
            forget(beside / TENSORS)
            write_synced(beside / RECORD, _sealed(record).encode())
            sync(beside)
        found = _checkpoints(folder)
        for old in found.keys() - retained(found, step, keep, keep_every):
            shutil.rmtree(found[old])
    return path


def retained(steps: Iterable[int], newest: int, keep: int, every: int = 0) -> set[int]:
    """Return the steps whose checkpoints stay once that of step `newest` was written.

    These are the last `keep` of them and, of every `every` steps, the first (0 for none). Those
    after `newest` go: they were found damaged, or the run would not be here again.
    """
    past = sorted(step for step in steps if step <= newest)
    if not every:
        return set(past[-keep:])
    marks = [step // every for step in past]
    first = {
        step for step, mark, before in zip(past, marks, [0, *marks], strict=False) if mark > before
    }
    return first | set(past[-keep:])


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints by their steps; copies under other names belong to who made them."""
    found = {entry.name.removeprefix("step-"): entry for entry in folder.glob("step-*")}
    return {
        int(w): entry for w, entry in found.items() if w.isdecimal() and _name(int(w)) == entry.name
    }


def newest_checkpoint(
    folder: Path, tell: Callable[[str], None] = print, *, before: float = math.inf
) -> Checkpoint | None:
    """Return the newest complete checkpoint of a step below `before`, None if there is none at all.

    `tell` hears of every damaged one that is passed over. Raises ValueError if all are damaged.
    """
    steps = _checkpoints(folder)
    found = [steps[step] for step in sorted(steps, reverse=True) if step < before]
    for path in found:
        try:
            return _open(path)
        except BROKEN as error:
            tell(f"The checkpoint {path} is damaged ({error}) and passed over.")
    if found:
        raise ValueError(
            f"No checkpoint in {folder} is whole, so the run cannot be continued; begin it again "
            f"with --overwrite or in another folder."
        )
    return None


def _open(path: Path) -> Checkpoint:
    text = (path / RECORD).read_text()
    record = json.loads(text)
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']}, this version reads {FORMAT}")
    step = record["step"]
    if type(step) is not int or path.name != _name(step):
        raise ValueError("its step is not that of its name")
    if list(record["files"]) != [TENSORS]:  # a name could lead anywhere
        raise ValueError(f"it lists other files than {TENSORS}")
    if _fingerprint(path / TENSORS) != record["files"][TENSORS]:
        raise ValueError(f"{TENSORS} is not what was written")
    if _digest(text.replace(record["sha256"], BLANK)) != record["sha256"]:
        raise ValueError(f"{RECORD} is not what was written")
    return Checkpoint(path, step, record)


def _sealed(record: Mapping[str, Any]) -> str:
    """Return a record as text that holds its own checksum, taken with a blank in its place."""
    text = json.dumps({**record, "sha256": BLANK}, indent=2)
    return text.replace(BLANK, _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
