"""Views of an image in three pure steps: draw numbers, plan what to do, render pixels.

`draw` gives unit numbers from (seed, epoch, image), `plan` turns them into boxes and parameters
for an image of a given size, `data.render` gives pixels. The same plan gives the same pixels,
whoever renders it. Augmentations and their order are DINO's (arXiv 2006.07733 and 2104.14294);
RandAugment stands before them and random erasing after them, as in timm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leanvit.config import CropConfig, FineTuneViewsConfig, MultiCropConfig, TwoViewsConfig
from leanvit.core import random
from leanvit.data.randaugment import UNITS_OF_RANDAUGMENT, Operation, choose
from leanvit.data.sampler import draw_key
from leanvit.kernels import color

ASPECT = (3 / 4, 4 / 3)
"""Width over height of a crop."""
BLUR_SIGMA = (0.1, 2.0)
"""Standard deviation of the blur in pixels."""
CROP_TRIES = 10
"""Draws of area and aspect before a centred crop is taken."""
JITTERS = tuple(color.JITTERS)
"""Changes of color, in the order of `jitter_strength`."""
UNITS = 2 * CROP_TRIES + 2 + 6 + 4 + 4
"""Unit numbers that one view needs: crop, switches, order and strength of the jitter."""
INTERPOLATIONS = ("bicubic", "bilinear")
"""What `random` chooses from."""
ERASE_SCALE = (0.02, 1 / 3)
"""Share of a view's area that is erased."""
ERASE_ASPECT = (0.3, 1 / 0.3)
"""Width over height of an erased box."""
MORE_UNITS = 3 + 2 * CROP_TRIES + 2 + UNITS_OF_RANDAUGMENT
"""Those of a view with more: interpolation, erasing and its noise, its box, RandAugment."""


@dataclass(frozen=True, slots=True)
class View:
    """How one view is made; see `config.views` for the fields."""

    size: int
    scale: tuple[float, float]
    flip: float
    jitter: float = 0.0
    jitter_strength: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    gray: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    interpolation: str = "bicubic"
    randaugment: float = 0.0
    randaugment_std: float = 0.0
    erase: float = 0.0

    def needs_more(self) -> bool:
        """Whether a plan of it needs more than UNITS numbers."""
        return self.interpolation == "random" or self.randaugment > 0 or self.erase > 0


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """The views of every image, grouped by size; global views first."""

    groups: tuple[tuple[View, ...], ...]
    repeats: int = 1
    """Places of a batch that an image takes, each with views of its own."""

    def resized(self, side: Callable[[int], int]) -> "ViewSpec":
        """Return the same views of other sides: what `side` makes of each."""
        groups = (tuple(replace(v, size=side(v.size)) for v in group) for group in self.groups)
        return replace(self, groups=tuple(groups))


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of an image in one view."""

    size: int
    """Side of the view in pixels."""
    box: tuple[int, int, int, int]
    """Top, left, height, width of the crop in the image."""
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    """Color changes in their order, with their factors (hue: turns)."""
    gray: bool
    sigma: float
    """Standard deviation of the blur in pixels; 0 for none."""
    solarize: bool
    interpolation: str = "bicubic"
    """How the crop is resized: bicubic or bilinear."""
    randaugment: tuple[Operation, ...] = ()
    """Operations of RandAugment in their order, with their arguments."""
    erase: tuple[int, int, int, int] | None = None
    """Top, left, height, width of the box of the view that becomes noise."""
    noise: int = 0
    """Key of the noise."""


def multi_crop(config: MultiCropConfig) -> ViewSpec:
    """Return the views of multi-crop training."""

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> View:
        return View(
            size=size,
            scale=scale,
            flip=config.flip,
            jitter=config.jitter,
            jitter_strength=config.jitter_strength,
            gray=config.gray,
            blur=blur,
            solarize=solarize,
        )

    size, scale = config.global_size, config.global_scale
    groups: list[tuple[View, ...]] = [
        (view(size, scale, config.blur[0], 0.0), view(size, scale, config.blur[1], config.solarize))
    ]
    for size, count in zip(config.local_sizes, config.local_counts, strict=True):
        if count:
            groups.append((view(size, config.local_scale, config.blur[2], 0.0),) * count)
    return ViewSpec(tuple(groups))


def single_crop(config: CropConfig) -> ViewSpec:
    """Return the one view of masked image modelling: a crop, perhaps mirrored."""
    return ViewSpec(((_crop_view(config),),))


def two_views(config: TwoViewsConfig) -> ViewSpec:
    """Return the two views of MoCo-v3, one group."""
    first = replace(
        _crop_view(config),
        jitter=config.jitter,
        jitter_strength=config.jitter_strength,
        gray=config.gray,
        blur=config.blur[0],
    )
    return ViewSpec(((first, replace(first, blur=config.blur[1], solarize=config.solarize)),))


def fine_tuning(config: FineTuneViewsConfig) -> ViewSpec:
    """Return the one view of supervised training."""
    view = replace(
        _crop_view(config),
        randaugment=config.randaugment,
        randaugment_std=config.randaugment_std,
        jitter=config.jitter,
        jitter_strength=config.jitter_strength,
        erase=config.erase,
    )
    return ViewSpec(((view,),), config.repeats)


def _crop_view(config: CropConfig) -> View:
    return View(config.size, config.scale, config.flip, interpolation=config.interpolation)


def draw(spec: ViewSpec, seed: int, epoch: int, index: int, copy: int = 0) -> NDArray[np.float64]:
    """Return the unit numbers of an image in an epoch, and of a copy of it where it has several.

    [views, UNITS], or [views, UNITS + MORE_UNITS] where a view needs more; those are a stream of
    their own, so that the others stay as they were.
    """
    views = [view for group in spec.groups for view in group]
    key = draw_key(epoch, index, copy)
    rows = random.units(seed, "views", *key, count=len(views) * UNITS).reshape(-1, UNITS)
    if not any(view.needs_more() for view in views):
        return rows
    more = random.units(seed, "more of views", *key, count=len(views) * MORE_UNITS)
    return np.concatenate([rows, more.reshape(-1, MORE_UNITS)], 1)


def plan(view: View, units: NDArray[np.float64], height: int, width: int) -> Plan:
    """Decide one view of an image of the given size, from its row of what `draw` returned."""
    row: list[float] = units.tolist()  # Python counts faster with its own numbers
    crop, switches = row[: 2 * CROP_TRIES + 2], row[2 * CROP_TRIES + 2 :]
    flip, jitter, gray, blur, sigma, solarize = switches[:6]
    planned = Plan(
        size=view.size,
        box=_crop(view.scale, crop, height, width),
        flip=flip < view.flip,
        jitter=_jitter(view, switches[6:10], switches[10:14]) if jitter < view.jitter else (),
        gray=gray < view.gray,
        sigma=_between(BLUR_SIGMA, sigma) if blur < view.blur else 0.0,
        solarize=solarize < view.solarize,
        interpolation=view.interpolation,
    )
    return _plan_more(view, planned, units[UNITS:]) if view.needs_more() else planned


def _plan_more(view: View, planned: Plan, units: NDArray[np.float64]) -> Plan:
    """Return a plan with what needs further unit numbers [MORE_UNITS]."""
    which, erased, noise = units[:3]
    box, operations = units[3:-UNITS_OF_RANDAUGMENT], units[-UNITS_OF_RANDAUGMENT:]
    if view.interpolation == "random":
        planned = replace(planned, interpolation=INTERPOLATIONS[int(2 * which)])
    if view.randaugment:
        found = choose(view.randaugment, view.randaugment_std, operations)
        planned = replace(planned, randaugment=found)
    if erased < view.erase:
        planned = replace(planned, erase=_erase(box.tolist(), view.size), noise=int(noise * 2**53))
    return planned


def _between(limits: tuple[float, float], unit: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * unit


def _box(
    scale: tuple[float, float],
    aspects: tuple[float, float],
    units: Sequence[float],
    height: int,
    width: int,
    margin: int = 0,
) -> tuple[int, int, int, int] | None:
    """Return the first box whose area is a share `scale` of the image and that leaves a margin."""
    *tries, top, left = units
    low, high = math.log(aspects[0]), math.log(aspects[1])
    for area_unit, aspect_unit in zip(tries[::2], tries[1::2], strict=True):
        area = _between(scale, area_unit) * height * width
        aspect = math.exp(_between((low, high), aspect_unit))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width - margin and 0 < h <= height - margin:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    return None


def _crop(
    scale: tuple[float, float], units: Sequence[float], height: int, width: int
) -> tuple[int, int, int, int]:
    """Return a box with an aspect within ASPECT, in the middle if none of the draws fits."""
    box = _box(scale, ASPECT, units, height, width)
    if box is not None:
        return box
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def _erase(units: Sequence[float], side: int) -> tuple[int, int, int, int] | None:
    """Return a box smaller than the view; None if none of the draws fits, as in timm."""
    return _box(ERASE_SCALE, ERASE_ASPECT, units, side, side, margin=1)


def _jitter(
    view: View, order: Sequence[float], units: Sequence[float]
) -> tuple[tuple[str, float], ...]:
    """Return the changes of color, those with the smaller number of `order` first."""
    changes = []
    for number in sorted(range(len(JITTERS)), key=order.__getitem__):
        name, reach = JITTERS[number], view.jitter_strength[number]
        middle = 0.0 if name == "hue" else 1.0
        limits = (max(middle - reach, 0.0) if middle else -reach, middle + reach)
        changes.append((name, _between(limits, units[number])))
    return tuple(changes)
