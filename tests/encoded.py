"""Encoded images of every kind that tests share, and what damages them."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leanvit.data.sources import About, Sample

HEIGHT, WIDTH = 48, 80

Pixels = NDArray[np.uint8]


def smooth() -> Pixels:
    """An image [48, 80, 3] that no lossy format harms much, different in every direction."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = (40 + 2 * x, 200 - 3 * y, 60 + x + y)
    return np.stack(planes, axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: NDArray[np.uint16], kind: int) -> bytes:
    """A PNG of 16 bits from values [height, width, channels] of a color type."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def tiff(data: bytes, width: int, height: int, *, bits: int = 8, samples: int = 3) -> bytes:
    """A TIFF of one uncompressed strip of color, or of what calls itself so."""
    long, short = 4, 3
    tags = [
        (256, long, width),
        (257, long, height),
        (258, short, bits),
        (259, short, 1),
        (262, short, 2),
        (273, long, 8),
        (277, short, samples),
        (278, long, height),
        (279, long, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries
    ) + bytes(4)


def one_of_each() -> dict[str, bytes]:
    """Return a small file of every format and kind of pixels."""
    image = Image.fromarray(smooth()[:24, :30])
    grey, bits, palette = image.convert("L"), image.convert("1"), image.quantize(16)
    sixteen = np.asarray(grey, np.uint16)[..., None] * 257
    turned = {"exif": with_orientation(6)}
    return {
        "jpeg": encode(image, "JPEG", **turned),
        "jpeg progressive": encode(image, "JPEG", progressive=True, subsampling=0),
        "jpeg grey": encode(grey, "JPEG"),
        "jpeg cmyk": encode(image.convert("CMYK"), "JPEG"),
        "mpo": encode(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
        "png": encode(image, "PNG", **turned),
        "png palette": encode(palette, "PNG", transparency=bytes([0, 100])),
        "png 16": png(sixteen, 0),
        "apng": encode(image, "PNG", save_all=True, append_images=[image.rotate(180)]),
        "webp": encode(image, "WEBP", **turned),
        "webp alpha": encode(image.convert("RGBA"), "WEBP", lossless=True),
        "bmp": encode(image, "BMP"),
        "bmp palette": encode(palette, "BMP"),
        "tiff": encode(image, "TIFF", **turned),
        "tiff lzw": encode(palette, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encode(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encode(image, "TIFF", compression="jpeg"),
        "tiff fax": encode(bits, "TIFF", compression="group4"),
        "gif": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
    }


def large(kind: str, side: int) -> bytes:
    """Return a few hundred bytes whose header speaks of side x side pixels."""
    image = Image.fromarray(smooth()[:8, :8])
    if kind == "TIFF":
        return tiff(bytes(192), side, side)
    data = bytearray(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "PNG":
        return (
            bytes(data[:8])
            + png_chunk(b"IHDR", struct.pack(">II", side, side) + bytes(data[24:29]))
            + bytes(data[33:])
        )
    where, layout = {
        "JPEG": (data.find(b"\xff\xc0") + 5, ">2H"),
        "BMP": (18, "<2i"),
        "GIF": (6, "<2H"),
        "WEBP": (21, "<I"),
    }[kind]
    sizes = ((side - 1) | (side - 1) << 14,) if kind == "WEBP" else (side, side)
    struct.pack_into(layout, data, where, *sizes)
    return bytes(data)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files of given names into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


class Encoded:
    """A source of encoded images in memory, or of errors that it raises instead."""

    classes: tuple[str, ...] = ()

    def __init__(self, images: Sequence[bytes | Exception]) -> None:
        self.images = images
        self.targets = np.full(len(images), -1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        if isinstance(image, Exception):
            raise image
        return Sample(image, index, -1)

    def name(self, index: int) -> str:
        return f"image {index}"

    def fingerprint(self) -> str:
        return ""

    def validation(self) -> None:
        return None

    def about(self) -> About:
        return About("images in memory", "")
