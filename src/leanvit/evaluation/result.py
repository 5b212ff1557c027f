"""What an evaluation found: printed as a table, given to programs as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """Facts about what was done, and a table."""

    name: str
    """The evaluation."""
    facts: Mapping[str, Any]
    """What was evaluated, on which images, how."""
    rows: Sequence[Mapping[str, Any]]
    """The table: every row has the same keys."""
    notes: Sequence[str] = field(default=())
    """Sentences that a reader of the table should know."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Every option, as it was asked."""
    headline: Mapping[str, float] = field(default_factory=dict)
    """The figures that backbones are compared by, in percent, by name."""
    digits: Mapping[str, int] = field(default_factory=dict)
    """Digits after the point of a column; one in the others."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the table as lines of text: a head, then one line a row."""
        heads = list(self.rows[0])
        digits = [self.digits.get(head, 1) for head in heads]
        cells = [
            heads,
            *([_cell(row[h], d) for h, d in zip(heads, digits, strict=True)] for row in self.rows),
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
        numeric = [not all(isinstance(row[head], str) for row in self.rows) for head in heads]
        return [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in cells
        ]

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *self.notes])


def headline(
    rows: Sequence[Mapping[str, Any]], title: str, column: str, of: str = "features"
) -> dict[str, float]:
    """Return what a table says of the network itself in a column, for each protocol, by name.

    of: the column that names the networks; of several the first counts, which is the teacher.
    """
    found: dict[str, float] = {}
    own = [row for row in rows if row[of].startswith("trained")]
    for row in own or [row for row in rows if row[of].startswith("untrained")]:
        grey = ", grey" if row.get("protocol") == "grey" else ""
        found.setdefault(f"{title}{grey}", float(row[column]))
    return found


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
