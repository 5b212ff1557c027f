"""Views: the published statistics, the pixels of Pillow, and nothing but the key decides.

Pillow is the reference because the published runs were made with it: crop and bicubic resize,
ImageEnhance through torchvision, ImageFilter.GaussianBlur, ImageOps.solarize.
"""

import math
import os
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from leanvit.config import MultiCropConfig
from leanvit.core.random import seeded, units
from leanvit.data.decode import decode
from leanvit.data.render import render
from leanvit.data.views import UNITS, Plan, ViewSpec, draw, multi_crop, plan
from tests.views import (
    COUNT,
    PLAIN,
    SIDE,
    crops,
    difference,
    distance,
    plans,
    reference,
    scene,
    shape_of,
    share_of,
    uniform_distance,
)

TOLERANCE = 2 / 255
"""Mean absolute difference to Pillow, which cuts off to 8 bits after every operation."""
TOLERANCE_OF_ONE = 1 / 255
"""The same for a single operation."""
TOLERANCE_OF_MANY = 2.5 / 255
"""The same for a single view of up to nine operations, half a level of loss in each."""

pytestmark = pytest.mark.usefixtures("one_thread")


# pixels


SINGLE = {
    "crop": PLAIN,
    "shrink": replace(PLAIN, size=64, box=(10, 15, 200, 250)),
    "enlarge": replace(PLAIN, size=224, box=(90, 60, 60, 45)),
    "whole image": replace(PLAIN, size=96, box=(0, 0, 240, 320)),
    "corner": replace(PLAIN, size=96, box=(239, 319, 1, 1)),
    "flip": replace(PLAIN, flip=True),
    "gray": replace(PLAIN, gray=True),
    "solarize": replace(PLAIN, solarize=True),
    **{f"blur {sigma}": replace(PLAIN, sigma=sigma) for sigma in (0.1, 0.3, 0.5, 1.0, 1.5, 2.0)},
    **{
        f"{name} {factor}": replace(PLAIN, jitter=((name, factor),))
        for name, factors in {
            "brightness": (0.6, 0.9, 1.4),
            "contrast": (0.6, 0.9, 1.4),
            "saturation": (0.0, 0.8, 1.2),
            "hue": (-0.1, 0.05, 0.1),
        }.items()
        for factor in factors
    },
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_operations_match_pillow(name: str) -> None:
    assert difference(SINGLE[name], scene()) < TOLERANCE_OF_ONE


@pytest.mark.parametrize("name", ["shrink", "enlarge", "whole image"])
def test_resizing_differs_from_pillow_by_rounding_alone(name: str) -> None:
    """Both round to 8 bits after each direction, and may round apart each time."""
    gap = np.abs(render(SINGLE[name], scene()).numpy() - reference(SINGLE[name], scene()))
    assert gap.max() < 2.01 / 255 and gap.mean() < 0.25 / 255


def test_solarization_inverts_from_128_on() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    ramp = Plan(16, (0, 0, 16, 16), flip=False, jitter=(), gray=False, sigma=0, solarize=True)
    expected = torch.where(levels >= 128, 255 - levels, levels)
    assert torch.equal((render(ramp, levels) * 255).round().byte(), expected)


@pytest.mark.parametrize(
    "name", [n for n in SINGLE if n not in ("crop", "blur 0.1", "blur 0.3", "blur 0.5")]
)
def test_single_operations_do_something(name: str) -> None:
    """Otherwise agreement with Pillow would say little."""
    view = render(SINGLE[name], scene())
    if view.shape != (3, 150, 150):
        view = torch.nn.functional.interpolate(view[None], size=(150, 150))[0]
    assert float((view - render(PLAIN, scene())).abs().mean()) > TOLERANCE


def test_a_crop_without_resizing_keeps_every_pixel() -> None:
    expected = scene()[:, 20:170, 30:180]
    assert torch.equal((render(PLAIN, scene()) * 255).round().byte(), expected)
    assert torch.equal(render(replace(PLAIN, flip=True), scene()), render(PLAIN, scene()).flip(-1))


STRONG = {"brightness": 1.8, "contrast": 2.0, "saturation": 1.6, "hue": 64 / 255}
"""Factors that run into black and white; torchvision's hue for Pillow knows 255ths only."""


@pytest.mark.parametrize("names", [*permutations(STRONG)], ids="-".join)
def test_jitters_come_in_the_order_of_the_plan(names: tuple[str, ...]) -> None:
    jitter = tuple((name, STRONG[name]) for name in names)
    assert difference(replace(PLAIN, jitter=jitter), scene()) < TOLERANCE


def test_the_order_of_jitters_shows() -> None:
    forwards = tuple(STRONG.items())
    view = render(replace(PLAIN, jitter=forwards), scene())
    other = render(replace(PLAIN, jitter=forwards[::-1]), scene())
    assert float((view - other).abs().mean()) > 10 * TOLERANCE


def test_all_operations_together_match_pillow() -> None:
    jitter = tuple(STRONG.items())
    full = replace(SINGLE["shrink"], flip=True, jitter=jitter, sigma=1.5, solarize=True)
    assert difference(full, scene()) < TOLERANCE
    assert difference(replace(full, gray=True), scene()) < TOLERANCE


PUBLISHED = multi_crop(MultiCropConfig())


def check_views(image: Tensor, epoch: int) -> None:
    """Compare the ten views of an image with Pillow's: every one, and closer on average."""
    differences = [difference(p, image) for p in plans(PUBLISHED, 0, epoch, 0, image.shape)]
    assert max(differences) < TOLERANCE_OF_MANY
    assert sum(differences) / len(differences) < TOLERANCE


@pytest.mark.parametrize("epoch", range(6))
def test_random_views_match_pillow(epoch: int) -> None:
    check_views(scene(), epoch)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """Return eight photographs [3, height, width]."""
    folder = os.environ.get("LEANVIT_TEST_DATA")
    if folder is None:
        pytest.skip("LEANVIT_TEST_DATA does not name the folder of imagenet-sample-256.tar")
    archive = Path(folder) / "imagenet-sample-256.tar"
    if not archive.is_file():
        pytest.skip(f"LEANVIT_TEST_DATA is set, but there is no {archive}")
    target = tmp_path_factory.mktemp("photographs")
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.isfile()][::32][:8]
        tar.extractall(target, members, filter="data")
    paths = [target / member.name for member in members]
    return [torch.from_numpy(decode(p.read_bytes()).copy()).permute(2, 0, 1) for p in paths]


def test_random_views_of_photographs_match_pillow(photographs: list[Tensor]) -> None:
    assert len(photographs) == 8
    for epoch, image in enumerate(photographs):
        check_views(image, epoch)


def test_pixels_stay_within_the_unit_interval() -> None:
    """Bicubic resizing overshoots at edges, jitter beyond white: both are cut off."""
    image = (scene(60, 90) > 120).byte() * 255
    strong = multi_crop(MultiCropConfig(jitter=1, jitter_strength=(1.0, 1.0, 1.0, 0.5)))
    for planned in plans(strong, 0, 0, 0, image.shape):
        view = render(planned, image)
        assert view.shape == (3, planned.size, planned.size)
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1


def test_rendering_leaves_the_image_alone() -> None:
    image = scene()
    for planned in [PLAIN, *plans(PUBLISHED, 0, 0, 0, image.shape)]:
        render(planned, image)
    assert torch.equal(image, scene())


def test_layout_of_the_image_does_not_matter() -> None:
    """Decoders give [h, w, 3] in memory; a contiguous copy has the same views."""
    image = scene().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not image.is_contiguous()
    for planned in plans(PUBLISHED, 0, 0, 0, image.shape):
        assert torch.equal(render(planned, image), render(planned, image.contiguous()))


def views_of(seed: int, epoch: int, index: int) -> list[Tensor]:
    return [render(p, scene()) for p in plans(PUBLISHED, seed, epoch, index, scene().shape)]


def test_same_key_same_pixels() -> None:
    before = torch.get_rng_state()
    first = views_of(0, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = views_of(0, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("key", [(3, 1, 2), (0, 2, 1), (0, 1, 3)], ids=["seed", "swap", "image"])
def test_another_key_other_pixels(key: tuple[int, int, int]) -> None:
    for one, other in zip(views_of(0, 1, 2), views_of(*key), strict=True):
        assert not torch.equal(one, other)


def test_draws_are_keyed_by_epoch_and_image() -> None:
    expected = units(0, "views", 1, 2, count=10 * UNITS)
    np.testing.assert_array_equal(draw(PUBLISHED, 0, 1, 2), expected.reshape(10, UNITS))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "blur 1.0"])
def test_threads_do_not_change_pixels(name: str) -> None:
    """A worker renders with one thread, a process without workers with all of them."""
    large = replace(SINGLE["whole image"], size=384)
    if name.startswith("blur"):
        planned = replace(large, sigma=1.0)
    else:
        planned = replace(large, jitter=((name, 0.1 if name == "hue" else 1.3),))
    images = [scene(), scene().flip(0), 255 - scene(), scene().roll(50, -1)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(torch.stack([render(planned, image) for image in images]))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result, results[0])


# statistics


@pytest.fixture(scope="module")
def drawn() -> list[list[Plan]]:
    """Return COUNT plans of a large square image for each view: two global and one local."""
    spec = multi_crop(MultiCropConfig(local_counts=(1,)))
    shape = torch.Size((3, SIDE, SIDE))
    images = [plans(spec, 0, 0, index, shape) for index in range(COUNT)]
    return [list(view) for view in zip(*images, strict=True)]


def test_local_crops_are_uniform_in_area_aspect_and_place(drawn: list[list[Plan]]) -> None:
    shape = shape_of(np.array([p.box for p in drawn[2]], dtype=np.float64), SIDE, SIDE)
    assert uniform_distance(shape["area"], 0.05, 0.4) < 1.95
    assert uniform_distance(shape["aspect"], math.log(3 / 4), math.log(4 / 3)) < 1.95
    assert uniform_distance(shape["top"], 0, 1) < 1.95
    assert uniform_distance(shape["left"], 0, 1) < 1.95


def test_global_crops_are_uniform_in_area_where_every_aspect_fits(drawn: list[list[Plan]]) -> None:
    for view in drawn[:2]:
        area = np.array([p.box[2] * p.box[3] for p in view]) / SIDE**2
        assert uniform_distance(area[area < 0.74], 0.4, 0.74) < 1.95


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (375, 500), (100, 180)])
def test_crops_are_distributed_like_torchvision(number: int, height: int, width: int) -> None:
    view = [view for group in PUBLISHED.groups for view in group][number]
    image = torch.empty(3, 1, 1).expand(3, height, width)
    with seeded(number, "reference"):
        theirs = [
            RandomResizedCrop.get_params(image, list(view.scale), [3 / 4, 4 / 3])
            for _ in range(COUNT // 2)
        ]
    shape = shape_of(crops(view, height, width), height, width)
    other = shape_of(np.array(theirs, dtype=np.float64), height, width)
    for name in shape:
        assert distance(shape[name], other[name]) < 1.95, name
        spread = other[name].std() * math.sqrt(3 / COUNT)
        assert abs(shape[name].mean() - other[name].mean()) < 5 * spread, name


def test_flip_jitter_and_gray_have_their_probabilities(drawn: list[list[Plan]]) -> None:
    for view in drawn:
        assert share_of([p.flip for p in view], 0.5)
        assert share_of([bool(p.jitter) for p in view], 0.8)
        assert share_of([p.gray for p in view], 0.2)


def test_blur_and_solarization_depend_on_the_view(drawn: list[list[Plan]]) -> None:
    for view, blur, solarize in zip(drawn, (1.0, 0.1, 0.5), (0.0, 0.2, 0.0), strict=True):
        assert share_of([p.sigma > 0 for p in view], blur)
        assert share_of([p.solarize for p in view], solarize)


def test_sigma_is_uniform(drawn: list[list[Plan]]) -> None:
    for view in drawn:
        assert uniform_distance(np.array([p.sigma for p in view if p.sigma]), 0.1, 2.0) < 1.95


LIMITS = {
    "brightness": (0.6, 1.4),
    "contrast": (0.6, 1.4),
    "saturation": (0.8, 1.2),
    "hue": (-0.1, 0.1),
}


@pytest.mark.parametrize("name", LIMITS)
def test_jitter_factors_are_uniform(drawn: list[list[Plan]], name: str) -> None:
    for view in drawn:
        factors = np.array([dict(p.jitter)[name] for p in view if p.jitter])
        assert uniform_distance(factors, *LIMITS[name]) < 1.95
        for place in range(4):
            there = [p.jitter[place][1] for p in view if p.jitter and p.jitter[place][0] == name]
            assert uniform_distance(np.array(there), *LIMITS[name]) < 2.2


def test_a_strong_jitter_stops_at_zero() -> None:
    config = MultiCropConfig(jitter=1.0, jitter_strength=(1.5, 1.2, 3.0, 0.5))
    view = multi_crop(config).groups[0][0]
    spec = ViewSpec(((view,),))
    factors = [dict(plan(view, draw(spec, 0, 0, i)[0], 9, 9).jitter) for i in range(5000)]
    for name, high in {"brightness": 2.5, "contrast": 2.2, "saturation": 4.0}.items():
        assert uniform_distance(np.array([f[name] for f in factors]), 0, high) < 1.95
    assert uniform_distance(np.array([f["hue"] for f in factors]), -0.5, 0.5) < 1.95


def test_every_order_of_jitters_is_equally_frequent(drawn: list[list[Plan]]) -> None:
    for view in drawn:
        orders = Counter(tuple(name for name, _ in p.jitter) for p in view if p.jitter)
        assert set(orders) == set(permutations(LIMITS))
        expected = orders.total() / 24
        chi_square = sum((count - expected) ** 2 / expected for count in orders.values())
        assert chi_square < 23 + 5 * math.sqrt(2 * 23)


def test_the_parts_of_a_plan_are_independent() -> None:
    """No unit number decides two things, within a view or between two."""
    view = replace(PUBLISHED.groups[0][1], jitter=1.0, scale=(0.05, 0.4), blur=0.5, solarize=0.5)
    spec = ViewSpec(((view, view),))
    rows = []
    for i in range(COUNT):
        row: list[float] = []
        for p in plans(spec, 3, 0, i, torch.Size((3, SIDE, SIDE))):
            names = [name for name, _ in p.jitter]
            box = shape_of(np.array([p.box], dtype=np.float64), SIDE, SIDE)
            row += [value.item() for value in box.values()]
            row += [p.flip, p.gray, p.solarize, p.sigma > 0, *dict(sorted(p.jitter)).values()]
            row += [names.index("brightness"), names.index("hue")]
        rows.append(row)
    related = np.corrcoef(np.array(rows).T)
    fields = len(related) // 2
    for first in (0, fields):  # two of the four places in one order are related
        related[first + fields - 2, first + fields - 1] = 0
        related[first + fields - 1, first + fields - 2] = 0
    np.fill_diagonal(related, 0)
    assert fields == 14
    assert np.abs(related).max() < 5 / math.sqrt(COUNT)


def test_jitter_does_not_depend_on_the_other_switches(drawn: list[list[Plan]]) -> None:
    jittered = [p for p in drawn[1] if p.jitter]
    assert share_of([p.flip for p in jittered], 0.5)
    assert share_of([p.gray for p in jittered], 0.2)
    assert share_of([p.sigma > 0 for p in jittered], 0.1)
    assert share_of([p.solarize for p in jittered], 0.2)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_and_impossible_are_meant(probability: float) -> None:
    config = MultiCropConfig(
        flip=probability,
        jitter=probability,
        gray=probability,
        blur=(probability, probability, probability),
        solarize=probability,
    )
    for index in range(100):
        for number, p in enumerate(plans(multi_crop(config), 0, 0, index, scene().shape)):
            switches = {p.flip, bool(p.jitter), p.gray, p.sigma > 0}
            assert switches == {probability == 1}
            assert p.solarize == (probability == 1 and number == 1)


# boxes


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 500), (500, 1), (20_000, 30), (30, 20_000), (3, 4), (2, 3)]
)
def test_boxes_lie_inside_images_of_any_shape(height: int, width: int) -> None:
    for index in range(300):
        for planned in plans(PUBLISHED, 0, 0, index, torch.Size((3, height, width))):
            top, left, h, w = planned.box
            assert all(type(number) is int for number in planned.box)
            assert 0 <= top < top + h <= height
            assert 0 <= left < left + w <= width


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 500), (40, 1000), (1000, 40)])
def test_crops_of_strips_are_like_torchvision(number: int, height: int, width: int) -> None:
    """Where no draw fits, both take the widest or tallest crop in the middle."""
    view = [view for group in PUBLISHED.groups for view in group][number]
    ours = crops(view, height, width)
    image = torch.empty(3, 1, 1).expand(3, height, width)
    with seeded(0, "reference"):
        theirs = np.array(
            [
                RandomResizedCrop.get_params(image, list(view.scale), [3 / 4, 4 / 3])
                for _ in range(1000)
            ]
        )
    for column in range(4):
        assert distance(ours[:, column], theirs[:, column].astype(np.float64)) < 1.95


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (3, 4), (20_000, 30)])
def test_images_of_any_shape_render(height: int, width: int) -> None:
    image = torch.randint(
        256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for planned in plans(PUBLISHED, 0, 0, 0, image.shape):
        view = render(planned, image)
        assert view.shape == (3, planned.size, planned.size)
        assert view.isfinite().all()


@pytest.mark.parametrize("size", [4, 7, 8])
def test_small_views_can_be_blurred(size: int) -> None:
    """The window of the blur is wider than the view."""
    view = render(replace(PLAIN, size=size, sigma=1.0), scene())
    assert view.shape == (3, size, size)


# groups


def sizes(config: MultiCropConfig) -> list[tuple[int, ...]]:
    return [tuple(view.size for view in group) for group in multi_crop(config).groups]


def test_published_views_are_two_global_and_eight_local() -> None:
    assert sizes(MultiCropConfig()) == [(224, 224), (96,) * 8]
    first, second = PUBLISHED.groups[0]
    local = PUBLISHED.groups[1][0]
    assert set(PUBLISHED.groups[1]) == {local}
    assert first.scale == second.scale == (0.4, 1.0)
    assert local.scale == (0.05, 0.4)


def test_there_may_be_no_local_crops() -> None:
    assert sizes(MultiCropConfig(local_sizes=(), local_counts=())) == [(224, 224)]


def test_a_group_of_none_is_left_out() -> None:
    assert sizes(MultiCropConfig(local_counts=(0,))) == [(224, 224)]
    config = MultiCropConfig(local_sizes=(96, 64, 32), local_counts=(2, 0, 1))
    assert sizes(config) == [(224, 224), (96, 96), (32,)]


def test_two_local_sizes_are_two_groups() -> None:
    config = MultiCropConfig(local_sizes=(96, 64), local_counts=(2, 3))
    assert sizes(config) == [(224, 224), (96, 96), (64, 64, 64)]
    assert draw(multi_crop(config), 0, 0, 0).shape[0] == 7


def test_views_of_a_group_differ() -> None:
    local = plans(PUBLISHED, 0, 0, 0, scene().shape)[2:]
    assert len({p.box for p in local}) == 8
