"""`leanvit evaluate transfer`: a backbone on up to 24 data sets, beside the figures of a paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

from leanvit.config import look_up
from leanvit.config.evaluation import TransferConfig
from leanvit.core.console import say, warn
from leanvit.core.distributed import all_lists, rank, require_alone
from leanvit.core.errors import NonFiniteError
from leanvit.data.published import Parts
from leanvit.data.transfer import TRANSFER_SETS, TransferSet, open_set
from leanvit.evaluation.inputs import device_of, see
from leanvit.evaluation.judging import Outcome, Task, judge
from leanvit.evaluation.models import open_networks
from leanvit.evaluation.result import Result

COLUMNS = ("supervised Swin-T", "supervised Swin-S", "EsViT Swin-S")
PAPER: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "Caltech101": (90.8, 92.2, 93.26),
        "CIFAR10": (94.0, 95.3, 96.27),
        "CIFAR100": (77.5, 80.2, 83.10),
        "DTD": (73.1, 73.1, 77.29),
        "FER2013": (55.1, 56.2, 58.68),
        "FGVCAircraft": (51.5, 51.0, 58.62),
        "Flowers102": (91.5, 91.7, 96.97),
        "Food101": (77.4, 78.5, 80.48),
        "GTSRB": (72.9, 70.9, 81.17),
        "HatefulMemes": (51.2, 49.4, 54.00),
        "MNIST": (98.3, 97.9, 98.11),
        "PatchCamelyon": (84.0, 85.1, 83.44),
        "OxfordPets": (93.3, 93.2, 93.32),
        "StanfordCars": (55.3, 58.3, 63.25),
        "STL10": (97.9, 98.5, 99.14),
        "SUN397": (64.3, 65.1, 69.16),
        "UCF101": (79.0, 79.9, 81.95),
        "VOC2007": (84.2, 85.0, 87.29),
    }
)
"""Figures of 18 sets in arXiv 2106.09785, by `COLUMNS`."""
NONE = dict.fromkeys(COLUMNS)


def transfer_result(config: TransferConfig, model: str | Path, quiet: bool) -> Result:
    """Return the table of all sets that lie below a folder, and how to get the others.

    A set that fails is named in the notes, and the others go on. Of a run the teacher is taken.
    Raises ValueError for an unknown set, and if no set at all has a figure.
    """
    root = Path(config.data)
    if not config.data or not root.is_dir():
        raise ValueError(
            f"data is {config.data!r}; name the folder under which the data sets lie (--data), as "
            f"docs/transfer.md has them."
        )
    spelled = {name.lower(): name for name in TRANSFER_SETS}
    names = [spelled.get(name.lower(), name) for name in config.sets or TRANSFER_SETS]
    entries = [look_up("data set", name, TRANSFER_SETS) for name in names]
    if config.probe == "finetune":
        require_alone("evaluate transfer --probe finetune")
    network = next(iter(open_networks(model, device_of(config), quiet).values()))
    rows, notes = list[dict[str, Any]](), list[str]()
    for entry in entries:
        try:
            parts = _opened(entry, root)
            if parts is None:
                notes.append(f"{entry.name} is not below {config.data!r}: {entry.how}.")
                continue
            seen = see(config, network.config.image_size, parts.train, quiet)
            outcome = judge(Task(entry, parts, config, model, network, seen))
        except (ValueError, OSError, NonFiniteError) as error:
            notes.append(f"{entry.name} failed: {error}")
            if rank() == 0:
                warn(notes[-1])
            continue
        rows.append(_row(entry, parts, outcome))
        notes += [
            f"{entry.name}: {note}"
            for note in (*_unlike(entry, parts), *outcome.notes, *seen.notes)
        ]
        if not quiet:
            say(f"{entry.name}: {entry.metric} {outcome.score:.1f} ({outcome.chosen}).")
    if not rows:
        lines = "".join(f"\n  {note}" for note in notes)
        raise ValueError(f"No data set below {config.data!r} has a figure:{lines}")
    what = rows[0]["set"] if len(rows) == 1 else f"mean of {len(rows)} sets"
    average = {f"transfer by {config.probe}, {what}": mean(row["ours"] for row in rows)}
    facts = {"probe": config.probe, "sets": len(rows)}
    return Result("transfer", facts, [*rows, *totals(rows)], notes, headline=average)


def _opened(entry: TransferSet, root: Path) -> Parts | None:
    """Return the parts of a set, if it is there: for all processes, or ValueError in all."""
    parts, found = None, ""
    try:
        parts = open_set(entry, root)
    except ValueError as error:
        found = str(error)
    every = all_lists([(found, parts is not None)])
    for problem, _ in every:
        if problem:
            raise ValueError(problem)
    if len({there for _, there in every}) > 1:
        raise ValueError(f"not every process finds it below {str(root)!r}.")
    return parts


def _row(entry: TransferSet, parts: Parts, outcome: Outcome) -> dict[str, Any]:
    """Return what is told of a set; `train` counts the images that chose, too."""
    figures = PAPER.get(entry.name)
    return {
        "set": entry.name,
        "metric": entry.metric,
        "train": len(parts.train) + (0 if parts.val is None else len(parts.val)),
        "test": len(parts.test),
        "ours": outcome.score,
        **(dict(zip(COLUMNS, figures, strict=True)) if figures else NONE),
        "chosen": outcome.chosen,
    }


def _unlike(entry: TransferSet, parts: Parts) -> list[str]:
    """Return a sentence if these are not the images that others have figures of."""
    learn = len(parts.train) + (0 if parts.val is None else len(parts.val))
    here, there = (learn, len(parts.test)), (entry.learn, entry.test)
    if here == there:
        return []
    return [
        f"{here[0]:,} images to learn from and {here[1]:,} to test on, where others have "
        f"{there[0]:,} and {there[1]:,}: figures do not compare."
    ]


def totals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the last rows of the table.

    The average over the paper's sets, of the same ones in every column; on how many of them each
    column beats the supervised Swin-T; and the average over all sets, if there are others.
    """

    def total(name: str, ours: float, others: Mapping[str, Any]) -> dict[str, Any]:
        empty = {"metric": "", "train": None, "test": None}
        return {"set": name, **empty, "ours": ours, **others, "chosen": ""}

    first, *others = COLUMNS
    known = [row for row in rows if row["set"] in PAPER]
    found = []
    if known:
        averages = {name: mean(row[name] for row in known) for name in ("ours", *COLUMNS)}
        wins = {
            name: sum(row[name] > row[first] for row in known) for name in ("ours", *others)
        } | {first: None}
        found.append(total(f"average of {len(known)}", averages.pop("ours"), averages))
        found.append(
            total(f"wins over {first}", wins["ours"], {name: wins[name] for name in COLUMNS})
        )
    if len(rows) > len(known):
        found.append(total(f"average of all {len(rows)}", mean(row["ours"] for row in rows), NONE))
    return found
