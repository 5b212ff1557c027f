"""From encoded bytes to pixels: the one place that meets files of unknown origin."""

import io
import re
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from leanvit.data.batch import Unreadable
from leanvit.data.sources import Source

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What may lie behind an image's name; Pillow knows others that are no photographs."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return the pixels [height, width, 3] as RGB, turned upright as EXIF says.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped. Raises
    ValueError for 32-bit and floating-point pixels, whose range is unknown, and whatever the
    decoder raises for damaged data and for images of over 179 million pixels; what it only warns
    of, such as broken EXIF data, does not cost the image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode == "F" or (upright.mode == "I" and image.format != "PNG"):
            raise ValueError("32-bit pixels have no known range; store the image with 8 or 16 bits")
        if upright.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
            grey = (np.asarray(upright, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def to_pixels(image: bytes | NDArray[np.uint8]) -> Tensor:
    """Return uint8 pixels [3, height, width] of an encoded image, or of RGB pixels [h, w, 3]."""
    pixels = decode(image) if isinstance(image, bytes) else image
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def read_image(source: Source, index: int) -> tuple[Tensor, int] | Unreadable:
    """Return the uint8 pixels [3, height, width] and the class of an image, or why there are none.

    The one place that may catch any exception, since files hold anything.
    """
    try:
        sample = source[index]
        return to_pixels(sample.image), sample.target
    except Exception as error:
        return Unreadable(index, source.name(index), _reason(error))


def _reason(error: Exception) -> str:
    """Return an error's type and text, without addresses, which differ from run to run."""
    text = re.sub(r"\s*<[^<>]* at 0x[0-9a-f]+>", "", str(error))
    return f"{type(error).__name__}: {text}"
