"""Whole images for evaluation: the middle as torchvision's usual transform takes it, in order."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import CenterCrop, InterpolationMode, Resize
from torchvision.transforms.v2 import functional as tv

from leanvit.data.images import PAPER_CROP, ImageBatch, load_images, middle, usual_crop
from leanvit.data.sample import load_photograph
from leanvit.data.sources import FolderSource, Sample, Source, Subset
from tests.tiny import write_images

# On a machine with one core, torch advises against the workers that these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


pytestmark = pytest.mark.usefixtures("one_thread")


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def ramp(height: int, width: int) -> Tensor:
    """Return uint8 pixels [3, height, width]: the row, the column, and their sum."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([y, x, x + y]) % 256).to(torch.uint8)


# The middle of an image


@pytest.mark.parametrize(
    "file", ["coffee.png", "rocket.jpg", "astronaut.png", "cell.png", "page.png"]
)
@pytest.mark.parametrize(("size", "crop"), [(224, 224 / 256), (96, 1.0), (64, 0.5)])
def test_the_middle_is_that_of_pillow(file: str, size: int, crop: float) -> None:
    """Resize(size / crop, bicubic) and CenterCrop(size) on a Pillow image, as the papers do."""
    pixels = load_photograph(file)
    resize = Resize(round(size / crop), InterpolationMode.BICUBIC)
    expected = tv.pil_to_tensor(CenterCrop(size)(resize(Image.fromarray(pixels)))) / 255
    found = middle(to_tensor(pixels), size, crop)
    assert found.shape == (3, size, size) and found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.5 / 255, "rounding to 8 bits alone is 0.25"
    for shift in ((1, 0), (0, 1)):
        assert (found.roll(shift, (1, 2)) - expected).abs().mean() > 1.5 / 255, "it can tell"


@pytest.mark.parametrize("side", [8, 33, 224])
def test_an_image_of_that_size_comes_back_as_it_is(side: int) -> None:
    pixels = ramp(side, side)
    assert torch.equal(middle(pixels, side, 1.0), pixels.float() / 255)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (47, 33), (33, 34), (33, 200), (200, 33)])
def test_what_needs_no_resizing_is_cut_exactly(height: int, width: int) -> None:
    """Its middle, to the pixel; an odd one is left over on either side, as torchvision has it."""
    pixels = ramp(height, width)
    found = (middle(pixels, 33, 1.0) * 255).round().to(torch.uint8)
    top, left = round((height - 33) / 2), round((width - 33) / 2)
    assert torch.equal(found, pixels[:, top : top + 33, left : left + 33])


@pytest.mark.parametrize("crop", [0.3, 0.5, 0.875, 1.0])
@pytest.mark.parametrize(("height", "width"), [(120, 120), (120, 480), (240, 120), (97, 131)])
def test_the_crop_is_the_share_of_the_shorter_side(height: int, width: int, crop: float) -> None:
    """On a ramp, the rows and columns that are seen can be read off."""
    ramps = ramp(height, width).float() / 255 / 2
    ramps[0] = torch.linspace(0, 1, height)[:, None]
    ramps[1] = torch.linspace(0, 1, width)
    found = middle(ramps, 32, crop)
    seen = crop * min(height, width)
    for channel, side in ((0, height), (1, width)):
        first, last = (float(found[channel].select(channel, at).mean()) for at in (0, -1))
        assert (first + last) / 2 == pytest.approx(0.5, abs=0.02)
        assert (last - first) * side == pytest.approx(seen * 31 / 32, rel=0.06)


@pytest.mark.parametrize("crop", [PAPER_CROP, 1.0, 0.1])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (2, 2), (1, 50_000)])
def test_the_smallest_images_have_a_middle(height: int, width: int, crop: float) -> None:
    """Of a line of pixels no more is resized than can be seen: all of it would take gigabytes."""
    pixels = torch.full((3, height, width), 51, dtype=torch.uint8)
    found = middle(pixels, 32, crop)
    assert found.shape == (3, 32, 32)
    torch.testing.assert_close(found, torch.full_like(found, 0.2))


@pytest.mark.parametrize("turned", [False, True])
def test_a_panorama_has_the_middle_of_the_whole(turned: bool) -> None:
    """Its ends are cut off before it is resized, far from what is seen."""
    pixels = to_tensor(np.random.default_rng(0).integers(0, 256, (12, 408, 3), dtype=np.uint8))
    whole = tv.resize(pixels / 255, [64, 2176], InterpolationMode.BICUBIC, antialias=True)
    expected = tv.center_crop(whole.clamp(0, 1), [56, 56])
    if turned:
        pixels, expected = pixels.transpose(1, 2), expected.transpose(1, 2)
    torch.testing.assert_close(middle(pixels, 56, PAPER_CROP), expected, atol=1e-5, rtol=0)


def test_values_stay_in_range() -> None:
    """A bicubic kernel overshoots at edges; black and white stay the darkest and the brightest."""
    checks = torch.zeros(3, 40, 40, dtype=torch.uint8)
    checks[:, ::2, 1::2] = checks[:, 1::2, ::2] = 255
    found = middle(checks, 63, 1.0)
    assert found.min() == 0 and found.max() == 1


def test_floating_point_is_taken_as_it_is() -> None:
    pixels = ramp(40, 52)
    as_float = pixels.double() / 255
    found = middle(as_float, 24, PAPER_CROP)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), middle(pixels, 24, PAPER_CROP), atol=1e-5, rtol=0)


# All images of a source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of two classes."""
    place = tmp_path_factory.mktemp("images")
    write_images(place / "a", 5)
    write_images(place / "b", 6, side=50)
    return place


def load(source: Source, workers: int = 0, batch: int = 4) -> list[ImageBatch]:
    return list(load_images(source, size=16, crop=0.8, batch=batch, workers=workers))


def test_images_come_once_and_in_order(folder: Path) -> None:
    source = FolderSource(folder)
    found = load(source)
    assert [len(batch.index) for batch in found] == [4, 4, 3]
    assert torch.cat([batch.index for batch in found]).tolist() == list(range(11))
    assert torch.cat([batch.target for batch in found]).tolist() == [0] * 5 + [1] * 6
    assert all(batch.unreadable == () for batch in found)
    for index, image in enumerate(torch.cat([batch.pixels for batch in found])):
        with Image.open(folder / source.name(index)) as file:
            pixels = to_tensor(np.asarray(file))
        assert torch.equal(image, middle(pixels, 16, 0.8))


@pytest.mark.parametrize(("workers", "batch"), [(1, 4), (2, 4), (2, 3), (0, 1), (0, 100)])
def test_neither_workers_nor_batches_change_images(folder: Path, workers: int, batch: int) -> None:
    source = FolderSource(folder)
    one, other = load(source), load(source, workers, batch)
    assert max(len(part.index) for part in other) == min(batch, 11)
    for name in ("pixels", "index", "target"):
        values = [torch.cat([getattr(part, name) for part in parts]) for parts in (one, other)]
        assert torch.equal(*values), name


def test_the_order_is_the_source_s(folder: Path) -> None:
    source = Subset(FolderSource(folder), [7, 0, 3])
    (found,) = load(source)
    assert found.index.tolist() == [0, 1, 2]
    assert found.target.tolist() == [1, 0, 0]
    (whole,) = load(source.source, batch=11)
    assert torch.equal(found.pixels, whole.pixels[[7, 0, 3]])


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_left_out_and_named(tmp_path: Path, workers: int) -> None:
    write_images(tmp_path / "a", 9)
    source = FolderSource(tmp_path)
    (tmp_path / "a" / "001.png").write_bytes(b"this is no photograph")
    (tmp_path / "a" / "006.png").unlink()
    found = load(source, workers, batch=3)
    assert [batch.index.tolist() for batch in found] == [[0, 2], [3, 4, 5], [7, 8]]
    assert all(len(batch.pixels) == len(batch.index) == len(batch.target) for batch in found)
    broken = [entry for batch in found for entry in batch.unreadable]
    assert [(entry.index, entry.name) for entry in broken] == [(1, "a/001.png"), (6, "a/006.png")]
    assert broken[0].error.startswith("UnidentifiedImageError: cannot identify image file")
    assert broken[1].error.startswith("FileNotFoundError: ")


def test_a_batch_may_have_nothing_to_show(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    source = FolderSource(tmp_path)
    for number in (0, 1):
        (tmp_path / f"00{number}.png").write_bytes(b"")
    first, second = load(source, batch=2)
    assert len(first.index) == len(first.pixels) == len(first.target) == 0
    assert [entry.index for entry in first.unreadable] == [0, 1]
    assert second.index.tolist() == [2, 3]


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load(FolderSource(folder), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


# How much of them is seen


def sized(folder: Path, sizes: Sequence[tuple[int, int]]) -> FolderSource:
    """Return images of these heights and widths."""
    folder.mkdir()
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(folder / f"{number:03}.png")
    return FolderSource(folder)


@pytest.mark.parametrize(
    ("sizes", "crop"),
    [
        ([(32, 32)], 1.0),
        ([(32, 90), (90, 32)], 1.0),
        ([(33, 90)], PAPER_CROP),
        ([(8, 8), (32, 40), (100, 100)], 1.0),
        ([(8, 8), (40, 33), (100, 100)], PAPER_CROP),
    ],
    ids=["equal", "the shorter side", "larger", "the middle one", "the middle one is larger"],
)
def test_small_images_are_seen_whole(
    tmp_path: Path, sizes: list[tuple[int, int]], crop: float
) -> None:
    assert usual_crop(sized(tmp_path / "images", sizes), 32) == crop


def test_sizes_of_unreadable_images_do_not_count(tmp_path: Path) -> None:
    source = sized(tmp_path / "images", [(8, 8), (90, 90), (90, 90)])
    for number in (1, 2):
        (source.root / source.name(number)).write_bytes(b"broken")
    assert usual_crop(source, 32) == 1.0
    (source.root / source.name(0)).unlink()
    assert usual_crop(source, 32) == PAPER_CROP, "nothing is known"


def test_a_few_images_decide(tmp_path: Path) -> None:
    source = sized(tmp_path / "images", [(40, 40), (20, 20)] * 10)
    looked: list[int] = []

    class Counted(Subset):
        def __getitem__(self, index: int) -> Sample:
            looked.append(index)
            return super().__getitem__(index)

    assert usual_crop(Counted(source, range(20)), 32, look_at=5) == PAPER_CROP
    assert looked == [0, 4, 8, 12, 16], "from all over the source"
