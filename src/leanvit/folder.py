"""The folder of a run: what is written there, and who may touch it."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import torch

import leanvit
from leanvit.config import (
    Resolved,
    RunConfig,
    from_dict,
    load_config,
    replace_options,
    save_config,
    to_dict,
)
from leanvit.config.convert import leaves, read_json
from leanvit.data.sources import SAMPLE, Source, is_folder
from leanvit.train.checkpoint import CHECKPOINTS
from leanvit.train.start import Start
from leanvit.weights.card import METRICS
from leanvit.weights.file import FILE, RESOLVED, STUDENT

ASKED, SUMMARY = "config.json", "summary.json"
CURVES = "tensorboard"
UNREADABLE = "unreadable.jsonl"
EVENTS, DERAILED = "events.jsonl", "derailed"
"""Steps that stood out, and the state before the one that ended or took back the run."""
VIEWS, LOSSES, MATCHES = "views.png", "curves.png", "matches.png"
RECONSTRUCTIONS = "reconstructions.png"
PICTURES = (VIEWS, LOSSES, MATCHES, RECONSTRUCTIONS)
WRITTEN = (
    *(ASKED, RESOLVED, METRICS, CURVES, CHECKPOINTS, UNREADABLE, EVENTS, DERAILED),
    *(FILE, STUDENT, *PICTURES, SUMMARY),
)
"""All that a run writes, and all that --overwrite removes."""
FREE = (
    *("data.source", "data.workers", "data.max_unreadable"),
    *("train.keep", "train.keep_every", "train.save_minutes"),
)
"""Options that change no number, so that a resumed run may have others."""


def require_free(out: Path, overwrite: bool, source: str) -> None:
    """Raise ValueError if the folder holds what must not be touched or mixed with results."""
    require_apart(out, source)
    if not out.is_dir() or not any(out.iterdir()):
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
    try:
        for name in WRITTEN:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        save_config(asked, out / ASKED)
        images = {"count": len(source), "fingerprint": source.fingerprint()}
        versions = {"leanvit": leanvit.__version__, "torch": torch.__version__}
        started = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"started": started, "versions": versions, "images": images}
        record |= resolved.to_dict() | ({"init": start.to_dict()} if start else {})
        (out / RESOLVED).write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"Cannot write to {str(out)!r}: {error.strerror}.") from error


def started_from(out: Path) -> Start | None:
    """Return what the run in a folder started from; None if all its weights were fresh."""
    record = read_json(out / RESOLVED)
    return Start(**record["init"]) if "init" in record else None


def resumed(asked: RunConfig, resolved: Resolved, out: Path, source: Source) -> Resolved:
    """Return what the run in `out` was resolved to, if that or what it was asked is asked now.

    What changes no number (`FREE`) may change and is taken from now.
    """
    if not (out / RESOLVED).exists():
        raise ValueError(f"There is no run to resume in {str(out)!r}.")
    record = read_json(out / RESOLVED)
    before = dict(leaves(to_dict(load_config(out / ASKED))))
    runs, now = dict(leaves(record["config"])), dict(leaves(to_dict(asked)))
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if now.get(name) not in (before.get(name), runs.get(name)) and name not in FREE
    ]
    if changed:
        raise ValueError(
            f"A run resumes as it began, but {'; '.join(changed)}. Ask for the same, or start a "
            f"new run in another folder."
        )
    count = record["images"]["count"]
    if record["images"] != {"count": len(source), "fingerprint": source.fingerprint()}:
        what = f"{len(source)} now" if count != len(source) else "the same number of others now"
        raise ValueError(
            f"The run began with {count} images and there are {what}, so their order cannot be "
            f"continued."
        )
    current = dict(leaves(to_dict(resolved.config)))
    config = from_dict(RunConfig, record["config"])
    free = {name: current[name] for name in FREE}
    return Resolved(replace_options(config, free), record["origins"])
