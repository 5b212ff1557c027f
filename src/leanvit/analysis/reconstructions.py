"""What a masked autoencoder makes of images: as they are, as it sees them, as it predicts them.

Letters: B images, N patches, S side of an image in pixels, p side of a patch.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leanvit.backbones.base import evaluating
from leanvit.core.files import Replacing
from leanvit.core.random import units
from leanvit.data.images import load_images
from leanvit.data.sources import Source, at_most
from leanvit.losses.masked import images_of, patch_moments, patches_of
from leanvit.methods.mae import MAE

IMAGES = 8
"""Images that are drawn."""
HIDDEN, GAP = 128, 2
"""Grey of hidden patches, and pixels between pictures."""
LEGIBLE = 96
"""Smaller images are enlarged by a whole number to at least this side."""


@torch.no_grad()
def reconstruct(method: MAE, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is shown and what is predicted of normalised images, both [B, 3, S, S].

    images: [B, 3, S, S]; noise: [B, N] chooses the hidden patches, which are NaN in the first.
    The second has the visible patches as they are. Where the target has mean 0 and deviation 1 in
    every patch, the prediction is given the patch's own, which the network never saw.
    """
    seen = method.hide(noise)
    prediction = method.predict(images, seen).float()
    patches = patches_of(images.float(), method.patch)
    if method.config.normalize:
        mean, deviation = patch_moments(patches)
        prediction = prediction * deviation + mean
    mask = seen.mask[..., None]
    shown = patches.masked_fill(mask, float("nan"))
    whole = torch.where(mask, prediction, patches)
    return images_of(shown, method.patch), images_of(whole, method.patch)


class Reconstructions:
    """A picture of the same images each time: original, what the network sees, its prediction.

    mean, std: what the network's input is normalised with; path: of the PNG, a row an image.
    """

    def __init__(
        self,
        method: MAE,
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
        """The first images that can be read [B, 3, S, S], normalised."""
        few = at_most(self.source, IMAGES)
        size = self.method.size
        (batch,) = load_images(few, size=size, crop=1.0, batch=IMAGES, workers=0)
        return (batch.pixels.to(self.mean.device) - self.mean) / self.std

    def draw(self) -> None:
        """Write the picture of the network as it is now; the same patches are hidden each time."""
        images, patches = self.images, self.method.rows**2
        if not len(images):
            return
        noise = np.stack([units(0, "picture", k, count=patches) for k in range(len(images))])
        with evaluating(self.method):
            drawn = torch.from_numpy(noise).float().to(images.device)
            shown, whole = reconstruct(self.method, images, drawn)
        columns = [_pixels(x * self.std + self.mean) for x in (images, shown, whole)]
        _write(columns, self.path)


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """Return [B, S, S, 3] of whole numbers; what is hidden is grey."""
    values = (images * 255).round().clamp(0, 255).nan_to_num(HIDDEN)
    pixels: NDArray[np.uint8] = values.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return pixels


def _write(columns: list[NDArray[np.uint8]], path: Path) -> None:
    """Put pictures side by side, a row an image."""
    rows, side = columns[0].shape[:2]
    times = -(-LEGIBLE // side)
    step = side * times + GAP
    canvas = Image.new("RGB", (len(columns) * step - GAP, rows * step - GAP), "white")
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((side * times,) * 2, Image.Resampling.NEAREST)
            canvas.paste(large, (column * step, row * step))
    with Replacing(path) as beside:
        canvas.save(beside, format="PNG")
