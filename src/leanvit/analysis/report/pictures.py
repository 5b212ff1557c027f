"""Pictures as addresses that hold them, so that a page needs no other file."""

import base64
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from leanvit.analysis.galleries import pixels_of

WIDEST = 1400
"""Pixels across of a picture of a run."""


def photograph(image: Tensor) -> str:
    """Return an image [3, h, w] in [0, 1] as a JPEG."""
    return _address(Image.fromarray(pixels_of(image)), "JPEG", quality=85)


def small_map(colors: Tensor) -> str:
    """Return colors [3, h, w] in [0, 1], a pixel a region, as a PNG."""
    return _address(Image.fromarray(pixels_of(colors)), "PNG")


def from_file(path: Path) -> str:
    """Return a picture of a run, no wider than a page."""
    with Image.open(path) as found:
        picture = found.convert("RGB")
    picture.thumbnail((WIDEST, 4 * WIDEST))
    return _address(picture, "JPEG", quality=80)


def as_bytes(values: Tensor) -> str:
    """Return numbers from 0 to 1 as bytes, row by row, in base 64."""
    rounded = (values.double().clamp(0, 1) * 255).round().to(torch.uint8)
    return base64.b64encode(rounded.contiguous().numpy().tobytes()).decode()


def _address(picture: Image.Image, kind: str, **options: int) -> str:
    held = BytesIO()
    picture.save(held, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"
