"""Parquet files with a column of images, as Hugging Face data sets store them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from leanvit.data.archives import no_image, require_file
from leanvit.data.members import split_files
from leanvit.data.names import encoded
from leanvit.data.sources import About, Sample, Source, is_folder, number_classes

IMAGES = ("image", "img")
"""Names of the column of images; otherwise it is the only one that holds bytes."""
LABEL = "label"
"""Name of the column of classes."""
OPEN = 16
"""Files that stay open."""


class ParquetSource:
    """The rows of a .parquet file, or of a folder that holds nothing but such files, in order.

    An image is bytes, or a struct with a field `bytes`. Classes come from the column `label`, of
    whole numbers or words, if every row has one; names that Hugging Face stored count. Each process
    keeps the row group that it read last, so an order that jumps reads a whole group for an image.
    Raises ValueError if pyarrow is missing, a file cannot be read, or there is no image.
    """

    def __init__(
        self, place: Path, known: tuple[str, ...] | None = None, files: tuple[Path, ...] = ()
    ) -> None:
        self.place = place
        self._files, self._aside = (files, ()) if files else _tables(place)
        groups, labels, names = list[tuple[int, int, int, int]](), list[str](), None
        self._columns = []
        for number, file in enumerate(self._files):
            table = _open(file)
            self._columns.append(_image_column(table, file))
            first = 0
            for group, rows in enumerate(_group_rows(table, file)):
                groups.append((number, group, first, rows))
                first += rows
            names = _class_names(table) or names
            labels += _labels(table, file, names)
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 4)
        self._ends = self._groups[:, 3].cumsum()
        count = int(self._groups[:, 3].sum())
        what = f"Parquet table {str(place)!r}"
        if not count:
            raise no_image(f"the {what}")
        labels = [] if len(labels) != count or "" in labels else labels
        order = known or (names if labels else None)
        self.classes, self.targets = number_classes(labels, count, order, what, as_numbers=True)
        self._about = About(what, f"its column {LABEL!r}" if labels else "")
        self._forget()

    def _forget(self) -> None:
        self._opened: dict[int, Any] = {}
        self._group: tuple[int, Any] = (-1, None)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_group": (-1, None)}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        place, row = self._place(index)
        column = self._column(place)
        image = column[row].as_py() if row < len(column) else None
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            raise OSError("the row holds no image")
        return Sample(image, index, int(self.targets[index]))

    def _place(self, index: int) -> tuple[int, int]:
        """Return the row group that an image lies in, over all files, and its row there."""
        index = range(len(self))[index]
        place = int(np.searchsorted(self._ends, index, side="right"))
        return place, index - int(self._ends[place] - self._groups[place, 3])

    def _column(self, place: int) -> Any:
        """Return the images of a row group. Raises OSError if it cannot be read."""
        from pyarrow import ArrowException

        if self._process != os.getpid():
            self._forget()
        kept, column = self._group
        if kept == place:
            return column
        number, group = self._groups[place, :2].tolist()
        try:
            table = self._opened.get(number) or _open(self._files[number])
            name = self._columns[number]
            column = table.read_row_group(group, columns=[name], use_threads=False)[name]
        except (ArrowException, OSError, ValueError) as error:
            words = " ".join(str(error).split())
            raise OSError(f"{str(self._files[number])!r}, row group {group}: {words}") from error
        if len(self._opened) >= OPEN:
            self._opened = {}
        self._opened[number], self._group = table, (place, column)
        return column

    def name(self, index: int) -> str:
        """Return the file and the row in it."""
        place, row = self._place(index)
        number, _, first, _ = self._groups[place].tolist()
        return f"{self._files[number].name}/{first + row:06d}"

    def fingerprint(self) -> str:
        """Return a digest of the files' names, of the number of rows in each, and of the classes.

        What the images are would take reading them.
        """
        names = "\0".join([*(file.name for file in self._files), *self.classes])
        parts = (encoded(names), self._groups.tobytes(), self.targets.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def validation(self) -> Source | None:
        """Return the files named `validation-...` beside those named `train-...`, if there are."""
        return ParquetSource(self.place, self.classes, self._aside) if self._aside else None

    def about(self) -> About:
        """Return what this is."""
        return self._about


def _tables(place: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the files to learn from, and those that are set aside."""
    if not is_folder(place):
        return (place,), ()
    every = sorted(file for file in place.iterdir() if file.suffix.lower() == ".parquet")
    chosen, aside = split_files(every)
    return tuple(chosen), tuple(aside)


def _open(file: Path) -> Any:
    """Return an open table. Raises ValueError if there is none."""
    require_file(file)
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            f"Reading {str(file)!r} needs pyarrow: pip install 'leanvit[web]'."
        ) from error
    try:
        return ParquetFile(str(file), pre_buffer=False)
    except (ArrowException, OSError, ValueError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"Cannot read the Parquet table {str(file)!r}: {words}.") from error


def _group_rows(table: Any, file: Path) -> list[int]:
    """Return the number of rows in each row group."""
    facts = table.metadata
    rows = [int(facts.row_group(group).num_rows) for group in range(facts.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != facts.num_rows:
        raise ValueError(f"The Parquet table {str(file)!r} is damaged: its numbers of rows differ.")
    return rows


def _image_column(table: Any, file: Path) -> str:
    """Return the name of the column that holds the images."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [field.name for field in table.schema_arrow if holds_bytes(field.type)]
    named = [name for name in IMAGES if name in found] or found
    if len(named) == 1 or (named and named[0] in IMAGES):
        return str(named[0])
    what = f"holds {', '.join(map(repr, found))}" if found else "has no column of bytes"
    raise ValueError(f"The Parquet table {str(file)!r} {what}; name the column of images 'image'.")


def _class_names(table: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that Hugging Face stored beside the columns, if it did."""
    stored = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        facts: Any = json.loads(stored)
        names = facts["info"]["features"][LABEL]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    words = tuple(map(str, names)) if isinstance(names, list) else ()
    return words if len(set(words)) > 1 else None


def _labels(table: Any, file: Path, names: tuple[str, ...] | None) -> list[str]:
    """Return the class of each row, "" where there is none; nothing without such a column."""
    from pyarrow import ArrowException, types

    schema = table.schema_arrow
    kind = schema.field(LABEL).type if LABEL in schema.names else None
    if kind is not None and types.is_dictionary(kind):
        kind = kind.value_type
    word = kind is not None and (types.is_string(kind) or types.is_large_string(kind))
    if kind is None or not (word or types.is_integer(kind)):
        return []
    try:
        values = table.read(columns=[LABEL], use_threads=False)[LABEL].to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"Cannot read the classes in {str(file)!r}: {words}.") from error
    if names and not word:  # a number that has no name, such as -1, stands for no class
        named: dict[object, str] = dict(enumerate(names))
        return [named.get(value, "") for value in values]
    spelled: dict[object, str] = {None: ""}
    return [spelled.setdefault(value, str(value)) for value in values]
