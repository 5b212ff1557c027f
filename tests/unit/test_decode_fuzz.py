"""Damaged files of every kind and archives of them: pixels or a reason, whatever the damage."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from leanvit.data.archives import TarSource, ZipSource
from leanvit.data.batch import Unreadable
from leanvit.data.decode import LONGEST_REASON, read_image
from leanvit.data.sources import Source
from tests.encoded import Encoded, one_of_each, write_files

FILES = one_of_each()
MOST_PIXELS = 1 << 20
"""The limit here: one bit in a header may otherwise ask for half a GiB."""
ROUNDS = 40
"""Damaged copies of each file."""


def damage(data: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """Return a file with some of its bytes changed, lost, doubled, or taken from another file."""
    values = np.frombuffer(data, np.uint8).copy()
    reach = len(values) if draw.random() < 0.5 else min(len(values), 300)  # or the header
    for _ in range(draw.integers(1, 5)):
        start, end = np.sort(draw.integers(0, reach + 1, 2))
        kind = draw.integers(6)
        if kind == 0:
            places = draw.integers(0, len(values), draw.integers(1, 4)) % reach
            values[places] ^= 1 << draw.integers(0, 8, len(places)).astype(np.uint8)
        elif kind == 1:
            values = values[:end]
        elif kind == 2:
            values = np.delete(values, slice(start, min(end, start + 20)))
        elif kind == 3:
            values = np.concatenate([values[:end], values[start:]])
        elif kind == 4:
            values[start : start + 8] = draw.choice([0, 1, 127, 128, 255])
        else:
            theirs = np.frombuffer(other, np.uint8)
            values = np.concatenate([values[:start], theirs[start:]])
        reach = min(reach, len(values))
        if not reach:
            break
    return values.tobytes()


def check(source: Source) -> int:
    """Read everything; return how much of it are pixels."""
    read = 0
    for index in range(len(source)):
        found = read_image(source, index)
        if isinstance(found, Unreadable):
            assert (found.index, found.name) == (index, source.name(index))
            assert found.error.isprintable() and "0x" not in found.error
            assert 5 < len(found.error) <= LONGEST_REASON
            continue
        pixels, target = found
        assert pixels.dtype == torch.uint8 and target == -1
        assert pixels.ndim == 3 and len(pixels) == 3
        assert 0 < pixels[0].numel() <= MOST_PIXELS
        read += 1
    return read


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanvit.data.decode.MOST_PIXELS", MOST_PIXELS)


def test_whole_files_are_read() -> None:
    assert check(Encoded(list(FILES.values()))) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_pixels_or_a_reason(name: str) -> None:
    draw = np.random.default_rng(sum(name.encode()))
    others = list(FILES.values())
    damaged = [damage(FILES[name], others[draw.integers(len(others))], draw) for _ in range(ROUNDS)]
    assert 0 < check(Encoded([*damaged, FILES[name]])) <= ROUNDS


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar"])
def test_archives_that_are_damaged_later_give_pixels_or_a_reason(kind: str, tmp_path: Path) -> None:
    """A disk may fail, or a file be copied over, while a run reads from it."""
    folder = write_files(tmp_path / "images", {f"{name}.jpg": FILES[name] for name in FILES})
    file = tmp_path / "archive"
    if kind == "tar":
        with tarfile.open(file, "w") as archive:
            archive.add(folder, ".")
        source: Source = TarSource(file)
    else:
        how = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(file, "w", how) as packed:
            for path in folder.iterdir():
                packed.write(path, path.name)
        source = ZipSource(file)
    whole, draw = file.read_bytes(), np.random.default_rng(0)
    assert check(source) == len(FILES)
    read = []
    for _ in range(ROUNDS):
        values = np.frombuffer(whole, np.uint8).copy()
        places = draw.integers(0, len(values), 30)
        values[places] ^= 1 << draw.integers(0, 8, 30).astype(np.uint8)
        file.write_bytes(values[: draw.integers(len(values) // 2, len(values))].tobytes())
        read.append(check(source))
    assert 0 < sum(read) < ROUNDS * len(FILES)
