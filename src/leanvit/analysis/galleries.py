"""Galleries of analyses: images beside what networks make of them, as PNG.

Letters: B images, S side in pixels, h and w rows and columns of regions, H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from leanvit.analysis.pictures import BLUE, FAINT, INK, ORANGE, font
from leanvit.core.files import Replacing

CELL, GAP, LINE = 144, 8, 18
"""Pixels of a picture's side, between pictures, and of a line of text."""
LETTERS = 13
"""Height of letters in pixels."""
WASH = 0.35
"""How much of the image is seen below a map."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of a gallery."""

    pixels: NDArray[np.uint8]
    """[height, width, 3]."""
    text: str = ""
    """What stands below it."""
    frame: str = ""
    """Color of its border; empty for none."""


def draw_gallery(heads: Sequence[str], rows: Sequence[Sequence[Cell]], path: Path) -> list[str]:
    """Draw rows of pictures below heads, one head a column; return the file's name."""
    letters = font(LETTERS)
    columns = max(len(heads), *(len(row) for row in rows))
    texts = any(cell.text for row in rows for cell in row)
    step = CELL + GAP + (LINE if texts else 0)
    canvas = Image.new(
        "RGB", (columns * (CELL + GAP) + GAP, len(rows) * step + GAP + 2 * LINE), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        left = GAP + column * (CELL + GAP)
        for line, words in enumerate(_lines(head, letters.getlength)):
            pen.text((left, 2 + line * (LINE - 2)), words, INK, letters)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            left, top = GAP + column * (CELL + GAP), GAP + 2 * LINE + number * step
            canvas.paste(shown(cell.pixels, CELL), (left, top))
            if cell.frame:
                right, bottom = left + CELL, top + CELL
                pen.rectangle((left - 3, top - 3, right + 2, bottom + 2), None, cell.frame, 3)
            if cell.text:
                words = shortened(cell.text, letters.getlength)
                pen.text((left, top + CELL + 3), words, FAINT, letters)
    with Replacing(path) as beside:
        canvas.save(beside, format="PNG")
    return [path.name]


def shown(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """Return a picture of a side; small ones enlarged without smoothing, so that regions show."""
    image = Image.fromarray(pixels)
    small = max(image.size) < side
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return image.resize((side, side), how)


def pixels_of(image: Tensor) -> NDArray[np.uint8]:
    """Return an image [3, S, S] in [0, 1] as bytes [S, S, 3]."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def washed(image: NDArray[np.uint8], values: Tensor, query: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image with a map [h, w] over it, from dark to bright, and its query marked."""
    h, w = values.shape
    share = (values / values.max().clamp_min(1e-12)).double().numpy()
    colors = matplotlib.colormaps["viridis"](share)[..., :3]
    side = (CELL // w * w, CELL // h * h) if max(h, w) < CELL else (CELL, CELL)
    over = Image.fromarray((255 * colors).round().astype(np.uint8))
    over = over.resize(side, Image.Resampling.NEAREST).resize((CELL, CELL))
    below = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.LANCZOS)
    found = Image.blend(over, below.convert("L").convert("RGB"), WASH)
    y, x = ((place + 0.5) * CELL / side for place, side in zip(query, (h, w), strict=True))
    pen = ImageDraw.Draw(found)
    pen.ellipse((x - 6, y - 6, x + 6, y + 6), None, "white", 4)
    pen.ellipse((x - 5, y - 5, x + 5, y + 5), None, ORANGE, 2)
    return np.asarray(found)


def agrees(same: bool | None) -> str:
    """Return the color of a border: of the same class, of another, or of none that is known."""
    return "" if same is None else BLUE if same else ORANGE


def shortened(text: str, length: object) -> str:
    """Return the end of a name that fits below a picture."""
    assert callable(length)
    if length(text) <= CELL:
        return text
    while text and length(f"…{text}") > CELL:
        text = text[1:]
    return f"…{text}"


def _lines(text: str, length: object) -> list[str]:
    """Return a head in one line or two."""
    assert callable(length)
    if length(text) <= CELL or " " not in text:
        return [shortened(text, length)]
    words = text.split(" ")
    cut = max(math.ceil(len(words) / 2), 1)
    return [shortened(" ".join(part), length) for part in (words[:cut], words[cut:])]
