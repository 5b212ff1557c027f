"""Where images come from: map-style, with stable indices."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from leanvit.config import unknown_name
from leanvit.core import random
from leanvit.core.console import warn
from leanvit.core.distributed import rank
from leanvit.data.listing import leads_to_folder, list_images
from leanvit.data.names import IMAGE_SUFFIXES, Names, labels_by_folder, suffix

LARGEST = 2**30
"""Bytes of an encoded image; what claims more is damaged."""
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
        paths: Iterable[str],
        labels: Sequence[str],
        known: tuple[str, ...] | None = None,
    ) -> None:
        self.root = root
        self._paths = paths if isinstance(paths, Names) else Names(paths)
        self.classes, self.targets = number_classes(labels, len(self._paths), known, str(root))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        image = read_file(self.root / self._paths[index])
        return Sample(image, index, int(self.targets[index]))

    def name(self, index: int) -> str:
        """Return the image's path, below the folder where it has one."""
        return self._paths[index]

    def fingerprint(self) -> str:
        """Return a digest of all paths."""
        return self._paths.fingerprint()

    def validation(self) -> Source | None:
        """Return None: nothing was set aside."""
        return None

    def about(self) -> About:
        """Return what this is."""
        return About(f"files below {str(self.root)!r}", "given labels" if self.classes else "")


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises OSError for a pipe or a device, which is not waited for, and for more than LARGEST bytes.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
        raise OSError(f"{path.name!r} is a pipe or a device")
    if facts.st_size > LARGEST:
        raise OSError(
            f"{path.name!r} has {facts.st_size:,} bytes; an image has at most {LARGEST:,}"
        )
    return path.read_bytes()


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
        try:
            self._aside = _set_aside(self.folder)
            root = self.folder / "train" if self._aside else self.folder
            paths, self._notes = list_images(str(root))
        except OSError as error:
            raise _no_folder(self.folder, error) from error
        if not paths:
            missing = (
                f"There is no image in {str(root)!r} or below it; known endings: "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}."
            )
            raise ValueError(" ".join([missing, *self._notes]))
        super().__init__(root, paths, labels_by_folder(paths), known)

    def validation(self) -> Source | None:
        """Return the images beside `train`, with its classes, if the folder is split so."""
        return FolderSource(self._aside, self.classes) if self._aside else None

    def about(self) -> About:
        """Return what this is."""
        labels = "its sub-folders" if self.classes else ""
        return About(f"folder {str(self.root)!r}", labels, self._notes)


def _no_folder(folder: Path, error: OSError) -> ValueError:
    why = error.strerror or error
    return ValueError(f"The data folder {str(folder)!r} cannot be read: {why}.")


def _set_aside(folder: Path) -> Path | None:
    """Return the folder beside `train`, if there is nothing else that could be a class."""
    if not is_folder(folder / "train"):
        return None  # without looking at what may be a million files
    with os.scandir(folder) as entries:
        names = {e.name for e in entries if not e.name.startswith(".") and leads_to_folder(e)}
    if not names <= {"train", *VALIDATION}:
        return None
    return next((folder / name for name in VALIDATION if name in names), None)


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
        paths, labels, words = Names(), list[str](), dict[str, str]()
        for path, label in read_list(self.file):
            paths.add(path)
            if label is not None:
                labels.append(words.setdefault(label, label))
        root = self.file.parent
        first = range(min(len(paths), self.LOOKED_AT))
        try:
            found = any((root / paths[number]).is_file() for number in first)
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


def read_list(file: Path) -> Iterator[tuple[str, str | None]]:
    """Yield what each line of a list names, and its class, which all lines have or none.

    Raises ValueError if the file is no list, is empty, or mixes lines with and without a class.
    """
    columns = 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if not line.strip() or line[0] == "#":
                    continue
                path, *label = line.split("\t")
                columns = columns or 1 + len(label)
                if len(label) != columns - 1 or columns > 2:
                    raise ValueError(
                        f"The list {str(file)!r} mixes lines: write a path, or a path, a tab and a "
                        f"class, on every line."
                    )
                yield path.strip(), label[0].strip() if label else None
    except (OSError, UnicodeDecodeError) as error:
        raise _no_list(file) from error
    if not columns:
        raise ValueError(f"The list {str(file)!r} names no image; write one path a line.")


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


def needed_folder(name: str, what: str) -> Path:
    """Return the folder of images with such annotations. Raises ValueError if there is none."""
    if not name or not is_folder(Path(name)):
        given = f"the folder {name!r} does not exist" if name else "no folder was named"
        raise ValueError(f"Images with {what} are needed (--data FOLDER), and {given}.")
    return Path(name)


def is_file(path: Path) -> bool:
    """Whether there is such a file."""
    try:
        return path.is_file()
    except OSError:
        return False


def _only_ending(folder: Path) -> str:
    """Return `.tar` or `.parquet` if a folder holds nothing but such files."""
    found = ""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                ending = suffix(entry.name)
                if entry.name.startswith("."):
                    continue
                known = ending in (".tar", ".parquet") and found in ("", ending)
                if not known or leads_to_folder(entry):
                    return ""
                found = ending
    except OSError as error:
        raise _no_folder(folder, error) from error
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
    first, _ = next(read_list(path))
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
