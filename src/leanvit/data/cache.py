"""What takes long to find out about large folders and archives, kept until one of them changes.

Nothing depends on it: what cannot be written is not kept, and what is damaged, or was made from
files that have changed since, is found out anew.
"""

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leanvit.core.kept import Arrays, load, place_of, write
from leanvit.data.names import IMAGE_SUFFIXES, OTHER_SUFFIXES, Names

T = TypeVar("T")
R = TypeVar("R")

LEAST = 10_000
"""Images from which on an index is kept; fewer are found as fast as it is read."""
SETTLED = 60 * 10**9
"""Nanoseconds without a change after which the next one shows in a file's times: file systems
count them in steps of up to two seconds, by clocks that may be behind ours."""
THREADS = 32
"""Calls that wait for a file system at once; one on a network takes milliseconds to answer."""
BATCH = 4096
"""Calls that are handed out at once, since each takes memory."""
VERSION = "1"
"""Of the layout of an index, and of the rules of what is found in what order."""


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what a function that waits for files returns of each item, in their order."""
    remaining = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(remaining, BATCH)):
            yield from pool.map(function, batch)


STAMP = struct.Struct("5q")


def stamp(path: str) -> bytes:
    """Return what changes with a file, or with the entries of a folder. Raises OSError."""
    facts = os.stat(path)  # noqa: PTH116
    device, inode = (number % 2**63 for number in (facts.st_dev, facts.st_ino))  # up to 64 bits
    # after the year 2262 as if it were then: never settled, hence never kept
    times = (min(time, 2**63 - 1) for time in (facts.st_mtime_ns, facts.st_ctime_ns))
    return STAMP.pack(device, inode, facts.st_size, *times)


def _stamp_now(path: str) -> bytes:
    try:
        return stamp(path)
    except OSError:
        return b""


def recall(key: Sequence[str]) -> Arrays | None:
    """Return the arrays that were kept under a key, if all that they come from is as it was."""
    place = _place(key)
    arrays = None if place is None else load(place)
    if arrays is None:
        return None
    text, ends, stamps, *found = arrays
    now = b"".join(in_threads(_stamp_now, Names.from_arrays(text, ends)))
    return found if now == stamps.tobytes() else None


def keep(
    key: Sequence[str],
    paths: Names,
    stamps: Iterable[bytes],
    arrays: Sequence[NDArray[Any]],
    *,
    images: int,
    began: int,
) -> None:
    """Keep arrays under a key, unless one of the paths that they come from changed just before.

    stamps: those of the paths, read before their contents were; images: how many the arrays are
    of; began: the time in nanoseconds before anything was read.
    """
    facts = np.frombuffer(b"".join(stamps), dtype=np.int64).reshape(-1, 5)
    place = _place(key)
    if place is None or images < LEAST or facts[:, 3:].max() > began - SETTLED:
        return
    write(place, [*paths.arrays(), facts, *arrays])


def remember(
    words: Sequence[str], files: Sequence[Path], find: Callable[[], tuple[Arrays, int]]
) -> Arrays:
    """Return the arrays that `find` finds in files, from the cache if none has changed since.

    words: what they depend on beside the files; find: returns also how many images may be kept.
    """
    paths = [os.path.realpath(file) for file in files]
    key = (*words, *paths)
    if (known := recall(key)) is not None:
        return known
    began = time.time_ns()
    stamps = list(in_threads(_stamp_now, paths))
    arrays, images = find()
    if all(stamps):
        keep(key, Names(paths), stamps, arrays, images=images, began=began)
    return arrays


def _place(key: Sequence[str]) -> Path | None:
    """Return the file of a key in the user's folder for caches, if there is such a folder."""
    rules = sorted(IMAGE_SUFFIXES | OTHER_SUFFIXES)  # with others, other files are found
    return place_of("index", [VERSION, *rules, *key])
