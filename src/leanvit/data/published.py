"""Data sets as their publishers lay them out, where torchvision has none or not their parts.

Every function takes the folder under which the data sets lie and returns the official parts; where
nobody published any, they are drawn, once and for all. Nothing is downloaded. What is missing is
an OSError, what is damaged a ValueError.

Letters: N images, C classes.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from leanvit.core import random
from leanvit.data.named import ArraySource
from leanvit.data.sources import FileSource, FolderSource, Source, Subset


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a data set."""

    train: Source
    val: Source | None
    """What hyper-parameters are chosen on; None if it is still to be taken from `train`."""
    test: Source


class TaggedSource(FileSource):
    """Image files that each may have several classes, or none; `targets` says -1 of all."""

    def __init__(
        self, root: Path, paths: Sequence[str], labels: NDArray[np.int64], classes: tuple[str, ...]
    ) -> None:
        """labels: [N, C], 1 for a class that is there, 0 for one that is not, -1 for left open."""
        super().__init__(root, paths, (), classes)
        self.labels = labels


def caltech101(root: Path) -> Parts:
    """102 classes, the background among them; 30 images of each are learned from, as usual."""
    return _drawn(root / "caltech101" / "101_ObjectCategories", 30)


def eurosat(root: Path) -> Parts:
    """1,000 images of each class to learn from and 500 to test on: as many as CLIP took."""
    return _drawn(root / "eurosat" / "2750", 1000, test=500)


def resisc45(root: Path) -> Parts:
    """A tenth to learn from, the publisher's smaller share, and as in CLIP 80 % to test on."""
    return _drawn(root / "NWPU-RESISC45", 70, test=560)


def _drawn(folder: Path, train: int, *, test: int = 0) -> Parts:
    """Return parts with so many images of each class; test: 0 for all that are left."""
    source = FolderSource(folder)
    learned, tested = list[int](), list[int]()
    for target, name in enumerate(source.classes):
        members = np.flatnonzero(source.targets == target)
        order = members[random.permutation(0, "transfer", target, count=len(members))]
        if len(order) < train + max(test, 1):
            raise ValueError(
                f"Class {name!r} of {str(folder)!r} has {len(order)} images; expected at least "
                f"{train + max(test, 1)}."
            )
        learned += order[:train].tolist()
        tested += order[train : train + test if test else len(order)].tolist()
    return Parts(Subset(source, sorted(learned)), None, Subset(source, sorted(tested)))


FACES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
FACE = 48
"""Side of the pictures of FER2013."""


def fer2013(root: Path) -> Parts:
    """One CSV file of grey pixels: Training, PublicTest to choose on, PrivateTest."""
    file = root / "fer2013" / "fer2013.csv"
    pixels: dict[str, list[NDArray[np.uint8]]] = {}
    targets: dict[str, list[int]] = {}
    with file.open(newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, skipinitialspace=True), start=1):
            values = np.array(row["pixels"].split(), dtype=np.uint8)
            target = int(row["emotion"])
            if values.size != FACE**2 or not 0 <= target < len(FACES):
                raise ValueError(
                    f"Row {number} of {str(file)!r} has {values.size} pixels and emotion {target}; "
                    f"expected {FACE**2} and 0 to {len(FACES) - 1}."
                )
            pixels.setdefault(row["Usage"], []).append(values)
            targets.setdefault(row["Usage"], []).append(target)

    def part(usage: str) -> Source:
        grey = np.stack(pixels[usage]).reshape(-1, FACE, FACE, 1)
        # three channels that are one in memory
        return ArraySource(np.broadcast_to(grey, (*grey.shape[:3], 3)), targets[usage], FACES)

    return Parts(part("Training"), part("PublicTest"), part("PrivateTest"))


MEMES = ("not hateful", "hateful")


def hateful_memes(root: Path) -> Parts:
    """Lines of JSON; as in CLIP the `dev` part is tested on, since others came without labels."""
    folder = root / "hateful_memes"

    def part(name: str) -> Source:
        lines = [json.loads(line) for line in _lines(folder / f"{name}.jsonl")]
        labels = [_named(int(line["label"]), MEMES, folder) for line in lines]
        return FileSource(folder, [line["img"] for line in lines], labels, MEMES)

    return Parts(part("train"), None, part("dev"))


def sun397(root: Path) -> Parts:
    """The first of the ten official partitions."""
    folder = root / "SUN397"
    classes = tuple(line[3:] for line in _lines(folder / "ClassName.txt"))  # such as /a/abbey

    def part(name: str) -> Source:
        paths = _lines(folder / f"{name}_01.txt")
        labels = [path[3:].rpartition("/")[0] for path in paths]
        return FileSource(folder, [path[1:] for path in paths], labels, classes)

    return Parts(part("Training"), None, part("Testing"))


def ucf101(root: Path) -> Parts:
    """The middle frame of each video; the first of the three official splits."""
    lists, frames = root / "ucf101" / "ucfTrainTestlist", root / "ucf101" / "UCF-101-midframes"
    classes = tuple(line.split()[1] for line in _lines(lists / "classInd.txt"))

    def part(name: str) -> Source:
        videos = [line.split()[0].split("/") for line in _lines(lists / f"{name}list01.txt")]
        paths = [f"{_spaced(action)}/{Path(video).stem}.jpg" for action, video in videos]
        return FileSource(frames, paths, [action for action, _ in videos], classes)

    return Parts(part("train"), None, part("test"))


def _spaced(action: str) -> str:
    """Return the name of a class as folders of frames have it: ApplyLipstick -> Apply_Lipstick."""
    return "".join(f"_{letter}" if letter.isupper() else letter for letter in action).strip("_")


OBJECTS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
OPEN = {"1": 1, "-1": 0, "0": -1}
"""What VOC2007 says of a class -> our label; 0 stands for objects that are hard to see."""


def voc2007(root: Path) -> Parts:
    """20 classes of which an image may show several; an object that is hard to see is left open."""
    folder = root / "VOCdevkit" / "VOC2007"

    def part(name: str) -> Source:
        ids = _lines(folder / "ImageSets" / "Main" / f"{name}.txt")
        columns = []
        for thing in OBJECTS:
            file = folder / "ImageSets" / "Main" / f"{thing}_{name}.txt"
            pairs = [line.split() for line in _lines(file)]
            if [first for first, *_ in pairs] != ids or any(last not in OPEN for _, last in pairs):
                raise ValueError(
                    f"{str(file)!r} does not say 1, 0 or -1 of each image of {name}.txt, in order."
                )
            columns.append([OPEN[last] for _, last in pairs])
        paths = [f"JPEGImages/{each}.jpg" for each in ids]
        return TaggedSource(folder, paths, np.array(columns, dtype=np.int64).T, OBJECTS)

    return Parts(part("train"), part("val"), part("test"))


DISTANCES = ("up to 8 m", "up to 20 m", "beyond 20 m", "no vehicle")
VEHICLES = ("Car", "Van", "Truck")
A_TENTH = 10
"""Of so many videos one is tested on, and one chooses."""


def kitti_distance(root: Path) -> Parts:
    """How far the nearest vehicle is, in four classes; parts by videos, as VTAB draws them."""
    raw = root / "Kitti" / "raw"
    drives = [line.split()[1] for line in _lines(raw / "mapping" / "train_mapping.txt")]
    places = "".join(_lines(raw / "mapping" / "train_rand.txt")).split(",")
    videos = np.array([drives[int(place) - 1] for place in places])
    every = sorted(set(videos.tolist()))
    count = max(len(every) // A_TENTH, 1)
    draw = RandomState(123)
    test = draw.choice(every, count, replace=False)
    val = draw.choice(sorted(set(every) - set(test.tolist())), count, replace=False)

    def part(chosen: NDArray[np.bool_]) -> Source:
        names = [f"{image:06d}" for image in np.flatnonzero(chosen)]
        labels = [_nearest(raw / "training" / "label_2" / f"{name}.txt") for name in names]
        paths = [f"image_2/{name}.png" for name in names]
        return FileSource(raw / "training", paths, labels, DISTANCES)

    tested, choosing = np.isin(videos, test), np.isin(videos, val)
    return Parts(part(~tested & ~choosing), part(choosing), part(tested))


def _nearest(file: Path) -> str:
    """Return the class of the distance to the nearest vehicle that a file of objects names."""
    rows = [line.split() for line in _lines(file)]
    nearest = min((float(row[13]) for row in rows if row[0] in VEHICLES), default=np.inf)
    return DISTANCES[int(np.searchsorted((8.0, 20.0, 999.0), nearest, side="left"))]


def inaturalist2018(root: Path) -> Parts:
    """8,142 species; the official validation part is tested on, since the test has no classes."""
    folder = root / "inaturalist2018"

    def read(name: str) -> Mapping[str, list[Mapping[str, object]]]:
        found = json.loads((folder / f"{name}2018.json").read_bytes())
        return found if isinstance(found, dict) else {}

    learn, test = read("train"), read("val")
    classes = tuple(str(each["id"]) for each in learn["categories"])

    def part(facts: Mapping[str, list[Mapping[str, object]]]) -> Source:
        known = {each["image_id"]: str(each["category_id"]) for each in facts["annotations"]}
        labels = [known[each["id"]] for each in facts["images"]]
        paths = [str(each["file_name"]) for each in facts["images"]]
        return FileSource(folder, paths, labels, classes)

    return Parts(part(learn), None, part(test))


def split_folders(folder: Path) -> Parts:
    """Any data set as train/CLASS, test/CLASS and, if there is one, val/CLASS."""
    train = FolderSource(folder / "train")
    val = FolderSource(folder / "val", train.classes) if (folder / "val").is_dir() else None
    return Parts(train, val, FolderSource(folder / "test", train.classes))


def _named(number: int, classes: tuple[str, ...], where: Path) -> str:
    """Return the name of a class. Raises ValueError if there is none of that number."""
    if not 0 <= number < len(classes):
        raise ValueError(
            f"{str(where)!r} holds a label {number}; expected 0 to {len(classes) - 1}."
        )
    return classes[number]


def _lines(file: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]
