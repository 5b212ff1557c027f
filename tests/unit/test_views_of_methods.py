"""The views of MAE, MoCo-v3 and fine-tuning: published statistics, pixels of timm and Pillow."""

import math
import random as python_random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import permutations
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from leanvit.config import CropConfig, DataConfig, FineTuneViewsConfig, TwoViewsConfig
from leanvit.core.random import permutation, seeded, units
from leanvit.data.loader import Views, load_views
from leanvit.data.named import ArraySource
from leanvit.data.randaugment import ARGUMENTS, choose
from leanvit.data.render import FILL, Normalizer, render
from leanvit.data.sampler import Order
from leanvit.data.views import (
    MORE_UNITS,
    UNITS,
    Plan,
    ViewSpec,
    draw,
    fine_tuning,
    single_crop,
    two_views,
)
from tests.views import (
    COUNT,
    PLAIN,
    SIDE,
    Array,
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

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN = torch.tensor(DataConfig().mean).view(-1, 1, 1)
STD = torch.tensor(DataConfig().std).view(-1, 1, 1)


def normalised(planned: Plan, image: torch.Tensor) -> torch.Tensor:
    """Return a view as networks take it."""
    view = torch.full((3, planned.size, planned.size), torch.nan)
    Normalizer(DataConfig().mean, DataConfig().std).render(planned, image, view)
    return view


SHAPE = scene().shape


@dataclass(frozen=True)
class Published:
    """Probabilities of one view; every method's flip has 0.5."""

    interpolation: str
    jitter: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    erase: float = 0.0


SPECS = {
    "mae": single_crop(CropConfig()),
    "mocov3": two_views(TwoViewsConfig()),
    "fine-tuning": fine_tuning(FineTuneViewsConfig()),
}
TABLE = {
    "mae": [Published("bicubic")],
    "mocov3": [
        Published("bilinear", jitter=0.8, gray=0.2, blur=1.0),
        Published("bilinear", jitter=0.8, gray=0.2, blur=0.1, solarize=0.2),
    ],
    "fine-tuning": [Published("bicubic", erase=0.25)],
}
DRAWN: dict[str, list[list[Plan]]] = {}


def drawn(name: str) -> list[list[Plan]]:
    """Return COUNT plans of a large square image for each view of a method."""
    if name not in DRAWN:
        shape = torch.Size((3, SIDE, SIDE))
        images = [plans(SPECS[name], 0, 0, index, shape) for index in range(COUNT)]
        DRAWN[name] = [list(view) for view in zip(*images, strict=True)]
    return DRAWN[name]


@pytest.fixture
def timm_seeds() -> Iterator[None]:
    """Seed what timm draws from, and leave it as it was."""
    states = python_random.getstate(), np.random.get_state()
    python_random.seed(0)
    np.random.seed(0)
    with seeded(0, "timm"):
        yield
    python_random.setstate(states[0])
    np.random.set_state(states[1])


# statistics


@pytest.mark.parametrize("name", SPECS)
def test_views_have_their_size_and_stand_in_one_group(name: str) -> None:
    (group,) = SPECS[name].groups
    assert [view.size for view in group] == [224] * len(TABLE[name])


@pytest.mark.parametrize("name", SPECS)
def test_every_switch_has_its_probability(name: str) -> None:
    for view, published in zip(drawn(name), TABLE[name], strict=True):
        assert share_of([p.flip for p in view], 0.5)
        assert share_of([bool(p.jitter) for p in view], published.jitter)
        assert share_of([p.gray for p in view], published.gray)
        assert share_of([p.sigma > 0 for p in view], published.blur)
        assert share_of([p.solarize for p in view], published.solarize)
        assert share_of([p.erase is not None for p in view], published.erase)
        assert {p.interpolation for p in view} == {published.interpolation}
        assert any(p.randaugment for p in view) == (name == "fine-tuning")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (375, 500), (100, 300)])
def test_crops_are_distributed_like_torchvision(name: str, height: int, width: int) -> None:
    image = torch.empty(3, 1, 1).expand(3, height, width)
    with seeded(0, name):
        theirs = [
            RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            for _ in range(COUNT // 2)
        ]
    other = shape_of(np.array(theirs, dtype=np.float64), height, width)
    for view in SPECS[name].groups[0]:
        shape = shape_of(crops(view, height, width), height, width)
        for field in shape:
            assert distance(shape[field], other[field]) < 1.95, field


@pytest.mark.parametrize("name", SPECS)
def test_crops_are_uniform_where_every_aspect_fits(name: str) -> None:
    for view in drawn(name):
        shape = shape_of(np.array([p.box for p in view], dtype=np.float64), SIDE, SIDE)
        fits = shape["area"] < 0.74
        assert uniform_distance(shape["area"][fits], 0.08, 0.74) < 1.95
        assert uniform_distance(shape["aspect"][fits], math.log(3 / 4), math.log(4 / 3)) < 1.95
        assert uniform_distance(shape["top"], 0, 1) < 1.95
        assert uniform_distance(shape["left"], 0, 1) < 1.95


def test_colors_of_mocov3_are_uniform_and_in_any_order() -> None:
    limits = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    for view in drawn("mocov3"):
        jitters = [p.jitter for p in view if p.jitter]
        for name, (low, high) in limits.items():
            assert uniform_distance(np.array([dict(j)[name] for j in jitters]), low, high) < 1.95
        assert even(Counter(tuple(name for name, _ in j) for j in jitters), permutations(limits))
        assert uniform_distance(np.array([p.sigma for p in view if p.sigma]), 0.1, 2.0) < 1.95


def even(counts: Counter[Any], expected: Any) -> bool:
    """Return whether all of what was expected, and nothing else, came equally often."""
    assert set(counts) == set(expected)
    mean = counts.total() / len(counts)
    chi_square = sum((count - mean) ** 2 / mean for count in counts.values())
    degrees = len(counts) - 1
    return chi_square < degrees + 5 * math.sqrt(2 * degrees)


def test_jitter_of_fine_tuning_leaves_the_hue_alone() -> None:
    spec = fine_tuning(FineTuneViewsConfig(randaugment=0, jitter=1))
    jitters = [dict(plans(spec, 0, 0, i, SHAPE)[0].jitter) for i in range(5000)]
    for name in ("brightness", "contrast", "saturation"):
        assert uniform_distance(np.array([j[name] for j in jitters]), 0.6, 1.4) < 1.95
    assert {j["hue"] for j in jitters} == {0.0}


def test_random_interpolation_is_either_of_the_two() -> None:
    spec = single_crop(CropConfig(interpolation="random"))
    found = [plans(spec, 0, 0, i, SHAPE)[0].interpolation for i in range(5000)]
    assert set(found) == {"bicubic", "bilinear"}
    assert share_of([name == "bicubic" for name in found], 0.5)


# RandAugment


def chosen_by_timm(text: str, count: int) -> list[list[tuple[str, tuple[float, ...]]]]:
    """Return the operations that timm chooses for some images, with their arguments."""
    transform = rand_augment_transform(text, {"img_mean": FILL})
    found: list[list[tuple[str, tuple[float, ...]]]] = []

    def note(name: str) -> Any:
        def apply(image: object, *arguments: float, **_: object) -> object:
            found[-1].append((name, arguments))
            return image

        return apply

    for operation in transform.ops:
        operation.aug_fn = note(operation.name)
    for _ in range(count):
        found.append([])
        transform(None)
    return found


@pytest.mark.parametrize(
    ("magnitude", "std"), [(9.0, 0.5), (10.0, 0.5), (4.0, 3.0)], ids=["m9", "m10", "m4-mstd3"]
)
@pytest.mark.usefixtures("timm_seeds")
def test_randaugment_is_distributed_like_timm(magnitude: float, std: float) -> None:
    spec = fine_tuning(FineTuneViewsConfig(randaugment=magnitude, randaugment_std=std))
    ours = [plans(spec, 1, 0, i, SHAPE)[0].randaugment for i in range(COUNT)]
    theirs = chosen_by_timm(f"rand-m{magnitude:g}-mstd{std:g}-inc1", COUNT)
    for done in (0, 1, 2):
        assert share_of([len(found) == done for found in ours], 0.25 + 0.25 * (done == 1))
    sets = [[entry for found in side for entry in found] for side in (ours, theirs)]
    assert even(Counter(name for name, _ in sets[0]), {name for name, _ in sets[1]})
    for name in ARGUMENTS:
        own, other = ([a for found, a in side if found == name] for side in sets)
        assert {len(a) for a in own} == {len(a) for a in other}, name
        if own[0]:
            one, two = (np.array([a[0] for a in side], dtype=np.float64) for side in (own, other))
            assert distance(one, two) < 1.95, name


def test_both_operations_of_a_view_are_drawn_apart() -> None:
    pairs = [p.randaugment for p in drawn("fine-tuning")[0] if len(p.randaugment) == 2]
    numbers = np.array([[list(ARGUMENTS).index(name) for name, _ in pair] for pair in pairs])
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 5 / math.sqrt(len(pairs))
    assert share_of([first == second for first, second in numbers.tolist()], 1 / len(ARGUMENTS))


@pytest.mark.parametrize("unit", [0.0, 2**-53, 0.5, 1 - 2**-53])
def test_extreme_unit_numbers_choose_something(unit: float) -> None:
    """The normal distribution has no value at 0."""
    row = np.full(8, unit)
    row[[1, 5]] = 0.0
    found = choose(9.0, 0.5, row)
    assert len(found) == 2 and {name for name, _ in found} <= set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_operation_has_the_pixels_of_timm(
    name: str, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, left, height, width = PLAIN.box
    crop = scene()[:, top : top + height, left : left + width]
    image = Image.fromarray(crop.permute(1, 2, 0).numpy())
    given = {"img_mean": (1, 90, 200), "interpolation": Image.Resampling[interpolation.upper()]}
    for magnitude in (0.0, 2.7, 5.0, 9.0, 9.6, 9.99 if name == "PosterizeIncreasing" else 10.0):
        for sign in (1, -1):
            monkeypatch.setattr(auto_augment, "_randomly_negate", lambda v, s=sign: s * v)
            theirs = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=given)(image)
            operation = (name, ARGUMENTS[name](magnitude / 10, sign))
            planned = replace(PLAIN, interpolation=interpolation, randaugment=(operation,))
            ours = (render(planned, scene(), fill=(1, 90, 200)) * 255).round().byte()
            assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(theirs)), magnitude


def test_a_view_of_which_no_bit_stays_is_black() -> None:
    """timm keeps 0 bits at magnitude 10; Pillow made that black, and refuses it now."""
    operation = ("PosterizeIncreasing", ARGUMENTS["PosterizeIncreasing"](1.0, 1))
    theirs: Any = auto_augment.LEVEL_TO_ARG["PosterizeIncreasing"]
    assert theirs(10.0, {}) == operation[1]
    for pair in ((operation,), (operation, ("Invert", ()))):
        view = render(replace(PLAIN, randaugment=pair), scene())
        assert torch.equal(view, torch.full_like(view, len(pair) - 1))


def test_operations_come_in_the_order_of_the_plan() -> None:
    first, second = ("Invert", ()), ("SolarizeIncreasing", (80,))
    forwards, backwards = (
        render(replace(PLAIN, randaugment=pair), scene())
        for pair in ((first, second), (second, first))
    )
    expected = (255 - scene()[:, 20:170, 30:180]).int()
    expected = torch.where(expected >= 80, 255 - expected, expected)
    assert torch.equal((forwards * 255).round().int(), expected)
    assert not torch.equal(forwards, backwards)


def test_shears_fill_with_the_mean_color() -> None:
    planned = replace(PLAIN, randaugment=(("TranslateXRel", (0.45,)),))
    view = normalised(planned, scene())
    assert view[:, :, -60:].abs().max() <= 0.5 / 255 / float(STD.min()) + 1e-6
    assert view[:, :, :60].abs().min(0).values.max() > 0.1


# erasing


def boxes_of_timm(count: int, side: int) -> Array:
    """Return top, left, height, width [count, 4] of what timm erases."""
    erase = RandomErasing(probability=1.0, mode="const", device="cpu")
    found = []
    for _ in range(count):
        gone = (erase(torch.ones(1, side, side))[0] == 0).numpy()
        rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
        if len(rows):
            found.append((rows[0], columns[0], len(rows), len(columns)))
    return np.array(found, dtype=np.float64)


@pytest.mark.usefixtures("timm_seeds")
@pytest.mark.parametrize("side", [96, 32])
def test_erased_boxes_are_distributed_like_timm(side: int) -> None:
    spec = fine_tuning(FineTuneViewsConfig(size=side, erase=1.0))
    ours = [plans(spec, 2, 0, i, SHAPE)[0].erase for i in range(COUNT // 2)]
    found = shape_of(np.array(ours, dtype=np.float64), side, side)
    theirs = shape_of(boxes_of_timm(COUNT // 2, side), side, side)
    for field in found:
        assert distance(found[field], theirs[field]) < 1.95, field
    assert max(found["area"]) < 0.36 and min(found["area"]) > 0.01


def test_erased_pixels_are_normal_noise_and_the_others_stay() -> None:
    planned = replace(PLAIN, erase=(10, 20, 100, 80), noise=7)
    view = normalised(planned, scene())
    plain = (render(PLAIN, scene()) - MEAN) / STD
    torch.testing.assert_close(normalised(PLAIN, scene()), plain)
    kept = torch.ones_like(view, dtype=torch.bool)
    kept[:, 10:110, 20:100] = False
    torch.testing.assert_close(view[kept], plain[kept])
    noise = view[~kept].double().numpy()
    shares = np.array([NormalDist().cdf(value) for value in noise])
    assert uniform_distance(shares, 0, 1) < 1.95
    rows = view[:, 10:110, 20:100].flatten(1).numpy()
    assert np.abs(np.corrcoef(rows)[np.triu_indices(3, 1)]).max() < 5 / math.sqrt(8000)
    assert not torch.equal(view, normalised(replace(planned, noise=8), scene()))


def test_noise_has_a_key_of_its_own_in_every_view() -> None:
    spec = fine_tuning(FineTuneViewsConfig(erase=1.0))
    keys = [(seed, epoch, i) for seed in range(3) for epoch in range(10) for i in range(100)]
    noises = {plans(spec, *key, SHAPE)[0].noise for key in keys}
    assert len(noises) == len(keys)


def test_what_is_erased_depends_on_no_other_switch() -> None:
    erased = [p for p in drawn("fine-tuning")[0] if p.erase is not None]
    assert share_of([p.flip for p in erased], 0.5)
    assert share_of([len(p.randaugment) == 1 for p in erased], 0.5)
    assert uniform_distance(np.array([p.noise for p in erased]), 0, 2**53) < 1.95


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_a_box_that_does_not_fit_is_left_out(side: int) -> None:
    spec = fine_tuning(FineTuneViewsConfig(size=side, erase=1.0))
    image = scene()
    for index in range(200):
        (planned,) = plans(spec, 0, 0, index, SHAPE)
        if planned.erase is not None:
            top, left, height, width = planned.erase
            assert 0 <= top < top + height <= side > height > 0
            assert 0 <= left < left + width <= side > width > 0
        assert normalised(planned, image).shape == (3, side, side)


# pixels


def photographs() -> list[Tensor]:
    """Return photographs [3, height, width] that scikit-image carries."""
    names = ("astronaut", "coffee", "chelsea", "rocket")
    images = [getattr(skimage.data, name)() for name in names]
    return [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images]


WORST = {"mae": 0.5, "mocov3": 3.0, "fine-tuning": 2.0}
"""Levels of 255 between a view and Pillow's, which cuts off to 8 bits after every color change."""


@pytest.mark.parametrize("name", SPECS)
def test_random_views_of_photographs_match_pillow_and_timm(name: str) -> None:
    differences = [
        difference(planned, image)
        for index, image in enumerate(photographs())
        for epoch in range(6)
        for planned in plans(SPECS[name], 0, epoch, index, image.shape)
    ]
    assert max(differences) < WORST[name] / 255
    assert sum(differences) / len(differences) < 1.5 / 255


@pytest.mark.parametrize("size", [64, 224])
def test_bilinear_resizing_differs_from_pillow_by_rounding_alone(size: int) -> None:
    planned = replace(PLAIN, size=size, box=(10, 15, 120, 90), interpolation="bilinear")
    gap = np.abs(render(planned, scene()).numpy() - reference(planned, scene()))
    assert gap.max() < 2.01 / 255 and gap.mean() < 0.25 / 255
    bicubic = render(replace(planned, interpolation="bicubic"), scene())
    assert float((bicubic - render(planned, scene())).abs().mean()) > 0.5 / 255


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (20_000, 30), (30, 20_000)])
def test_images_of_any_shape_render(name: str, height: int, width: int) -> None:
    image = torch.arange(3 * height * width).remainder(251).byte().view(3, height, width)
    for index in range(5):
        for planned in plans(SPECS[name], 0, 0, index, image.shape):
            view = normalised(planned, image)
            assert view.shape == (3, 224, 224) and view.dtype == torch.float32
            assert view.isfinite().all()


def views_of(name: str, key: tuple[int, int, int], image: Tensor) -> Tensor:
    """Return the views [V, 3, 224, 224] of an image as networks take them."""
    found = plans(SPECS[name], *key, image.shape)
    return torch.stack([normalised(planned, image) for planned in found])


@pytest.mark.parametrize("name", SPECS)
def test_threads_and_order_do_not_change_pixels(name: str) -> None:
    image = photographs()[1]
    keys = [(0, epoch, index) for epoch in range(3) for index in range(8)]
    states = python_random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    expected = {key: views_of(name, key, image) for key in keys}
    shuffled = [keys[number] for number in permutation(0, "test", count=len(keys)).tolist()]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda key: views_of(name, key, image), shuffled))
    for key, views in zip(shuffled, found, strict=True):
        assert torch.equal(views, expected[key])
    assert python_random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert len({views.numpy().tobytes() for views in found}) == len(keys)


# draws


def test_more_draws_leave_the_others_as_they_were() -> None:
    row = draw(SPECS["fine-tuning"], 3, 1, 2)
    assert row.shape == (1, UNITS + MORE_UNITS)
    np.testing.assert_array_equal(row[0, :UNITS], units(3, "views", 1, 2, count=UNITS))
    np.testing.assert_array_equal(row[0, UNITS:], units(3, "more of views", 1, 2, count=MORE_UNITS))
    assert draw(SPECS["mocov3"], 3, 1, 2).shape == (2, UNITS)
    (plain,) = plans(SPECS["mae"], 3, 1, 2, SHAPE)
    (tuned,) = plans(SPECS["fine-tuning"], 3, 1, 2, SHAPE)
    assert (plain.box, plain.flip) == (tuned.box, tuned.flip)


def test_the_parts_of_a_plan_are_independent() -> None:
    """No unit number decides two things, within a view or between two."""
    config = FineTuneViewsConfig(scale=(0.08, 0.5), interpolation="random", erase=1.0)
    (view,) = fine_tuning(config).groups[0]
    rows = []
    for i in range(COUNT):
        row: list[float] = []
        for p in plans(ViewSpec(((view, view),)), 4, 0, i, torch.Size((3, SIDE, SIDE))):
            for box, side in ((p.box, SIDE), (p.erase, 224)):
                shape = shape_of(np.array([box], dtype=np.float64), side, side)
                row += [value.item() for value in shape.values()]
            names = [list(ARGUMENTS).index(name) for name, _ in p.randaugment]
            signs = [a[0] for name, a in p.randaugment if name in ("Rotate", "ShearX", "ShearY")]
            row += [p.flip, p.interpolation == "bicubic", p.noise, len(names)]
            row += [names[0] if names else 7, math.copysign(1, signs[0]) if signs else 0]
        rows.append(row)
    related = np.corrcoef(np.array(rows, dtype=np.float64).T)
    assert len(related) == 28
    np.fill_diagonal(related, 0)
    assert np.abs(related).max() < 5 / math.sqrt(COUNT)


# options

CHANGES: dict[str, Any] = {
    "size": 64,
    "scale": (0.5, 0.6),
    "interpolation": "random",
    "flip": 0.0,
    "jitter": 0.4,
    "jitter_strength": (0.1, 0.1, 0.1, 0.1),
    "gray": 0.6,
    "blur": (0.0, 0.5),
    "solarize": 0.7,
    "randaugment": 5.0,
    "randaugment_std": 2.0,
    "erase": 0.6,
}
MAKERS: dict[type, Any] = {
    CropConfig: single_crop,
    TwoViewsConfig: two_views,
    FineTuneViewsConfig: fine_tuning,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, f.name) for kind in MAKERS for f in fields(kind) if f.name != "repeats"],
)
def test_every_option_changes_the_plans(kind: type, name: str) -> None:
    base = {"jitter": 0.9} if name == "jitter_strength" else {}
    spec, other = (MAKERS[kind](kind(**{**base, **own})) for own in ({}, {name: CHANGES[name]}))
    shape = SHAPE
    assert any(plans(spec, 0, 0, i, shape) != plans(other, 0, 0, i, shape) for i in range(50))


def test_repeats_change_the_number_of_places_and_no_view() -> None:
    once = fine_tuning(FineTuneViewsConfig())
    assert fine_tuning(FineTuneViewsConfig(repeats=3)) == replace(once, repeats=3)
    assert once.repeats == 1
    units = [draw(once, 0, 0, 1, copy) for copy in range(3)]
    assert np.array_equal(units[0], draw(once, 0, 0, 1))
    assert not np.isin(units[1], units[0]).any() and not np.isin(units[2], units[1]).any()


def test_a_second_view_has_options_of_its_own() -> None:
    for options in ({"blur": (1.0, 0.9)}, {"solarize": 0.9}):
        first, second = two_views(TwoViewsConfig(**options)).groups[0]
        assert first == SPECS["mocov3"].groups[0][0]
        assert second != SPECS["mocov3"].groups[0][1]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CropConfig, {"size": 0}, "size is 0; expected at least 1"),
        (CropConfig, {"scale": (0.0, 1.0)}, r"scale is a range within \(0, 1\], not \(0.0, 1.0\)"),
        (CropConfig, {"scale": (0.9, 0.8)}, r"scale is a range within \(0, 1\]"),
        (CropConfig, {"flip": 1.5}, r"flip is 1.5; expected within \[0, 1\]"),
        (TwoViewsConfig, {"size": 0}, "size is 0; expected at least 1"),
        (TwoViewsConfig, {"blur": (1.0, 2.0)}, r"blur is \(1.0, 2.0\); expected within \[0, 1\]"),
        (TwoViewsConfig, {"gray": -0.1}, r"gray is -0.1; expected within \[0, 1\]"),
        (TwoViewsConfig, {"jitter_strength": (0.4, 0.4, 0.2, 0.6)}, "hue's strength"),
        (FineTuneViewsConfig, {"scale": (0.1, 1.1)}, r"scale is a range within \(0, 1\]"),
        (
            FineTuneViewsConfig,
            {"randaugment": 11.0},
            r"randaugment is 11.0; expected",
        ),
        (FineTuneViewsConfig, {"randaugment_std": math.inf}, r"randaugment_std is inf; expected"),
        (FineTuneViewsConfig, {"erase": 2.0}, r"erase is 2.0; expected within \[0, 1\]"),
        (FineTuneViewsConfig, {"jitter_strength": (-1.0, 0.0, 0.0, 0.0)}, "0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: type, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


# the door


def test_the_loader_gives_two_views_of_every_image() -> None:
    pixels = np.stack([image[:, :200, :200].permute(1, 2, 0).numpy() for image in photographs()])
    source, data = ArraySource(pixels), DataConfig()
    views = Views(source, SPECS["mocov3"], data, 5)
    (batch,) = load_views(views, Order(4, 4, 5), 0, 1, workers=0, device=torch.device("cpu"))
    (group,) = batch.groups
    assert group.shape == (2, 4, 3, 224, 224)
    for place, index in enumerate(batch.index.tolist()):
        image = torch.from_numpy(pixels[index]).permute(2, 0, 1)
        assert torch.equal(group[:, place], views_of("mocov3", (5, 0, index), image))
