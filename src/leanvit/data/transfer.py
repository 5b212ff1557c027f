"""The data sets that show how far features carry: which there are, and where each one lies.

18 of EsViT (arXiv 2106.09785), the five that ELEVATER (arXiv 2204.08790) has besides, and
iNaturalist-2018. Each lies below one folder as torchvision or its publisher leaves it there, or,
where every image has one class, as NAME/train/CLASS, NAME/test/CLASS and maybe NAME/val/CLASS.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from leanvit.data import published
from leanvit.data.named import BROKEN, TorchvisionSource
from leanvit.data.published import Parts, TaggedSource, split_folders
from leanvit.data.sources import Source

ACCURACY, MEAN = "accuracy", "mean per class"


@dataclass(frozen=True, slots=True)
class TransferSet:
    """A data set: what is in it, how it is judged, where it lies, how to get it."""

    name: str
    classes: int
    learn: int
    """Images that are learned from, those that hyper-parameters are chosen on included."""
    test: int
    """Images that are tested on."""
    files: tuple[str, ...]
    """What lies below the folder of all sets if this one is there, and is whole."""
    open: Callable[[Path], Parts]
    """Returns its parts below a folder."""
    how: str
    """How to get it, as a sentence goes on."""
    metric: str = ACCURACY
    tune: int = 0
    """Hyper-parameters are chosen by learning from so many images only; 0 for all."""

    def folder(self, root: Path) -> Path:
        """Return where it may lie in folders of classes instead."""
        return root / self.name.lower()


def of_torchvision(name: str) -> Callable[[Path], Parts]:
    """Return what opens the parts of a data set of torchvision below a folder."""

    def parts(root: Path) -> Parts:
        learn = TorchvisionSource(f"{name}@{root}")
        rest, val, test = learn.part("rest"), learn.part("val"), learn.part("test")
        assert test is not None
        return Parts(rest or learn, val, test)

    return parts


def _fetch(name: str, *splits: str) -> str:
    """Return how torchvision downloads a set, with its splits where each is a download."""
    given = ", split=S" if splits else ""
    each = f" for S in {', '.join(splits)}" if splits else ""
    return f"torchvision.datasets.{name}(FOLDER{given}, download=True){each}"


_PCAM = "pcam/camelyonpatch_level_2_split_"
_VOC = "VOCdevkit/VOC2007/"
_SETS = (
    TransferSet(
        *("Caltech101", 102, 3_060, 6_084),
        ("caltech101/101_ObjectCategories",),
        published.caltech101,
        _fetch("Caltech101"),
        metric=MEAN,
    ),
    TransferSet(
        *("CIFAR10", 10, 50_000, 10_000),
        tuple(
            f"cifar-10-batches-py/{name}"
            for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
        ),
        of_torchvision("CIFAR10"),
        _fetch("CIFAR10"),
    ),
    TransferSet(
        *("CIFAR100", 100, 50_000, 10_000),
        tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
        of_torchvision("CIFAR100"),
        _fetch("CIFAR100"),
    ),
    TransferSet(
        *("DTD", 47, 3_760, 1_880),
        ("dtd/dtd/images", *(f"dtd/dtd/labels/{part}1.txt" for part in ("train", "val", "test"))),
        of_torchvision("DTD"),
        _fetch("DTD"),
    ),
    TransferSet(
        *("FER2013", 7, 32_298, 3_589),
        ("fer2013/fer2013.csv",),
        published.fer2013,
        "fer2013.csv (or icml_face_data.csv under that name) of Kaggle's competition "
        "challenges-in-representation-learning-facial-expression-recognition-challenge, "
        "in FOLDER/fer2013",
    ),
    TransferSet(
        *("FGVCAircraft", 100, 6_667, 3_333),
        tuple(
            f"fgvc-aircraft-2013b/data/{name}"
            for name in (
                *("images", "variants.txt"),
                *(f"images_variant_{part}.txt" for part in ("trainval", "train", "val", "test")),
            )
        ),
        of_torchvision("FGVCAircraft"),
        _fetch("FGVCAircraft"),
        metric=MEAN,
    ),
    TransferSet(
        *("Flowers102", 102, 2_040, 6_149),
        tuple(f"flowers-102/{name}" for name in ("jpg", "imagelabels.mat", "setid.mat")),
        of_torchvision("Flowers102"),
        _fetch("Flowers102"),
        metric=MEAN,
    ),
    TransferSet(
        *("Food101", 101, 75_750, 25_250),
        tuple(f"food-101/{name}" for name in ("images", "meta/train.json", "meta/test.json")),
        of_torchvision("Food101"),
        _fetch("Food101"),
    ),
    TransferSet(
        *("GTSRB", 43, 26_640, 12_630),
        ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
        of_torchvision("GTSRB"),
        _fetch("GTSRB", "train", "test"),
    ),
    TransferSet(
        *("HatefulMemes", 2, 8_500, 500),
        tuple(f"hateful_memes/{name}" for name in ("img", "train.jsonl", "dev.jsonl")),
        published.hateful_memes,
        "the Hateful Memes Challenge of Meta AI: img, train.jsonl and dev.jsonl (dev_seen.jsonl "
        "under that name) in FOLDER/hateful_memes",
        metric="ROC-AUC",
    ),
    TransferSet(
        *("MNIST", 10, 60_000, 10_000),
        tuple(
            f"MNIST/raw/{part}-{what}-ubyte"
            for part in ("train", "t10k")
            for what in ("images-idx3", "labels-idx1")
        ),
        of_torchvision("MNIST"),
        _fetch("MNIST"),
    ),
    TransferSet(
        *("PatchCamelyon", 2, 294_912, 32_768),
        tuple(f"{_PCAM}{part}_{x}.h5" for part in ("train", "valid", "test") for x in "xy"),
        of_torchvision("PCAM"),
        _fetch("PCAM", "train", "val", "test") + ", which takes h5py and gdown",
        tune=10_000,
    ),
    TransferSet(
        *("OxfordPets", 37, 3_680, 3_669),
        tuple(
            f"oxford-iiit-pet/{name}"
            for name in ("images", "annotations/trainval.txt", "annotations/test.txt")
        ),
        of_torchvision("OxfordIIITPet"),
        _fetch("OxfordIIITPet"),
        metric=MEAN,
    ),
    TransferSet(
        *("StanfordCars", 196, 8_144, 8_041),
        tuple(
            f"stanford_cars/{name}"
            for name in (
                *("cars_train", "cars_test", "cars_test_annos_withlabels.mat"),
                *("devkit/cars_train_annos.mat", "devkit/cars_meta.mat"),
            )
        ),
        of_torchvision("StanfordCars"),
        "a copy of the publisher's cars_train, cars_test, devkit and "
        "cars_test_annos_withlabels.mat, which Stanford itself no longer serves, in "
        "FOLDER/stanford_cars",
    ),
    TransferSet(
        *("STL10", 10, 5_000, 8_000),
        tuple(
            f"stl10_binary/{name}"
            for name in ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
        ),
        of_torchvision("STL10"),
        _fetch("STL10"),
    ),
    TransferSet(
        *("SUN397", 397, 19_850, 19_850),
        tuple(f"SUN397/{name}" for name in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")),
        published.sun397,
        _fetch("SUN397") + ", and the publisher's Partitions.zip unpacked in FOLDER/SUN397",
    ),
    TransferSet(
        *("UCF101", 101, 9_537, 3_783),
        (
            "ucf101/UCF-101-midframes",
            *(
                f"ucf101/ucfTrainTestlist/{name}.txt"
                for name in ("classInd", "trainlist01", "testlist01")
            ),
        ),
        published.ucf101,
        "in FOLDER/ucf101 the publisher's ucfTrainTestlist (UCF101TrainTestSplits-"
        "RecognitionTask.zip) and the middle frame of each video as UCF-101-midframes/"
        "Apply_Lipstick/v_ApplyLipstick_g01_c01.jpg (CoOp's UCF-101-midframes.zip holds them)",
    ),
    TransferSet(
        *("VOC2007", 20, 5_011, 4_952),
        (
            f"{_VOC}JPEGImages",
            *(f"{_VOC}ImageSets/Main/{part}.txt" for part in ("train", "val", "test")),
        ),
        published.voc2007,
        "torchvision.datasets.VOCDetection(FOLDER, '2007', S, download=True) for S in trainval, "
        "test",
        metric="11-point mAP",
    ),
    TransferSet(
        *("Country211", 211, 42_200, 21_100),
        ("country211/train", "country211/valid", "country211/test"),
        of_torchvision("Country211"),
        _fetch("Country211"),
    ),
    TransferSet(
        *("EuroSAT", 10, 10_000, 5_000),
        ("eurosat/2750",),
        published.eurosat,
        _fetch("EuroSAT"),
    ),
    TransferSet(
        *("KITTI-distance", 4, 6_770, 711),
        tuple(
            f"Kitti/raw/{name}"
            for name in (
                *("training/image_2", "training/label_2"),
                *("mapping/train_mapping.txt", "mapping/train_rand.txt"),
            )
        ),
        published.kitti_distance,
        "torchvision.datasets.Kitti(FOLDER, download=True), and the folder mapping of the "
        "publisher's devkit_object.zip in FOLDER/Kitti/raw",
    ),
    TransferSet(
        *("SST2", 2, 7_792, 1_821),
        tuple(
            f"rendered-sst2/{part}/{word}"
            for part in ("train", "valid", "test")
            for word in ("negative", "positive")
        ),
        of_torchvision("RenderedSST2"),
        _fetch("RenderedSST2"),
    ),
    TransferSet(
        *("RESISC45", 45, 3_150, 25_200),
        ("NWPU-RESISC45",),
        published.resisc45,
        "the publisher's NWPU-RESISC45.rar, unpacked in FOLDER",
    ),
    TransferSet(
        *("iNaturalist2018", 8_142, 437_513, 24_426),
        tuple(
            f"inaturalist2018/{name}"
            for name in ("train_val2018", "train2018.json", "val2018.json")
        ),
        published.inaturalist2018,
        "train_val2018.tar.gz, train2018.json.tar.gz and val2018.json.tar.gz of the iNaturalist "
        "2018 competition, unpacked in FOLDER/inaturalist2018",
    ),
)
TRANSFER_SETS: Mapping[str, TransferSet] = MappingProxyType({each.name: each for each in _SETS})
"""Every data set by its name, those of EsViT first."""
TAGGED = ("VOC2007",)
"""Sets whose images may have several classes; these have no folder for each class."""
DAMAGED = (*BROKEN, TypeError, AttributeError, OverflowError, csv.Error)
"""What reading files that hold anything may raise."""


def open_set(entry: TransferSet, root: Path) -> Parts | None:
    """Return the parts of a data set, or None if it is not below a folder.

    Raises ValueError if only half of it is there, if it cannot be read, or if it has classes out of
    range or without an image to learn from.
    """
    missing = [name for name in entry.files if not (root / name).exists()]
    folders = [] if entry.name in TAGGED else ["train", "test"]
    beside = [part for part in folders if not (entry.folder(root) / part).is_dir()]
    if len(missing) == len(entry.files) and beside == folders:
        return None
    laid_out = len(missing) < len(entry.files)
    lacking = missing if laid_out else [f"{entry.name.lower()}/{part}" for part in beside]
    if lacking:
        raise ValueError(
            f"{entry.name} is there in part: below {str(root)!r} there is no {', '.join(lacking)}; "
            f"the whole set: {entry.how}."
        )
    try:
        parts = entry.open(root) if laid_out else split_folders(entry.folder(root))
    except DAMAGED as error:
        words = " ".join(str(error).split()).rstrip(".")
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise ValueError(f"{entry.name} below {str(root)!r} cannot be read: {kind}{words}.") from (
            error
        )
    _require_every_class(entry, parts)
    return parts


def labels_of(source: Source) -> NDArray[np.int64]:
    """Return the class of each image [N], or its labels [N, C] where it may have several."""
    return source.labels if isinstance(source, TaggedSource) else source.targets


def _require_every_class(entry: TransferSet, parts: Parts) -> None:
    """Raise ValueError for more classes than there are, and for one without an image."""
    classes = parts.train.classes
    if not 2 <= len(classes) <= entry.classes:
        raise ValueError(
            f"{entry.name} has {len(classes)} classes here; expected at most {entry.classes}, and "
            f"at least two."
        )
    learn = [labels_of(part) for part in (parts.train, parts.val) if part is not None]
    if not all(map(len, (*learn, labels_of(parts.test)))):
        raise ValueError(f"A part of {entry.name} holds no image.")
    images = np.sum([_images_of_each(part, len(classes)) for part in learn], axis=0)
    for name, count in zip(classes, images, strict=True):
        if not count:
            raise ValueError(f"Class {name!r} of {entry.name} has no image to learn from.")


def _images_of_each(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return how many images each class has [C]."""
    return (labels == 1).sum(0) if labels.ndim > 1 else np.bincount(labels, minlength=classes)
