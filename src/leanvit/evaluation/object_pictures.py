"""Pictures of a detection: what is there and what is told, side by side.

Letters: n objects of an image, h and w its rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from leanvit.core.files import Replacing
from leanvit.evaluation.map_pictures import GAP, LINE, palette

PICTURES = "objects.png"
"""File in the folder of a detection."""
SIDE = 480
"""Width of a panel in pixels."""
HEADS = ("labels", "told")
VEIL = 0.4
"""How much of a mask's color lies over the image."""


@dataclass(frozen=True, slots=True)
class ObjectPicture:
    """What is drawn of one image."""

    pixels: Tensor
    """uint8 [3, h, w]."""
    there: tuple[Tensor, Tensor, Tensor | None]
    """Boxes [n, 4], classes [n] and masks [n, h, w], or None."""
    told: tuple[Tensor, Tensor, Tensor | None]
    """The same of what is told with enough confidence."""


def draw_objects(pictures: Sequence[ObjectPicture], classes: Sequence[str], path: Path) -> None:
    """Draw one row for each image, labels at the left and what is told at the right, as a PNG."""
    colors = [tuple(int(part) for part in color) for color in palette(len(classes))]
    rows = [
        [_panel(one.pixels, objects, classes, colors) for objects in (one.there, one.told)]
        for one in pictures
    ]
    height = LINE + sum(row[0].height + GAP for row in rows)
    sheet = Image.new("RGB", (len(HEADS) * (SIDE + GAP) + GAP, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, head in enumerate(HEADS):
        draw.text((GAP + column * (SIDE + GAP), 2), head, "black", font)
    top = LINE
    for row in rows:
        for column, panel in enumerate(row):
            sheet.paste(panel, (GAP + column * (SIDE + GAP), top))
        top += row[0].height + GAP
    with Replacing(path) as beside:
        sheet.save(beside, "PNG")


def _panel(
    pixels: Tensor,
    objects: tuple[Tensor, Tensor, Tensor | None],
    classes: Sequence[str],
    colors: Sequence[tuple[int, ...]],
) -> Image.Image:
    """Return an image with boxes, names and veils of masks over it, SIDE pixels wide."""
    values = pixels.permute(1, 2, 0).numpy().astype(np.float32)
    boxes, labels, masks = objects
    for place, label in enumerate(labels.tolist()):
        if masks is not None:
            inside = masks[place].numpy().astype(bool)
            values[inside] = (1 - VEIL) * values[inside] + VEIL * np.array(colors[label])
    scale = SIDE / values.shape[1]
    size = (SIDE, max(round(scale * values.shape[0]), 1))
    panel = Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
    for box, label in zip((scale * boxes).tolist(), labels.tolist(), strict=True):
        draw.rectangle(box, outline=colors[label], width=2)
        corner = (box[0] + 3, box[1] + 1)
        draw.rectangle(draw.textbbox(corner, classes[label], font), fill="white")
        draw.text(corner, classes[label], "black", font)
    return panel
