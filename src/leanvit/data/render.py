"""From a plan to pixels on the CPU: few passes over each view, in place.

Every operation is Pillow's as the published runs used it. The resize rounds to 8 bits as Pillow's
does, RandAugment is Pillow's own, and all else is in floating point. Letters: h, w height and width
of the image, s side of the view.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core import random
from leanvit.data.randaugment import augment
from leanvit.data.views import Plan
from leanvit.kernels.color import recolor
from leanvit.kernels.multicrop import Channels

FILL = (128, 128, 128)
"""Color (of 255) that RandAugment moves in from outside, where none is given; timm's."""


class Normalizer:
    """What networks take: pixels in [0, 1] less their mean, by their standard deviation."""

    def __init__(self, mean: Channels, std: Channels) -> None:
        self.mean, self.std = mean, std
        red, green, blue = (round(255 * channel) for channel in mean)
        self.fill = (red, green, blue)
        center, spread = (torch.tensor(channels).double().view(3, 1, 1) for channels in (mean, std))
        self._black, self._range = (-center / spread).float(), (1 / spread).float()

    def render(self, plan: Plan, image: Tensor, out: Tensor) -> None:
        """Fill `out` [3, s, s], fp32, with the normalised view of a uint8 image [3, h, w].

        Then a box of it is erased, if planned: the noise is normal in what the network sees.
        RandAugment fills with the mean color. Both as in timm.
        """
        torch.addcmul(self._black, render(plan, image, fill=self.fill), self._range, out=out)
        if plan.erase is not None:
            top, left, height, width = plan.erase
            draw = random.generator(plan.noise, "erase")
            noise = draw.standard_normal((3, height, width), dtype=np.float32)
            out[:, top : top + height, left : left + width] = torch.from_numpy(noise)


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
    return recolor(
        view, plan.jitter, to_gray=plan.gray, sigma=plan.sigma, solarize=plan.solarize
    ).contiguous()
