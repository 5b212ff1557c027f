"""Views of many images of any size in one call, rendered where the images lie.

A `Ragged` batch holds decoded images, `Plans` say what becomes of each in the views of one size;
`data.ragged` makes both. The pixels are those of `data.render`: crop, antialiased bicubic resize as
Pillow weighs it, rounded to 8 bits after each direction as Pillow does, then color and blur in
floating point. Forms round apart only where a sum ends next to half a level; torch's resize, which
`data.render` calls, has weights of 15 bits as well, and is a level off in a pixel of a few hundred.

Letters: V views of one size, B images, S side of the views in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanvit.config import look_up
from leanvit.core.precision import to_device
from leanvit.kernels.color import JITTERS, recolor

ROW = np.dtype(
    [
        ("box", "i4", 4),
        ("flip", "i4"),
        ("order", "i4", len(JITTERS)),
        ("factors", "f4", len(JITTERS)),
        ("gray", "i4"),
        ("sigma", "f4"),
        ("solarize", "i4"),
    ]
)
"""One view's plan, 4 bytes a number: box is top, left, height, width of the crop in pixels; order
holds `CODES` of the changes of color, then zeros, and factors their factors (hue: turns); sigma is
the blur's standard deviation in pixels, 0 for none; the rest is 0 or 1."""
CODES = {name: code for code, name in enumerate(JITTERS, start=1)}
"""Numbers of the changes of color; 0 is none."""

Channels = tuple[float, float, float]
"""A number for red, green and blue."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """B images of any sizes, one after another. Raises ValueError for other shapes or types."""

    pixels: Tensor
    """[bytes] uint8: each image is [height, width, 3] in memory, red, green, blue."""
    start: Tensor
    """[B] int64: the first byte of each image."""
    size: Tensor
    """[B, 2] int32: height and width of each image in pixels."""

    def __post_init__(self) -> None:
        images = len(self.start)
        _require("Ragged.pixels", self.pixels, torch.uint8, (self.pixels.numel(),))
        _require("Ragged.start", self.start, torch.int64, (images,))
        _require("Ragged.size", self.size, torch.int32, (images, 2))

    def __len__(self) -> int:
        return len(self.start)

    def to(self, device: torch.device) -> "Ragged":
        """Return the batch on a device; from page-locked memory, the host does not wait."""
        pixels, start, size = (
            x.to(device, non_blocking=True) for x in (self.pixels, self.start, self.size)
        )
        return Ragged(pixels, start, size)


@dataclass(frozen=True, slots=True)
class Plans:
    """What becomes of B images in V views of one size. Raises ValueError for other tables."""

    size: int
    """Side S of the views in pixels."""
    table: Tensor
    """[V, B, 16] int32: a `ROW` for each view of each image, bit by bit."""

    def __post_init__(self) -> None:
        shape = (*self.table.shape[:2], ROW.itemsize // 4)
        _require("Plans.table", self.table, torch.int32, shape)
        if self.size < 1:
            raise ValueError(f"Plans.size is {self.size}; a view has at least one pixel a side.")

    def to(self, device: torch.device) -> "Plans":
        """Return the plans on a device, in one copy that the host does not wait for."""
        return Plans(self.size, to_device(self.table, device))


def _require(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {list(tensor.shape)} of {tensor.dtype}, strides {tensor.stride()}; "
            f"it must be {list(shape)} of {dtype}, contiguous."
        )


def render_group(
    ragged: Ragged, plans: Plans, mean: Channels, std: Channels, form: str = "auto"
) -> Tensor:
    """Return the views [V, B, 3, S, S] of B images, fp32, where the images lie.

    Pixels in [0, 1] less `mean`, divided by `std`. The same arguments give the same bits. The form
    triton reads nothing back to the host; a box beyond its image gives it a view of NaN.

    form: a name of `FORMS`, or auto for the faster here. Raises ValueError for a form that this
    device does not have, for images and plans that do not belong together and, in the form plain,
    for a box beyond its image.
    """
    device = ragged.pixels.device
    devices = {str(x.device) for x in (ragged.pixels, ragged.start, ragged.size, plans.table)}
    if len(devices) > 1:
        raise ValueError(
            f"Images and plans lie on {' and '.join(sorted(devices))}; move them to one device."
        )
    if len(ragged) != plans.table.shape[1]:
        raise ValueError(f"{len(ragged)} images came with plans for {plans.table.shape[1]}.")
    form = best_form(device.type) if form == "auto" else form
    require_form(form, device.type)
    return FORMS[form](ragged, plans, mean, std)


def plain(ragged: Ragged, plans: Plans, mean: Channels, std: Channels) -> Tensor:
    """Render one view after the other, on any device: the definition, and slow."""
    rows = plans.table.cpu().numpy().view(ROW)[..., 0]
    center, spread = (ragged.pixels.new_tensor(c, dtype=torch.float32) for c in (mean, std))
    out = torch.empty(*rows.shape, 3, plans.size, plans.size, device=ragged.pixels.device)
    for number, (start, (height, width)) in enumerate(
        zip(ragged.start.tolist(), ragged.size.tolist(), strict=True)
    ):
        image = ragged.pixels[start : start + height * width * 3].view(height, width, 3)
        for view, row in zip(out[:, number], rows[:, number], strict=True):
            view.copy_(_view(image, row, plans.size))
    return out.sub_(center[:, None, None]).div_(spread[:, None, None])


def _view(image: Tensor, row: Any, side: int) -> Tensor:
    """Return a view [3, S, S] in [0, 1] of a uint8 image [height, width, 3] by its `ROW`."""
    top, left, height, width = row["box"].tolist()
    crop = image[top : top + height, left : left + width]
    if min(top, left) < 0 or min(height, width) < 1 or crop.shape[:2] != (height, width):
        raise ValueError(
            f"The box {height} x {width} at ({top}, {left}) does not lie in an image of "
            f"{image.shape[0]} x {image.shape[1]} pixels; is the plan another image's?"
        )
    values = crop.permute(2, 0, 1).double()
    for extent in (width, height):  # rows become columns, and rows again
        resized = values @ resize_weights(extent, side, image.device).T
        values = resized.add_(0.5).floor_().clamp_(0, 255).mT
    view = values.float().div_(255)
    if row["flip"]:
        view = view.flip(-1)
    names = ("", *JITTERS)  # by `CODES`
    changes = zip(row["order"].tolist(), row["factors"].tolist(), strict=True)
    return recolor(
        view,
        [(names[code], factor) for code, factor in changes if code],
        to_gray=bool(row["gray"]),
        sigma=float(row["sigma"]),
        solarize=bool(row["solarize"]),
    )


def resize_weights(extent: int, side: int, device: torch.device) -> Tensor:
    """Return how much each of `extent` pixels counts in each of `side`: [side, extent], fp64.

    Keys' cubic with a = -1/2 (doi 10.1109/TASSP.1981.1163711), as wide as the pixels become where
    the image shrinks: Pillow's bicubic.
    """
    scale = extent / side
    center = torch.arange(0.5, side, dtype=torch.float64, device=device) * scale
    place = torch.arange(0.5, extent, dtype=torch.float64, device=device)
    x = ((place - center[:, None]) / max(scale, 1.0)).abs_()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights.div_(weights.sum(1, keepdim=True))


def _triton(ragged: Ragged, plans: Plans, mean: Channels, std: Channels) -> Tensor:
    """Render with our kernels, which are compiled when they are first needed."""
    from leanvit.kernels.triton_multicrop import render

    return render(ragged, plans, mean, std)


FORMS: Mapping[str, Callable[[Ragged, Plans, Channels, Channels], Tensor]] = MappingProxyType(
    {"plain": plain, "triton": _triton}
)
"""Implementations by name; all give the same pixels but for rounding."""


def best_form(device: str) -> str:
    """Return the name of the form that a type of device takes."""
    return "triton" if device == "cuda" and find_spec("triton") else "plain"


def require_form(name: str, device: str) -> None:
    """Raise ValueError if a form is unknown, or if this device or installation does not have it."""
    look_up("form of multi-crop", name, FORMS)
    if name == "triton" and device != "cuda":
        raise ValueError(f"Multi-crop has the form 'triton' on cuda alone; {device} has 'plain'.")
    if name == "triton" and not find_spec("triton"):
        raise ValueError("The form 'triton' needs the package triton, which is not installed.")
