"""Images with objects in them: boxes, and masks where there are any. Pascal VOC and COCO.

Letters: n objects of an image, h and w its rows and columns.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanvit.config.names import unknown_name
from leanvit.core.console import warn
from leanvit.data.batch import Objects, Unreadable
from leanvit.data.decode import read_image
from leanvit.data.sources import About, FileSource, needed_folder

Polygon = Sequence[float]
"""x and y of its corners, in turns."""
Shape = Sequence[Polygon] | Mapping[str, Any]
"""Polygons, or run lengths as COCO counts them: columns first, beginning with what is outside."""


@dataclass(frozen=True, slots=True)
class Object:
    """One object, as a file of annotations says it."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels; right and bottom are where it ends."""
    label: int
    """Its class, from 0."""
    crowd: bool = False
    """Whether it is not learned, and found or missed without being counted: difficult, a crowd."""
    shape: Shape | None = None
    """Its outline."""
    area: float = 0.0
    """Its pixels, as the annotations say; 0 if they do not."""


Size = tuple[int, int] | None
"""Width and height of an image as its annotations say; None if they do not."""


class ObjectSource(FileSource):
    """Images in a given order, each with the objects in it, of which there may be none."""

    def __init__(
        self,
        root: Path,
        images: Sequence[str],
        objects: Sequence[Sequence[Object]],
        sizes: Sequence[Size],
        classes: tuple[str, ...],
        layout: str,
    ) -> None:
        """images: paths below root; sizes: of each, as its annotations say."""
        super().__init__(root, images, ())
        self.classes = classes
        self._objects, self._sizes, self._layout = tuple(objects), tuple(sizes), layout
        shapes = [one.shape is not None for each in objects for one in each]
        self.outlined = bool(shapes) and all(shapes)
        """Whether every object has an outline."""

    def objects(self, index: int, height: int, width: int, *, masks: bool = False) -> Objects:
        """Return the objects of an image of so many pixels.

        Boxes are cut at the image's border; an object that lies outside of it, or has no area, is
        left out. Raises ValueError for an outline that is none, and if the annotations are for an
        image of another size.
        """
        said = self._sizes[index]
        if said not in (None, (width, height)):
            raise ValueError(
                f"The objects of {self.name(index)!r} are those of an image of {said[0]} x "
                f"{said[1]} pixels, and it has {width} x {height}."
            )
        kept, boxes = [], []
        for one in self._objects[index]:
            left, top, right, bottom = one.box
            box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
            if box[2] > box[0] and box[3] > box[1]:
                kept.append(one)
                boxes.append(box)
        drawn = None
        if masks:
            shapes = [self._drawn(one, index, height, width) for one in kept]
            drawn = torch.stack(shapes) if shapes else torch.zeros(0, height, width).byte()
        return Objects(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor([one.label for one in kept], dtype=torch.int64),
            torch.tensor([one.crowd for one in kept], dtype=torch.bool),
            drawn,
            torch.tensor([one.area for one in kept], dtype=torch.float32),
        )

    def require_fitting(self, *, masks: bool) -> None:
        """Raise ValueError for objects that do not fit their images, or if there is none.

        masks: whether outlines are read too. All images are read.
        """
        self.require_objects()
        for index in range(len(self)):
            found = read_image(self, index)
            if not isinstance(found, Unreadable):  # which is counted where images are read
                self.objects(index, *found[0].shape[1:], masks=masks)

    def require_objects(self) -> None:
        """Raise ValueError if there is no object, or nothing but crowds."""
        if not any(not one.crowd for each in self._objects for one in each):
            raise ValueError(
                f"No image of this split has an object: {self.name(0)!r} and {len(self) - 1} more."
            )

    def fingerprint(self) -> str:
        """Return a digest of all paths, of the objects as they were read, and of classes."""
        words = f"{super().fingerprint()} {self.classes} {self._objects!r}".encode()
        return hashlib.sha256(words).hexdigest()

    def _drawn(self, one: Object, index: int, height: int, width: int) -> Tensor:
        """Return an outline as a mask [h, w]."""
        try:
            found = _decoded(one.shape, height, width)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"The outline of an object in {self.name(index)!r} cannot be read: {error}."
            ) from error
        if found.shape != (height, width):
            raise ValueError(
                f"The outline of an object in {self.name(index)!r} is for {found.shape[1]} x "
                f"{found.shape[0]} pixels, and the image has {width} x {height}."
            )
        return torch.from_numpy(np.ascontiguousarray(found))

    def about(self) -> About:
        """Return what this is."""
        return About(f"{self._layout} {str(self.root)!r}", "objects")


def _decoded(shape: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return polygons or run lengths as a mask; polygons are for an image of so many pixels."""
    from pycocotools import mask as coco

    if isinstance(shape, Mapping):
        if isinstance(shape["counts"], list):
            shape = coco.frPyObjects(dict(shape), *map(int, shape["size"]))
    else:
        polygons = [[float(value) for value in polygon] for polygon in shape]
        if not polygons or any(len(one) < 6 or len(one) % 2 for one in polygons):
            raise ValueError("a polygon has three corners or more, each of two numbers")
        shape = coco.merge(coco.frPyObjects(polygons, height, width))
    with warnings.catch_warnings():  # its arrays do not copy as numpy 2 asks
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco.decode(shape)


def open_objects(folder: str, split: str, known: tuple[str, ...] | None = None) -> ObjectSource:
    """Return the images of a split with their objects; docs/detect.md shows the layouts.

    known: the classes of the images that these are compared with. Raises ValueError if the folder
    has no known layout, if the split has no image, and for annotations that say nothing.
    """
    root = needed_folder(folder, "objects")
    layout = _layout(root)
    if layout is None:
        raise ValueError(
            f"{folder!r} is neither Pascal VOC (ImageSets/Main, Annotations) nor COCO "
            f"(annotations/instances_SPLIT.json); docs/detect.md shows both."
        )
    source = layout(root, split, known)
    if not len(source):
        raise ValueError(f"The split {split!r} of {folder!r} has no images.")
    return source


def has_objects(folder: str, split: str) -> bool:
    """Whether a folder has a split."""
    root = Path(folder)
    return bool(_coco_file(root, split)) or (root / "ImageSets/Main" / f"{split}.txt").is_file()


Layout = Callable[[Path, str, tuple[str, ...] | None], ObjectSource]
"""Folder, split and known classes -> its images."""


def _layout(root: Path) -> Layout | None:
    if (root / "ImageSets" / "Main").is_dir() and (root / "Annotations").is_dir():
        return _open_voc
    return _open_coco if any((root / "annotations").glob("instances_*.json")) else None


def _open_voc(root: Path, split: str, known: tuple[str, ...] | None) -> ObjectSource:
    """Return the images of a list below ImageSets/Main; boxes there count pixels from 1."""
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        there = ", ".join(sorted(path.stem for path in listed.parent.glob("*.txt")))
        raise ValueError(f"Pascal VOC {str(root)!r} has no split {split!r}; it has: {there}.")
    names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
    read = [_read_voc(root, name) for name in names]
    found, sizes = [objects for objects, _ in read], [size for _, size in read]
    classes = known or tuple(sorted({label for objects in found for label, *_ in objects}))
    _require_known({label for objects in found for label, *_ in objects}, classes, listed)
    objects = [
        [Object(box, classes.index(label), crowd) for label, box, crowd in each] for each in found
    ]
    images = [f"JPEGImages/{name}.jpg" for name in names]
    _say_empty(images, objects)
    return ObjectSource(root, images, objects, sizes, classes, "Pascal VOC")


Box = tuple[float, float, float, float]


def _read_voc(root: Path, name: str) -> tuple[list[tuple[str, Box, bool]], Size]:
    """Return the name, box and difficulty of each object of an image, and its size, if it is said.

    Without a file there is no object.
    """
    path = root / "Annotations" / f"{name}.xml"
    if not path.is_file():
        return [], None
    text = path.read_bytes()
    try:
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise ValueError("it declares entities")
        tree = ElementTree.fromstring(text)
        objects = [
            (
                _word(one, "name"),
                (
                    _number(one, "bndbox/xmin") - 1,
                    _number(one, "bndbox/ymin") - 1,
                    _number(one, "bndbox/xmax"),
                    _number(one, "bndbox/ymax"),
                ),
                (one.findtext("difficult") or "0").strip() == "1",
            )
            for one in tree.iter("object")
        ]
        sides = [int(tree.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        return objects, (sides[0], sides[1]) if all(sides) else None
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"The annotation {str(path)!r} cannot be read: {error}.") from error


def _word(one: ElementTree.Element, place: str) -> str:
    found = (one.findtext(place) or "").strip()
    if not found:
        raise ValueError(f"an object has no {place}")
    return found


def _number(one: ElementTree.Element, place: str) -> float:
    number = float(_word(one, place))
    if not math.isfinite(number):
        raise ValueError(f"{place} is {number}")
    return number


def _coco_file(root: Path, split: str) -> Path | None:
    """Return the file of a split, whose name may end in a year."""
    folder = root / "annotations"
    exact = folder / f"instances_{split}.json"
    if exact.is_file():
        return exact
    later = sorted(folder.glob(f"instances_{split}[0-9][0-9][0-9][0-9].json"))
    if len(later) > 1:
        known = ", ".join(path.stem.removeprefix("instances_") for path in later)
        raise ValueError(f"The split {split!r} of {str(root)!r} may be any of: {known}; name one.")
    return next(iter(later), None)


def _open_coco(root: Path, split: str, known: tuple[str, ...] | None) -> ObjectSource:
    """Return the images of a file of COCO, in its order; a class for each category."""
    file = _coco_file(root, split)
    if file is None:
        there = ", ".join(sorted(path.stem[10:] for path in root.glob("annotations/instances_*")))
        raise ValueError(f"COCO {str(root)!r} has no split {split!r}; it has: {there}.")
    try:
        read = json.loads(file.read_bytes())
        categories = sorted((int(one["id"]), str(one["name"])) for one in read["categories"])
        found = {int(one["id"]): (str(one["file_name"]), list[Object]()) for one in read["images"]}
        sizes = [_said_size(one) for one in {int(i["id"]): i for i in read["images"]}.values()]
        names = tuple(name for _, name in categories)
        classes = known or names
        _require_known({*names}, classes, file)
        labels = {number: classes.index(name) for number, name in categories}
        for one in read["annotations"]:
            found[int(one["image_id"])][1].append(_coco_object(one, labels))
    except (KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(
            f"{str(file)!r} is no file of COCO's instances: {type(error).__name__} {error}."
        ) from error
    except ValueError as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error}") from error
    folder = _coco_images(
        root, file.stem.removeprefix("instances_"), [f for f, _ in found.values()]
    )
    images = [f"{folder}/{name}" for name, _ in found.values()]
    objects = [each for _, each in found.values()]
    _say_empty(images, objects)
    return ObjectSource(root, images, objects, sizes, classes, "COCO")


def _said_size(image: Mapping[str, Any]) -> Size:
    width, height = (int(image.get(side) or 0) for side in ("width", "height"))
    return (width, height) if width and height else None


def _coco_object(one: Mapping[str, Any], labels: Mapping[int, int]) -> Object:
    left, top, width, height = map(float, one["bbox"])
    if not all(map(math.isfinite, (left, top, width, height))):
        raise ValueError(f"the annotation {one.get('id')} has a box of {one['bbox']}.")
    if int(one["category_id"]) not in labels:
        raise ValueError(f"the annotation {one.get('id')} is of no category of the file.")
    return Object(
        (left, top, left + width, top + height),
        labels[int(one["category_id"])],
        bool(one.get("iscrowd", 0)),
        one.get("segmentation") or None,
        float(one.get("area") or 0),
    )


def _coco_images(root: Path, split: str, names: Sequence[str]) -> str:
    """Return the folder of images. Raises ValueError for names that lead elsewhere."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"The image {name!r} lies outside of {str(root)!r}.")
    places = (split, f"images/{split}", "images", ".")
    first = names[0] if names else ""
    found = next((place for place in places if (root / place / first).is_file()), None)
    if found is None:
        raise ValueError(
            f"The image {first!r} is not in {str(root)!r}, below any of: {', '.join(places)}."
        )
    return found


def _require_known(names: set[str], classes: tuple[str, ...], where: Path) -> None:
    """Raise ValueError for a class that is not learned."""
    for name in sorted(names - {*classes}):
        raise unknown_name(f"class in {str(where)!r}", name, classes)


def _say_empty(images: Sequence[str], objects: Sequence[Sequence[Object]]) -> None:
    """Say how many objects have no area."""
    empty = [
        name
        for name, each in zip(images, objects, strict=True)
        for one in each
        if one.box[2] <= one.box[0] or one.box[3] <= one.box[1]
    ]
    if empty:
        count = sum(map(len, objects))
        warn(f"{len(empty)} of {count} boxes have no area, such as one in {empty[0]!r}; left out.")
