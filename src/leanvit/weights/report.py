"""What a file of weights turned out to hold, and what became of every tensor in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig
from leanvit.core.random import seeded
from leanvit.weights.reading import non_finite
from leanvit.weights.strangers import listed

Fate = Literal["used", "renamed", "folded", "dropped"]
FATES: tuple[Fate, ...] = ("used", "renamed", "folded", "dropped")


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor of a file."""

    theirs: str
    """Its name in the file, without wrappers of parallel training."""
    fate: Fate
    ours: str = ""
    """The parameter that it became, or became a part of."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """How a file was understood; prints as a table in which blocks of one kind share a line."""

    layout: str
    """Key of `LAYOUTS`, or `leanvit`."""
    place: str
    """What stands before the network's names."""
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    """What was assumed, and what a reader should know."""

    def __str__(self) -> str:
        if self.layout == "leanvit" and self.rows:
            all_ours = f"layout leanvit: {len(self.rows)} tensors, all used under their own names"
            return "\n".join([all_ours, *(f"note: {note}" for note in self.notes)])
        counts: dict[tuple[str, ...], int] = {}
        for row in sorted(self.rows, key=lambda row: FATES.index(row.fate)):
            inside = row.theirs.startswith(self.place)
            name = row.theirs.removeprefix(self.place)
            theirs = _general(name) if inside else f"{name.partition('.')[0]}.*"
            ours = f"-> {_general(row.ours)}" if row.fate in ("renamed", "folded") else ""
            kind = (row.fate, theirs, ours, row.why)
            counts[kind] = counts.get(kind, 0) + 1
        cells = [[kind[0], f"{count:4} x", *kind[1:]] for kind, count in counts.items()]
        widths = [max(len(line[column]) for line in cells) for column in range(4)] if cells else []
        place = f" under {self.place.rstrip('.')!r}" if self.place else ""
        lines = [f"layout {self.layout}{place}"]
        for line in cells:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=False))
            lines.append("  ".join([*padded, line[4]]).rstrip())
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: every tensor by itself."""
        return {
            "layout": self.layout,
            "place": self.place,
            "tensors": [
                {"name": r.theirs, "fate": r.fate, "became": r.ours, "why": r.why}
                for r in self.rows
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Weights:
    """A backbone as a configuration and its weights."""

    config: BackboneConfig
    state: Mapping[str, Tensor] | None
    """Of exactly the network's parameters and buffers; None: fresh ones."""
    mean: tuple[float, ...]
    """Mean of the channels that the network was trained with."""
    std: tuple[float, ...]
    """Standard deviation of the channels."""
    report: Report
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of its making, if leanvit wrote it."""


def build(weights: Weights) -> Backbone:
    """Return the network, in evaluation mode, on the CPU. Raises RuntimeError for another state."""
    with seeded(0, "weights"):
        backbone = build_backbone(weights.config)
    if weights.state is not None:
        backbone.load_state_dict(weights.state, strict=True)
    backbone.mean, backbone.std = weights.mean, weights.std
    return backbone.eval()


def require_numbers(
    path: Path,
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    rows: Sequence[Row],
) -> None:
    """Refuse weights that are not finite, and whole numbers in the place of fractions.

    expected: the network's `skeleton`; tensors: of the file, by its names; rows: what each of them
    became. Raises ValueError with the names.
    """
    used = [row for row in rows if row.fate != "dropped"]
    broken = non_finite({row.theirs: tensors[row.theirs] for row in used})
    if broken:
        raise ValueError(
            f"{str(path)!r}: an infinity or NaN stands in {listed(broken)}, so its training went "
            f"wrong or it was damaged; take an earlier checkpoint."
        )
    wrong = [
        row.theirs
        for row in used
        if expected[row.ours].is_floating_point() and not tensors[row.theirs].is_floating_point()
    ]
    if wrong:
        kind = str(tensors[wrong[0]].dtype).removeprefix("torch.")
        raise ValueError(
            f"{str(path)!r}: {listed(wrong)} holds whole numbers ({kind}) where weights are "
            f"fractions, as quantized files do; give the weights before that, best float32."
        )


def skeleton(config: BackboneConfig) -> dict[str, Tensor]:
    """Return a network's parameters and buffers without their numbers, on the meta device.

    Raises ValueError for sizes that no tensor can have.
    """
    try:
        with seeded(0, "skeleton"), torch.device("meta"):
            return build_backbone(config).state_dict()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"No network has such sizes: {reason}.") from error


def _general(name: str) -> str:
    """Return a name with a star for every number."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
