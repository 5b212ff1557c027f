"""Views of an image in three pure steps: draw numbers, plan what to do, render pixels.

`draw` gives unit numbers from (seed, epoch, image), `plan` turns them into boxes and parameters
for an image of a given size, `data.render` gives pixels. The same plan gives the same pixels,
whoever renders it. Augmentations and their order are DINO's (arXiv 2006.07733 and 2104.14294).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanvit.config import MultiCropConfig
from leanvit.core import random

ASPECT = (3 / 4, 4 / 3)
"""Width over height of a crop."""
BLUR_SIGMA = (0.1, 2.0)
"""Standard deviation of the blur in pixels."""
CROP_TRIES = 10
"""Draws of area and aspect before a centred crop is taken."""
JITTERS = ("brightness", "contrast", "saturation", "hue")
"""Changes of color, in the order of `jitter_strength`."""
UNITS = 2 * CROP_TRIES + 2 + 6 + 4 + 4
"""Unit numbers that one view needs: crop, switches, order and strength of the jitter."""


@dataclass(frozen=True, slots=True)
class View:
    """How one view is made; see `MultiCropConfig` for the fields."""

    size: int
    scale: tuple[float, float]
    flip: float
    jitter: float
    jitter_strength: tuple[float, float, float, float]
    gray: float
    blur: float
    solarize: float


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """The views of every image, grouped by size; global views first."""

    groups: tuple[tuple[View, ...], ...]


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


def draw(spec: ViewSpec, seed: int, epoch: int, index: int) -> NDArray[np.float64]:
    """Return the unit numbers [views, UNITS] of an image in an epoch."""
    views = sum(len(group) for group in spec.groups)
    return random.units(seed, "views", epoch, index, count=views * UNITS).reshape(views, UNITS)


def plan(view: View, units: NDArray[np.float64], height: int, width: int) -> Plan:
    """Decide one view [UNITS] of an image of the given size."""
    crop, units = units[: 2 * CROP_TRIES + 2], units[2 * CROP_TRIES + 2 :]
    flip, jitter, gray, blur, sigma, solarize = units[:6]
    order, strength = np.argsort(units[6:10], kind="stable"), units[10:14]
    return Plan(
        size=view.size,
        box=_crop(view.scale, crop, height, width),
        flip=bool(flip < view.flip),
        jitter=_jitter(view, order, strength) if jitter < view.jitter else (),
        gray=bool(gray < view.gray),
        sigma=_between(BLUR_SIGMA, sigma) if blur < view.blur else 0.0,
        solarize=bool(solarize < view.solarize),
    )


def _between(limits: tuple[float, float], unit: float) -> float:
    return float(limits[0] + (limits[1] - limits[0]) * unit)


def _crop(
    scale: tuple[float, float], units: NDArray[np.float64], height: int, width: int
) -> tuple[int, int, int, int]:
    """Return a box whose area is a share `scale` of the image, with an aspect within ASPECT."""
    top, left = units[-2:]
    for area_unit, aspect_unit in units[:-2].reshape(-1, 2):
        area = _between(scale, area_unit) * height * width
        aspect = math.exp(_between((math.log(ASPECT[0]), math.log(ASPECT[1])), aspect_unit))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def _jitter(
    view: View, order: NDArray[np.int64], units: NDArray[np.float64]
) -> tuple[tuple[str, float], ...]:
    changes = []
    for number in order:
        name, reach = JITTERS[number], view.jitter_strength[number]
        middle = 0.0 if name == "hue" else 1.0
        limits = (max(middle - reach, 0.0) if middle else -reach, middle + reach)
        changes.append((name, _between(limits, units[number])))
    return tuple(changes)
