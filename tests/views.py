"""Views made by Pillow, and what says whether two samples have one distribution."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor
from torchvision.transforms import functional as pil

from leanvit.data.render import render
from leanvit.data.views import Plan, View, ViewSpec, draw, plan

COUNT = 20_000
"""Plans behind every statistic of a view."""
SIDE = 3000
"""Side of the square image they are made for."""

Array = NDArray[np.float64]


def scene(height: int = 240, width: int = 320) -> Tensor:
    """Return an image [3, height, width]: smooth, not too vivid colors, edges, fine texture."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = 0.5 + 0.2 * np.sin(5 * x + 3 * y)
    tint = np.stack([np.sin(4 * x), np.cos(5 * y - 3 * x), np.sin(7 * x * y + 1)])
    image = light + 0.1 * tint
    image[:, (x - 0.3) ** 2 + (y - 0.3) ** 2 < 0.02] = np.array([[0.9], [0.75], [0.5]])
    image[:, (abs(x - 0.7) < 0.1) & (abs(y - 0.4) < 0.2)] = np.array([[0.1], [0.15], [0.25]])
    image[:, (y > 0.3) & (np.floor(x * 80) % 2 == np.floor(y * 60) % 2)] *= 0.75
    return torch.from_numpy((image * 255).round().clip(0, 255).astype(np.uint8))


def reference(plan: Plan, image: Tensor) -> Array:
    """Return the view [3, size, size] in [0, 1] as Pillow makes it."""
    top, left, height, width = plan.box
    view = Image.fromarray(image.permute(1, 2, 0).numpy())
    view = view.crop((left, top, left + width, top + height))
    resample = Image.Resampling[plan.interpolation.upper()]
    view = view.resize((plan.size, plan.size), resample)
    if plan.flip:
        view = ImageOps.mirror(view)
    for name, arguments in plan.randaugment:
        apply: Any = NAME_TO_OP[name]
        if name == "PosterizeIncreasing" and arguments[0] == 0:
            view = view.point(lambda _: 0)  # as Pillow did before it refused
            continue
        view = apply(view, *arguments, fillcolor=(128, 128, 128), resample=resample)
    adjust = {
        "brightness": pil.adjust_brightness,
        "contrast": pil.adjust_contrast,
        "saturation": pil.adjust_saturation,
        "hue": pil.adjust_hue,
    }
    for name, factor in plan.jitter:
        view = adjust[name](view, factor)
    if plan.gray:
        view = pil.to_grayscale(view, num_output_channels=3)
    if plan.sigma:
        view = view.filter(ImageFilter.GaussianBlur(radius=plan.sigma))
    if plan.solarize:
        view = ImageOps.solarize(view, threshold=128)
    return np.asarray(view).transpose(2, 0, 1) / 255


def difference(plan: Plan, image: Tensor) -> float:
    """Return the mean absolute difference between a view and Pillow's."""
    return float(np.abs(render(plan, image).numpy() - reference(plan, image)).mean())


PLAIN = Plan(
    size=150, box=(20, 30, 150, 150), flip=False, jitter=(), gray=False, sigma=0, solarize=False
)
"""A crop without resizing, so that what is added to it stands alone."""


def plans(spec: ViewSpec, seed: int, epoch: int, index: int, shape: torch.Size) -> list[Plan]:
    """Return the plans of all views of an image [3, height, width], global views first."""
    views = [view for group in spec.groups for view in group]
    rows = draw(spec, seed, epoch, index)
    return [plan(view, row, *shape[1:]) for view, row in zip(views, rows, strict=True)]


def share_of(flags: list[bool], probability: float) -> bool:
    """Return whether a probability explains how often something happened (5 deviations)."""
    spread = math.sqrt(probability * (1 - probability) / len(flags))
    return abs(sum(flags) / len(flags) - probability) <= 5 * spread


def uniform_distance(values: Array, low: float, high: float) -> float:
    """Return the Kolmogorov-Smirnov distance to uniform, times sqrt(n); 1.95 has p = 0.001."""
    ordered = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    gap = max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())
    return float(gap * math.sqrt(len(values)))


def distance(one: Array, other: Array) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples in the same units."""
    points = np.union1d(one, other)
    gap = np.abs(
        np.searchsorted(np.sort(one), points, side="right") / len(one)
        - np.searchsorted(np.sort(other), points, side="right") / len(other)
    ).max()
    return float(gap * math.sqrt(len(one) * len(other) / (len(one) + len(other))))


def shape_of(boxes: Array, height: int, width: int) -> dict[str, Array]:
    """Return area share, log aspect and place of boxes [n, 4] of top, left, height, width."""
    top, left, h, w = boxes.T
    return {
        "area": h * w / (height * width),
        "aspect": np.log(w / h),
        "top": top / np.maximum(height - h, 1),
        "left": left / np.maximum(width - w, 1),
    }


def crops(view: View, height: int, width: int) -> Array:
    """Return COUNT boxes [n, 4] of a view."""
    spec = ViewSpec(((view,),))
    boxes = [plan(view, draw(spec, 5, 0, i)[0], height, width).box for i in range(COUNT)]
    return np.array(boxes, dtype=np.float64)
