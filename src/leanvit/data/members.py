"""What sources inside larger files share: files by process, paths, classes.

Letters: N images.
"""

import os
import posixpath
import re
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanvit.data.names import IMAGE_SUFFIXES, Names, after, labels_by_folder, suffix
from leanvit.data.sources import LARGEST, VALIDATION, About, Sample, Source, number_classes


class _Handle:
    """A file open for reading, closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Files:
    """Files that any thread reads at any place; each process opens its own, when it needs them."""

    OPEN = 64
    """How many stay open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._forget()

    def _forget(self) -> None:
        self._open: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()  # not the one that a thread may have held at a fork
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type["Files"], tuple[tuple[Path, ...]]]:
        return Files, (self.paths,)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return `size` bytes at a place of a file. Raises OSError if there are fewer."""
        if not 0 <= size <= LARGEST or offset < 0:
            raise OSError(f"{size} bytes at byte {offset} are no image")
        handle = self._handle(number)
        parts: list[bytes] = []
        missing = size
        while missing and (part := os.pread(handle.descriptor, missing, offset)):
            parts.append(part)
            offset, missing = offset + len(part), missing - len(part)
        if missing:
            raise OSError(f"{str(self.paths[number])!r} ends {missing} bytes too early")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _handle(self, number: int) -> _Handle:
        """Return an open file; who reads it keeps it open, so another thread may put it away."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            handle = self._open.pop(number, None) or _Handle(self.paths[number])
            self._open[number] = handle
            if len(self._open) > self.OPEN:
                self._open.popitem(last=False)
        return handle


class MemberSource:
    """Images inside files, read in place; a kind adds how one is read.

    about: what this is; files: what they lie in; names: their names, below the folder `below`;
    table: [N, columns] where each lies; labels: the name of each image's class, or none for all;
    known: the classes of the images that these are compared with.
    """

    def __init__(
        self,
        about: About,
        files: Files,
        names: Names,
        table: NDArray[np.int64],
        labels: Sequence[str] = (),
        known: tuple[str, ...] | None = None,
        *,
        below: str = "",
        as_numbers: bool = False,
    ) -> None:
        self._files, self._names, self._table, self._below = files, names, table, below
        self.classes, self.targets = number_classes(
            labels, len(table), known, about.what, as_numbers=as_numbers
        )
        self._about = about if self.classes else about._replace(labels="")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        image = self._read(self._table[index].tolist())
        return Sample(image, index, int(self.targets[index]))

    def _read(self, row: list[int]) -> bytes:
        """Return the encoded image at a place. Raises OSError if it cannot be read."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return the image's path inside what it lies in."""
        return self._below + self._names[index]

    def fingerprint(self) -> str:
        """Return a digest of all names: that of a folder with the same images."""
        return self._names.fingerprint()

    def validation(self) -> Source | None:
        """Return None: nothing was set aside."""
        return None

    def about(self) -> About:
        """Return what this is."""
        return self._about


def image_path(member: str, suffixes: Container[str] = IMAGE_SUFFIXES) -> str:
    """Return the path of an image inside an archive; empty for anything else and what is hidden."""
    if suffix(member) not in suffixes:
        return ""
    path = posixpath.normpath(member.lstrip("/"))
    hidden = path.startswith(".") or "/." in path or "__MACOSX" in path.split("/")
    return "" if hidden else path


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The images of an archive that count."""

    chosen: slice
    """Which of all images they are."""
    names: Names
    """Their paths below `below`."""
    labels: list[str]
    """The folder that each lies in there; none if one lies in none."""
    below: str
    """The folder, with its slash, that they lie in."""
    aside: str
    """The folder, with its slash, of those that were set aside; empty if there is none."""


def arrange(paths: Names, known: tuple[str, ...] | None, below: str | None) -> Arrangement:
    """Treat the images of an archive as a folder of images is treated.

    A folder that all images share is no class but passed over, unless it is a known one.
    paths: in their order, each once; below: look at this folder alone.
    """
    aside = ""
    if below is None:
        below = _shared_folder(paths, known or ())
        tops = {folder for folder, _ in paths.first_folders(below) if folder}
        if "train" in tops and tops <= {"train", *VALIDATION}:
            other = next((top for top in VALIDATION if top in tops), "")
            aside, below = (f"{below}{other}/", f"{below}train/") if other else ("", below)
    first, last = 0, len(paths)
    if below:
        first, last = bisect_left(paths, below), bisect_left(paths, after(below[:-1]))
    chosen = (paths[number][len(below) :] for number in range(first, last))
    names = Names(chosen) if below else paths
    return Arrangement(slice(first, last), names, labels_by_folder(names), below, aside)


def _shared_folder(paths: Names, known: Sequence[str]) -> str:
    """Return the folder, with its slash, that all paths share; none of it is a known class."""
    ends = {posixpath.dirname(paths[0]), posixpath.dirname(paths[-1])}
    shared = posixpath.commonpath(ends)
    folders = shared.split("/") if shared else []
    kept = next((i for i, folder in enumerate(folders) if folder in known), len(folders))
    return "".join(f"{folder}/" for folder in folders[:kept])


def split_files(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files to learn from, and those that are set aside to evaluate on.

    `train-000.tar` and `val-000.tar` say it by the first word of their names.
    """
    words = [re.split(r"[-_.]", file.name)[0] for file in files]
    other = next((word for word in VALIDATION if word in words), "")
    if not other or not {"train"} < set(words) <= {"train", *VALIDATION}:
        return list(files), []
    pairs = list(zip(words, files, strict=True))
    return [f for word, f in pairs if word == "train"], [f for word, f in pairs if word == other]
