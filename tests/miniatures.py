"""Every set of the transfer suite in small, laid out as torchvision or its publisher leaves it.

A picture is of one grey, which tells it from its neighbours. Each writer returns what the parts
hold, in order: the class of each image, or its classes, and its grey.
"""

import csv
import io
import json
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

Entry = tuple[Any, int]
Held = dict[str, list[Entry]]


class Greys:
    """Greys that follow each other, and files of them."""

    def __init__(self) -> None:
        self._next = count()
        self._made: dict[tuple[int, str], bytes] = {}

    def __call__(self) -> int:
        """Return the next grey."""
        return 4 * (next(self._next) % 60) + 8

    def write(self, path: Path) -> int:
        """Write a picture of the next grey; return it."""
        grey, kind = self(), path.suffix
        if (grey, kind) not in self._made:
            stream = io.BytesIO()
            name = {".jpg": "JPEG", ".png": "PNG", ".ppm": "PPM"}[kind]
            Image.new("RGB", (12, 10), (grey,) * 3).save(stream, name)
            self._made[grey, kind] = stream.getvalue()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._made[grey, kind])
        return grey


def _text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _folders(root: Path, numbers: Mapping[str, int], name: str, greys: Greys) -> list[Entry]:
    """Write so many pictures of each class; name: such as `{0}_{1}.jpg` of class and number."""
    return [
        (label, greys.write(root / label / name.format(label, number)))
        for label, images in sorted(numbers.items())
        for number in range(1, images + 1)
    ]


def caltech101(root: Path, greys: Greys) -> Held:
    folder = root / "caltech101" / "101_ObjectCategories"
    numbers = {"BACKGROUND_Google": 31, "ant": 33}
    return {"all": _folders(folder, numbers, "image_{1:04}.jpg", greys)}


def _pictures(greys: Greys, images: int, *shape: int) -> tuple[list[int], np.ndarray[Any, Any]]:
    found = [greys() for _ in range(images)]
    pixels = np.array(found, dtype=np.uint8).reshape(-1, *[1] * len(shape))
    return found, np.broadcast_to(pixels, (images, *shape))


def _cifar(
    folder: Path, meta: str, names: Sequence[str], files: Mapping[str, str], label: str, g: Greys
) -> Held:
    folder.mkdir(parents=True)
    (folder / meta).write_bytes(
        pickle.dumps({"label_names" if label == "labels" else "fine_label_names": list(names)})
    )
    held: Held = {"train": [], "test": []}
    for number, (file, part) in enumerate(files.items()):
        targets = [number % 3, (number + 1) % 3, 2]
        found, pixels = _pictures(g, 3, 3072)
        (folder / file).write_bytes(pickle.dumps({"data": pixels.copy(), label: targets}))
        held[part] += [(names[target], grey) for target, grey in zip(targets, found, strict=True)]
    return held


def cifar10(root: Path, greys: Greys) -> Held:
    files = {f"data_batch_{number}": "train" for number in range(1, 6)} | {"test_batch": "test"}
    names = ("plane", "car", "bird")
    return _cifar(root / "cifar-10-batches-py", "batches.meta", names, files, "labels", greys)


def cifar100(root: Path, greys: Greys) -> Held:
    files = {"train": "train", "test": "test"}
    names = ("apple", "baby", "bear")
    return _cifar(root / "cifar-100-python", "meta", names, files, "fine_labels", greys)


def dtd(root: Path, greys: Greys) -> Held:
    folder, held = root / "dtd" / "dtd", Held()
    for part in ("train", "val", "test"):
        paths = [f"{name}/{name}_{part}{n}.jpg" for name in ("zigzag", "banded") for n in (1, 2)]
        held[part] = [(p.split("/")[0], greys.write(folder / "images" / p)) for p in paths]
        _text(folder / "labels" / f"{part}1.txt", paths)
        _text(folder / "labels" / f"{part}2.txt", paths[:1])
    return held


def fer2013(root: Path, greys: Greys) -> Held:
    names = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    usages = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
    held: Held = {part: [] for part in usages.values()}
    (root / "fer2013").mkdir(parents=True)
    with (root / "fer2013" / "fer2013.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["emotion", "pixels", "Usage"])
        for target in range(7):
            for usage, part in usages.items():
                grey = greys()
                table.writerow([target, " ".join([str(grey)] * 2304), usage])
                held[part].append((names[target], grey))
    return held


def aircraft(root: Path, greys: Greys) -> Held:
    folder, held = root / "fgvc-aircraft-2013b" / "data", Held()
    names = ("Boeing 707-320", "A300B4")
    _text(folder / "variants.txt", names)
    for number, part in enumerate(("train", "val", "test")):
        ids = [f"{number}{n:06}" for n in range(4)]
        labels = [names[n % 2] for n in range(4)]
        found = [greys.write(folder / "images" / f"{each}.jpg") for each in ids]
        held[part] = list(zip(labels, found, strict=True))
        lines = [f"{each} {label}" for each, label in zip(ids, labels, strict=True)]
        _text(folder / f"images_variant_{part}.txt", lines)
    lines = [
        line
        for part in ("train", "val")
        for line in (folder / f"images_variant_{part}.txt").read_text().splitlines()
    ]
    _text(folder / "images_variant_trainval.txt", lines)
    return held


def flowers(root: Path, greys: Greys) -> Held:
    from torchvision.datasets import Flowers102

    folder, held = root / "flowers-102", Held()
    places = {"train": range(1, 81), "val": range(81, 103), "test": range(103, 106)}
    labels = [*range(1, 103), 7, 8, 102]
    found = [greys.write(folder / "jpg" / f"image_{n:05}.jpg") for n in range(1, 106)]
    names = [Flowers102.classes[label - 1] for label in labels]
    for part, ids in places.items():
        held[part] = [(names[n - 1], found[n - 1]) for n in ids]
    savemat(folder / "imagelabels.mat", {"labels": np.array(labels)})
    keys = {"trnid": "train", "valid": "val", "tstid": "test"}
    ids_of = {key: np.array(places[part]) for key, part in keys.items()}
    savemat(folder / "setid.mat", ids_of)
    return held


def food101(root: Path, greys: Greys) -> Held:
    folder, held = root / "food-101", Held()
    for number, part in enumerate(("train", "test")):
        meta = {name: [f"{name}/{number}{n}" for n in (1, 2)] for name in ("waffles", "ramen")}
        held[part] = [
            (name, greys.write(folder / "images" / f"{path}.jpg"))
            for name, paths in meta.items()
            for path in paths
        ]
        _text(folder / "meta" / f"{part}.json", [json.dumps(meta)])
    return held


def gtsrb(root: Path, greys: Greys) -> Held:
    folder = root / "gtsrb"
    learn = [
        (
            str(target),
            greys.write(folder / "GTSRB/Training" / f"{target:05}" / f"00000_0000{n}.ppm"),
        )
        for target in range(3)
        for n in range(2)
    ]
    lines, test = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"], []
    for number, target in enumerate((2, 0, 1)):
        name = f"{number:05}.ppm"
        test.append((str(target), greys.write(folder / "GTSRB/Final_Test/Images" / name)))
        lines.append(f"{name};12;10;1;1;9;9;{target}")
    _text(folder / "GT-final_test.csv", lines)
    return {"train": learn, "test": test}


def hateful_memes(root: Path, greys: Greys) -> Held:
    folder, held = root / "hateful_memes", Held()
    for number, (file, part) in enumerate({"train": "train", "dev": "test"}.items()):
        lines = list[str]()
        held[part] = []
        for label in (0, 1, 1, 0):
            each = f"{number}{len(lines):04}"
            path = f"img/{each}.png"
            held[part].append((("not hateful", "hateful")[label], greys.write(folder / path)))
            lines.append(json.dumps({"id": int(each), "img": path, "label": label, "text": "—"}))
        _text(folder / f"{file}.jsonl", lines)
    return held


def mnist(root: Path, greys: Greys) -> Held:
    from torchvision.datasets import MNIST

    raw, held = root / "MNIST" / "raw", Held()
    raw.mkdir(parents=True)
    for word, part, targets in (("train", "train", range(10)), ("t10k", "test", (3, 0))):
        found, pixels = _pictures(greys, len(targets), 28, 28)
        head = struct.pack(">4I", 0x803, len(targets), 28, 28)
        (raw / f"{word}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">2I", 0x801, len(targets))
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(head + bytes(targets))
        held[part] = [(MNIST.classes[t], grey) for t, grey in zip(targets, found, strict=True)]
    return held


def pcam(root: Path, greys: Greys) -> Held:
    import h5py

    held = Held()
    (root / "pcam").mkdir(parents=True)
    for word, part in (("train", "train"), ("valid", "val"), ("test", "test")):
        found, pixels = _pictures(greys, 4, 96, 96, 3)
        stem = f"pcam/camelyonpatch_level_2_split_{word}"
        with h5py.File(root / f"{stem}_x.h5", "w") as table:
            table["x"] = pixels
        with h5py.File(root / f"{stem}_y.h5", "w") as table:
            table["y"] = np.array([0, 1, 1, 0], np.uint8).reshape(-1, 1, 1, 1)
        held[part] = list(zip("0110", found, strict=True))
    return held


def pets(root: Path, greys: Greys) -> Held:
    folder, held = root / "oxford-iiit-pet", Held()
    names = {"Abyssinian": "Abyssinian", "american_bulldog": "American Bulldog"}
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines, entries = [], list[Entry]()
        for label, (word, name) in enumerate(names.items(), start=1):
            for number in numbers:
                grey = greys.write(folder / "images" / f"{word}_{number}.jpg")
                entries.append((name, grey))
                lines.append(f"{word}_{number} {label} {label} 1")
        _text(folder / "annotations" / f"{part}.txt", lines)
        held["train" if part == "trainval" else "test"] = entries
    return held


def cars(root: Path, greys: Greys) -> Held:
    folder, held = root / "stanford_cars", Held()
    names = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    kind = [(name, object) for name in ("bbox_x1", "class", "fname")]
    for part, place in places.items():
        rows = [(1, 2 - n % 2, f"{n:05}.jpg") for n in range(1, 5)]
        held[part] = [
            (names[target - 1], greys.write(folder / f"cars_{part}" / name))
            for _, target, name in rows
        ]
        savemat(folder / place, {"annotations": np.array([rows[:]], dtype=kind)})
    return held


def stl10(root: Path, greys: Greys) -> Held:
    folder, held = root / "stl10_binary", Held()
    folder.mkdir(parents=True)
    names = ("airplane", "bird", "car")
    _text(folder / "class_names.txt", names)
    for part in ("train", "test"):
        found, pixels = _pictures(greys, 3, 3 * 96 * 96)
        (folder / f"{part}_X.bin").write_bytes(pixels.tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes((3, 1, 2)))
        held[part] = [(names[n], grey) for n, grey in zip((2, 0, 1), found, strict=True)]
    (folder / "unlabeled_X.bin").write_bytes(b"")
    return held


def sun397(root: Path, greys: Greys) -> Held:
    folder, held = root / "SUN397", Held()
    names = ("/a/abbey", "/a/apse/indoor")
    _text(folder / "ClassName.txt", names)
    for word, part in (("Training", "train"), ("Testing", "test")):
        paths = [f"{name}/sun_{part}{n}.jpg" for name in names for n in (1, 2)]
        held[part] = [
            (path[3:].rsplit("/", 1)[0], greys.write(folder / path[1:])) for path in paths
        ]
        _text(folder / f"{word}_01.txt", paths)
        _text(folder / f"{word}_02.txt", paths[:1])
    return held


def ucf101(root: Path, greys: Greys) -> Held:
    lists, frames = root / "ucf101/ucfTrainTestlist", root / "ucf101/UCF-101-midframes"
    names = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "YoYo": "Yo_Yo"}
    _text(lists / "classInd.txt", [f"{n} {name}" for n, name in enumerate(names, start=1)])
    held = Held()
    for part, group in (("train", "g08"), ("test", "g01")):
        lines, entries = [], list[Entry]()
        for number, (name, folder) in enumerate(names.items(), start=1):
            for clip in (1, 2):
                stem = f"v_{name}_{group}_c{clip:02}"
                entries.append((name, greys.write(frames / folder / f"{stem}.jpg")))
                lines.append(f"{name}/{stem}.avi" + (f" {number}" if part == "train" else ""))
        _text(lists / f"{part}list01.txt", lines)
        held[part] = entries
    return held


def voc2007(root: Path, greys: Greys) -> Held:
    from leanvit.data.published import OBJECTS

    folder, held = root / "VOCdevkit" / "VOC2007", Held()
    words = (1, -1, 0, -1, -1, 1, -1)  # present, absent, hard to see
    meaning = {1: 1, -1: 0, 0: -1}
    for number, part in enumerate(("train", "val", "test")):
        ids = [f"{number}{n:05}" for n in range(7)]
        found = [greys.write(folder / "JPEGImages" / f"{each}.jpg") for each in ids]
        _text(folder / "ImageSets/Main" / f"{part}.txt", ids)
        table = []
        for place, thing in enumerate(OBJECTS):
            column = [words[(n + place) % 7] for n in range(7)]
            lines = [f"{each} {word:2}" for each, word in zip(ids, column, strict=True)]
            _text(folder / "ImageSets/Main" / f"{thing}_{part}.txt", lines)
            table.append([meaning[word] for word in column])
        rows = [tuple(row) for row in zip(*table, strict=True)]
        held[part] = list(zip(rows, found, strict=True))
    return held


def country211(root: Path, greys: Greys) -> Held:
    places = {"train": "train", "val": "valid", "test": "test"}
    return {
        part: _folders(root / "country211" / place, {"AD": 2, "ZW": 2}, "{0}{1}.jpg", greys)
        for part, place in places.items()
    }


def eurosat(root: Path, greys: Greys) -> Held:
    folder = root / "eurosat" / "2750"
    return {"all": _folders(folder, {"Forest": 1502, "River": 1500}, "{0}_{1}.jpg", greys)}


def kitti(root: Path, greys: Greys) -> Held:
    raw = root / "Kitti" / "raw"
    distances = {"up to 8 m": 7.9, "up to 20 m": 8.1, "beyond 20 m": 50.0, "no vehicle": 0.0}
    order = [7, 2, 15, 0, 9, 4, 11, 6, 13, 8, 1, 10, 3, 12, 5, 14]
    drives = [f"2011_09_26 2011_09_26_drive_{n // 4:04}_sync {n:010}" for n in range(16)]
    _text(raw / "mapping" / "train_mapping.txt", drives)
    _text(raw / "mapping" / "train_rand.txt", [",".join(str(n + 1) for n in order)])
    places = {0: "train", 1: "val", 2: "train", 3: "test"}  # of four drives, as VTAB draws them
    held: Held = {"train": [], "val": [], "test": []}
    for image, line in enumerate(order):
        label = list(distances)[(line % 4)]
        rest = "0.00 0 1.0 1 2 3 4 1.5 1.6 3.9 1.0 1.5"
        rows = [f"Pedestrian {rest} 1.00 0.1", f"Truck {rest} 90.00 0.1", "DontCare " + rest]
        if label == "no vehicle":
            del rows[1]
        rows.append(
            f"{'Cyclist' if label == 'no vehicle' else 'Car'} {rest} {distances[label]} 0.1"
        )
        _text(raw / "training/label_2" / f"{image:06}.txt", rows)
        grey = greys.write(raw / "training/image_2" / f"{image:06}.png")
        held[places[line // 4]].append((label, grey))
    return held


def sst2(root: Path, greys: Greys) -> Held:
    places = {"train": "train", "val": "valid", "test": "test"}
    numbers = {"negative": 2, "positive": 2}
    return {
        part: _folders(root / "rendered-sst2" / place, numbers, "{1}.png", greys)
        for part, place in places.items()
    }


def resisc45(root: Path, greys: Greys) -> Held:
    numbers = {"airplane": 640, "beach": 630}
    return {"all": _folders(root / "NWPU-RESISC45", numbers, "{0}_{1:03}.jpg", greys)}


def inaturalist(root: Path, greys: Greys) -> Held:
    folder, held = root / "inaturalist2018", Held()
    categories = [{"id": n, "name": f"{n}", "supercategory": "Plantae"} for n in range(3)]
    for first, (file, part) in zip(
        (10, 90), {"train": "train", "val": "test"}.items(), strict=True
    ):
        images, annotations = list[dict[str, object]](), list[dict[str, object]]()
        held[part] = []
        for number, target in enumerate((2, 0, 1, 2)):
            path = f"train_val2018/Plantae/{target}/{first + number}.jpg"
            held[part].append((str(target), greys.write(folder / path)))
            images.append({"id": first + number, "file_name": path})
            annotations.insert(0, {"image_id": first + number, "category_id": target})
        facts = {"images": images, "annotations": annotations, "categories": categories}
        _text(folder / f"{file}2018.json", [json.dumps(facts)])
    return held


MINIATURES: Mapping[str, Callable[[Path, Greys], Held]] = MappingProxyType(
    {
        "Caltech101": caltech101,
        "CIFAR10": cifar10,
        "CIFAR100": cifar100,
        "DTD": dtd,
        "FER2013": fer2013,
        "FGVCAircraft": aircraft,
        "Flowers102": flowers,
        "Food101": food101,
        "GTSRB": gtsrb,
        "HatefulMemes": hateful_memes,
        "MNIST": mnist,
        "PatchCamelyon": pcam,
        "OxfordPets": pets,
        "StanfordCars": cars,
        "STL10": stl10,
        "SUN397": sun397,
        "UCF101": ucf101,
        "VOC2007": voc2007,
        "Country211": country211,
        "EuroSAT": eurosat,
        "KITTI-distance": kitti,
        "SST2": sst2,
        "RESISC45": resisc45,
        "iNaturalist2018": inaturalist,
    }
)
"""Set -> what writes it below a folder; sets whose parts leanvit draws are held in one."""
