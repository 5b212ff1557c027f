"""Where images come from: map-style, with stable indices."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as its source holds it."""

    image: bytes
    """Encoded image."""
    index: int
    """Its number in the source."""
    target: int
    """Its class, -1 if the source has none."""


class Source(Protocol):
    """A numbered set of images."""

    classes: tuple[str, ...]
    """Names of the classes; empty if there are none."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Sample:
        """Return an image. Raises OSError if it cannot be read."""

    def name(self, index: int) -> str:
        """Return what a person would call this image."""

    def fingerprint(self) -> str:
        """Return a word that changes when the images' number, names or order change."""


class FolderSource:
    """All images below a folder, at any depth, in the order of their paths.

    If every image lies in a sub-folder, the first level of sub-folders names the classes.
    Raises ValueError if the folder is missing or holds no image.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise ValueError(f"The data folder {str(folder)!r} {what}.")
        self._paths = sorted(_image_paths(str(self.folder)))
        if not self._paths:
            raise ValueError(
                f"There is no image in {str(folder)!r} or below it; known endings: "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        tops = [path.split(os.sep, 1)[0] if os.sep in path else "" for path in self._paths]
        self.classes = () if "" in tops else tuple(sorted(set(tops)))
        number = {name: target for target, name in enumerate(self.classes)}
        self._targets = [number.get(top, -1) for top in tops]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        image = (self.folder / self._paths[index]).read_bytes()
        return Sample(image, index, self._targets[index])

    def name(self, index: int) -> str:
        """Return the image's path below the folder."""
        return self._paths[index]

    def fingerprint(self) -> str:
        """Return a digest of all paths."""
        return hashlib.sha256("\0".join(self._paths).encode(errors="surrogateescape")).hexdigest()


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


def open_source(name: str) -> Source:
    """Return the source that a name on the command line means. Raises ValueError if it is none."""
    if not name:
        raise ValueError("No images were named: give --data FOLDER.")
    return FolderSource(name)
