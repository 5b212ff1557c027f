"""From encoded bytes to pixels: the one place that meets files of unknown origin."""

import io
import logging
import re
import struct
import textwrap
import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from leanvit.data.batch import Unreadable
from leanvit.data.sources import Sample

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What may lie behind an image's name; Pillow knows others that are no photographs."""
MOST_PIXELS = 178_956_970
"""The largest image: half a GiB as RGB. Pillow refuses larger ones too, unless a program tells it
otherwise."""
LONGEST_REASON = 200
"""Characters of the reason why an image cannot be read."""

BROKEN_EXIF = (
    *(OSError, SyntaxError, struct.error),
    *(ArithmeticError, LookupError, TypeError, ValueError),
)
"""What Pillow raises for EXIF data that holds anything; it is worth less than the image."""

Pixels = NDArray[np.uint8]

TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
"""EXIF orientation -> how stored pixels [height, width, 3] are turned upright."""


def decode(data: bytes) -> Pixels:
    """Return the pixels [height, width, 3] as RGB, turned upright as EXIF says.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped. May be called
    from several threads at once. Raises ValueError for images of over MOST_PIXELS, before there is
    memory for them, and for 32-bit and floating-point pixels, whose range is unknown; and whatever
    the decoder raises for damaged data. What it only warns of does not cost the image.
    """
    _hush_pillow()
    with _open(data) as image:
        stored = _decode_jpeg(image, data)
        if stored is None:
            stored = _decode_any(image)
        turn = TURNS.get(_orientation(image))
    return turn(stored) if turn else stored


def _open(data: bytes) -> Image.Image:
    """Return an image of which only the header has been read."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        small = image.width * image.height <= MOST_PIXELS
    except Image.DecompressionBombError:
        small = False
    if not small:
        raise ValueError(f"there are more than {MOST_PIXELS:,} pixels; store the image smaller")
    return image


def _decode_jpeg(image: Image.Image, data: bytes) -> Pixels | None:
    """Return Pillow's pixels in less time, or None where Pillow itself has to say what it sees.

    Both are built on libjpeg-turbo. Whatever that warns of is left to Pillow: it reads on where
    data is damaged, but not where it ends too early.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _decode_any(image: Image.Image) -> Pixels:
    """Return the pixels of an image that Pillow has opened, as they are stored."""
    image.load()
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError("32-bit pixels have no known range; store the image with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is left to undo; Pillow undoes that of TIFF itself."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except BROKEN_EXIF:
        return 1


_HUSHED = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_NOWHERE = logging.NullHandler()


def _hush_pillow() -> None:
    """Keep what Pillow says of odd files from the terminal, and from becoming an error.

    One filter for the modules of Pillow is set and stays: warnings.catch_warnings would set it for
    a while, but swaps the filters of all threads.
    """
    if _HUSHED not in warnings.filters:
        # filterwarnings takes an equal filter out first, and leaves other threads without it
        warnings.filters.insert(0, _HUSHED)  # type: ignore[attr-defined]
    logging.getLogger("PIL").addHandler(_NOWHERE)  # does nothing the second time


def to_pixels(image: bytes | Pixels) -> Tensor:
    """Return uint8 pixels [3, height, width] of an encoded image, or of RGB pixels [h, w, 3]."""
    pixels = decode(image) if isinstance(image, bytes) else image.copy()
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)


class Readable(Protocol):
    """What an image is read from: a source, or what stands before one."""

    def __getitem__(self, index: int) -> Sample:
        """Return an image. Raises OSError if it cannot be read."""

    def name(self, index: int) -> str:
        """Return what a person would call it."""


def read_image(source: Readable, index: int) -> tuple[Tensor, int] | Unreadable:
    """Return the uint8 pixels [3, height, width] and the class of an image, or why there are none.

    The one place that may catch any exception, since files hold anything.
    """
    try:
        sample = source[index]
        return to_pixels(sample.image), sample.target
    except Exception as error:
        return Unreadable(index, source.name(index), _reason(error))


def _reason(error: Exception) -> str:
    """Return an error's type and text in a short line.

    Addresses are left out, since they differ from run to run, and what a terminal would obey.
    """
    text = re.sub(r"\s*<[^<>]* at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}")
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.shorten(line, LONGEST_REASON, placeholder=" ...").removesuffix(":")
