"""Decoded images and their plans as tensors, as `kernels.multicrop` renders them.

Letters: V views of one size, B images.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from leanvit.data.views import Plan
from leanvit.kernels.multicrop import CODES, ROW, Plans, Ragged


def pack(images: Sequence[Tensor], *, pin: bool = False) -> Ragged:
    """Join B images, each uint8 [3, height, width] as `data.decode` gives it.

    pin: in page-locked memory, from which a GPU copies without the host waiting.
    Raises ValueError for other shapes and types, and for images without pixels.
    """
    for image in images:
        if image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3 or not image.numel():
            raise ValueError(
                f"An image is {list(image.shape)} of {image.dtype}; it must be "
                "[3, height, width] of torch.uint8 with at least one pixel."
            )
    start = [0, *accumulate(image.numel() for image in images)]
    pixels = torch.empty(start[-1], dtype=torch.uint8, pin_memory=pin)
    for begin, image in zip(start, images, strict=False):
        upright = image.permute(1, 2, 0)
        pixels[begin : begin + image.numel()].view(upright.shape).copy_(upright)
    sizes = torch.tensor(
        [tuple(image.shape[1:]) for image in images], dtype=torch.int32, pin_memory=pin
    )
    starts = torch.tensor(start[:-1], dtype=torch.int64, pin_memory=pin)
    return Ragged(pixels, starts, sizes.view(-1, 2))


def tabulate(plans: Sequence[Sequence[Plan]]) -> Plans:
    """Return the plans of V views of B images, `plans[view][image]`, as a table.

    Raises ValueError for views of different sizes or numbers of images, and for plans that ask for
    more than a `ROW` can say.
    """
    sizes = sorted({plan.size for view in plans for plan in view})
    counts = sorted({len(view) for view in plans})
    if len(sizes) != 1 or len(counts) != 1:
        raise ValueError(
            "Plans of a group are of one size and for equally many images in every view; these "
            f"are of sizes {sizes} and for {counts} images."
        )
    rows = np.array([[_row(plan) for plan in view] for view in plans], dtype=ROW)
    return Plans(sizes[0], torch.from_numpy(rows.view(np.int32).reshape(*rows.shape, -1)))


def _row(plan: Plan) -> tuple[object, ...]:
    """Return the values of a `ROW`."""
    names = [name for name, _ in plan.jitter]
    more = plan.randaugment or plan.erase is not None or plan.interpolation != "bicubic"
    if more or len(set(names)) < len(names) or not CODES.keys() >= set(names):
        raise ValueError(
            f"A table of plans holds a crop, a flip, {', '.join(CODES)} at most once each, grey, "
            f"blur and solarization; there is more in {plan}."
        )
    none = (0,) * (len(CODES) - len(names))
    order = (*(CODES[name] for name in names), *none)
    factors = (*(factor for _, factor in plan.jitter), *none)
    return (plan.box, plan.flip, order, factors, plan.gray, plan.sigma, plan.solarize)
