"""Plain names resolve in literal dicts; an unknown one is answered with its nearest neighbour."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def unknown_name(what: str, given: str, known: Iterable[str]) -> ValueError:
    """Return (not raise) the error for an unknown name: what was given, the nearest, the known.

    Of dotted names that share a section, only the last words are compared.
    """
    names = sorted(known)
    words = {name.rpartition(".")[2]: name for name in names}
    near = get_close_matches(given.rpartition(".")[2], words, n=1, cutoff=0.6)
    hint = f"; did you mean {words[near[0]]!r}?" if near else "."
    shown = (name if name.isprintable() else repr(name) for name in names)  # folders name classes
    return ValueError(f"Unknown {what} {given!r}{hint} Known: {', '.join(shown)}.")


def look_up(what: str, given: str, table: Mapping[str, T]) -> T:
    """Return `table[given]`. Raises ValueError with the nearest known name otherwise."""
    if given not in table:
        raise unknown_name(what, given, table)
    return table[given]
