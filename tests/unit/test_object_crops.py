"""Views of detection: image, boxes and masks move together, by (seed, epoch, image)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanvit.config.dense import ObjectCropConfig
from leanvit.data.batch import ObjectBatch
from leanvit.data.loader import load_batches
from leanvit.data.object_crops import ObjectCrops, fitted
from leanvit.data.objects import open_objects
from leanvit.data.sampler import Key, Order

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CROP = ObjectCropConfig(size=64, scale=(0.5, 2.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of two rectangles, one red and one blue, with their outlines."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    images, annotations = [], []
    for number in range(6):
        pixels = np.full((60, 80, 3), 128, dtype=np.uint8)
        draw = np.random.default_rng(number)
        for label, channel in ((1, 0), (2, 2)):
            left, top = draw.integers(2, 20) + 38 * (label - 1), draw.integers(2, 30)
            width, height = draw.integers(12, 18, 2)
            pixels[top : top + height, left : left + width] = 0
            pixels[top : top + height, left : left + width, channel] = 255
            box = [int(v) for v in (left, top, width, height)]
            right, bottom = box[0] + box[2], box[1] + box[3]
            corners = [box[0], box[1], right, box[1], right, bottom, box[0], bottom]
            entry = {"id": 2 * number + label, "image_id": number, "category_id": label}
            annotations.append({**entry, "bbox": box, "segmentation": [corners]})
        images.append({"id": number, "file_name": f"{number}.png"})
        Image.fromarray(pixels).save(tmp_path / "train" / f"{number}.png")
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(found))
    return tmp_path


def crops(root: Path, config: ObjectCropConfig = CROP, seed: int = 0) -> ObjectCrops:
    source = open_objects(str(root), "train")
    return ObjectCrops(source, config, masks=True, mean=MEAN, std=STD, seed=seed)


def batch(views: ObjectCrops, *keys: Key) -> ObjectBatch:
    found = views.batch(keys or [Key(0, n, n) for n in range(6)])
    assert isinstance(found, ObjectBatch)
    return found


def test_boxes_and_masks_follow_the_image(root: Path) -> None:
    seen = 0
    for seed in range(6):
        found = batch(crops(root, seed=seed))
        for image, objects in zip(found.images, found.objects, strict=True):
            pixels = (image * 0.25 + 0.5).clamp(0, 1)
            assert objects.masks is not None
            for box, label, mask in zip(objects.boxes, objects.labels, objects.masks, strict=True):
                left, top, right, bottom = box.round().int().tolist()
                inner = pixels[:, top + 2 : bottom - 2, left + 2 : right - 2]
                if inner.numel():
                    own, other = (0, 2) if label == 0 else (2, 0)
                    assert inner[own].mean() > 0.9 and inner[other].mean() < 0.1
                    seen += 1
                drawn = torch.zeros(64, 64)
                drawn[top:bottom, left:right] = 1
                assert (drawn - mask).abs().mean() < 0.03
    assert seen > 20


def test_objects_that_a_crop_cuts_off_are_left_out(root: Path) -> None:
    large = batch(crops(root, replace(CROP, scale=(4.0, 4.0), flip=0.0)))
    counts = {len(objects.labels) for objects in large.objects}
    assert counts - {2}, "a quarter of each side shows not all objects"
    for objects in large.objects:
        assert objects.boxes.min() >= 0 if len(objects.boxes) else True
        assert objects.boxes.max() <= 64 if len(objects.boxes) else True
        assert objects.masks is not None and len(objects.masks) == len(objects.labels)


def test_views_follow_from_seed_epoch_and_image_alone(root: Path) -> None:
    first, again = batch(crops(root)), batch(crops(root))
    assert first.images.equal(again.images)
    assert all(a.boxes.equal(b.boxes) for a, b in zip(first.objects, again.objects, strict=True))
    alone = batch(crops(root), Key(0, 3, 3))
    assert alone.images[0].equal(first.images[3])
    assert not first.images.equal(batch(crops(root, seed=1)).images)
    assert not first.images.equal(batch(crops(root), *(Key(1, n, n) for n in range(6))).images)


def test_each_option_changes_the_view(root: Path) -> None:
    plain = ObjectCropConfig(size=64, scale=(1.0, 1.0), flip=0.0, distort=0.0)
    first = batch(crops(root, plain))
    changes: list[dict[str, Any]] = [{"scale": (1.5, 1.5)}, {"flip": 1.0}, {"distort": 1.0}]
    for change in [*changes, {"size": 48}]:
        other = batch(crops(root, replace(plain, **change)))
        assert first.images.shape != other.images.shape or not first.images.equal(other.images)


def test_workers_change_nothing(root: Path) -> None:
    order = Order(6, 2, 0)
    lists = [
        list(load_batches(crops(root), order.steps(0, 4), workers=workers, pin=False))
        for workers in (0, 2)
    ]
    for one, other in zip(*lists, strict=True):
        assert one.images.equal(other.images)
        assert all(a.boxes.equal(b.boxes) for a, b in zip(one.objects, other.objects, strict=True))


def test_a_batch_splits_into_neighbours(root: Path) -> None:
    parts = list(batch(crops(root)).split(3))
    assert [part.index.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [len(part.objects) for part in parts] == [2, 2, 2]


def test_the_square_just_holds_the_image() -> None:
    pixels = torch.zeros(3, 60, 80, dtype=torch.uint8)
    for size, factor, shape in ((40, 1.0, (30, 40)), (40, 2.0, (60, 80)), (160, 1.0, (120, 160))):
        assert fitted(pixels, size, factor).shape == (3, *shape)
