"""The embedded data set, `--data sample`: tiles of photographs that scikit-image carries.

The class of a tile is its photograph. Training tiles come from the left part of each photograph
and validation tiles from the right, with a gap between, so that no pixel is in both.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leanvit.core import random
from leanvit.data.sources import About, Sample, Source

PHOTOGRAPHS: Mapping[str, str] = MappingProxyType(
    {
        "astronaut": "astronaut.png",
        "brick": "brick.png",
        "camera": "camera.png",
        "cat": "chelsea.png",
        "cell": "cell.png",
        "coffee": "coffee.png",
        "coins": "coins.png",
        "grass": "grass.png",
        "gravel": "gravel.png",
        "histology": "ihc.png",
        "hubble": "hubble_deep_field.jpg",
        "moon": "moon.png",
        "page": "page.png",
        "retina": "retina.jpg",
        "rocket": "rocket.jpg",
        "text": "text.png",
    }
)
"""Class -> file in scikit-image; docs/sample.md states origin and licence of each."""

TILE = 96
"""Side of a tile in pixels."""
LONGEST = 512
"""Longer side that larger photographs are reduced to, so that a tile shows something."""
TRAIN_SHARE = 0.6
"""Share of a photograph's width, without the gap, that training tiles come from."""
GAP = 16
"""Pixels between the two parts."""
TILES: Mapping[str, int] = MappingProxyType({"train": 160, "val": 60})
"""Tiles of each photograph; within a part they may overlap."""


class SampleSource:
    """Tiles [96, 96, 3] of photographs, as many of each.

    Raises ValueError if scikit-image is not installed.
    """

    def __init__(self, split: Literal["train", "val"]) -> None:
        self.split = split
        self.classes = tuple(PHOTOGRAPHS)
        self._tiles = np.concatenate([_cut(name, split) for name in self.classes])
        self.targets = np.repeat(np.arange(len(self.classes)), TILES[split])

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._tiles[index], index, int(self.targets[index]))

    def name(self, index: int) -> str:
        """Return the photograph and the tile's number in it."""
        target, number = divmod(index, TILES[self.split])
        return f"sample/{self.split}/{self.classes[target]}/{number:03d}"

    def fingerprint(self) -> str:
        """Return a digest of all pixels."""
        return hashlib.sha256(self._tiles.tobytes()).hexdigest()

    def validation(self) -> Source | None:
        """Return the tiles of the photographs' other side."""
        return SampleSource("val") if self.split == "train" else None

    def about(self) -> About:
        """Return what this is."""
        return About("tiles of the photographs in scikit-image", "the photographs")


def _cut(photograph: str, split: str) -> NDArray[np.uint8]:
    """Return tiles at places that were drawn once and for all."""
    pixels = load_photograph(PHOTOGRAPHS[photograph])
    height, width = pixels.shape[:2]
    left, right = part(split, width)
    count = TILES[split]
    places = random.units(0, f"sample {split}", *photograph.encode(), count=2 * count)
    tops, lefts = places.reshape(2, count)
    return np.stack(
        [
            pixels[top : top + TILE, at : at + TILE]
            for top, at in zip(
                (tops * (height - TILE + 1)).astype(int),
                (left + lefts * (right - left - TILE + 1)).astype(int),
                strict=True,
            )
        ]
    )


def part(split: str, width: int) -> tuple[int, int]:
    """Return the first column of a part of a photograph, and the first one beyond it."""
    cut = round(TRAIN_SHARE * (width - GAP))
    return (0, cut) if split == "train" else (cut + GAP, width)


def load_photograph(file: str) -> NDArray[np.uint8]:
    """Return RGB pixels [height, width, 3], at most `LONGEST` a side."""
    with Image.open(_folder() / file) as image:
        pixels = image.convert("RGB")
    pixels.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.asarray(pixels)


def stereo_pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Return the left and right view of a motorcycle [500, 741, 3] and the left one's disparity.

    Disparity [500, 741], in pixels: what is at column x on the left is at x - disparity on the
    right, in the same row; infinite where it is not known. No tile comes from these pictures.
    """
    with (
        Image.open(_folder() / "motorcycle_left.png") as left,
        Image.open(_folder() / "motorcycle_right.png") as right,
        np.load(_folder() / "motorcycle_disp.npz") as disparity,
    ):
        return np.asarray(left), np.asarray(right), disparity["arr_0"]


@lru_cache(maxsize=1)
def _folder() -> Path:
    """Return where scikit-image keeps its pictures; its own functions would ask the network."""
    try:
        import skimage
    except ImportError as error:
        raise ValueError(
            "The photographs of the sample need scikit-image: pip install 'leanvit[sample]'."
        ) from error
    return Path(skimage.__file__).parent / "data"
