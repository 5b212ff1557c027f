"""How what is measured is called, and how its figures are printed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

DISTURBED = "Rounds differ by more than twice: something else used the machine."


@dataclass(frozen=True, slots=True)
class Form:
    """Whose it is, and how it runs."""

    name: str
    precision: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.precision}{' compiled' if self.compiled else ''}"


def differ(every: Iterable[Sequence[float]]) -> bool:
    """Return whether the rounds of anything differ by more than twice."""
    return any(max(seconds) > 2 * min(seconds) for seconds in every)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table with aligned columns; none without rows."""
    if not rows:
        return
    full = [[*row, *[""] * (len(head) - len(row))] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    full.insert(1, ["-" * width for width in widths])
    for row in full:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(cells)} |"
