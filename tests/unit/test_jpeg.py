"""JPEG takes a faster decoder: the pixels, and what can be read at all, are those of Pillow."""

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile, ImageOps

from leanvit.data.decode import decode
from tests.encoded import Pixels, encode, with_orientation

HEIGHT, WIDTH = 67, 93


def detailed(height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """An image [height, width, 3] of slopes and noise, in which every rounding shows."""
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([3 * x, 5 * y, 2 * (x + y)], axis=-1) % 128
    noise = np.random.default_rng(0).integers(0, 128, slopes.shape)
    return (slopes + noise).astype(np.uint8)


def jpeg(**options: Any) -> bytes:
    return encode(Image.fromarray(detailed()), "JPEG", **options)


def chroma(sampling: str) -> bytes:
    return simplejpeg.encode_jpeg(detailed(), 85, "RGB", sampling)


def ycck() -> bytes:
    """Four inks, of which the Adobe marker says that three are luma and chroma."""
    data = cmyk()
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\x02" + data[at + 1 :]


def cmyk() -> bytes:
    return encode(Image.fromarray(detailed()).convert("CMYK"), "JPEG")


def mpo() -> bytes:
    first, second = Image.fromarray(detailed()), Image.fromarray(255 - detailed())
    return encode(first, "MPO", save_all=True, append_images=[second])


def grey(**options: Any) -> bytes:
    return encode(Image.fromarray(detailed()[..., 0]), "JPEG", **options)


KINDS = {
    "4:4:4": jpeg(subsampling=0),
    "4:2:2": jpeg(subsampling=1),
    "4:2:0": jpeg(subsampling=2),
    "4:1:1": chroma("411"),
    "4:4:0": chroma("440"),
    "progressive": jpeg(progressive=True),
    "progressive 4:4:4": jpeg(progressive=True, subsampling=0),
    "worst": jpeg(quality=1),
    "best": jpeg(quality=100, subsampling=2),
    "grey": grey(),
    "grey progressive": grey(progressive=True),
    "RGB": jpeg(keep_rgb=True),
    "restart blocks": jpeg(restart_marker_blocks=3),
    "restart rows": jpeg(restart_marker_rows=1, progressive=True),
    "trailing": jpeg() + b"\x00and more" * 20,
    "MPO": mpo(),
    "resolution": jpeg(exif=with_orientation(6), dpi=(300, 300)),
    "XMP": jpeg(xmp=b'<x:xmpmeta tiff:Orientation="8"/>'),
    **{f"EXIF {number}": jpeg(exif=with_orientation(number)) for number in range(10)},
}
"""What does not need Pillow's decoder."""

INKS = {"CMYK": cmyk(), "YCCK": ycck()}


def through_pillow(data: bytes) -> Pixels | None:
    """Return upright RGB as Pillow reads it, or None if it cannot."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError):
        return None


def ours(data: bytes) -> Pixels | None:
    try:
        return decode(data)
    except (OSError, SyntaxError):
        return None


def check_like_pillow(data: bytes) -> bool:
    """Compare; return whether it can be read."""
    expected, found = through_pillow(data), ours(data)
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return False
    np.testing.assert_array_equal(found, expected)
    return True


@pytest.mark.parametrize("kind", KINDS | INKS)
def test_pixels_are_those_of_pillow(kind: str) -> None:
    assert check_like_pillow((KINDS | INKS)[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_files_do_not_wait_for_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("Pillow decodes"))
    assert min(decode(KINDS[kind]).shape[:2]) == HEIGHT


@pytest.mark.parametrize("kind", INKS)
def test_inks_are_left_to_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("simplejpeg"))
    assert decode(INKS[kind]).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_odd_sizes_are_those_of_pillow(progressive: bool) -> None:
    for height in (1, 2, 7, 8, 9, 15, 16, 17, 33):
        for width in (1, 3, 8, 15, 16, 31):
            image = Image.fromarray(detailed(height, width))
            assert check_like_pillow(encode(image, "JPEG", progressive=progressive))


@pytest.mark.parametrize("kind", KINDS | INKS)
def test_truncated_files_are_read_where_pillow_reads_them(kind: str) -> None:
    """simplejpeg would fill with grey what is missing, and say so only if it is strict."""
    data = (KINDS | INKS)[kind]
    ends = [*range(0, len(data), max(len(data) // 60, 1)), *range(len(data) - 20, len(data))]
    read = [check_like_pillow(data[:end]) for end in ends]
    assert not all(read)


@pytest.mark.parametrize("kind", KINDS | INKS)
def test_damaged_files_are_read_as_pillow_reads_them(kind: str) -> None:
    """It reads on behind damaged blocks, and what it makes of them counts."""
    draw = np.random.default_rng(0)
    read = []
    for _ in range(40):
        data = np.frombuffer((KINDS | INKS)[kind], np.uint8).copy()
        start = (KINDS | INKS)[kind].index(b"\xff\xda")
        places = draw.integers(start, len(data), 3)
        data[places] ^= 1 << draw.integers(0, 8, 3).astype(np.uint8)
        read.append(check_like_pillow(data.tobytes()))
    assert any(read)


def test_a_second_size_is_refused() -> None:
    """Pillow counts the pixels of the last one, so no other may be decoded."""
    data = KINDS["4:2:0"]
    at = data.index(b"\xff\xc0")
    header = data[at : at + 19]
    larger = header[:5] + b"\x08\x00\x08\x00" + header[9:]
    for first, second in ((header, larger), (larger, header)):
        assert not check_like_pillow(data[:at] + first + second + data[at + 19 :])
