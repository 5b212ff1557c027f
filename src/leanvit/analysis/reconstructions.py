"""What a masked method makes of images: as they are, as it sees them, as it predicts them.

Letters: B images, N patches, S side of an image in pixels.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from leanvit.analysis.pictures import INK, font
from leanvit.backbones.base import evaluating
from leanvit.core.files import Replacing
from leanvit.core.random import units
from leanvit.data.images import load_images
from leanvit.data.sources import Source, at_most
from leanvit.methods.base import Method
from leanvit.methods.masking import Masked

IMAGES = 8
"""Images that are drawn."""
HIDDEN, GAP = 128, 2
"""Grey of hidden patches, and pixels between pictures."""
LEGIBLE = 96
"""Smaller images are enlarged by a whole number to at least this side."""
HEADING = 13
"""Height of the letters above the columns."""


class Reconstructions:
    """A picture of the same images each time: original, what the network sees, its prediction.

    It is for methods that reconstruct; of others nothing is drawn. mean, std: what the network's
    input is normalised with; path: of the PNG, a row an image. Images are read once, at the first
    picture.
    """

    def __init__(
        self,
        method: Method,
        source: Source,
        path: Path,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.method, self.source, self.path = method, source, path
        device = next(method.parameters()).device
        self.mean, self.std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (mean, std))

    @cached_property
    def images(self) -> Tensor:
        """The first images that can be read [B, 3, S, S], in [0, 1]; hidden are always the same."""
        assert isinstance(self.method, Masked)
        few, size = at_most(self.source, IMAGES), self.method.view_size
        (batch,) = load_images(few, size=size, crop=1.0, batch=IMAGES, workers=0)
        return batch.pixels.to(self.mean.device)

    def draw(self) -> None:
        """Write the picture of the network as it is now; the same patches are hidden each time."""
        if not isinstance(self.method, Masked) or not len(self.images):
            return
        count = self.method.patches
        noise = np.stack([units(0, "picture", k, count=count) for k in range(len(self.images))])
        drawn = torch.from_numpy(noise).float().to(self.images.device)
        with evaluating(self.method):
            hidden, predicted = self.method.reconstruct((self.images - self.mean) / self.std, drawn)
        hidden, predicted = hidden[:, None], predicted * self.std + self.mean
        columns = {
            "original": self.images,
            "seen": self.images.masked_fill(hidden, HIDDEN / 255),
            "predicted": torch.where(hidden, predicted, self.images),
        }
        _write({name: _pixels(images) for name, images in columns.items()}, self.path)


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """Return [B, S, S, 3] of whole numbers."""
    values = (images * 255).round().clamp(0, 255)
    pixels: NDArray[np.uint8] = values.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return pixels


def _write(columns: Mapping[str, NDArray[np.uint8]], path: Path) -> None:
    """Put pictures side by side, a row an image, each column under its name."""
    rows, side = next(iter(columns.values())).shape[:2]
    times = -(-LEGIBLE // side)
    step, top = side * times + GAP, 2 * HEADING
    canvas = Image.new("RGB", (len(columns) * step - GAP, top + rows * step - GAP), "white")
    pen, letters = ImageDraw.Draw(canvas), font(HEADING)
    for column, (name, pictures) in enumerate(columns.items()):
        middle = column * step + side * times // 2
        pen.text((middle, top - HEADING // 2), name, INK, letters, "ms")
        for row, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((side * times,) * 2, Image.Resampling.NEAREST)
            canvas.paste(large, (column * step, top + row * step))
    with Replacing(path) as beside:
        canvas.save(beside, format="PNG")
