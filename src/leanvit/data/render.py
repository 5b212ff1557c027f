"""From a plan to pixels on the CPU: few passes over each view, in place.

Every operation is Pillow's as the published runs used it, in floating point after the resize, which
rounds to 8 bits as Pillow's does. Letters: h, w height and width of the image, s side of the view.
"""

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.data.views import Plan
from leanvit.kernels.color import JITTERS, SOLARIZE_FROM, blur, gray


def render(plan: Plan, image: Tensor) -> Tensor:
    """Return the view [3, s, s] in [0, 1], fp32, of a uint8 image [3, h, w]."""
    top, left, height, width = plan.box
    crop = image[None, :, top : top + height, left : left + width]
    side = (plan.size, plan.size)
    # planes or pixels in memory: torch resizes both, but not to the same last bit
    crop = crop.contiguous(memory_format=torch.channels_last)
    (small,) = functional.interpolate(crop, side, mode="bicubic", antialias=True)
    view = torch.empty(3, *side)
    view.copy_(small.flip(-1) if plan.flip else small).div_(255)
    for name, factor in plan.jitter:
        JITTERS[name](view, factor)
    if plan.gray:
        view = gray(view).expand_as(view)
    if plan.sigma:
        view = blur(view, plan.sigma)
    if plan.solarize:
        view = torch.where(view >= SOLARIZE_FROM, 1 - view, view)
    return view.contiguous()
