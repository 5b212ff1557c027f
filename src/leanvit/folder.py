"""The folder of a run: what is written there, and who may touch it."""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from socket import gethostname
from typing import Any

import torch

import leanvit
from leanvit.config import Resolved, RunConfig, load_config, to_dict
from leanvit.config.resume import ASKED, RESOLVED, RESUMED, Past, differences
from leanvit.core.files import Replacing, spared, sweep, write_synced, writing
from leanvit.data.sources import SAMPLE, Source, is_folder
from leanvit.train.checkpoint import CHECKPOINTS
from leanvit.train.start import Start
from leanvit.weights.card import METRICS, RESULTS
from leanvit.weights.file import FILE, STUDENT

SUMMARY = "summary.json"
CURVES = "tensorboard"
UNREADABLE = "unreadable.jsonl"
EVENTS, DERAILED = "events.jsonl", "derailed"
"""Steps that stood out, and the state before the one that ended or took back the run."""
VIEWS, LOSSES, MATCHES = "views.png", "curves.png", "matches.png"
RECONSTRUCTIONS = "reconstructions.png"
PICTURES = (VIEWS, LOSSES, MATCHES, RECONSTRUCTIONS)
WRITTEN = (
    *(RESOLVED, ASKED, METRICS, CURVES, CHECKPOINTS, UNREADABLE, EVENTS, DERAILED),
    *(FILE, STUDENT, *PICTURES, SUMMARY, RESULTS),
)
"""All that a run writes, in this order, and all that --overwrite removes, in the other."""


LOCK = ".lock"
"""Locked by the process that trains in a folder; nobody else's while that lives."""


class Claim:
    """The right to write into a folder: one process has it, until it leaves or is killed."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._file: FileIO | None = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with spared(self.out / LOCK):
                (self.out / LOCK).unlink(missing_ok=True)
            self._file.close()

    def take(self) -> None:
        """Make the folder, claim it, and remove what was half-written there.

        Raises ValueError if another process has it.
        """
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._file = file = (self.out / LOCK).open("a+b", buffering=0)
            try:
                # of POSIX: processes that read images do not inherit it and cannot outlive it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                self._file = None
                file.seek(0)
                holder = file.read().decode()
                file.close()
                raise ValueError(
                    f"Another process ({holder}) trains in {str(self.out)!r}: wait for its "
                    f"end or stop it, or name another --out."
                ) from error
            except OSError:
                return  # a file system without locks
            if not os.fstat(file.fileno()).st_nlink:  # the other one has just left
                return self.take()
            file.truncate(0)
            file.write(f"{os.getpid()} on {gethostname()}".encode())
        for name in WRITTEN:
            sweep(self.out / name)


def holds_run(out: Path) -> bool:
    """Return whether a folder holds anything that a run wrote."""
    return any((out / name).exists() for name in WRITTEN)


def require_free(out: Path, overwrite: bool, source: str, *, among_others: bool = False) -> None:
    """Raise ValueError if the folder holds what must not be touched or mixed with results.

    among_others: files that no run writes may lie there, such as the log of a job.
    """
    require_apart(out, source)
    left = {out / LOCK, *out.glob(f".{RESOLVED}.*.tmp")}  # by a run killed before it began
    empty = not out.is_dir() or set(out.iterdir()) <= left
    if empty or (among_others and not holds_run(out)):
        return
    if not overwrite:
        saved = (out / CHECKPOINTS).exists() or not (out / RESOLVED).exists()
        raise ValueError(
            f"The folder {str(out)!r} is not empty: continue the run in it with --resume, "
            f"replace it with --overwrite{'' if saved else ' (it saved nothing yet)'}, or name "
            f"another --out."
        )
    if not (out / RESOLVED).exists():
        raise ValueError(
            f"The folder {str(out)!r} holds no run of leanvit, so --overwrite leaves it alone."
        )


def require_apart(out: Path, source: str) -> None:
    """Raise ValueError if the folder is a file, or lies in the images' folder or around it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file; name a folder.")
    images, results = Path(source).resolve(), out.resolve()
    apart = source in ("", SAMPLE) or not is_folder(images)  # "" is a source from Python
    if not apart and (images.is_relative_to(results) or results.is_relative_to(images)):
        raise ValueError(
            f"The images in {source!r} and the results in {str(out)!r} would lie in one "
            f"another; name an --out beside the images."
        )


def start_folder(
    out: Path, asked: RunConfig, resolved: Resolved, source: Source, start: Start | None
) -> None:
    """Remove an old run's files, and only those; write down what was asked and what will run."""
    with writing(out):
        for name in reversed(WRITTEN):
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        versions = {"leanvit": leanvit.__version__, "torch": torch.__version__}
        record = {"started": _now(), "versions": versions, "images": _facts(source)}
        record |= {"asked": to_dict(asked)} | resolved.to_dict()
        record |= {"init": start.to_dict()} if start else {}
        _write_json(out / RESOLVED, record)
        _write_json(out / ASKED, to_dict(asked))


def _write_json(path: Path, plain: Mapping[str, Any]) -> None:
    """Write a file that is whole or, where the disk refuses, as it was."""
    with Replacing(path) as beside:
        write_synced(beside, (json.dumps(plain, indent=2) + "\n").encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _facts(source: Source) -> dict[str, Any]:
    """Return what a run remembers of its images."""
    return {"count": len(source), "fingerprint": source.fingerprint()}


def started_from(past: Past) -> Start | None:
    """Return what a run started from; None if all its weights were fresh."""
    return Start(**past.record["init"]) if "init" in past.record else None


def require_same_images(recorded: Mapping[str, Any], source: Source) -> None:
    """Raise ValueError if a source does not hold the images that a run began with.

    recorded: what `resolved.json` says of them.
    """
    count = recorded["count"]
    if recorded != _facts(source):
        what = f"{len(source)} now" if count != len(source) else "the same number of others now"
        raise ValueError(
            f"The run began with {count} images and there are {what}, so their order cannot be "
            f"continued."
        )


def finished(out: Path, config: RunConfig) -> bool:
    """Return whether the run in a folder came to its end, with all that a run writes there.

    It may have lost all its checkpoints, which are large, but not the last one alone.
    """
    try:
        summary = json.loads((out / SUMMARY).read_text())
    except (OSError, ValueError):
        return False
    steps = summary.get("steps") if isinstance(summary, dict) else None
    if not isinstance(steps, int):
        return False
    last = max((path.name for path in (out / CHECKPOINTS).glob("step-*")), default=None)
    whole = (out / FILE).exists() and last in (None, f"step-{steps:08d}")
    return whole and steps == config.train.duration.amount


def record_changes(out: Path, step: int, past: Past, changed: Past) -> None:
    """Write down what a run is from a step on, and what it was before that: nothing is hidden."""
    found = differences(past.resolved.config, changed.resolved.config)
    record = {**past.record, "asked": to_dict(changed.asked), **changed.resolved.to_dict()}
    origins = {name: f"{record['origins'][name]}; changed at step {step}" for name in found}
    record["origins"] = {**record["origins"], **origins}
    entry = {"step": step, "when": _now(), "changes": found}
    record[RESUMED] = [*past.record.get(RESUMED, []), *([entry] if found else [])]
    with writing(out):
        _write_json(out / RESOLVED, record)


def mend(out: Path, asked: RunConfig) -> None:
    """Put right what the end of a run may have left half-written, and what can be made anew.

    asked: what the run is asked, which `config.json` repeats.
    """
    with writing(out):
        try:
            same = load_config(out / ASKED) == asked
        except ValueError:
            same = False
        if not same:
            _write_json(out / ASKED, to_dict(asked))
        for path in (out / UNREADABLE, out / EVENTS):
            if path.exists():
                with path.open("rb+") as file:
                    file.truncate(file.read().rfind(b"\n") + 1)
