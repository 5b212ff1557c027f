"""Data sets of torchvision, by name, and arrays from Python."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pickle import PickleError
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leanvit.config import look_up
from leanvit.data.sources import TORCHVISION, About, Sample, Source, number_classes

Options = Mapping[str, Any]
Part = Literal["train", "test", "val", "rest"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a data set of torchvision names its parts and its targets."""

    train: Options
    test: Options | None
    targets: str
    """Attribute that holds the class of every image, pairs of both, or the names of HDF5 files."""
    val: Options | None = None
    """The part that hyper-parameters are chosen on."""
    rest: Options | None = None
    """What is left of `train` where `val` is a part of it."""


_FLAG = ({"train": True}, {"train": False}, "targets")
_SPLIT = ({"split": "train"}, {"split": "test"})
_VAL = {"split": "val"}
KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "CIFAR10": _Kind(*_FLAG),
        "CIFAR100": _Kind(*_FLAG),
        "MNIST": _Kind(*_FLAG),
        "FashionMNIST": _Kind(*_FLAG),
        "KMNIST": _Kind(*_FLAG),
        "USPS": _Kind(*_FLAG),
        "SVHN": _Kind(*_SPLIT, "labels"),
        "STL10": _Kind(*_SPLIT, "labels"),
        "Food101": _Kind(*_SPLIT, "_labels"),
        "Flowers102": _Kind(*_SPLIT, "_labels", _VAL),
        "DTD": _Kind(*_SPLIT, "_labels", _VAL),
        "FGVCAircraft": _Kind(
            {"split": "trainval"}, {"split": "test"}, "_labels", _VAL, {"split": "train"}
        ),
        "OxfordIIITPet": _Kind({"split": "trainval"}, {"split": "test"}, "_labels"),
        "Country211": _Kind(*_SPLIT, "targets", {"split": "valid"}),
        "ImageNet": _Kind({"split": "train"}, {"split": "val"}, "targets"),
        "EuroSAT": _Kind({}, None, "targets"),
        "SUN397": _Kind({}, None, "_labels"),
        "Caltech101": _Kind({}, None, "y"),
        "GTSRB": _Kind(*_SPLIT, "_samples"),
        "StanfordCars": _Kind(*_SPLIT, "_samples"),
        "RenderedSST2": _Kind(*_SPLIT, "_samples", _VAL),
        "PCAM": _Kind(*_SPLIT, "_FILES", _VAL),
    }
)
"""Name in torchvision.datasets -> its parts. Others may be written out as a folder of images."""


BROKEN = (
    *(OSError, RuntimeError, ValueError, LookupError, EOFError, AssertionError),
    *(ImportError, PickleError),
)
"""What torchvision raises for files that are missing or hold anything, and without scipy, h5py."""


class TorchvisionSource:
    """A data set of torchvision that lies in a local folder: one of its parts, as RGB pixels.

    name: such as `CIFAR10@data`, the name of `torchvision.datasets` and the folder given to it as
    root; part: train, test, val, or rest, which is train without val. Nothing is ever downloaded.
    The part for testing is set aside. Raises ValueError for an unknown name, for classes out of
    range, and if the folder does not hold the data set.
    """

    def __init__(
        self, name: str, known: tuple[str, ...] | None = None, *, part: Part = "train"
    ) -> None:
        self._word, self._known, self._part = name, known, part
        self._name, mark, root = name.partition("@")
        self._kind = look_up("data set of torchvision", self._name, KINDS)
        if not mark or not root:
            raise ValueError(
                f"Name the folder that {self._name} lies in: {TORCHVISION}{self._name}@FOLDER."
            )
        self._root = root
        self._load()
        words = list(map(str, getattr(self._data, "classes", ())))
        found = self._numbers
        if len(found) != len(self._data) or not len(found) or found.min() < 0:
            raise ValueError(
                f"{self._name} in {root!r} holds {len(self._data)} images and {len(found)} "
                f"classes of images, the lowest number {found.min(initial=0)}; expected as many "
                f"as images, from 0."
            )
        names = words if len(set(words)) > found.max() else list(map(str, range(found.max() + 1)))
        labels = [names[target] for target in found.tolist()]
        order = known or tuple(dict.fromkeys(names))
        self.classes, self.targets = number_classes(labels, len(found), order, self._name)

    def _load(self) -> None:
        from torchvision import datasets

        options = getattr(self._kind, self._part) or {}
        try:
            self._data = getattr(datasets, self._name)(self._root, **options)
            self._numbers = _targets(self._data, self._kind.targets)
        except BROKEN as error:
            raise ValueError(
                f"The folder {self._root!r} does not hold {self._name} as torchvision stores it "
                f"({' '.join(str(error).split())}); nothing is downloaded here: "
                f"torchvision.datasets.{self._name}(root, download=True) does that."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._word, self._known, self._part)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = self._data[index][0].convert("RGB")
        return Sample(np.asarray(image), index, int(self.targets[index]))

    def name(self, index: int) -> str:
        """Return the data set, the part and the number in it."""
        return f"{self._name}/{self._part}/{index:06d}"

    def fingerprint(self) -> str:
        """Return a digest of the name, the part and every image's class."""
        words = "\0".join([self._name, self._part, *self.classes])
        return hashlib.sha256(words.encode() + self.targets.tobytes()).hexdigest()

    def validation(self) -> Source | None:
        """Return the part for testing, if there is one."""
        return self.part("test") if self._part == "train" else None

    def part(self, part: Part) -> Source | None:
        """Return another part of the same data set, its classes numbered as here, if there is one.

        Raises ValueError if the folder does not hold it.
        """
        if getattr(self._kind, part) is None:
            return None
        return TorchvisionSource(self._word, self.classes, part=part)

    def about(self) -> About:
        """Return what this is."""
        return About(f"{self._name} of torchvision in {self._root!r}", "the data set")


def _targets(data: Any, attribute: str) -> NDArray[np.int64]:
    """Return the class of every image as torchvision numbers it."""
    found = getattr(data, attribute)
    if attribute == "_samples":
        found = [target for _, target in found]
    elif attribute == "_FILES":
        with data.h5py.File(data._base_folder / found[data._split]["targets"][0]) as table:
            found = table["y"][:, 0, 0, 0]
    return np.asarray(found, dtype=np.int64)


def _reopen(name: str, known: tuple[str, ...] | None, part: Part) -> TorchvisionSource:
    return TorchvisionSource(name, known, part=part)


class ArraySource:
    """Images that lie in memory.

    images: [N, height, width, 3] uint8, or N such arrays of any height and width; targets: the
    class of each, -1 for none; classes: their names, otherwise their numbers. Nothing is copied.
    Raises ValueError for other shapes and types.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        targets: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        if not len(images):
            raise ValueError("There is no image among the arrays.")
        for number, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(
                    f"Image {number} is {image.dtype} {list(image.shape)}; expected uint8 "
                    f"[height, width, 3]."
                )
        self._images = images
        numbers = np.full(len(images), -1) if targets is None else np.asarray(targets)
        if numbers.shape != (len(images),) or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(
                f"The targets are {numbers.dtype} {list(numbers.shape)}; expected {len(images)} "
                f"whole numbers."
            )
        self.targets = numbers.astype(np.int64)
        count = int(self.targets.max()) + 1
        self.classes = tuple(classes) or tuple(map(str, range(count)))
        if self.targets.min() < -1 or count > len(self.classes):
            raise ValueError(
                f"The targets go from {self.targets.min()} to {count - 1}; expected -1, for none, "
                f"or the number of one of {len(self.classes)} classes."
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._images[index], index, int(self.targets[index]))

    def name(self, index: int) -> str:
        """Return the image's number."""
        return f"array/{index:06d}"

    def fingerprint(self) -> str:
        """Return a digest of all pixels."""
        digest = hashlib.sha256()
        for image in self._images:
            digest.update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def validation(self) -> Source | None:
        """Return None: nothing was set aside."""
        return None

    def about(self) -> About:
        """Return what this is."""
        return About("arrays in memory", "the targets" if self.classes else "")
