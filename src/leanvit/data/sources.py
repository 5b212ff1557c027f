"""Where images come from: map-style, with stable indices."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from leanvit.config import unknown_name
from leanvit.core import random

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
SAMPLE = "sample"
"""The name of the data set that comes with the extra `sample`."""
VALIDATION = ("val", "validation", "valid", "test")
"""Folders beside `train` that hold the images to evaluate on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as its source holds it."""

    image: bytes | NDArray[np.uint8]
    """Encoded image, or RGB pixels [height, width, 3]."""
    index: int
    """Its number in the source."""
    target: int
    """Its class, -1 if the source has none."""


class Source(Protocol):
    """A numbered set of images."""

    classes: tuple[str, ...]
    """Names of the classes; empty if there are none."""
    targets: NDArray[np.int64]
    """Class of every image, -1 if there is none."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Sample:
        """Return an image. Raises OSError if it cannot be read."""

    def name(self, index: int) -> str:
        """Return what a person would call this image."""

    def fingerprint(self) -> str:
        """Return a word that changes when the images' number, names or order change."""

    def validation(self) -> "Source | None":
        """Return images of the same classes that were set aside to evaluate on, if there are."""


class FileSource:
    """Image files in a given order, each with or without a class.

    root: what the paths are relative to; labels: the name of each image's class, or none for all;
    known: the classes of the images that these are compared with.
    Raises ValueError if an image has a class that is not among the known ones.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[str],
        known: tuple[str, ...] | None = None,
    ) -> None:
        self.root = root
        self._paths = list(paths)
        self.classes = known or tuple(sorted(set(labels)))
        number = {name: target for target, name in enumerate(self.classes)}
        for label in labels:
            if label not in number:
                raise unknown_name(f"class in {str(root)!r}", label, self.classes)
        targets = [number[label] for label in labels] if labels else [-1] * len(self._paths)
        self.targets = np.array(targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        image = (self.root / self._paths[index]).read_bytes()
        return Sample(image, index, int(self.targets[index]))

    def name(self, index: int) -> str:
        """Return the image's path, below the folder where it has one."""
        return self._paths[index]

    def fingerprint(self) -> str:
        """Return a digest of all paths."""
        return hashlib.sha256("\0".join(self._paths).encode(errors="surrogateescape")).hexdigest()

    def validation(self) -> Source | None:
        """Return None: nothing was set aside."""
        return None


class FolderSource(FileSource):
    """All images below a folder, at any depth, in the order of their paths.

    If every image lies in a sub-folder, the first level of sub-folders names the classes. If all
    that the folder holds is `train` and one of `VALIDATION`, the images are those of `train`, and
    the others are set aside. Raises ValueError if the folder is missing or holds no image.
    """

    def __init__(self, folder: str | Path, known: tuple[str, ...] | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise ValueError(f"The data folder {str(folder)!r} {what}.")
        self._aside = _set_aside(self.folder)
        root = self.folder / "train" if self._aside else self.folder
        paths = sorted(_image_paths(str(root)))
        if not paths:
            raise ValueError(
                f"There is no image in {str(root)!r} or below it; known endings: "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        tops = [path.split(os.sep, 1)[0] if os.sep in path else "" for path in paths]
        super().__init__(root, paths, [] if "" in tops else tops, known)

    def validation(self) -> Source | None:
        """Return the images beside `train`, with its classes, if the folder is split so."""
        return FolderSource(self._aside, self.classes) if self._aside else None


def _set_aside(folder: Path) -> Path | None:
    """Return the folder beside `train`, if there is nothing else that could be a class."""
    names = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."}
    if "train" not in names or not names <= {"train", *VALIDATION}:
        return None
    return next((folder / name for name in VALIDATION if name in names), None)


def _image_paths(folder: str) -> list[str]:
    """Return the images below a folder, as paths relative to it; hidden entries are left out.

    Linked folders are followed, each real folder once, so that a loop of links ends.
    """
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return found


class ListSource(FileSource):
    """The images that a text file names, one path a line, relative to the file's own folder.

    A class name may follow its path after a tab, on every line or on none. Empty lines and lines
    that begin with # are left out. Raises ValueError if the file names no image or mixes lines
    with and without a class, or if none of its first images exists.
    """

    LOOKED_AT = 100
    """How many paths are looked for at once; a list may have millions."""

    def __init__(self, file: str | Path, known: tuple[str, ...] | None = None) -> None:
        self.file = Path(file)
        no_list = f"{str(file)!r} is not a folder and cannot be read as a list of images."
        try:
            lines = self.file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(no_list) from error
        entries = [line.split("\t") for line in lines if line.strip() and line[0] != "#"]
        if not entries:
            raise ValueError(f"The list {str(file)!r} names no image; write one path a line.")
        if len({len(entry) for entry in entries}) > 1 or len(entries[0]) > 2:
            raise ValueError(
                f"The list {str(file)!r} mixes lines: write a path, or a path, a tab and a class, "
                f"on every line."
            )
        paths = [entry[0].strip() for entry in entries]
        root = self.file.parent
        try:
            found = any((root / path).is_file() for path in paths[: self.LOOKED_AT])
        except OSError as error:  # such as a line that is longer than a path may be
            raise ValueError(no_list) from error
        if not found:
            raise ValueError(
                f"The list {str(file)!r} names {paths[0]!r}, but there is no file "
                f"{str(root / paths[0])!r}, nor any of the next; paths are relative to the list."
            )
        labels = [entry[1].strip() for entry in entries] if len(entries[0]) == 2 else []
        super().__init__(root, paths, labels, known)


class Subset:
    """Some images of a source, in a given order."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.classes = source.classes
        self.targets = source.targets[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[int(self.indices[index])]
        return Sample(sample.image, index, sample.target)

    def name(self, index: int) -> str:
        """Return the image's name in the whole source."""
        return self.source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        """Return a digest of the whole source and of the choice."""
        chosen = self.source.fingerprint().encode() + self.indices.tobytes()
        return hashlib.sha256(chosen).hexdigest()

    def validation(self) -> Source | None:
        """Return what the whole source set aside."""
        return self.source.validation()


def at_most(source: Source, count: int) -> Source:
    """Return the source, or `count` of its images, drawn once and for all, in their order."""
    if len(source) <= count:
        return source
    chosen = random.permutation(0, "at most", count=len(source))[:count]
    return Subset(source, sorted(chosen.tolist()))


def hold_out(source: Source, share: float = 0.2) -> tuple[Source, Source]:
    """Split a source in two: what stays, and about a `share` of each class; no side goes without.

    The choice depends on the number of images of each class alone. Raises ValueError if the
    images have no classes or a class has a single image.
    """
    require_classes(source)
    held: list[int] = []
    for target, name in enumerate(source.classes):
        members = np.flatnonzero(source.targets == target)
        if len(members) == 1:
            raise ValueError(
                f"Class {name!r} has a single image, so none can be held out; add another. If it "
                f"is to evaluate on, --val names other images."
            )
        order = random.permutation(0, "hold out", target, count=len(members))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held += members[order[: max(count, 0)]].tolist()
    rest = np.setdiff1d(np.arange(len(source)), held)
    return Subset(source, rest.tolist()), Subset(source, sorted(held))


def require_classes(source: Source) -> None:
    """Raise ValueError unless every image has one of at least two classes."""
    if len(source.classes) < 2 or (source.targets < 0).any():
        raise ValueError(
            "This needs classes, and the images have none: put each class into a sub-folder of "
            "its own, or write it after a tab behind each path of a list."
        )


def open_source(name: str, known: tuple[str, ...] | None = None) -> Source:
    """Return the source that a name on the command line means: `sample`, a folder or a list.

    known: the classes to number targets by. Raises ValueError if it is none of these.
    """
    if not name:
        raise ValueError("No images were named: give --data FOLDER, a list file, or sample.")
    if name == SAMPLE:
        from leanvit.data.sample import SampleSource

        return SampleSource("train")
    if Path(name).is_file():
        return ListSource(name, known)
    return FolderSource(name, known)


def open_validation(name: str, source: Source) -> Source | None:
    """Return the images to evaluate on: those that were named, or what the source set aside.

    Of `sample` these are the validation tiles. Raises ValueError if the classes are not the same.
    """
    if name != SAMPLE:
        return open_source(name, source.classes) if name else source.validation()
    tiles = open_source(SAMPLE)
    if source.classes != tiles.classes:
        raise ValueError(
            f"The classes of {SAMPLE!r} are its own photographs, so it evaluates only what "
            f"learned from {SAMPLE!r}; name other images with --val."
        )
    return tiles.validation()
