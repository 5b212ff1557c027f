"""Files that are no images, odd ones, and ones that are too large: a reason each, and no more."""

import io
import logging
import os
import struct
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile

from leanvit.config import DataConfig, MultiCropConfig
from leanvit.data.archives import TarSource, ZipSource
from leanvit.data.batch import Unreadable
from leanvit.data.decode import LONGEST_REASON, MOST_PIXELS, decode, read_image, to_pixels
from leanvit.data.images import middle
from leanvit.data.loader import Views
from leanvit.data.sampler import Key
from leanvit.data.sources import LARGEST, FolderSource, ListSource, Source
from leanvit.data.views import multi_crop
from tests.encoded import (
    Encoded,
    encode,
    large,
    one_of_each,
    png_chunk,
    smooth,
    tiff,
    with_orientation,
    write_files,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PNG = encode(Image.fromarray(smooth()), "PNG")
BAD = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "zeros": bytes(1000),
    "cut": PNG[: len(PNG) // 2],
    "document": encode(Image.fromarray(smooth()), "EPS"),
    "start": b"\xff\xd8\xff\xe0",
}


def reason(found: object) -> str:
    """Return why an image cannot be read: one short line that a terminal can show."""
    assert isinstance(found, Unreadable)
    assert found.error.isprintable() and "0x" not in found.error
    assert 10 < len(found.error) <= LONGEST_REASON
    return found.error


def check_pixels(found: object) -> None:
    """Compare with the picture that all good files here hold."""
    assert isinstance(found, tuple)
    assert torch.equal(found[0], torch.from_numpy(smooth()).permute(2, 0, 1))


def outcomes(source: Source) -> dict[str, object]:
    return {source.name(index): read_image(source, index) for index in range(len(source))}


# Files


def test_a_wrong_ending_does_not_cost_the_image(tmp_path: Path) -> None:
    found = outcomes(FolderSource(write_files(tmp_path, {"a.jpg": PNG, "b.gif": PNG})))
    for entry in found.values():
        check_pixels(entry)
    assert len(found) == 2


def test_what_is_no_image_has_a_reason_wherever_it_lies(tmp_path: Path) -> None:
    files = {f"{name}.jpg": data for name, data in BAD.items()} | {"good.png": PNG}
    folder = write_files(tmp_path / "images", files)
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in folder.iterdir():
            packed.write(path, path.name)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, ".")
    sources = (FolderSource(folder), ZipSource(tmp_path / "images.zip"))
    for source in (*sources, TarSource(tmp_path / "images.tar")):
        found = outcomes(source)
        assert set(found) == set(files)
        check_pixels(found.pop("good.png"))
        for name, entry in found.items():
            assert entry == Unreadable(sorted(files).index(name), name, reason(entry))


def test_what_cannot_be_opened_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    locked = write_files(tmp_path, {"good.png": PNG, "locked.png": PNG}) / "locked.png"
    locked.chmod(0)
    names = ["good.png", "folder.jpg", "dangling.jpg", "loop.jpg", "missing.jpg", "locked.png"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    found = outcomes(ListSource(tmp_path / "list.txt"))
    check_pixels(found["good.png"])
    assert reason(found["folder.jpg"]).startswith("IsADirectoryError")
    assert reason(found["dangling.jpg"]).startswith("FileNotFoundError")
    assert reason(found["loop.jpg"]).startswith("OSError")
    assert reason(found["missing.jpg"]).startswith("FileNotFoundError")
    if os.access(locked, os.R_OK):  # the superuser
        check_pixels(found["locked.png"])
    else:
        assert reason(found["locked.png"]).startswith("PermissionError")


def test_a_folder_skips_folders_and_names_dangling_links(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    found = outcomes(FolderSource(write_files(tmp_path, {"good.png": PNG})))
    check_pixels(found.pop("good.png"))
    assert reason(found.pop("dangling.jpg")).startswith("FileNotFoundError")
    assert not found


def test_names_may_be_anything(tmp_path: Path) -> None:
    names = ["über 猫.png", "two\nlines\t\x1b[31m.png", os.fsdecode(b"\xff\xfe.png"), "-rf .png"]
    folder = write_files(tmp_path, dict.fromkeys(names, PNG))
    found = outcomes(FolderSource(folder))
    assert set(found) == set(names)
    for entry in found.values():
        check_pixels(entry)
    source = FolderSource(folder)
    for name in names:
        (folder / name).unlink()
    for name, entry in outcomes(source).items():
        assert isinstance(entry, Unreadable) and entry.name == name
        assert reason(entry).startswith("FileNotFoundError")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (OSError("cannot read <_io.BytesIO object at 0x7f12ab>"), "OSError: cannot read"),
        (OSError("two\nlines \x1b[31m red"), "OSError: two lines [31m red"),
        (ValueError("word " * 100), "ValueError: " + "word " * 36 + "word ..."),
    ],
)
def test_a_reason_is_a_short_line(error: Exception, said: str) -> None:
    found = read_image(Encoded([error]), 0)
    assert isinstance(found, Unreadable)
    assert reason(found) == said


# Size

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("known_to_pillow", [True, False])
def test_too_many_pixels_are_refused_before_there_is_memory_for_them(
    kind: str, known_to_pillow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a program has taken Pillow's own limit away, as many do."""
    if not known_to_pillow:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for place, name in ((ImageFile.ImageFile, "load"), (simplejpeg, "decode_jpeg")):
        monkeypatch.setattr(place, name, lambda *_: pytest.fail("it is decoded"))
    data = large(kind, 13_400)
    assert len(data) < 1000 and MOST_PIXELS < 13_400**2
    with pytest.raises(ValueError, match="more than 178,956,970 pixels; store the image smaller"):
        decode(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_limit_is_in_the_header(kind: str) -> None:
    """The files of the test above are whole but for their size."""
    assert decode(large(kind, 8)).shape == (8, 8, 3)


def test_as_many_pixels_as_the_limit_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanvit.data.decode.MOST_PIXELS", 99 * 99)
    with pytest.raises(ValueError, match="more than 9,801 pixels"):
        decode(encode(Image.new("RGB", (99, 100)), "PNG"))
    assert decode(encode(Image.new("RGB", (99, 99)), "PNG")).shape == (99, 99, 3)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 30), (30, 20_000), (2, 1)])
def test_images_of_any_shape_become_views(size: tuple[int, int], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_files(tmp_path, {"image.png": encode(Image.fromarray(noise), "PNG")})
    source = FolderSource(tmp_path)
    spec = multi_crop(
        MultiCropConfig(global_size=32, local_sizes=(16,), local_counts=(4,), jitter=1.0)
    )
    for epoch in range(5):
        found = Views(source, spec, DataConfig(), 0).batch([Key(0, epoch, 0)])
        assert not isinstance(found, ValueError)
        assert [group.shape for group in found.groups] == [(2, 1, 3, 32, 32), (4, 1, 3, 16, 16)]
        assert all(group.isfinite().all() for group in found.groups)
        assert not found.unreadable
    whole = middle(to_pixels(noise), 32, 0.875)
    assert whole.shape == (3, 32, 32) and whole.isfinite().all()


@pytest.mark.parametrize("image", [PNG, encode(Image.fromarray(smooth()), "JPEG"), smooth()])
def test_pixels_belong_to_the_caller(image: bytes | NDArray[np.uint8]) -> None:
    before = to_pixels(image).clone()
    to_pixels(image).zero_()
    assert torch.equal(to_pixels(image), before)


# Threads and the terminal


def malformed_mpo() -> bytes:
    first = Image.fromarray(smooth())
    data = encode(first, "MPO", save_all=True, append_images=[first])
    at = data.index(b"MPF\0") + 4
    return data[:at] + b"garbage!" + data[at + 8 :]


def transparent_palette() -> bytes:
    return encode(Image.fromarray(smooth()).quantize(16), "PNG", transparency=bytes([0, 9]))


def broken_exif() -> bytes:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"
    return encode(Image.fromarray(smooth()), "JPEG", exif=exif)


def invalid_apng() -> bytes:
    return PNG[:33] + png_chunk(b"acTL", bytes(8)) + PNG[33:]


def long_tag() -> bytes:
    data = bytearray(tiff(smooth().tobytes(), 80, 48))
    at = data.index(struct.pack("<HH", 259, 3))
    struct.pack_into("<I", data, at + 4, 2)
    return bytes(data)


WARNED_OF = (malformed_mpo, transparent_palette, broken_exif, invalid_apng, long_tag)


@pytest.mark.parametrize("make", WARNED_OF)
def test_pillow_warns_of_these(make: Callable[[], bytes]) -> None:
    with pytest.warns(UserWarning), Image.open(io.BytesIO(make())) as image:
        image.getexif()
        image.convert("RGB")


def test_what_pillow_warns_of_is_read_in_many_threads() -> None:
    """Every test begins with warnings as errors, so each thread may be the first."""
    files = [make() for make in WARNED_OF]
    expected = [encode(Image.fromarray(smooth()), "JPEG", exif=with_orientation(6))]
    threads = 8
    start = threading.Barrier(threads)

    def read(_: int) -> list[bytes]:
        start.wait()
        return [decode(data).tobytes() for _ in range(20) for data in files + expected]

    with ThreadPoolExecutor(threads) as pool:
        first, *others = pool.map(read, range(threads))
    assert all(other == first for other in others)
    assert first[: len(files) + 1] == [decode(data).tobytes() for data in files + expected]


def test_warnings_of_others_stay() -> None:
    decode(transparent_palette())
    with pytest.raises(UserWarning, match="mine"):  # as an error, like all in these tests
        warnings.warn("mine", stacklevel=1)


def test_the_terminal_stays_clean(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a program that has set up no logging."""
    monkeypatch.setattr(logging.root, "handlers", [])
    with pytest.raises(OSError, match="cannot identify"):
        decode(tiff(bytes(198), 2, 1, samples=99))
    for data in one_of_each().values():
        decode(data)
    assert capfd.readouterr() == ("", "")


def test_a_pipe_is_not_waited_for_and_a_huge_file_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(LARGEST + 1)  # a hole, which takes no place
    source = FolderSource(tmp_path)
    errors = {}
    for index in range(len(source)):
        found = read_image(source, index)
        assert isinstance(found, Unreadable)
        errors[found.name] = found.error
    assert errors["pipe.jpg"] == "OSError: 'pipe.jpg' is a pipe or a device"
    assert errors["huge.jpg"].endswith("1,073,741,825 bytes; an image has at most 1,073,741,824")
