"""Views of segmentation: image and map move together, and follow from (seed, epoch, image)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanvit.config.dense import ScaledCropConfig
from leanvit.data.batch import MapBatch
from leanvit.data.loader import load_batches
from leanvit.data.masks import IGNORED, open_masks
from leanvit.data.sampler import Key, Order
from leanvit.data.scaled_crops import ScaledCrops, normalized, with_short_side

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CROP = ScaledCropConfig(size=24, distort=0.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images whose red says the class of every pixel: 0 for the first, 200 for the second."""
    for part in ("images", "masks"):
        (tmp_path / "train" / part).mkdir(parents=True)
    for number in range(6):
        drawn = np.random.default_rng(number).random((5, 7)) < 0.5
        mapped = np.kron(drawn, np.ones((8, 8))).astype(np.uint8)
        pixels = np.zeros((40, 56, 3), dtype=np.uint8)
        pixels[..., 0] = 200 * mapped
        pixels[..., 2] = 40 * number
        Image.fromarray(pixels).save(tmp_path / f"train/images/{number}.png")
        Image.fromarray(mapped).save(tmp_path / f"train/masks/{number}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    return tmp_path


def crops(root: Path, config: ScaledCropConfig = CROP, seed: int = 0) -> ScaledCrops:
    source = open_masks(str(root), "train")
    return ScaledCrops(source, config, short_side=0, mean=MEAN, std=STD, seed=seed)


def batch(views: ScaledCrops, *keys: Key) -> MapBatch:
    found = views.batch(keys or [Key(0, n, n) for n in range(6)])
    assert isinstance(found, MapBatch)
    return found


def test_the_map_follows_the_image(root: Path) -> None:
    for seed in range(5):
        found = batch(crops(root, seed=seed))
        red = (found.images[:, 0] * STD[0] + MEAN[0]) * 255
        inside = found.maps != IGNORED
        told = red > 100
        wrong = (told != found.maps.bool()) & inside
        # where a resized image lies between two classes it may fall to either
        sharp = ((red - 200).abs() < 2) | (red < 2)
        assert inside.any() and not (wrong & sharp).any() and wrong.float().mean() < 0.2


def test_what_lies_outside_of_the_image_has_no_class(root: Path) -> None:
    small = replace(CROP, size=64, scale=(0.5, 0.5), flip=0.0)
    found = batch(crops(root, small))
    outside = found.maps == IGNORED
    assert outside.float().mean() > 0.7
    assert found.images.movedim(1, -1)[outside].abs().max() < 0.02, "the mean, hence 0"


def test_the_scale_is_a_factor(root: Path) -> None:
    whole = replace(CROP, size=200, flip=0.0)
    for factor in (0.5, 1.0, 2.0):
        inside = batch(crops(root, replace(whole, scale=(factor, factor)))).maps[0] != IGNORED
        assert inside.any(1).sum() == 40 * factor and inside.any(0).sum() == 56 * factor
    seen = {
        int((batch(crops(root, replace(whole, scale=(0.5, 2.0))), Key(e, 0, 0)).maps != 255).sum())
        for e in range(12)
    }
    assert len(seen) > 8 and min(seen) >= 560 and max(seen) <= 9100


def same(one: MapBatch, other: MapBatch) -> bool:
    return one.images.equal(other.images) and one.maps.equal(other.maps)


def test_views_follow_from_seed_epoch_and_image_alone(root: Path) -> None:
    colored = replace(CROP, distort=1.0)
    first = batch(crops(root, colored))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert same(first, batch(crops(root, colored)))
    assert torch.random.get_rng_state().equal(before), "nothing draws from the global generator"
    alone = batch(crops(root, colored), Key(0, 3, 3))
    assert alone.maps[0].equal(first.maps[3]) and alone.images[0].equal(first.images[3])
    assert not same(first, batch(crops(root, colored), *(Key(1, n, n) for n in range(6))))
    assert not same(first, batch(crops(root, colored, seed=1)))


def test_each_option_changes_the_view(root: Path) -> None:
    plain = ScaledCropConfig(size=24, scale=(1.0, 1.0), flip=0.0, distort=0.0)
    first = batch(crops(root, plain))
    for change in ({"scale": (1.5, 1.5)}, {"flip": 1.0}, {"distort": 1.0}, {"size": 16}):
        other = batch(crops(root, replace(plain, **change)))
        assert first.images.shape != other.images.shape or not first.images.equal(other.images)


def test_workers_change_nothing(root: Path) -> None:
    order = Order(6, 2, 0)
    lists = [
        list(load_batches(crops(root), order.steps(0, 5), workers=workers, pin=False))
        for workers in (0, 2)
    ]
    assert len(lists[0]) == 5 and all(map(same, *lists))


def test_an_unreadable_image_is_replaced_and_a_wrong_mask_is_an_error(root: Path) -> None:
    (root / "train/images/2.png").write_bytes(b"no image")
    found = batch(crops(root))
    assert {entry.name for entry in found.unreadable} == {"train/images/2.png"}
    assert found.index[2] != 2
    Image.new("L", (3, 3)).save(root / "train/masks/4.png")
    error = crops(root).batch([Key(0, 4, 4)])
    assert isinstance(error, ValueError) and "train/masks/4.png" in str(error)


def test_a_batch_splits_into_neighbours(root: Path) -> None:
    whole = batch(crops(root))
    parts = list(whole.split(3))
    assert [part.index.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert torch.cat([part.maps for part in parts]).equal(whole.maps)


def test_the_shorter_side(root: Path) -> None:
    pixels = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    mapped = torch.randint(0, 2, (40, 56), dtype=torch.uint8)
    smaller = with_short_side(pixels, mapped, 20)
    assert smaller[0].shape == (3, 20, 28) and smaller[1].shape == (20, 28)
    assert smaller[1].equal(mapped[1::2, 1::2]) or smaller[1].equal(mapped[::2, ::2])
    assert with_short_side(pixels, mapped, 0)[0] is pixels
    value = normalized(pixels, MEAN, STD)[1, 2, 3]
    assert value == pytest.approx((pixels[1, 2, 3].item() / 255 - 0.5) / 0.25, abs=1e-6)
