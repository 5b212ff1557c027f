"""From a plan to pixels on the CPU: few passes over each view, in place.

Every operation is Pillow's as the published runs used it. The resize rounds to 8 bits as Pillow's
does, RandAugment is Pillow's own, and all else is in floating point. Sums are taken in an order
that does not depend on the number of threads. Letters: h, w height and width of the image, s side
of the view.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core import random
from leanvit.data.randaugment import augment
from leanvit.data.views import Plan

GRAY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601, as torchvision rounds them)."""
SOLARIZE_FROM = 128 / 255
"""Pixels from this value on are inverted."""
BLUR_REACH = 3.5
"""The blur's window in standard deviations each way; the rest weighs less than 0.05 %."""
FILL = (128, 128, 128)
"""Color (of 255) that RandAugment moves in from outside, where none is given; timm's."""


def render_input(plan: Plan, image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the view [3, s, s] of a uint8 image [3, h, w] as networks take it, fp32.

    That is normalised by mean and std [3, 1, 1] of pixels in [0, 1], then erased: the noise of a
    box is normal in what the network sees. RandAugment fills with the mean color, as in timm.
    """
    red, green, blue = (mean.flatten() * 255).round().int().tolist()
    view = (render(plan, image, fill=(red, green, blue)) - mean) / std
    if plan.erase is not None:
        top, left, height, width = plan.erase
        draw = random.generator(plan.noise, "erase")
        noise = draw.standard_normal((3, height, width), dtype=np.float32)
        view[:, top : top + height, left : left + width] = torch.from_numpy(noise)
    return view


def render(plan: Plan, image: Tensor, *, fill: tuple[int, int, int] = FILL) -> Tensor:
    """Return the view [3, s, s] in [0, 1], fp32, of a uint8 image [3, h, w]; nothing is erased."""
    top, left, height, width = plan.box
    crop = image[None, :, top : top + height, left : left + width]
    side = (plan.size, plan.size)
    # planes or pixels in memory: torch resizes both, but not to the same last bit
    crop = crop.contiguous(memory_format=torch.channels_last)
    (small,) = functional.interpolate(crop, side, mode=plan.interpolation, antialias=True)
    small = small.flip(-1) if plan.flip else small
    if plan.randaugment:
        small = augment(small, plan.randaugment, interpolation=plan.interpolation, fill=fill)
    view = torch.empty(3, *side)
    view.copy_(small).div_(255)
    for name, factor in plan.jitter:
        JITTERS[name](view, factor)
    if plan.gray:
        view = gray(view).expand_as(view)
    if plan.sigma:
        view = blur(view, plan.sigma)
    if plan.solarize:
        view = torch.where(view >= SOLARIZE_FROM, 1 - view, view)
    return view.contiguous()


def gray(view: Tensor) -> Tensor:
    """Return the grey [s, s] of a view [3, s, s]."""
    red, green, blue = GRAY
    return (view[0] * red).add_(view[1], alpha=green).add_(view[2], alpha=blue)


def brightness_(view: Tensor, factor: float) -> None:
    """Move a view away from black by a factor, or towards it."""
    view.mul_(factor).clamp_(0, 1)


def contrast_(view: Tensor, factor: float) -> None:
    """Move a view away from its mean grey."""
    mean = gray(view).mean(-1).mean()  # rows first: one sum would depend on the threads
    view.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def saturation_(view: Tensor, factor: float) -> None:
    """Move every pixel away from its own grey."""
    own = gray(view).mul_(1 - factor)
    view.mul_(factor).add_(own).clamp_(0, 1)


def hue_(view: Tensor, turn: float) -> None:
    """Turn every pixel's hue by a share of the circle; largest and smallest channel stay as large.

    HSV without S: a channel is low + chroma * ramp(hue), where the ramps of red, green and blue are
    the same trapezoid around 0, 2 and 4 sixths of the circle.
    """
    red, green, blue = view
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    chroma = torch.maximum(high, blue)
    torch.minimum(low, blue, out=low)
    is_red, is_green = chroma == red, chroma == green
    chroma.sub_(low)
    hue = torch.where(is_green, blue - red, red - green)
    torch.where(is_red, green - blue, hue, out=hue)
    hue.div_(chroma.clamp_min(1e-12))  # grey has no hue, and keeps none
    start = torch.where(is_green, 2 + 6 * turn, 4 + 6 * turn)
    hue.add_(torch.where(is_red, 6 * turn, start))
    hue.sub_((hue / 6).floor_(), alpha=6)  # remainder_ takes longer
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    for channel, center in ((green, 2), (blue, 4)):
        torch.sub(hue, center, out=channel).abs_().neg_().add_(2)
    view.clamp_(0, 1).mul_(chroma).add_(low)


JITTERS = {
    "brightness": brightness_,
    "contrast": contrast_,
    "saturation": saturation_,
    "hue": hue_,
}
"""Changes of color in place, by the names that a plan has for them."""


def blur(view: Tensor, sigma: float) -> Tensor:
    """Return a view under a Gaussian of standard deviation sigma in pixels, mirrored at borders."""
    side = view.shape[-1]
    reach = min(math.ceil(BLUR_REACH * sigma), side - 1)
    weights = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-reach, reach + 1)]
    total = sum(weights)
    for dim, margin in ((-2, (0, 0, reach, reach)), (-1, (reach, reach, 0, 0))):
        wide = functional.pad(view, margin, mode="reflect")
        view = wide.narrow(dim, 0, side) * (weights[0] / total)
        for place, weight in enumerate(weights[1:], start=1):
            view.add_(wide.narrow(dim, place, side), alpha=weight / total)
    return view
