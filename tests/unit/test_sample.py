"""Tiles of photographs: as many of each, never the same pixel on both sides, always the same."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leanvit.data import sample
from leanvit.data.sample import (
    GAP,
    LONGEST,
    PHOTOGRAPHS,
    TILE,
    TILES,
    TRAIN_SHARE,
    SampleSource,
    load_photograph,
    part,
    stereo_pair,
)
from leanvit.data.sources import Source, open_source

Pixels = NDArray[np.uint8]
Places = NDArray[np.int64]

SPLITS = ("train", "val")
DOCUMENT = Path(__file__).parents[2] / "docs" / "sample.md"


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    train = SampleSource("train")
    val = train.validation()
    assert val is not None
    return {"train": train, "val": val}


def pixels(source: Source, index: int) -> Pixels:
    image = source[index].image
    assert not isinstance(image, bytes)
    return image


def tiles(source: Source, target: int) -> list[Pixels]:
    return [pixels(source, index) for index in np.flatnonzero(source.targets == target).tolist()]


def words(image: Pixels, keys: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return one number for each window [TILE, TILE] of an image: equal windows, equal numbers."""
    channel, down, across = keys
    mixed = image.astype(np.uint64) @ channel
    rows = np.lib.stride_tricks.sliding_window_view(mixed, TILE, 0) @ down
    return np.lib.stride_tricks.sliding_window_view(rows, TILE, 1) @ across


@pytest.fixture(scope="module")
def places(sources: dict[str, Source]) -> dict[tuple[str, str], Places]:
    """Return where (top, left) a photograph holds the tiles of a split, pixel by pixel.

    A tile that lies at several places, such as an empty sky, gives them all.
    """
    draw, found = np.random.default_rng(0), {}
    keys = [draw.integers(1, 2**60, count, dtype=np.uint64) for count in (3, TILE, TILE)]
    for target, (name, file) in enumerate(PHOTOGRAPHS.items()):
        photograph = load_photograph(file)
        numbers = words(photograph, keys)
        for split in SPLITS:
            spots = []
            for tile in tiles(sources[split], target):
                spots.append(np.argwhere(numbers == words(tile, keys)))
                assert len(spots[-1]), f"a {split} tile of {name} is not in the photograph"
                for top, left in spots[-1]:
                    assert np.array_equal(photograph[top : top + TILE, left : left + TILE], tile)
            found[name, split] = np.concatenate(spots)
    return found


def test_tiles_are_counted(sources: dict[str, Source]) -> None:
    assert {split: len(sources[split]) for split in SPLITS} == {"train": 16 * 160, "val": 16 * 60}
    for split in SPLITS:
        source = sources[split]
        assert source.classes == tuple(PHOTOGRAPHS) and len(source.classes) == 16
        assert source.targets.dtype == np.int64
        assert np.bincount(source.targets).tolist() == [TILES[split]] * 16


def test_tiles_are_pixels(sources: dict[str, Source]) -> None:
    for source in sources.values():
        for index in (0, 77, len(source) - 1):
            found = source[index]
            assert pixels(source, index).shape == (TILE, TILE, 3)
            assert pixels(source, index).dtype == np.uint8
            assert found.index == index
            assert found.target == source.targets[index]
        with pytest.raises(IndexError):
            source[len(source)]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_tiles_lie_in_their_part_of_their_photograph(
    name: str, places: dict[tuple[str, str], Places]
) -> None:
    width = load_photograph(PHOTOGRAPHS[name]).shape[1]
    for split in SPLITS:
        first, beyond = part(split, width)
        lefts = places[name, split][:, 1]
        assert first <= lefts.min() and lefts.max() + TILE <= beyond
    train, val = (places[name, split][:, 1] for split in SPLITS)
    assert train.max() + TILE + GAP <= val.min(), "no column belongs to both, nor to the gap"


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_parts_of_a_photograph_are_a_gap_apart(name: str) -> None:
    height, width, _ = load_photograph(PHOTOGRAPHS[name]).shape
    (first, middle), (after, last) = part("train", width), part("val", width)
    assert (first, last) == (0, width), "nothing is wasted at the edges"
    assert after - middle == GAP
    assert abs((middle - first) / (width - GAP) - TRAIN_SHARE) < 1 / width
    assert min(middle - first, last - after, height) >= TILE + 16, "tiles have room to differ"


def test_photographs_of_a_size_are_cut_at_different_places(
    places: dict[tuple[str, str], Places],
) -> None:
    sizes = {load_photograph(PHOTOGRAPHS[name]).shape for name in ("brick", "grass")}
    assert len(sizes) == 1
    for split in SPLITS:
        assert not np.array_equal(places["brick", split], places["grass", split])


@pytest.mark.parametrize("split", SPLITS)
def test_tiles_of_a_photograph_lie_all_over_its_part(
    split: str, places: dict[tuple[str, str], Places]
) -> None:
    height, width, _ = load_photograph(PHOTOGRAPHS["brick"]).shape
    first, beyond = part(split, width)
    found = places["brick", split]
    assert len(np.unique(found, axis=0)) > 0.9 * TILES[split]
    lowest, highest = np.array([0, first]), np.array([height, beyond]) - TILE
    margin = 0.1 * (highest - lowest)
    assert (found.min(0) <= lowest + margin).all()
    assert (found.max(0) >= highest - margin).all()


def test_photographs_are_those_of_scikit_image_made_small() -> None:
    from skimage import data

    for file in PHOTOGRAPHS.values():
        found = load_photograph(file)
        assert found.dtype == np.uint8 and found.shape[2] == 3
        assert max(found.shape) <= LONGEST
    assert np.array_equal(load_photograph("astronaut.png"), data.astronaut())
    assert np.array_equal(load_photograph("chelsea.png"), data.chelsea())
    assert np.array_equal(load_photograph("coins.png"), np.repeat(data.coins()[..., None], 3, 2))
    whole = Image.fromarray(data.coffee())
    assert whole.size == (600, 400)
    small = np.asarray(whole.resize((512, 341), Image.Resampling.LANCZOS)).astype(int)
    found = load_photograph("coffee.png")
    assert found.shape == (341, 512, 3)
    assert abs(found - small).mean() < 1


def test_tiles_are_the_same_every_time(sources: dict[str, Source]) -> None:
    for split, again in (("train", open_source("sample")), ("val", SampleSource("val"))):
        source = sources[split]
        assert again.fingerprint() == source.fingerprint()
        for index in range(0, len(source), 41):
            assert np.array_equal(pixels(again, index), pixels(source, index))
    assert sources["train"].fingerprint() != sources["val"].fingerprint()


def test_tiles_have_names(sources: dict[str, Source]) -> None:
    assert sources["train"].name(0) == "sample/train/astronaut/000"
    assert sources["train"].name(160 * 3 + 7) == "sample/train/cat/007"
    assert sources["val"].name(60 * 16 - 1) == "sample/val/text/059"
    assert sources["val"].validation() is None


# The stereo pair


def test_the_stereo_pair_has_its_sizes() -> None:
    left, right, disparity = stereo_pair()
    assert left.shape == right.shape == (500, 741, 3)
    assert left.dtype == right.dtype == np.uint8
    assert disparity.shape == (500, 741) and disparity.dtype == np.float32
    known = np.isfinite(disparity)
    assert np.isposinf(disparity[~known]).all()
    assert 0.9 < known.mean() < 1
    assert 0 < disparity[known].min() < disparity[known].max() < 741 / 4


def test_what_is_at_x_on_the_left_is_at_x_minus_disparity_on_the_right() -> None:
    """The same surface has the same color in both; a wrong sign or side shows other surfaces."""
    left, right, disparity = stereo_pair()
    rows, columns = np.nonzero(np.isfinite(disparity))

    def apart(one: Pixels, other: Pixels, sign: int) -> float:
        there = np.rint(columns + sign * disparity[rows, columns]).astype(int)
        inside = (there >= 0) & (there < one.shape[1])
        here = one[rows[inside], columns[inside]].astype(int)
        return float(abs(here - other[rows[inside], there[inside]]).mean())

    right_way = apart(left, right, -1)
    assert right_way < 10
    assert apart(left, right, 1) > 4 * right_way
    assert apart(left, right, 0) > 4 * right_way
    assert apart(right, left, 1) > 1.5 * right_way, "the disparity is the left picture's"


# Without scikit-image


@pytest.fixture
def without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "skimage", None)
    sample._folder.cache_clear()
    yield
    sample._folder.cache_clear()


@pytest.mark.usefixtures("without_scikit_image")
def test_without_scikit_image_the_extra_is_named() -> None:
    for what in (lambda: open_source("sample"), stereo_pair):
        with pytest.raises(ValueError, match=r"scikit-image: pip install 'leanvit\[sample\]'"):
            what()


# The document


def rows(document: str) -> dict[str, list[str]]:
    """Return the cells of the table's lines by their first one."""
    found = {}
    for line in document.splitlines():
        if line.startswith("|") and not re.match(r"\|[\s|-]+$", line):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            assert first not in found, f"{first} is listed twice"
            found[first] = cells
    return found


LICENSES = {
    "astronaut": "public domain",
    "brick": "CC0",
    "camera": "CC0",
    "cat": "CC0",
    "cell": "CC0",
    "coffee": "CC0",
    "coins": "no known copyright restrictions",
    "grass": "CC0",
    "gravel": "CC0",
    "histology": "no known copyright restrictions",
    "hubble": "public domain",
    "moon": "no licence stated by scikit-image",
    "page": "no licence stated by scikit-image",
    "retina": "CC0",
    "rocket": "public domain",
    "text": "public domain",
}
"""What the docstrings of `skimage.data` state."""


def test_every_photograph_is_documented() -> None:
    table = rows(DOCUMENT.read_text())
    files = {**PHOTOGRAPHS, "stereo pair": "motorcycle_left.png"}
    assert set(files) == set(table) - {"class"}
    for name, file in files.items():
        assert f"`{file}`" in table[name][0], name
        assert len(table[name]) == 3 and all(table[name]), name
    assert LICENSES.keys() == PHOTOGRAPHS.keys()
    for name, license in LICENSES.items():
        assert license in table[name][2], name
    for file in ("motorcycle_right.png", "motorcycle_disp.npz"):
        assert f"`{file}`" in table["stereo pair"][0]
    assert "no licence stated by scikit-image" in table["stereo pair"][2]


def test_no_licence_is_claimed_that_scikit_image_does_not_state() -> None:
    """The docstring of a photograph holds what the table says of it."""
    from skimage import data

    own = {
        "cat": "chelsea",
        "histology": "immunohistochemistry",
        "hubble": "hubble_deep_field",
    }
    for name, license in LICENSES.items():
        said = " ".join((getattr(data, own.get(name, name)).__doc__ or "").split())
        if license.startswith("no licence"):
            assert not re.search(r"CC0|public domain|licen[cs]e|copyright", said, re.IGNORECASE)
        else:
            assert license.lower() in said.lower(), name


def test_the_document_states_the_sizes_that_the_code_has() -> None:
    said = " ".join(DOCUMENT.read_text().split())
    for text in (
        f"{len(PHOTOGRAPHS)} photographs",
        f"{TILE} x {TILE} pixels",
        f"longer side is at most {LONGEST} pixels",
        f"{GAP} pixels wide",
        f"{100 * TRAIN_SHARE:g} %",
        f"{TILES['train']} training tiles and {TILES['val']} validation tiles",
        f"{len(PHOTOGRAPHS) * TILES['train']:,} and {len(PHOTOGRAPHS) * TILES['val']:,}",
    ):
        assert text in said, text
