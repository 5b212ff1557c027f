"""Encoded bytes of every kind become upright 8-bit RGB; damaged ones raise."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leanvit.data.decode import decode
from tests.encoded import HEIGHT, WIDTH, Pixels, encode, png, smooth, tiff, with_orientation


def check(pixels: Pixels, expected: Pixels, *, within: float = 0) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    difference = np.abs(pixels.astype(int) - expected.astype(int))
    assert difference.mean() <= within


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_lossless_formats_keep_every_pixel(kind: str, options: dict[str, str]) -> None:
    check(decode(encode(Image.fromarray(smooth()), kind, **options)), smooth())


def test_lossless_webp_keeps_every_pixel() -> None:
    check(decode(encode(Image.fromarray(smooth()), "WEBP", lossless=True)), smooth())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_near_the_original(options: dict[str, Any]) -> None:
    data = encode(Image.fromarray(smooth()), "JPEG", quality=95, **options)
    check(decode(data), smooth(), within=1.5)


def test_webp_is_near_the_original() -> None:
    check(decode(encode(Image.fromarray(smooth()), "WEBP", quality=95)), smooth(), within=2)


def test_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    check(decode(data), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_grey_has_three_equal_channels(kind: str) -> None:
    grey = smooth()[..., 0]
    pixels = decode(encode(Image.fromarray(grey), kind))
    assert (pixels == pixels[..., :1]).all()
    check(pixels, np.repeat(grey[..., None], 3, axis=2), within=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_black_and_white_spans_the_range(kind: str) -> None:
    bits = Image.fromarray(smooth()[..., 0] > 100)
    expected = np.repeat(np.asarray(bits)[..., None], 3, axis=2).astype(np.uint8) * 255
    check(decode(encode(bits, kind)), expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_becomes_its_colors(kind: str) -> None:
    image = Image.fromarray(smooth()).quantize(16)
    check(decode(encode(image, kind)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes([0, 100, 255])], ids=["one", "each"])
def test_palette_with_transparency_becomes_its_colors(transparency: int | bytes) -> None:
    """The usual optimised PNG of the web: a palette with an opacity for one or each color."""
    image = Image.fromarray(smooth()).quantize(16)
    data = encode(image, "PNG", transparency=transparency)
    check(decode(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})]
)
def test_alpha_is_dropped(kind: str, options: dict[str, bool]) -> None:
    alpha = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH, 1)
    image = Image.fromarray(np.concatenate([smooth(), alpha], axis=2))
    check(decode(encode(image, kind, **options)), smooth())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_of_grey_is_dropped(kind: str) -> None:
    grey = smooth()[..., 1]
    image = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (WIDTH, HEIGHT), 9)))
    check(decode(encode(image, kind)), np.repeat(grey[..., None], 3, axis=2))


def test_a_gif_with_a_transparent_color_keeps_its_colors() -> None:
    image = Image.fromarray(smooth()).quantize(16)
    check(decode(encode(image, "GIF", transparency=3)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    """Without black, cyan, magenta and yellow are what red, green and blue lack."""
    inks = np.concatenate([255 - smooth(), np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=2)
    options = {"quality": 95} if kind == "JPEG" else {}
    data = encode(Image.fromarray(inks, "CMYK"), kind, **options)
    check(decode(data), smooth(), within=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_byte(kind: str) -> None:
    values = np.array([[0, 255, 256, 511], [32_767, 32_768, 65_279, 65_535]], np.uint16)
    expected = np.array([[0, 0, 1, 1], [127, 128, 254, 255]], np.uint8)
    data = encode(Image.fromarray(values), kind)
    check(decode(data), np.repeat(expected[..., None], 3, axis=2))


def test_big_endian_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    values = np.array([[0, 256, 65_535]], ">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    expected = np.array([[0, 1, 255]], np.uint8)
    check(decode(encode(image, "TIFF")), np.repeat(expected[..., None], 3, axis=2))


COLORS = np.array([[[0x1234, 0xABCD, 0xFF00], [256, 255, 65_535]]], np.uint16)
"""Pixels [1, 2, 3] of 16 bits."""


def test_sixteen_bit_color_keeps_its_upper_bytes() -> None:
    expected = (COLORS >> 8).astype(np.uint8)
    check(decode(png(COLORS, 2)), expected)
    check(decode(tiff(COLORS.astype("<u2").tobytes(), 2, 1, bits=16)), expected)


def test_sixteen_bit_alpha_is_dropped() -> None:
    expected = (COLORS >> 8).astype(np.uint8)
    alpha = np.full((1, 2, 1), 0x0FFF, np.uint16)
    check(decode(png(np.concatenate([COLORS, alpha], axis=2), 6)), expected)
    grey = np.concatenate([COLORS[..., :1], alpha], axis=2)
    check(decode(png(grey, 4)), np.repeat(expected[..., :1], 3, axis=2))


STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),  # turned by a quarter clockwise when shown
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""EXIF orientation -> how a camera stores an upright image."""


def oriented(orientation: int, kind: str, **options: Any) -> bytes:
    exif = with_orientation(orientation)
    stored = np.ascontiguousarray(STORED[orientation](smooth()))
    return encode(Image.fromarray(stored), kind, exif=exif, **options)


def test_stored_images_tell_orientations_apart() -> None:
    stored = {turn(smooth()).tobytes() for turn in STORED.values()}
    assert len(stored) == 8


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": 1})],
)
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_upright(orientation: int, kind: str, options: dict[str, Any]) -> None:
    check(decode(oriented(orientation, kind, **options)), smooth())


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", STORED)
def test_photographs_are_turned_upright(orientation: int, kind: str) -> None:
    check(decode(oriented(orientation, kind, quality=95)), smooth(), within=1.5)


def test_sixteen_bit_grey_is_turned_upright() -> None:
    exif = with_orientation(6)
    upright = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 17
    data = encode(Image.fromarray(np.ascontiguousarray(np.rot90(upright))), "PNG", exif=exif)
    check(decode(data), np.repeat((upright >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_unknown_orientations_change_nothing(orientation: int) -> None:
    exif = with_orientation(orientation)
    check(decode(encode(Image.fromarray(smooth()), "PNG", exif=exif)), smooth())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0no such thing", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0", b"Exif\0\0"],
    ids=["garbage", "cut", "empty"],
)
def test_broken_exif_does_not_cost_the_image(exif: bytes, kind: str) -> None:
    image = Image.fromarray(smooth())
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = decode(encode(image, kind, dpi=(72, 72), **options))
    check(decode(encode(image, kind, dpi=(72, 72), exif=exif, **options)), plain)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_images_raise(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    decode(data)
    with pytest.raises((OSError, SyntaxError, EOFError)):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 1000, b"<html>not found</html>", b"\xff\xd8\xff\xe0"]
)
def test_bytes_that_are_no_image_raise(data: bytes) -> None:
    with pytest.raises(OSError):
        decode(data)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_thin_images_decode(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    check(decode(encode(image, "PNG")), np.asarray(image))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(dtype: type) -> None:
    data = encode(Image.fromarray(np.ones((4, 5), dtype)), "TIFF")
    with pytest.raises(ValueError, match="32-bit pixels have no known range"):
        decode(data)


def test_a_document_is_no_image() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        decode(encode(Image.fromarray(smooth()), "EPS"))
