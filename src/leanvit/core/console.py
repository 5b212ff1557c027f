"""What a person sees while something runs: always on stderr, so that stdout holds results alone."""

import sys
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def say(text: str) -> None:
    """Print a line of text on stderr; where that is a file on a full disk, do without."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return


def warn(text: str) -> None:
    """Say what a person must know even where everything else is silent."""
    say(f"leanvit: {text}")


def track(
    items: Iterable[T], text: str, total: int, *, quiet: bool = False
) -> Generator[T, None, None]:
    """Yield items under a progress bar, on a terminal; elsewhere, and if quiet, just yield them."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(
        items, text, total=total, console=Console(stderr=True), transient=True, show_speed=False
    )
