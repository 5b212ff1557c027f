"""How measured figures are printed."""

from collections.abc import Iterable, Iterator, Sequence

DISTURBED = "Rounds differ by more than twice: something else used the machine."


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
