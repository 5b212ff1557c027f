"""Color and sharpness of one view in [0, 1], fp32, on any device: few passes, most in place.

Every operation is Pillow's as the published runs used it, in floating point. Sums are taken in an
order that does not depend on the number of threads. Letter: s side of the view in pixels.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

GRAY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601, as torchvision rounds them)."""
SOLARIZE_FROM = 128 / 255
"""Pixels from this value on are inverted."""
BLUR_REACH = 3
"""The blur's window in standard deviations each way; the rest weighs less than 0.3 %."""


def recolor(
    view: Tensor,
    jitter: Iterable[tuple[str, float]],
    *,
    to_gray: bool,
    sigma: float,
    solarize: bool,
) -> Tensor:
    """Return a view [3, s, s] after all of this file, in its order; what was given is used up.

    jitter: names of `JITTERS` with their factors; sigma: of the blur in pixels, 0 for none.
    """
    for name, factor in jitter:
        JITTERS[name](view, factor)
    if to_gray:
        view = gray(view).expand_as(view)
    if sigma:
        view = blur(view, sigma)
    return torch.where(view >= SOLARIZE_FROM, 1 - view, view) if solarize else view


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
    torch.lerp(mean, view, factor, out=view).clamp_(0, 1)


def saturation_(view: Tensor, factor: float) -> None:
    """Move every pixel away from its own grey."""
    torch.lerp(gray(view), view, factor, out=view).clamp_(0, 1)


def hue_(view: Tensor, turn: float) -> None:
    """Turn every pixel's hue by a share of the circle; largest and smallest channel stay as large.

    HSV without S: a channel is low + chroma * ramp(hue - center), where the ramps of red, green and
    blue are the same trapezoid around 0, 2 and 4 sixths of the circle. With channels scaled to
    low = 0 and high = 1, the hue is 1 - red + green + blue sixths, and negative where blue is more
    than green: no branch is needed.
    """
    red, green, blue = view
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    hue = high.sub_(red).add_(green).add_(blue).sub_(low, alpha=2)
    hue.div_(chroma.clamp_min(1e-12)).copysign_(green - blue)  # grey has no hue, and keeps none
    for channel, center in ((red, 0), (green, 2), (blue, 4)):
        away = 6 * turn - center
        torch.add(hue, away - 6 * round(away / 6), out=channel)  # within 6 of the center
    ramp = view.abs_().sub_(3).abs_().clamp_(1, 2)  # of a distance x: ||x| - 3| - 1, in [0, 1]
    torch.addcmul(low.sub_(chroma), ramp, chroma, out=view)


JITTERS = {
    "brightness": brightness_,
    "contrast": contrast_,
    "saturation": saturation_,
    "hue": hue_,
}
"""Changes of color in place, by the names that a plan has for them. The order is that of the
numbers that views draw: another one would be other views."""


def blur(view: Tensor, sigma: float) -> Tensor:
    """Return a view under a Gaussian of standard deviation sigma in pixels, mirrored at borders."""
    side = view.shape[-1]
    reach = min(math.ceil(BLUR_REACH * sigma), side - 1)
    weights = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-reach, reach + 1)]
    total = sum(weights)
    scaled = [weight / total for weight in weights]
    wide = functional.pad(view[None], (reach,) * 4, mode="reflect")[0]
    for step in (-2, -1):  # up and down, then left and right: a sum of shifted views
        stride = wide.stride()
        size = (len(scaled), 3, side, wide.shape[-1] if step == -2 else side)
        first, *others = wide.as_strided(size, (stride[step], *stride)).unbind()
        wide = first * scaled[0]
        for shifted, weight in zip(others, scaled[1:], strict=True):
            wide.add_(shifted, alpha=weight)
    return wide
