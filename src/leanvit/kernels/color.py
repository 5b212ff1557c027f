"""Color and sharpness of one view in [0, 1], fp32, on any device: few passes, most in place.

Every operation is Pillow's as the published runs used it, in floating point. Sums are taken in an
order that does not depend on the number of threads. Letter: s side of the view in pixels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

GRAY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601, as torchvision rounds them)."""
SOLARIZE_FROM = 128 / 255
"""Pixels from this value on are inverted."""
BLUR_REACH = 3.5
"""The blur's window in standard deviations each way; the rest weighs less than 0.05 %."""


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
