"""What a masked autoencoder makes of images: as they are, as it sees them, as it predicts them.

Letters: B images, N patches, S side of an image in pixels, p side of a patch.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from leanvit.core.random import units
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


def draw_reconstructions(
    method: MAE, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], path: Path
) -> None:
    """Write a PNG with a row an image: original, what the network sees, prediction.

    images: [B, 3, S, S] in [0, 1]; mean, std: what the network's input is normalised with. The same
    patches are hidden each time. The network is as it was afterwards.
    """
    device = next(method.parameters()).device
    center, scale = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (mean, std))
    normal = (images.to(device) - center) / scale
    noise = np.stack([units(0, "picture", k, count=method.rows**2) for k in range(len(images))])
    training = method.training
    method.eval()
    shown, whole = reconstruct(method, normal, torch.from_numpy(noise).float().to(device))
    method.train(training)
    columns = [_pixels(x * scale + center) for x in (normal, shown, whole)]
    _write(columns, path)


def _pixels(images: Tensor) -> np.ndarray:
    """Return [B, S, S, 3] of whole numbers; what is hidden is grey."""
    values = (images * 255).round().clamp(0, 255).nan_to_num(HIDDEN)
    return values.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def _write(columns: list[np.ndarray], path: Path) -> None:
    """Put pictures side by side, a row an image."""
    rows, side = columns[0].shape[:2]
    times = -(-LEGIBLE // side)
    step = side * times + GAP
    canvas = Image.new("RGB", (len(columns) * step - GAP, rows * step - GAP), "white")
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((side * times,) * 2, Image.Resampling.NEAREST)
            canvas.paste(large, (column * step, row * step))
    canvas.save(path)
