"""Images with objects: both layouts as they lie on disk, and what is wrong with a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanvit.data.objects import has_objects, open_objects
from tests.integration.command import Says

H, W = 30, 40
BOXES = {"a": [("cat", (3, 4, 12, 20), 0), ("dog", (1, 1, 40, 30), 1)], "b": [], "c": []}
"""Image -> name of the class, left, top, right and bottom as pixels counted from 1, difficult."""


def image(path: Path, size: tuple[int, int] = (H, W)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(path)


def voc_object(name: str, box: tuple[float, ...], difficult: int) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{inside}</bndbox></object>"
    )


def write_voc(root: Path) -> Path:
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (root / "Annotations").mkdir()
    (lists / "train.txt").write_text("a\nb 1\n")
    (lists / "val.txt").write_text("a\nc\n")
    for name, objects in BOXES.items():
        image(root / "JPEGImages" / f"{name}.jpg")
        if name != "c":
            inside = "".join(voc_object(*one) for one in objects)
            size = f"<size><width>{W}</width><height>{H}</height></size>"
            text = f"<annotation>{size}{inside}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def coco(**changes: Any) -> dict[str, Any]:
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [2, 3, 10, 17], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 90, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ]
    annotations[0]["segmentation"] = [[2, 3, 12, 3, 12, 20, 2, 20]]
    annotations[1]["segmentation"] = {"size": [H, W], "counts": [0, H * W]}
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}]
    categories = [{"id": 90, "name": "dog"}, {"id": 18, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def write_coco(root: Path, split: str = "train2017", **changes: Any) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        image(root / split / f"{name}.jpg")
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco(**changes)))
    return root


def test_pascal_voc(tmp_path: Path) -> None:
    source = open_objects(str(write_voc(tmp_path)), "train")
    assert source.classes == ("cat", "dog") and len(source) == 2 and not source.outlined
    found = source.objects(0, H, W)
    assert found.boxes.tolist() == [[2, 3, 12, 20], [0, 0, 40, 30]], "pixels count from 1"
    assert found.labels.tolist() == [0, 1] and found.crowd.tolist() == [False, True]
    assert found.masks is None and source.name(1) == "JPEGImages/b.jpg"
    for split, index in (("train", 1), ("val", 1)):
        empty = open_objects(str(tmp_path), split, source.classes).objects(index, H, W)
        assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)
    assert has_objects(str(tmp_path), "val") and not has_objects(str(tmp_path), "test")


def test_coco(tmp_path: Path) -> None:
    source = open_objects(str(write_coco(tmp_path)), "train")
    assert source.classes == ("cat", "dog") and source.outlined, "in the order of their numbers"
    found = source.objects(0, H, W, masks=True)
    assert found.boxes.tolist() == [[2, 3, 12, 20], [0, 0, 40, 30]]
    assert found.labels.tolist() == [0, 1] and found.crowd.tolist() == [False, True]
    assert found.masks is not None and found.masks.shape == (2, H, W)
    expected = torch.zeros(H, W, dtype=torch.uint8)
    expected[3:20, 2:12] = 1
    assert (found.masks[0] != expected).sum() <= 0 and found.masks[1].all()
    none = source.objects(1, H, W, masks=True)
    assert none.masks is not None and none.masks.shape == (0, H, W)


@pytest.mark.parametrize("place", ["train", "images/train", "images", "."])
def test_where_images_of_coco_may_lie(place: str, tmp_path: Path) -> None:
    write_coco(tmp_path, "train")
    (tmp_path / "train").rename(tmp_path / "moved")
    target = tmp_path / place
    target.mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "moved").iterdir():
        path.rename(target / path.name)
    assert len(open_objects(str(tmp_path), "train")[0].image) > 100


def test_boxes_are_cut_at_the_border_and_empty_ones_left_out(tmp_path: Path, capsys: Says) -> None:
    boxes = [[-5, -5, 10, 10], [35, 25, 10, 10], [50, 3, 5, 5], [3, 3, 0, 4]]
    annotations = [
        {"id": n, "image_id": 7, "category_id": 18, "bbox": box} for n, box in enumerate(boxes)
    ]
    source = open_objects(str(write_coco(tmp_path, annotations=annotations)), "train")
    assert "1 of 4 boxes have no area, such as one in 'train2017/a.jpg'" in capsys.readouterr().err
    assert source.objects(0, H, W).boxes.tolist() == [[0, 0, 5, 5], [35, 25, 40, 30]]


def spoilt_xml(root: Path, text: str) -> None:
    (root / "Annotations" / "a.xml").write_text(text)


def outline(root: Path, shape: object) -> None:
    annotation = {"id": 1, "image_id": 7, "category_id": 18, "bbox": [2, 3, 9, 9]}
    write_coco(root, annotations=[{**annotation, "segmentation": shape}])


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>'
NO_BOX = "<annotation><object><name>cat</name></object></annotation>"
NOT_FINITE = f"<annotation>{voc_object('cat', (float('nan'), 1, 2, 3), 0)}</annotation>"
VOC: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda r: spoilt_xml(r, "<annotation>"), "train", "a.xml' cannot be read"),
    (lambda r: spoilt_xml(r, BOMB), "train", "it declares entities"),
    (lambda r: spoilt_xml(r, NO_BOX), "train", "an object has no bndbox/xmin"),
    (lambda r: spoilt_xml(r, NOT_FINITE), "train", "bndbox/xmin is nan"),
    (lambda r: None, "dev", "has no split 'dev'; it has: train, val"),
    (lambda r: (r / "ImageSets/Main/train.txt").write_text(""), "train", "has no images"),
]


def two_years(root: Path) -> None:
    file = root / "annotations" / "instances_train2017.json"
    file.with_name("instances_train2014.json").write_text(file.read_text())


COCO: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda r: write_coco(r, categories=[]), "train", "annotation 1 is of no category"),
    (lambda r: write_coco(r, images=[]), "train", "KeyError 7"),
    (lambda r: write_coco(r, annotations=[{"id": 1}]), "train", "KeyError"),
    (
        lambda r: write_coco(r, images=[{"id": 7, "file_name": "../../a.jpg"}]),
        "train",
        "lies outside of",
    ),
    (
        lambda r: write_coco(r, images=[{"id": 7, "file_name": "none.jpg"}]),
        "train",
        "image 'none.jpg' is not in",
    ),
    (lambda r: None, "dev", "has no split 'dev'; it has: train2017"),
    (two_years, "train", "may be any of: train2014, train2017; name one"),
    (
        lambda r: (r / "annotations/instances_train2017.json").write_text("{"),
        "train",
        "instances_train2017.json' cannot be read",
    ),
]


@pytest.mark.parametrize(("spoil", "split", "said"), VOC)
def test_mistakes_of_pascal_voc(
    spoil: Callable[[Path], object], split: str, said: str, tmp_path: Path
) -> None:
    spoil(write_voc(tmp_path))
    with pytest.raises(ValueError, match=said):
        open_objects(str(tmp_path), split)


@pytest.mark.parametrize(("spoil", "split", "said"), COCO)
def test_mistakes_of_coco(
    spoil: Callable[[Path], object], split: str, said: str, tmp_path: Path
) -> None:
    spoil(write_coco(tmp_path))
    with pytest.raises(ValueError, match=said):
        open_objects(str(tmp_path), split)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"size": [9, 9], "counts": [0, 81]}, "is for 9 x 9 pixels, and the image has 40 x 30"),
        ({"size": [H, W]}, "cannot be read"),
        ([["x", "y"]], "cannot be read"),
        ([[]], "three corners or more"),
        ([[1, 2]], "three corners or more"),
    ],
)
def test_an_outline_that_is_none(shape: object, said: str, tmp_path: Path) -> None:
    outline(tmp_path, shape)
    source = open_objects(str(tmp_path), "train")
    with pytest.raises(ValueError, match=f"outline of an object in 'train2017/a.jpg'.*{said}"):
        source.objects(0, H, W, masks=True)


def test_classes_that_were_not_learned(tmp_path: Path) -> None:
    write_voc(tmp_path)
    spoilt_xml(tmp_path, f"<annotation>{voc_object('kat', (1, 1, 2, 3), 0)}</annotation>")
    with pytest.raises(ValueError, match=r"class in .*val.txt' 'kat'.*cat"):
        open_objects(str(tmp_path), "val", ("cat", "dog"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"is neither Pascal VOC .* nor COCO"):
        open_objects(str(tmp_path / "none"), "train")
    with pytest.raises(ValueError, match="no folder was named"):
        open_objects("", "train")


def test_what_is_said_of_another_size(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": 2 * W, "height": 2 * H}]
    source = open_objects(str(write_coco(tmp_path / "coco", images=images)), "train")
    with pytest.raises(ValueError, match=r"'train2017/a.jpg' are those of an image of 80 x 60 pix"):
        source.objects(0, H, W)
    write_voc(tmp_path / "voc")
    with pytest.raises(ValueError, match="an image of 40 x 30 pixels, and it has 20 x 30"):
        open_objects(str(tmp_path / "voc"), "train").objects(0, H, W // 2)


def test_a_split_without_objects(tmp_path: Path) -> None:
    source = open_objects(str(write_coco(tmp_path, annotations=[])), "train")
    with pytest.raises(
        ValueError, match=r"No image of this split has an object: 'train2017/a.jpg'"
    ):
        source.require_fitting(masks=False)


def test_a_source_changes_with_its_objects(tmp_path: Path) -> None:
    first = open_objects(str(write_coco(tmp_path)), "train").fingerprint()
    assert open_objects(str(write_coco(tmp_path)), "train").fingerprint() == first
    assert open_objects(str(write_coco(tmp_path, annotations=[])), "train").fingerprint() != first
    file = write_coco(tmp_path) / "annotations/instances_train2017.json"
    file.write_text(file.read_text().replace("[2, 3, 10, 17]", "[2, 3, 10, 18]"))
    assert open_objects(str(tmp_path), "train").fingerprint() != first, "as many bytes"
