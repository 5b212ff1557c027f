"""Where images come from: map-style, with stable indices."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from leanvit.config import unknown_name
from leanvit.core import random
from leanvit.core.console import warn
from leanvit.core.distributed import rank

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
SAMPLE = "sample"
"""The name of the data set that comes with the extra `sample`."""
TORCHVISION = "torchvision:"
"""What the name of a data set of torchvision begins with."""
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


class About(NamedTuple):
    """What a source is, in words."""

    what: str
    """Kind and name, such as "zip archive 'photos.zip'"."""
    labels: str
    """Where its classes come from; empty if it has none."""
    notes: tuple[str, ...] = ()
    """What had to be left out, a sentence each."""


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

    def about(self) -> About:
        """Return what this is, where its classes come from, and what was left out."""


def number_classes(
    labels: Sequence[str],
    count: int,
    known: tuple[str, ...] | None,
    where: str,
    *,
    as_numbers: bool = False,
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names of the classes, and the class of each of `count` images.

    labels: the name of each image's class, or none for all, which is -1; known: the classes to
    number by, otherwise they are numbered in the order of their names; as_numbers: in the order of
    the numbers that the names are, if all are. Raises ValueError if a label in the place `where`
    is not among the known ones.
    """
    distinct = set(labels)
    numbers = as_numbers and all(label.isascii() and label.isdecimal() for label in distinct)
    ordered = sorted(distinct, key=lambda label: (int(label) if numbers else 0, label))
    classes = known or tuple(ordered)
    number = {name: target for target, name in enumerate(classes)}
    for label in sorted(distinct - number.keys()):
        raise unknown_name(f"class in {where!r}", label, classes)
    targets = (number[label] for label in labels) if labels else iter([-1] * count)
    return classes, np.fromiter(targets, dtype=np.int64, count=count)


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
        self.classes, self.targets = number_classes(labels, len(self._paths), known, str(root))

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

    def about(self) -> About:
        """Return what this is."""
        return About(f"files below {str(self.root)!r}", "given labels" if self.classes else "")


class FolderSource(FileSource):
    """All images below a folder, at any depth, in the order of their paths.

    If every image lies in a sub-folder, the first level of sub-folders names the classes. If all
    that the folder holds is `train` and one of `VALIDATION`, the images are those of `train`, and
    the others are set aside. Raises ValueError if the folder is missing or holds no image.
    """

    def __init__(self, folder: str | Path, known: tuple[str, ...] | None = None) -> None:
        self.folder = Path(folder)
        if not is_folder(self.folder):
            what = "is not a folder" if is_file(self.folder) else "does not exist"
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

    def about(self) -> About:
        """Return what this is."""
        return About(f"folder {str(self.root)!r}", "its sub-folders" if self.classes else "")


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
        paths, labels = read_list(self.file)
        root = self.file.parent
        try:
            found = any((root / path).is_file() for path in paths[: self.LOOKED_AT])
        except OSError as error:  # such as a line that is longer than a path may be
            raise _no_list(self.file) from error
        if not found:
            raise ValueError(
                f"The list {str(file)!r} names {paths[0]!r}, but there is no file "
                f"{str(root / paths[0])!r}, nor any of the next; paths are relative to the list."
            )
        super().__init__(root, paths, labels, known)

    def about(self) -> About:
        """Return what this is."""
        return About(f"list {str(self.file)!r}", "its lines" if self.classes else "")


def read_list(file: Path) -> tuple[list[str], list[str]]:
    """Return what the lines of a list name, and the class of each, or none of any.

    Raises ValueError if the file is no list, is empty, or mixes lines with and without a class.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _no_list(file) from error
    entries = [line.split("\t") for line in lines if line.strip() and line[0] != "#"]
    if not entries:
        raise ValueError(f"The list {str(file)!r} names no image; write one path a line.")
    if len({len(entry) for entry in entries}) > 1 or len(entries[0]) > 2:
        raise ValueError(
            f"The list {str(file)!r} mixes lines: write a path, or a path, a tab and a class, "
            f"on every line."
        )
    labels = [entry[1].strip() for entry in entries] if len(entries[0]) == 2 else []
    return [entry[0].strip() for entry in entries], labels


def _no_list(file: Path) -> ValueError:
    return ValueError(f"{str(file)!r} is not a folder and cannot be read as a list of images.")


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

    def about(self) -> About:
        """Return what the whole source is."""
        return self.source.about()


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
    """Return the source that a name on the command line means; docs/data.md lists the kinds.

    known: the classes to number targets by. What had to be left out is said on stderr. Raises
    ValueError if the name means no kind, and if nothing can be read there.
    """
    if not name:
        raise ValueError("No images were named: give --data FOLDER, a list file, or sample.")
    source = _open(name, known)
    for note in source.about().notes if rank() == 0 else ():
        warn(note)
    return source


def _open(name: str, known: tuple[str, ...] | None) -> Source:
    """Return the source by the one rule: a word, what the folder holds, or the file's ending."""
    path = Path(name)
    if name == SAMPLE:
        from leanvit.data.sample import SampleSource

        return SampleSource("train")
    if name.startswith(TORCHVISION):
        from leanvit.data.named import TorchvisionSource

        return TorchvisionSource(name.removeprefix(TORCHVISION), known)
    folder = is_folder(path)
    ending = _only_ending(path) if folder else path.suffix.lower()
    if ending == ".tar" and (folder or ("{" in name and not is_file(path))):
        from leanvit.data.shards import ShardSource

        return ShardSource(name, known)
    if ending == ".parquet":
        from leanvit.data.tables import ParquetSource

        return ParquetSource(path, known)
    return FolderSource(path, known) if folder else _open_file(path, known)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a pattern may be longer than a path can be."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether there is such a file."""
    try:
        return path.is_file()
    except OSError:
        return False


def _only_ending(folder: Path) -> str:
    """Return `.tar` or `.parquet` if a folder holds nothing but such files."""
    found = ""
    for entry in folder.iterdir():
        ending = entry.suffix.lower()
        if entry.name.startswith("."):
            continue
        if ending not in (".tar", ".parquet") or found not in ("", ending) or entry.is_dir():
            return ""
        found = ending
    return found


def _open_file(path: Path, known: tuple[str, ...] | None) -> Source:
    """Return the source in a single file: an archive by its ending, a list otherwise."""
    from leanvit.data import archives

    ending = path.suffix.lower()
    if ending == ".zip":
        return archives.ZipSource(path, known)
    if ending in archives.TAR_ENDINGS or Path(path.stem).suffix.lower() == ".tar":
        return archives.TarSource(path, known)
    if ending == ".tsv":
        from leanvit.data.tsv import TsvSource

        return TsvSource(path, known)
    if not is_file(path):
        return FolderSource(path, known)  # says that there is none
    first = read_list(path)[0][0]
    inside = "@/" in first and not is_file(path.parent / first)
    return archives.ZipMapSource(path, known) if inside else ListSource(path, known)


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
