"""Text files of images as the official EsViT code reads them: a row is key, label, base64."""

import base64
import binascii
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanvit.data.archives import require_file
from leanvit.data.members import Files, MemberSource
from leanvit.data.names import Names
from leanvit.data.sources import About

HEAD = 4096
"""Bytes that are looked at first for a row's key and label."""
LONGEST_HEAD = 2**20
"""Bytes that they may take."""
PIECE = 2**24
"""Bytes that are searched at once for the ends of lines."""


class TsvSource(MemberSource):
    """Rows of key, tab, label, tab, image in base64, in the order of the file.

    `.lineidx` beside the file (the byte at which each row begins, one a line) saves reading it
    whole. A label is a word, or a JSON list of {"class": word}, whose first word counts; classes
    are taken if every row has one. All rows may lack the label. Columns of the table: file, offset,
    bytes in base64. Raises ValueError if the file is missing or no such table, or if its index does
    not fit it.
    """

    def __init__(self, file: str | Path, known: tuple[str, ...] | None = None) -> None:
        self.file = Path(file)
        require_file(self.file)
        files = Files([self.file])
        keys, labels, notes = Names(), list[str](), list[str]()
        table, width = array("q"), 0
        words: dict[str, str] = {}
        try:
            for start, end in _rows(self.file):
                columns, image = _head(files, start, end)
                width = width or len(columns)
                if not columns or len(columns) != width:
                    notes.append(self._cut_off(start, last=bool(keys) and end == _size(self.file)))
                    break
                keys.add(columns[0].decode(errors="surrogateescape"))
                table.extend((0, image, end - image))
                label = _label(columns[1]) if width > 1 else ""
                labels.append(words.setdefault(label, label))
        except OSError as error:
            raise ValueError(f"Cannot read {str(file)!r}: {error}.") from error
        if not keys:
            raise ValueError(f"There is no row in {str(file)!r}.")
        super().__init__(
            About(f"table {str(file)!r} of images in base64", "its labels", tuple(notes)),
            files,
            keys,
            np.frombuffer(table, dtype=np.int64).reshape(-1, 3),
            [] if "" in words else labels,
            known,
            as_numbers=True,
        )

    def _cut_off(self, start: int, *, last: bool) -> str:
        """Return what to say of a last row that lacks columns. Raises ValueError for another."""
        if not last:
            raise ValueError(
                f"{str(self.file)!r} is no table of images: the row at byte {start} lacks columns; "
                f"write key, tab, label, tab, image in base64 on every line."
            )
        return f"The table {str(self.file)!r} is cut off at byte {start}, within its last row."

    def _read(self, row: list[int]) -> bytes:
        text = self._files.read(row[0], row[1], row[2])
        try:
            return base64.b64decode(text.strip(), validate=True)
        except binascii.Error as error:
            raise OSError(f"the image is no base64: {error}") from error


def _size(file: Path) -> int:
    return file.stat().st_size


def _rows(file: Path) -> Iterator[tuple[int, int]]:
    """Yield where each row begins and ends; empty ones are left out."""
    size = _size(file)
    index = file.with_suffix(".lineidx")
    starts = _read_index(index, file, size) if index.is_file() else _find_starts(file)
    ends = np.append(starts[1:], size)[: len(starts)]
    for start, end in zip(starts.data, ends.data, strict=True):
        if end - start > 1:
            yield start, end


def _find_starts(file: Path) -> NDArray[np.int64]:
    """Return the byte at which each row begins, from the whole file."""
    starts, at = [np.zeros(1, dtype=np.int64)], 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            ends = np.flatnonzero(np.frombuffer(piece, dtype=np.uint8) == ord("\n"))
            starts.append(ends + at + 1)
            at += len(piece)
    found = np.concatenate(starts)
    return found[found < at]


def _read_index(index: Path, file: Path, size: int) -> NDArray[np.int64]:
    """Return the byte at which each row begins, as the index says."""
    try:
        starts = np.array(index.read_bytes().split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"The index {str(index)!r} holds more than whole numbers.") from error
    fits = len(starts) > 0 and starts[0] == 0 and starts[-1] < size and (np.diff(starts) > 0).all()
    if fits:
        with file.open("rb") as stream:
            for start in starts[1:].data:
                fits = fits and os.pread(stream.fileno(), 1, start - 1) == b"\n"
    if not fits:
        raise ValueError(
            f"The index {str(index)!r} does not fit {str(file)!r}; remove it, or make it anew."
        )
    return starts


def _head(files: Files, start: int, end: int) -> tuple[list[bytes], int]:
    """Return the columns of a row before its image, and where that begins."""
    size = HEAD
    while True:
        text = files.read(0, start, min(size, end - start))
        *columns, _ = text.split(b"\t", 2)
        if len(columns) == 2 or len(text) == end - start or size >= LONGEST_HEAD:
            return columns, start + sum(len(column) + 1 for column in columns)
        size *= 16


def _label(text: bytes) -> str:
    """Return the class that a label states."""
    word = text.decode(errors="replace").strip()
    if not word.startswith(("[", "{")):
        return word
    try:
        facts: Any = json.loads(word)
    except (ValueError, RecursionError):
        return ""
    first = facts[0] if isinstance(facts, list) and facts else facts
    found = first.get("class") if isinstance(first, dict) else None
    return str(found) if isinstance(found, (int, str)) else ""
