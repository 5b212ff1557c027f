"""Images with a class for every pixel: four layouts of folders, one source.

Letters: h and w rows and columns of an image.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from leanvit.data.batch import Unreadable
from leanvit.data.decode import read_image
from leanvit.data.names import IMAGE_SUFFIXES
from leanvit.data.sources import About, FileSource, is_folder, needed_folder

IGNORED = 255
"""What a map holds where a pixel has no class: not learned, not counted."""
UNNAMED = frozenset({"unlabelled", "unlabeled", "void", "ignore"})
"""Classes of classes.txt that are none."""
CLASSES = "classes.txt"
"""Names of the classes of the plain layout, one a line, in the order of their values."""
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
CITYSCAPES = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"},
    **{19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky"},
    **{24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train"},
    **{32: "motorcycle", 33: "bicycle"},
}
"""Value of Cityscapes' labelIds -> class, of the nineteen that are counted."""
ADE_NAMES, ADE_CLASSES = "objectInfo150.txt", 150
UNREADABLE = (OSError, ValueError, SyntaxError, UnidentifiedImageError)
"""What Pillow raises for a mask that is none."""


class MaskSource(FileSource):
    """Images, each with a mask: a file of the same size whose pixels are the values of classes."""

    def __init__(
        self,
        root: Path,
        images: Sequence[str],
        masks: Sequence[str],
        classes: tuple[str, ...],
        values: Mapping[int, int],
        layout: str,
    ) -> None:
        """images, masks: paths below root; values: of masks -> class, or IGNORED."""
        super().__init__(root, images, ())
        self.classes = classes
        self._masks, self._layout = tuple(masks), layout
        self._table = np.full(2**16, -1, dtype=np.int32)
        for value, number in values.items():
            self._table[value] = number

    def annotation(self, index: int, height: int, width: int) -> Tensor:
        """Return the class of every pixel of an image, uint8 [h, w]; IGNORED where it has none.

        Raises ValueError, with the mask's name, if it cannot be read, is of another size, or holds
        a value that means no class.
        """
        name = self._masks[index]
        stored = _read_mask(self.root / name, name)
        if stored.shape != (height, width):
            raise ValueError(
                f"The mask {name!r} has {stored.shape[1]} x {stored.shape[0]} pixels, and its "
                f"image {self.name(index)!r} has {width} x {height}."
            )
        found = self._table[stored]
        if (found < 0).any():
            value = int(stored[found < 0][0])
            raise ValueError(
                f"The mask {name!r} holds the value {value}, which means no class: there are "
                f"{len(self.classes)} classes, {self._known()}. Name the values that are to be "
                f"left out by --ignore."
            )
        return torch.from_numpy(found.astype(np.uint8))

    def require_fitting(self) -> None:
        """Raise ValueError for the first mask that does not fit its image; all are read.

        Also if not one pixel has a class.
        """
        labelled = False
        for index in range(len(self)):
            found = read_image(self, index)
            if not isinstance(found, Unreadable):  # which is counted where images are read
                mapped = self.annotation(index, *found[0].shape[1:])
                labelled |= bool((mapped != IGNORED).any())
        if not labelled:
            raise ValueError(
                f"No pixel of {self.name(0)!r} and the {len(self) - 1} other images of its split "
                f"has a class."
            )

    def fingerprint(self) -> str:
        """Return a digest of all paths, of what values mean, and of the masks, which are all read.

        Raises ValueError for one that cannot be read.
        """
        words = f"{super().fingerprint()} {self.classes}".encode() + self._table.tobytes()
        found = hashlib.sha256(words)
        for name in self._masks:
            try:
                found.update(hashlib.sha256((self.root / name).read_bytes()).digest())
            except OSError as error:
                raise ValueError(f"The mask {name!r} cannot be read: {error}.") from error
        return found.hexdigest()

    def _known(self) -> str:
        values = np.flatnonzero((self._table >= 0) & (self._table != IGNORED))
        return f"of the values {values.min()} to {values.max()}"

    def about(self) -> About:
        """Return what this is."""
        return About(f"{self._layout} {str(self.root)!r}", "masks")


def _read_mask(path: Path, name: str) -> "np.ndarray[tuple[int, int], np.dtype[np.uint16]]":
    """Return the values of a mask [h, w]."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1", "I;16", "I"):
                raise ValueError(
                    f"it has colors ({image.mode}); a mask holds one number a pixel, the class"
                )
            stored = np.asarray(image)
    except UNREADABLE as error:
        raise ValueError(f"The mask {name!r} cannot be read: {error}.") from error
    if stored.min() < 0 or stored.max() >= 2**16:
        raise ValueError(f"The mask {name!r} holds numbers beyond 0 to {2**16 - 1}.")
    return stored.astype(np.uint16)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a folder holds images and masks."""

    name: str
    mark: tuple[str, ...]
    """Folders that say that it is this one."""
    pairs: Callable[[Path, str], list[tuple[str, str]]]
    """Folder and split -> paths of images and of their masks, below the folder."""
    classes: Callable[[Path], tuple[tuple[str, ...], dict[int, int]]]
    """Folder -> names of the classes, and the class of each value of a mask."""


def open_masks(folder: str, split: str, ignore: Sequence[int] = ()) -> MaskSource:
    """Return the images of a split with their masks; docs/segment.md shows the layouts.

    ignore: values of masks that are no class, besides 255. Raises ValueError if the folder has no
    known layout, if the split has no image, or if an image has no mask.
    """
    root = needed_folder(folder, "masks")
    layout = _layout(root)
    pairs = layout.pairs(root, split)
    if not pairs:
        raise ValueError(
            f"{layout.name} {folder!r} has no images for the split {split!r}; docs/segment.md "
            f"shows how folders hold images and masks."
        )
    for image, mask in pairs:
        if not (root / mask).is_file():
            raise ValueError(f"The image {image!r} in {folder!r} has no mask {mask!r}.")
    names, values = _without(*layout.classes(root), {*ignore, IGNORED})
    if not 2 <= len(names) < IGNORED:
        raise ValueError(f"There are {len(names)} classes; expected 2 to {IGNORED - 1}.")
    images, masks = zip(*pairs, strict=True)
    return MaskSource(root, images, masks, names, values, layout.name)


def _without(
    names: tuple[str, ...], values: Mapping[int, int], ignore: set[int]
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return classes and values without those of some values, numbered anew."""
    left = {values[value] for value in values.keys() - ignore} - {IGNORED}
    kept = [number for number in range(len(names)) if number in left]
    numbers = {number: place for place, number in enumerate(kept)}
    renumbered = {value: numbers.get(number, IGNORED) for value, number in values.items()}
    return tuple(names[number] for number in kept), renumbered | dict.fromkeys(ignore, IGNORED)


def has_split(folder: str, split: str) -> bool:
    """Whether a folder has images for a split."""
    return bool(_layout(Path(folder)).pairs(Path(folder), split))


def _layout(root: Path) -> Layout:
    return next((one for one in LAYOUTS if all((root / p).exists() for p in one.mark)), PLAIN)


def _images_below(folder: Path) -> list[str]:
    """Return the images below a folder, at any depth, in the order of their paths."""
    if not is_folder(folder):
        return []
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _beside(images: str, masks: str, root: Path) -> list[tuple[str, str]]:
    """Return the pairs of two folders: a mask is a PNG with the name of its image."""
    return [
        (f"{images}/{name}", f"{masks}/{Path(name).with_suffix('.png').as_posix()}")
        for name in _images_below(root / images)
    ]


def _plain_pairs(root: Path, split: str) -> list[tuple[str, str]]:
    first = _beside(f"{split}/images", f"{split}/masks", root)
    return first or _beside(f"images/{split}", f"masks/{split}", root)


def _plain_classes(root: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    try:
        lines = (root / CLASSES).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{str(root / CLASSES)!r} cannot be read: it names the classes, one a line, the first "
            f"being that of the value 0; one called unlabelled or void is left out."
        ) from error
    named = [line.strip() for line in lines]
    while named and not named[-1]:
        named.pop()
    if "" in named:
        raise ValueError(f"Line {named.index('') + 1} of {str(root / CLASSES)!r} names no class.")
    names = tuple(name for name in named if name.lower() not in UNNAMED)
    if len({*names}) < len(names):
        raise ValueError(f"{str(root / CLASSES)!r} names a class twice.")
    return names, {
        value: names.index(name) if name in names else IGNORED for value, name in enumerate(named)
    }


def _voc_pairs(root: Path, split: str) -> list[tuple[str, str]]:
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = listed.read_text().split() if listed.is_file() else []
    return [(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names]


def _cityscapes_pairs(root: Path, split: str) -> list[tuple[str, str]]:
    kind = "_leftImg8bit.png"
    return [
        (
            f"leftImg8bit/{split}/{name}",
            f"gtFine/{split}/{name.removesuffix(kind)}_gtFine_labelIds.png",
        )
        for name in _images_below(root / "leftImg8bit" / split)
        if name.endswith(kind)
    ]


def _cityscapes_classes(_: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    numbers = dict.fromkeys(range(35), IGNORED)
    return tuple(CITYSCAPES.values()), numbers | {
        value: number for number, value in enumerate(CITYSCAPES)
    }


def _ade_pairs(root: Path, split: str) -> list[tuple[str, str]]:
    folder = {"train": "training", "val": "validation"}.get(split, split)
    return _beside(f"images/{folder}", f"annotations/{folder}", root)


def _ade_classes(root: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Value 0 is none; the names stand in the last column of a table, synonyms after commas."""
    names = tuple(str(number) for number in range(1, ADE_CLASSES + 1))
    if (root / ADE_NAMES).is_file():
        rows = (root / ADE_NAMES).read_text().strip().splitlines()[1:]
        names = tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows)
    return names, {0: IGNORED} | {number + 1: number for number in range(len(names))}


PLAIN = Layout("folder of images and masks", (), _plain_pairs, _plain_classes)
LAYOUTS = (
    Layout("Cityscapes", ("leftImg8bit", "gtFine"), _cityscapes_pairs, _cityscapes_classes),
    Layout(
        "Pascal VOC",
        ("ImageSets/Segmentation", "SegmentationClass"),
        _voc_pairs,
        lambda _: (VOC_CLASSES, dict(enumerate(range(len(VOC_CLASSES))))),
    ),
    Layout("ADE20K", ("images/training", "annotations/training"), _ade_pairs, _ade_classes),
)
"""All that have a mark of their own; any other folder is PLAIN."""
