"""WebDataset shards: tar archives whose members share a key, such as 7.jpg, 7.cls and 7.json."""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from leanvit.core.kept import Arrays
from leanvit.data.archives import TarEntry, TarMembers, no_image, scan_tar
from leanvit.data.cache import remember
from leanvit.data.members import Files, image_path, split_files
from leanvit.data.names import IMAGE_SUFFIXES, OTHER_SUFFIXES, Names, passed_over, suffix
from leanvit.data.sources import About, Source, is_file, is_folder

KEY = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<kind>[^/]+)", re.DOTALL)
"""A member's key ends at the first dot of its file's name, as WebDataset has it."""
MOST_LABEL = 2**20
"""Bytes of a member that holds a label; a larger one holds something else."""


@dataclass(slots=True)
class _Sample:
    """The members of one key."""

    key: str
    image: TarEntry | None = None
    exact: bool = False
    """Whether the image's name is the key and an ending alone."""
    others: int = 0
    """Images beside it."""
    label: str | None = None


@dataclass(slots=True)
class _Found:
    """What the shards hold."""

    names: Names = field(default_factory=Names)
    table: "array[int]" = field(default_factory=lambda: array("q"))
    labels: "array[int]" = field(default_factory=lambda: array("q"))
    """The number of each image's label among the words."""
    words: dict[str, int] = field(default_factory=dict)
    """The labels; "" for none."""
    others: int = 0
    unread: Names = field(default_factory=Names)
    """The endings of photographs that are not read, one for each."""
    notes: list[str] = field(default_factory=list)

    def arrays(self) -> Arrays:
        """Return all but the notes."""
        table = np.frombuffer(self.table, dtype=np.int64).reshape(-1, 3)
        labels = np.frombuffer(self.labels, dtype=np.int64)
        words, others = Names(self.words).arrays(), np.array([self.others])
        return [table, labels, others, *self.names.arrays(), *words, *self.unread.arrays()]


class ShardSource(TarMembers):
    """WebDataset shards: a folder that holds nothing but .tar files, or a pattern of such files.

    A pattern has ranges and choices, such as `shards/{000..012}.tar` and `{a,b}/{0..9}.tar`.
    Images come by shard, then as they lie in it: of each key the one whose name is the key and an
    ending, or else its first. Classes come from `.cls` (text) or `.json` (its "label"), if every
    sample has one. Raises ValueError if a shard is missing or none holds an image.
    """

    def __init__(
        self,
        name: str | Path,
        known: tuple[str, ...] | None = None,
        shards: Sequence[Path] = (),
    ) -> None:
        self.place = str(name)
        found_shards, aside = (list(shards), []) if shards else split_files(_shards(self.place))
        self._aside = aside
        files = Files(found_shards)
        root = os.path.commonpath([str(shard.parent) for shard in found_shards])
        places = [os.path.relpath(shard, root or ".") for shard in found_shards]
        what, notes = f"WebDataset shards {self.place!r}", list[str]()

        def find() -> tuple[Arrays, int]:
            found = _Found(notes=notes)
            for number, place in enumerate(places):
                _scan(number, found_shards[number], place, files, found)
            if not found.names:
                raise no_image(f"the {what}", notes)
            return found.arrays(), 0 if notes else len(found.names)

        table, labels, others, *stored = remember(("shards", *places), found_shards, find)
        names, words, unread = (Names.from_arrays(*stored[i : i + 2]) for i in (0, 2, 4))
        spelled = list(words)
        if others[0]:
            notes.append(
                f"{others[0]} images in {self.place!r} were left out, since their keys have "
                f"another."
            )
        notes += passed_over(Counter(unread), f"the {what}")
        super().__init__(
            About(f"{what}, {len(found_shards)} in all", "their labels", tuple(notes)),
            files,
            names,
            table,
            [] if "" in spelled else [spelled[number] for number in labels.data],
            known,
            as_numbers=True,
        )

    def validation(self) -> Source | None:
        """Return the shards named `val-...` beside those named `train-...`, if there are."""
        return ShardSource(self.place, self.classes, self._aside) if self._aside else None


def _shards(name: str) -> list[Path]:
    """Return the shards that a folder or a pattern means, in order."""
    folder = Path(name)
    if is_folder(folder):
        return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".tar")
    files = [Path(file) for file in expand(name)]
    if not files:
        raise ValueError(f"The pattern {name!r} names no shard.")
    for file in files:
        if not is_file(file):
            raise ValueError(f"The pattern {name!r} names {str(file)!r}, which does not exist.")
    return files


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern with {first..last} and {one,another} stands for, in order.

    Numbers keep the width that they are written with.
    """
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*))\}", pattern)
    if not found:
        return [pattern]
    first, last, words = found.groups()
    choices = words.split(",") if words is not None else []
    if first is not None:
        if int(last) - int(first) > 10**6:
            raise ValueError(f"The pattern {pattern!r} names more than a million shards.")
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    ends = expand(pattern[found.end() :])
    return [pattern[: found.start()] + choice + end for choice in choices for end in ends]


def _scan(number: int, shard: Path, place: str, files: Files, found: _Found) -> None:
    """Add the samples of a shard."""
    for sample in _samples(_noting(scan_tar(shard, found.notes), found.unread), number, files):
        if sample.image is None:
            continue
        found.names.add(f"{place}/{sample.image.name}")
        found.table.extend((number, sample.image.offset, sample.image.size))
        found.others += sample.others
        found.labels.append(found.words.setdefault(sample.label or "", len(found.words)))


def _noting(entries: Iterable[TarEntry], unread: Names) -> Iterator[TarEntry]:
    """Pass members on; add the endings of those that are photographs and not read."""
    for entry in entries:
        if image_path(entry.name, OTHER_SUFFIXES):
            unread.add(suffix(entry.name))
        yield entry


def _samples(entries: Iterator[TarEntry], number: int, files: Files) -> Iterator[_Sample]:
    """Yield neighbouring members of one key together."""
    sample = _Sample("")
    for entry in entries:
        parts = KEY.fullmatch(entry.name)
        if not parts:
            continue
        if parts["key"] != sample.key:
            yield sample
            sample = _Sample(parts["key"])
        kind = parts["kind"].lower()
        if image_path(entry.name):
            exact = f".{kind}" in IMAGE_SUFFIXES
            sample.others += sample.image is not None
            if sample.image is None or (exact and not sample.exact):
                sample.image, sample.exact = entry, exact
        elif kind == "cls" or (kind == "json" and sample.label is None):
            sample.label = _label(files, number, entry, kind) or sample.label
    yield sample


def _label(files: Files, number: int, entry: TarEntry, kind: str) -> str | None:
    """Return the class that a member states, if it does."""
    if entry.size > MOST_LABEL:
        return None
    try:
        text = files.read(number, entry.offset, entry.size)
    except OSError as error:
        raise ValueError(f"Cannot read {entry.name!r}: {error}.") from error
    if kind == "cls":
        return text.decode(errors="replace").strip() or None
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return None
    label = facts.get("label") if isinstance(facts, dict) else None
    return str(label) if isinstance(label, (int, str)) and label != "" else None
