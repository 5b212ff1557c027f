"""`results.jsonl`: what was found of a backbone, a line an evaluation, with all its options."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leanvit.core.files import writing
from leanvit.evaluation.result import Result
from leanvit.weights.card import RESULTS
from leanvit.weights.file import FILE, weights_of


def place_of(model: str | Path, asked: str) -> Path | None:
    """Return the file that results of a model go to: the one asked for, or that of its run."""
    if asked:
        return Path(asked)
    return Path(model) / RESULTS if (Path(model) / FILE).is_file() else None


NEUTRAL = frozenset({"results", "keep_features", "workers", "device"})
"""Options that change no figure, which nobody needs to know of."""


def record(
    result: Result,
    model: str | Path,
    place: Path,
    *,
    asked: Mapping[str, Any],
    seconds: float,
) -> None:
    """Add a result to a file, as one line. Raises ValueError if it cannot be written.

    asked: the options that were not left at their defaults.
    """
    line = result.to_dict() | {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "versions": {name: version(name) for name in ("leanvit", "torch")},
        "weights": weights_of(model),
        "asked": {name: value for name, value in asked.items() if name not in NEUTRAL},
    }
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("ab+") as file:
            if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")  # another command was killed while it wrote
            file.write(json.dumps(line).encode() + b"\n")


def read_results(place: Path) -> list[Mapping[str, Any]]:
    """Return the results of a file, in the order in which they came; what was cut off is left out.

    Raises ValueError if it is no such file.
    """
    found: list[Mapping[str, Any]] = []
    for line in place.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not {"name", "facts", "rows"} <= entry.keys():
            raise ValueError(f"{str(place)!r} holds no results of leanvit.")
        found.append(entry)
    return found
