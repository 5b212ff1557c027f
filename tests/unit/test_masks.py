"""Images with masks: every layout as it lies on disk, and what is wrong with a folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanvit.data.masks import CITYSCAPES, IGNORED, VOC_CLASSES, has_split, open_masks

H, W = 6, 8


def image(path: Path, seed: int = 0, size: tuple[int, int] = (H, W)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path: Path, values: object, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.resize(np.asarray(values, dtype=np.uint8), (H, W))
    found = Image.fromarray(stored)
    if mode == "P":
        found.putpalette([*range(256)] * 3)
    found.save(path)


def write_plain(root: Path, *, split: str = "{split}/{kind}") -> None:
    for number, name in enumerate(("train", "val")):
        for each in range(2):
            place = split.format(split=name, kind="images")
            image(root / place / f"{each}.jpg", number)
            mask(root / split.format(split=name, kind="masks") / f"{each}.png", [0, 1, 2, 255])
    (root / "classes.txt").write_text("sky\nroad\nunlabelled\n")


def write_cityscapes(root: Path) -> None:
    for split in ("train", "val"):
        name = f"{split}/bonn/bonn_000001_000019"
        image(root / "leftImg8bit" / f"{name}_leftImg8bit.png")
        mask(root / "gtFine" / f"{name}_gtFine_labelIds.png", [0, 7, 33, 34])
        mask(root / "gtFine" / f"{name}_gtFine_instanceIds.png", [0])


def write_voc(root: Path) -> None:
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text(f"2007_{split}\n")
        image(root / "JPEGImages" / f"2007_{split}.jpg")
        mask(root / "SegmentationClass" / f"2007_{split}.png", [0, 1, 20, 255], "P")
    image(root / "JPEGImages" / "2007_without.jpg")


def write_ade(root: Path) -> None:
    for split in ("training", "validation"):
        image(root / "images" / split / f"ADE_{split}_1.jpg")
        mask(root / "annotations" / split / f"ADE_{split}_1.png", [0, 1, 150])


LAYOUTS: dict[str, tuple[Callable[[Path], None], int, list[int]]] = {
    "plain": (write_plain, 2, [0, 1, IGNORED, IGNORED]),
    "plain, split last": (
        lambda root: write_plain(root, split="{kind}/{split}"),
        2,
        [0, 1, IGNORED, IGNORED],
    ),
    "Cityscapes": (write_cityscapes, 19, [IGNORED, 0, 18, IGNORED]),
    "Pascal VOC": (write_voc, 21, [0, 1, 20, IGNORED]),
    "ADE20K": (write_ade, 150, [IGNORED, 0, 149]),
}
"""Name -> what writes it, its classes, the classes of the first pixels of a mask."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_known_by_what_lies_there(name: str, tmp_path: Path) -> None:
    write, classes, first = LAYOUTS[name]
    write(tmp_path)
    for split in ("train", "val"):
        source = open_masks(str(tmp_path), split)
        assert len(source.classes) == classes
        source.require_fitting()
        found = source.annotation(0, H, W)
        assert found.dtype == torch.uint8 and found.shape == (H, W)
        assert found.flatten()[: len(first)].tolist() == first
        assert split in source.name(0) or name == "plain"
        assert source[0].target == -1
    assert source.about().what.startswith(name.partition(",")[0].replace("plain", "folder"))
    assert has_split(str(tmp_path), "val") and not has_split(str(tmp_path), "test")


def test_the_names_of_published_classes(tmp_path: Path) -> None:
    assert len(VOC_CLASSES) == 21 and VOC_CLASSES[15] == "person" and VOC_CLASSES[20] == "tvmonitor"
    assert len(CITYSCAPES) == 19 and CITYSCAPES[24] == "person"
    write_ade(tmp_path)
    rows = [f"{n}\t0.1\t1\t1\t0\tthing {n}, thingy" for n in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tName", *rows]))
    assert open_masks(str(tmp_path), "train").classes[149] == "thing 150"


def test_values_may_be_left_out(tmp_path: Path) -> None:
    write_plain(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    source = open_masks(str(tmp_path), "val", (1,))
    assert source.classes == ("sky", "car"), "a class without a value is none"
    assert source.annotation(0, H, W).flatten()[:4].tolist() == [0, IGNORED, 1, IGNORED]
    with pytest.raises(ValueError, match="There are 1 classes"):
        open_masks(str(tmp_path), "val", (0, 1))


def test_a_source_changes_with_its_labels(tmp_path: Path) -> None:
    write_plain(tmp_path)
    first = open_masks(str(tmp_path), "val").fingerprint()
    assert open_masks(str(tmp_path), "val").fingerprint() == first
    assert open_masks(str(tmp_path), "train").fingerprint() != first
    (tmp_path / "classes.txt").write_text("sky\nstreet\nvoid\n")
    assert open_masks(str(tmp_path), "val").fingerprint() != first
    write_plain(tmp_path)
    mask(tmp_path / "val/masks/1.png", [0, 1, 1, 0, 1, 0, 0, 1, 2])
    assert open_masks(str(tmp_path), "val").fingerprint() != first


def test_a_source_changes_with_a_mask_of_as_many_bytes_and_not_by_a_copy(tmp_path: Path) -> None:
    write_plain(tmp_path / "first")
    file = tmp_path / "first/val/masks/1.png"
    before = open_masks(str(tmp_path / "first"), "val").fingerprint()
    shutil.copytree(tmp_path / "first", tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy/val/masks/1.png", (0, 0))
    assert open_masks(str(tmp_path / "copy"), "val").fingerprint() == before
    file.write_bytes(bytes(file.stat().st_size))
    source = open_masks(str(tmp_path / "first"), "val")
    assert source.fingerprint() != before
    file.unlink()
    with pytest.raises(ValueError, match=r"mask 'val/masks/1.png' cannot be read: .*No such"):
        source.fingerprint()


def wrong_size(root: Path) -> None:
    Image.new("L", (W + 1, H)).save(root / "val/masks/1.png")


def unknown_value(root: Path) -> None:
    mask(root / "val/masks/1.png", [0, 7])


def colors(root: Path) -> None:
    image(root / "val/masks/1.png")


def damaged(root: Path) -> None:
    (root / "val/masks/1.png").write_bytes((root / "val/masks/0.png").read_bytes()[:40])


def missing(root: Path) -> None:
    (root / "val/masks/1.png").unlink()


def no_names(root: Path) -> None:
    (root / "classes.txt").unlink()


def twice(root: Path) -> None:
    (root / "classes.txt").write_text("sky\nroad\nsky\n")


def a_gap(root: Path) -> None:
    (root / "classes.txt").write_text("sky\n\nroad\n\n")


def nothing_labelled(root: Path) -> None:
    for number in range(2):
        mask(root / f"val/masks/{number}.png", [2, 255])


def one_class(root: Path) -> None:
    (root / "classes.txt").write_text("sky\nvoid\n")


MISTAKES: list[tuple[Callable[[Path], None], str]] = [
    (
        wrong_size,
        r"mask 'val/masks/1.png' has 9 x 6 pixels, and its image 'val/images/1.jpg' has 8",
    ),
    (unknown_value, r"mask 'val/masks/1.png' holds the value 7, which means no class"),
    (colors, r"mask 'val/masks/1.png' cannot be read: it has colors \(RGB\)"),
    (damaged, r"mask 'val/masks/1.png' cannot be read"),
    (missing, r"image 'val/images/1.jpg' in .* has no mask 'val/masks/1.png'"),
    (no_names, r"classes.txt' cannot be read: it names the classes"),
    (twice, "names a class twice"),
    (a_gap, "Line 2 of .*classes.txt' names no class"),
    (nothing_labelled, "No pixel of 'val/images/0.jpg' and the 1 other images .* has a class"),
    (one_class, "There are 1 classes; expected 2 to 254"),
]


@pytest.mark.parametrize(("spoil", "said"), MISTAKES, ids=[m[0].__name__ for m in MISTAKES])
def test_mistakes_are_named(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    write_plain(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said):
        open_masks(str(tmp_path), "val").require_fitting()


def test_an_image_that_cannot_be_read_is_no_mistake_of_its_mask(tmp_path: Path) -> None:
    write_plain(tmp_path)
    (tmp_path / "val/images/1.jpg").write_bytes(b"")
    open_masks(str(tmp_path), "val").require_fitting()


def test_a_missing_folder_or_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder was named"):
        open_masks("", "train")
    with pytest.raises(ValueError, match="does not exist"):
        open_masks(str(tmp_path / "none"), "train")
    write_plain(tmp_path)
    with pytest.raises(ValueError, match="no images for the split 'dev'"):
        open_masks(str(tmp_path), "dev")
