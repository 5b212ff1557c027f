"""Reconstruction of hidden pixels (MAE, arXiv 2111.06377; SimMIM, arXiv 2111.09886).

Letters: B images, h and w rows and columns of patches, N = h * w of them, p side of a patch.
"""

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.precision import full

PIXEL_EPS = 1e-6
"""What is added to the variance of a patch's pixels."""


def patches_of(images: Tensor, side: int) -> Tensor:
    """Cut [B, 3, h p, w p] into patches [B, N, p * p * 3]: row, column, channel."""
    b, c, height, width = images.shape
    x = images.reshape(b, c, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, side * side * c)


def images_of(patches: Tensor, side: int) -> Tensor:
    """Put patches [B, N, p * p * 3] of a square together: [B, 3, h p, h p]."""
    b, n, _ = patches.shape
    rows = round(n**0.5)
    x = patches.reshape(b, rows, rows, side, side, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, 3, rows * side, rows * side)


def patch_moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [B, N, 1] of each patch's values; the variance is unbiased."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return mean, (variance + PIXEL_EPS).sqrt()


def pixel_targets(
    images: Tensor, side: int, *, normalize: bool, hidden: Tensor | None = None
) -> Tensor:
    """Return what is to be predicted of each patch [B, N, p * p * 3], in fp32.

    normalize: every patch with mean 0 and deviation 1, of an unbiased variance (MAE's better
    target); hidden: [B, m] patches that are asked for alone, in this order.
    """
    patches = patches_of(full(images), side)
    if hidden is not None:
        patches = patches.gather(1, hidden[..., None].expand(-1, -1, patches.shape[-1]))
    if not normalize:
        return patches
    count = patches.shape[-1]
    biased = (count - 1) / count  # over unbiased: the operator has the biased variance
    return functional.layer_norm(patches, (count,), eps=PIXEL_EPS * biased) * biased**0.5


def hidden_pixel_loss(
    prediction: Tensor, images: Tensor, mask: Tensor, *, squared: bool = False
) -> Tensor:
    """Return the mean absolute (or squared) error over the hidden pixels and their channels.

    prediction and images [B, 3, H, W], mask [B, H, W], true: hidden (SimMIM, section 3.4).
    """
    error = full(prediction) - full(images)
    error = error.square() if squared else error.abs()
    hidden = torch.where(mask[:, None], error, 0.0)
    return hidden.sum() / (mask.sum() * images.shape[1])
