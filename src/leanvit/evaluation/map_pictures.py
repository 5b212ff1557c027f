"""Pictures of a segmentation: image, truth, what is told, and where it is wrong.

Letters: h and w rows and columns of an image, C classes.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from leanvit.core.files import Replacing
from leanvit.data.masks import IGNORED

PICTURES = "maps.png"
"""File in the folder of a segmentation."""
SIDE = 320
"""Width of a panel in pixels."""
GAP, LINE = 8, 20
"""Pixels between panels, and of a line of text."""
HEADS = ("image", "labels", "told", "wrong")
GOLDEN = 0.618
"""Part of the color circle from one class to the next: neighbours in number differ most."""


@dataclass(frozen=True, slots=True)
class MapPicture:
    """What is drawn of one image."""

    pixels: Tensor
    """uint8 [3, h, w]."""
    truth: Tensor
    """[h, w] class of every pixel, IGNORED where it has none."""
    told: Tensor
    """[h, w]."""


def palette(classes: int) -> NDArray[np.uint8]:
    """Return a color for each class [C, 3]: hues a golden part apart, in three brightnesses."""
    colors = [
        colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.75, (0.95, 0.7, 0.5)[number % 3])
        for number in range(classes)
    ]
    return (255 * np.array(colors)).round().astype(np.uint8)


def draw_maps(pictures: Sequence[MapPicture], classes: Sequence[str], path: Path) -> None:
    """Draw one row for each image, and a legend of the classes that are in them, as a PNG."""
    colors = np.full((256, 3), 255, dtype=np.uint8)
    colors[: len(classes)] = palette(len(classes))
    rows = [_panels(picture, colors) for picture in pictures]
    there = sorted(
        {int(value) for p in pictures for part in (p.truth, p.told) for value in part.unique()}
        - {IGNORED}
    )
    width = len(HEADS) * (SIDE + GAP) + GAP
    font = ImageFont.load_default(14)
    places, legend = _legend([classes[number] for number in there], width, font)
    height = LINE + GAP + sum(row[0].height + GAP for row in rows) + legend
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(HEADS):
        draw.text((GAP + column * (SIDE + GAP), 2), head, "black", font)
    top = LINE
    for row in rows:
        for column, panel in enumerate(row):
            sheet.paste(panel, (GAP + column * (SIDE + GAP), top))
        top += row[0].height + GAP
    for number, (left, down) in zip(there, places, strict=True):
        box = (left, top + down + 3, left + 12, top + down + 15)
        draw.rectangle(box, tuple(int(part) for part in colors[number]), "black")
        draw.text((left + 18, top + down), classes[number], "black", font)
    with Replacing(path) as beside:
        sheet.save(beside, "PNG")


def _panels(picture: MapPicture, colors: NDArray[np.uint8]) -> list[Image.Image]:
    """Return image, truth, told and errors, each SIDE pixels wide."""
    pixels = picture.pixels.permute(1, 2, 0).numpy()
    truth, told = picture.truth.numpy(), picture.told.numpy()
    grey = np.repeat(pixels.mean(-1, keepdims=True), 3, -1) * 0.5 + 127
    wrong = (truth != told) & (truth != IGNORED)
    errors = np.where(wrong[..., None], colors[told], grey.astype(np.uint8))
    height = max(round(SIDE * truth.shape[0] / truth.shape[1]), 1)
    return [
        Image.fromarray(np.ascontiguousarray(part)).resize((SIDE, height), how)
        for part, how in (
            (pixels, Image.Resampling.BILINEAR),
            (colors[truth], Image.Resampling.NEAREST),
            (colors[told], Image.Resampling.NEAREST),
            (errors, Image.Resampling.NEAREST),
        )
    ]


def _legend(
    names: Sequence[str], width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> tuple[list[tuple[int, int]], int]:
    """Return where each name stands, and the height of all."""
    places, left, down = [], GAP, 0
    for name in names:
        length = 18 + round(font.getlength(name)) + 2 * GAP
        if left + length > width and left > GAP:
            left, down = GAP, down + LINE
        places.append((left, down))
        left += length
    return places, down + LINE + GAP
