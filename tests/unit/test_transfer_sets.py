"""The data sets of the transfer suite, each in small in exactly its own layout."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from leanvit.data.decode import to_pixels
from leanvit.data.published import Parts
from leanvit.data.sources import Source
from leanvit.data.transfer import TAGGED, TRANSFER_SETS, labels_of, open_set
from leanvit.evaluation.scores import SCORES
from tests.miniatures import MINIATURES, Entry, Greys, Held
from tests.tiny import write_classes

DOCS = Path(__file__).parents[2] / "docs" / "transfer.md"
DRAWN = {"Caltech101": (30, 1), "EuroSAT": (1000, 500), "RESISC45": (70, 560)}
"""Sets without official parts -> images of each class that are learned from, and tested on."""
IN_ORDER = sorted(set(MINIATURES) - DRAWN.keys())


@pytest.fixture(autouse=True)
def small_files_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows some files by their digests, which those of a miniature are not."""
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda *_, **__: True)


def small(name: str, root: Path) -> tuple[Parts, Held]:
    if name == "PatchCamelyon" and not find_spec("h5py"):
        pytest.skip("h5py, which writes and reads PatchCamelyon, is not installed")
    held = MINIATURES[name](root, Greys())
    parts = open_set(TRANSFER_SETS[name], root)
    assert parts is not None
    return parts, held


def held_by(source: Source) -> list[Entry]:
    """Return class, or labels, and grey of each image."""
    greys = [round(float(to_pixels(source[i].image).float().mean())) for i in range(len(source))]
    labels = labels_of(source)
    if labels.ndim > 1:
        return list(zip(map(tuple, labels.tolist()), greys, strict=True))
    assert [source[i].target for i in range(len(source))] == labels.tolist()
    return [(source.classes[target], grey) for target, grey in zip(labels, greys, strict=True)]


def by_part(parts: Parts) -> Iterator[tuple[str, Source | None]]:
    yield from (("train", parts.train), ("val", parts.val), ("test", parts.test))


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_set_is_read_as_it_is_laid_out(name: str, tmp_path: Path) -> None:
    parts, held = small(name, tmp_path)
    for part, source in by_part(parts):
        found = None if source is None else held_by(source)
        assert found == held.get(part), part
    assert parts.train.classes == parts.test.classes


@pytest.mark.parametrize("name", DRAWN)
def test_parts_that_nobody_published_are_drawn_once_and_for_all(name: str, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    parts, held = small(name, tmp_path / "first")
    learn, test = DRAWN[name]
    entries = held["all"]
    every = {label: sum(one == label for one, _ in entries) for label, _ in entries}
    assert parts.val is None and list(every) == list(parts.train.classes)
    counts = [np.bincount(part.targets).tolist() for part in (parts.train, parts.test)]
    assert counts[0] == [learn] * len(every)
    if name == "Caltech101":
        assert counts[1] == [number - learn for number in every.values()]
    else:
        assert counts[1] == [test] * len(every)
    names = [{part.name(i) for i in range(len(part))} for part in (parts.train, parts.test)]
    assert len(names[0]) == len(parts.train) and not names[0] & names[1]
    order = sorted({*names[0], *names[1]})
    first = {n for label in every for n in [o for o in order if o.startswith(label)][:learn]}
    assert names[0] != first and len(first) == len(names[0])
    (tmp_path / "first").rename(tmp_path / "second")
    again = open_set(TRANSFER_SETS[name], tmp_path / "second")
    assert again is not None
    assert {again.train.name(i) for i in range(len(again.train))} == names[0]
    first_image = to_pixels(again.test[0].image)
    label = again.test.classes[again.test[0].target]
    assert (label, round(float(first_image.float().mean()))) in entries


def test_a_class_that_is_too_small_to_draw_from_is_named(tmp_path: Path) -> None:
    MINIATURES["Caltech101"](tmp_path, Greys())
    (tmp_path / "caltech101/101_ObjectCategories/ant/image_0001.jpg").unlink()
    parts = open_set(TRANSFER_SETS["Caltech101"], tmp_path)
    assert parts is not None and len(parts.test) == 3
    for path in (tmp_path / "caltech101/101_ObjectCategories/ant").glob("*2.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match=r"Class 'ant' of .* has 28 images; expected at least 31"):
        open_set(TRANSFER_SETS["Caltech101"], tmp_path)


@pytest.mark.parametrize("name", sorted(set(MINIATURES) - {"EuroSAT", "RESISC45"}))
def test_what_is_missing_of_a_set_is_named(name: str, tmp_path: Path) -> None:
    entry = TRANSFER_SETS[name]
    assert open_set(entry, tmp_path) is None
    small(name, tmp_path)
    away = tmp_path / "away"
    for file in entry.files if len(entry.files) > 1 else ():
        (tmp_path / file).rename(away)
        expected = f"^{name} is there in part: below .* there is no {re.escape(file)}; the whole"
        with pytest.raises(ValueError, match=expected):
            open_set(entry, tmp_path)
        away.rename(tmp_path / file)
    assert open_set(entry, tmp_path) is not None


def test_every_set_has_a_miniature_a_metric_and_a_line_in_the_documents() -> None:
    assert list(MINIATURES) == list(TRANSFER_SETS)
    said = DOCS.read_text()
    for name, entry in TRANSFER_SETS.items():
        assert entry.metric in SCORES
        line = f"| {name} | {entry.metric} | {entry.classes:,} | {entry.learn:,} | {entry.test:,} |"
        assert line in said
        assert f"| {entry.how} |" in said


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        *((name, "mean per class") for name in ("Caltech101", "FGVCAircraft", "Flowers102")),
        ("OxfordPets", "mean per class"),
        ("VOC2007", "11-point mAP"),
        ("HatefulMemes", "ROC-AUC"),
    ],
)
def test_the_metrics_that_are_no_plain_accuracy(name: str, metric: str) -> None:
    assert TRANSFER_SETS[name].metric == metric
    others = {entry.metric for entry in TRANSFER_SETS.values()} - {"accuracy"}
    assert len(others) == 3 and sum(e.metric != "accuracy" for e in TRANSFER_SETS.values()) == 6


def test_what_is_said_of_torchvision_can_be_called() -> None:
    for entry in TRANSFER_SETS.values():
        for word in re.findall(r"torchvision\.datasets\.(\w+)", entry.how):
            assert hasattr(datasets, word), entry.name


# Folders of classes


def test_any_set_of_single_classes_may_lie_in_folders(tmp_path: Path) -> None:
    entry = TRANSFER_SETS["CIFAR10"]
    write_classes(tmp_path / "cifar10" / "train", cat=3, dog=2)
    with pytest.raises(
        ValueError, match=r"CIFAR10 is there in part: .* no cifar10/test; the whole"
    ):
        open_set(entry, tmp_path)
    write_classes(tmp_path / "cifar10" / "test", dog=2)
    parts = open_set(entry, tmp_path)
    assert parts is not None and parts.val is None
    assert parts.train.classes == ("cat", "dog")
    assert parts.train.targets.tolist() == [0, 0, 0, 1, 1] and parts.test.targets.tolist() == [1, 1]
    write_classes(tmp_path / "cifar10" / "val", dog=1)
    parts = open_set(entry, tmp_path)
    assert parts is not None and parts.val is not None and parts.val.targets.tolist() == [1]


def test_the_own_layout_comes_first(tmp_path: Path) -> None:
    small("CIFAR10", tmp_path)
    for part in ("train", "test"):
        write_classes(tmp_path / "cifar10" / part, cat=1, dog=1)
    parts = open_set(TRANSFER_SETS["CIFAR10"], tmp_path)
    assert parts is not None and len(parts.train) == 15


def test_several_classes_are_not_read_from_folders(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_classes(tmp_path / "voc2007" / part, cat=1, dog=1)
    assert TAGGED == ("VOC2007",) and open_set(TRANSFER_SETS["VOC2007"], tmp_path) is None


@pytest.mark.parametrize(
    ("train", "val", "test", "message"),
    [
        ({"cat": 1}, {}, {"cat": 1}, r"SST2 has 1 classes here; expected at most 2, and at least"),
        ({"a": 1, "b": 1, "c": 1}, {}, {"a": 1}, "SST2 has 3 classes here; expected at most 2"),
        ({"a": 1, "b": 1}, {}, {"c": 1}, "SST2 below .* cannot be read: Unknown class in .* 'c'"),
        ({"a": 1, "b": 1}, {"c": 1}, {"a": 1}, "SST2 below .*: Unknown class in .*val' 'c'"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    train: dict[str, int], val: dict[str, int], test: dict[str, int], message: str, tmp_path: Path
) -> None:
    for part, counts in (("train", train), ("val", val), ("test", test)):
        if counts:
            write_classes(tmp_path / "sst2" / part, **counts)
    with pytest.raises(ValueError, match=message):
        open_set(TRANSFER_SETS["SST2"], tmp_path)


# Damage


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


BROKEN: list[tuple[str, str, tuple[str, str], str]] = [
    ("FER2013", "fer2013/fer2013.csv", ("\n0,", "\n9,"), "2304 pixels and emotion 9; expected"),
    ("FER2013", "fer2013/fer2013.csv", ("\n0,8 ", "\n0,"), "2303 pixels and emotion 0"),
    ("FER2013", "fer2013/fer2013.csv", ("\n0,8 ", "\n0,800 "), "OverflowError: .*800"),
    ("FER2013", "fer2013/fer2013.csv", ("PrivateTest", "Other"), "KeyError: 'PrivateTest'"),
    ("HatefulMemes", "hateful_memes/dev.jsonl", ('"label": 1', '"label": 2'), "holds a label 2"),
    ("HatefulMemes", "hateful_memes/dev.jsonl", ('"label": 1, ', ""), "KeyError: 'label'"),
    ("HatefulMemes", "hateful_memes/dev.jsonl", ("{", "["), "cannot be read: "),
    ("VOC2007", "VOCdevkit/VOC2007/ImageSets/Main/cat_val.txt", ("100002", "100009"), "in order"),
    ("VOC2007", "VOCdevkit/VOC2007/ImageSets/Main/cat_val.txt", ("-1", " 7"), "does not say 1, 0"),
    ("SUN397", "SUN397/ClassName.txt", ("/a/abbey", "/a/alley"), "Unknown class in .* 'abbey'"),
    ("UCF101", "ucf101/ucfTrainTestlist/classInd.txt", ("1 Apply", "Apply"), "IndexError"),
    ("GTSRB", "gtsrb/GT-final_test.csv", (";2\n", ";77\n"), r"Unknown class in 'GTSRB' '77'"),
    ("GTSRB", "gtsrb/GT-final_test.csv", (";2\n", ";-2\n"), "the lowest number -2; expected"),
    ("DTD", "dtd/dtd/labels/train1.txt", ("zigzag/zigzag", "zigzag"), "does not hold DTD as torch"),
    ("FGVCAircraft", "fgvc-aircraft-2013b/data/variants.txt", ("A300B4", "A3"), "'A300B4'"),
    ("Food101", "food-101/meta/test.json", ("{", ""), "does not hold Food101"),
    ("KITTI-distance", "Kitti/raw/mapping/train_rand.txt", (",16", ",99"), "IndexError"),
    (
        "iNaturalist2018",
        "inaturalist2018/val2018.json",
        ('"category_id": 2', '"category_id": 7'),
        "'7'",
    ),
    (
        "iNaturalist2018",
        "inaturalist2018/val2018.json",
        ('"images"', '"other"'),
        "KeyError: 'images'",
    ),
    ("iNaturalist2018", "inaturalist2018/train2018.json", ("{", "[{"), "cannot be read"),
    (
        "OxfordPets",
        "oxford-iiit-pet/annotations/test.txt",
        (" 2 2 1", " 9 2 1"),
        "Unknown class|hold",
    ),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), BROKEN)
def test_damage_is_an_error_that_names_the_set(
    name: str, file: str, change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    small(name, tmp_path)
    rewrite(tmp_path / file, *change)
    with pytest.raises(ValueError, match=message) as error:
        open_set(TRANSFER_SETS[name], tmp_path)
    assert str(error.value).startswith(f"{name} below {str(tmp_path)!r} cannot be read: ")


def test_a_class_without_an_image_to_learn_from_is_named(tmp_path: Path) -> None:
    small("SUN397", tmp_path)
    rewrite(tmp_path / "SUN397/Training_01.txt", "/a/abbey/sun_train1.jpg\n", "")
    parts = open_set(TRANSFER_SETS["SUN397"], tmp_path)
    assert parts is not None and len(parts.train) == 3
    rewrite(tmp_path / "SUN397/Training_01.txt", "/a/abbey/sun_train2.jpg\n", "")
    with pytest.raises(ValueError, match="Class 'abbey' of SUN397 has no image to learn from"):
        open_set(TRANSFER_SETS["SUN397"], tmp_path)


def test_a_class_that_is_only_left_open_is_not_there(tmp_path: Path) -> None:
    small("VOC2007", tmp_path)
    for part in ("train", "val"):
        file = tmp_path / f"VOCdevkit/VOC2007/ImageSets/Main/sofa_{part}.txt"
        file.write_text(re.sub(" +1$", "  0", file.read_text(), flags=re.MULTILINE))
    with pytest.raises(ValueError, match="Class 'sofa' of VOC2007 has no image to learn from"):
        open_set(TRANSFER_SETS["VOC2007"], tmp_path)


def test_a_part_without_images_is_refused(tmp_path: Path) -> None:
    small("iNaturalist2018", tmp_path)
    file = tmp_path / "inaturalist2018/val2018.json"
    facts: dict[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "images": [], "annotations": []}))
    with pytest.raises(ValueError, match="A part of iNaturalist2018 holds no image"):
        open_set(TRANSFER_SETS["iNaturalist2018"], tmp_path)


def test_without_h5py_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    entry = TRANSFER_SETS["PatchCamelyon"]
    (tmp_path / "pcam").mkdir()
    for file in entry.files:
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=r"PatchCamelyon below .*pip install h5py"):
        open_set(entry, tmp_path)
