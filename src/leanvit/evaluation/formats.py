"""Files of features: .npz, .parquet, .safetensors and .csv, written batch by batch.

No writer holds more than a few batches in memory: a million images with 49 regions of 768 channels
are 150 GB. Letters: N images, D channels of a feature, h x w regions.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from leanvit.core.files import save_tensors

FACTS, NAMES = "facts", "names"
"""Keys of what the features are, and of the images' names, as JSON."""
GROUP_BYTES = 2**25
"""Bytes of the features in a row group of Parquet: what is kept until it is written."""
NAMES_BYTES = 99_000_000
"""What the header of safetensors, of 100 MB at most, leaves for the names."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some images, in order, and their features."""

    names: Sequence[str]
    """[N]."""
    targets: NDArray[np.int64]
    """[N] class, -1 without one."""
    features: NDArray[Any]
    """[N, D] or [N, h, w, D]."""


Facts = Mapping[str, Any]
"""What the features are: plain values; `classes` are the names of the classes."""


def write_npz(file: Path, parts: Iterator[Part], facts: Facts) -> None:
    """Write the arrays features, names, targets and classes, and facts, a word of JSON."""
    with _gathered(file, parts) as (features, targets, names), file.open("wb") as out:
        np.savez_compressed(
            out,
            features=features,
            names=np.array(names, dtype=np.str_),
            targets=targets,
            classes=np.array(facts["classes"], dtype=np.str_),
            facts=np.array(json.dumps(facts)),
        )


def write_safetensors(file: Path, parts: Iterator[Part], facts: Facts) -> None:
    """Write the tensors features and targets; facts and names are JSON in the header."""
    with _gathered(file, parts) as (features, targets, names):
        tensors = {"features": torch.from_numpy(features), "targets": torch.from_numpy(targets)}
        save_tensors(tensors, file, {FACTS: json.dumps(facts), NAMES: json.dumps(names)})


@contextmanager
def _gathered(
    file: Path, parts: Iterator[Part]
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64], list[str]]]:
    """Yield all features, classes and names in one piece each.

    Both formats begin with the number of rows, which is known at the end. Until then the features
    go to a file without a name on the same disk, which vanishes with this process; its pages are
    no memory that anybody has to keep.
    """
    names: list[str] = []
    targets: list[NDArray[np.int64]] = []
    with TemporaryFile(dir=file.parent) as kept:
        for part in parts:
            names += part.names
            targets.append(part.targets)
            kept.write(np.ascontiguousarray(part.features).data)
            dtype, row = part.features.dtype, part.features.shape[1:]
            del part  # the next batch is made meanwhile
        kept.flush()
        features = np.memmap(kept, dtype, "r+", shape=(len(names), *row))
        yield features, np.concatenate(targets), names


def write_csv(file: Path, parts: Iterator[Part], facts: Facts) -> None:
    """Write a line an image: name, class, then D numbers."""
    first = True
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        writer = csv.writer(out)
        for part in parts:
            if first:
                head = (f"f{column}" for column in range(part.features.shape[1]))
                writer.writerow(["name", "class", *head])
                first = False
            labels = _labels(part, facts, "")
            for name, label, row in zip(part.names, labels, part.features, strict=True):
                writer.writerow([name, label, *(f"{value:.7g}" for value in row)])


def _labels(part: Part, facts: Facts, missing: str | None) -> list[str | None]:
    """Return the name of every image's class, and `missing` where it has none."""
    classes = facts["classes"]
    return [classes[target] if target >= 0 else missing for target in part.targets.tolist()]


def write_parquet(file: Path, parts: Iterator[Part], facts: Facts) -> None:
    """Write a row an image, or a row a region: name, class, target, row, column, features.

    Features are lists of a fixed size; the schema's metadata holds the facts as JSON.
    """
    from pyarrow import concat_tables
    from pyarrow.parquet import ParquetWriter

    tables = (_table(part, facts) for part in parts)
    first = next(tables)
    schema = first.schema.with_metadata({FACTS: json.dumps(facts)})
    kind = schema.field("features").type
    rows = max(GROUP_BYTES * 8 // (kind.list_size * kind.value_type.bit_width), 1)
    words = ["name", "class"]  # regions repeat them, so a dictionary is smaller
    with file.open("wb") as out, ParquetWriter(out, schema, use_dictionary=words) as writer:
        waiting = schema.empty_table()
        for table in chain([first], tables):
            waiting = concat_tables([waiting, table])
            whole = waiting.num_rows - waiting.num_rows % rows
            if whole:
                writer.write_table(waiting.slice(0, whole), row_group_size=rows)
                waiting = waiting.slice(whole)
        if waiting.num_rows:
            writer.write_table(waiting)


def _table(part: Part, facts: Facts) -> Any:
    """Return the rows of some images as a table of pyarrow."""
    import pyarrow as pa

    count, *grid, width = part.features.shape
    image = np.repeat(np.arange(count), int(np.prod(grid)))
    rows = np.ascontiguousarray(part.features).reshape(-1, width)
    labels = [None if label is None else printable(label) for label in _labels(part, facts, None)]
    columns = {
        "name": pa.array(list(map(printable, part.names)), pa.string()).take(pa.array(image)),
        "class": pa.array(labels, pa.string()).take(pa.array(image)),
        "target": pa.array(part.targets[image]),
    }
    if grid:
        places = np.indices(grid, dtype=np.int32).reshape(2, -1)
        columns |= {
            name: pa.array(np.tile(place, count))
            for name, place in zip(("row", "column"), places, strict=True)
        }
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width)
    return pa.table(columns)


def printable(name: str) -> str:
    r"""Return a name as text that is Unicode throughout, as Parquet demands.

    A byte of a file's name that is no UTF-8, such as ff, becomes six letters, \udcff, as in JSON.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class Format(NamedTuple):
    """A kind of file."""

    write: Callable[[Path, Iterator[Part], Facts], None]
    room: float
    """Bytes that the disk needs while it is written, about, over those of the features."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        ".npz": Format(write_npz, 2.0),
        ".parquet": Format(write_parquet, 1.0),
        ".safetensors": Format(write_safetensors, 2.0),
        ".csv": Format(write_csv, 3.0),  # twelve letters a number
    }
)
"""Every kind of file, by the ending of its name."""
