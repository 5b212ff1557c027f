"""The views of semantic segmentation: an image and its map, resized, cropped, flipped, recolored.

Letters: h and w rows and columns of an image, S side of a crop, B images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from leanvit.config.dense import ScaledCropConfig
from leanvit.core.random import seeded, units
from leanvit.data.batch import MapBatch
from leanvit.data.loader import Decoded, examples
from leanvit.data.masks import IGNORED, MaskSource
from leanvit.data.sampler import Key, draw_key
from leanvit.kernels.multicrop import Channels

JITTER = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
"""Ranges of the changes of color, as in SSD's photometric distortion."""


def with_short_side(pixels: Tensor, mapped: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return an image [3, h, w] and its map [h, w] resized to a shorter side, 0 for as they are."""
    if not side or min(mapped.shape) == side:
        return pixels, mapped
    resized = tv.resize(pixels, [side], InterpolationMode.BILINEAR, antialias=True)
    return resized, nearest(mapped, resized.shape[1:])


def nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps [..., h, w] of another size, the centers of pixels where an image's are."""
    if not maps.numel():
        return maps.new_zeros(*maps.shape[:-2], *size)
    found = tv.resize(maps[None], list(size), InterpolationMode.NEAREST_EXACT)
    return found[0]


def normalized(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Return uint8 pixels [..., 3, h, w] as a network takes them."""
    return tv.normalize(pixels.float() / 255, list(mean), list(std))


def cropping(config: ScaledCropConfig, mean: Channels, outside: int) -> v2.Compose:
    """Return what crops, flips and recolors; outside: what masks hold beyond the image."""
    fill = {tv_tensors.Image: [255 * m for m in mean], tv_tensors.Mask: outside}
    return v2.Compose(
        [
            v2.RandomCrop(config.size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(config.flip),
            v2.RandomApply([v2.ColorJitter(**JITTER)], config.distort),
        ]
    )


class ScaledCrops(Dataset[MapBatch | ValueError]):
    """The examples at given places of the order, drawn by (seed, epoch, image)."""

    def __init__(
        self,
        source: MaskSource,
        config: ScaledCropConfig,
        *,
        short_side: int,
        mean: Channels,
        std: Channels,
        seed: int,
    ) -> None:
        self.source, self.config, self.short_side, self.seed = source, config, short_side, seed
        self.mean, self.std = mean, std
        self._transform = cropping(config, mean, IGNORED)

    def batch(self, keys: Sequence[Key]) -> MapBatch | ValueError:
        """Return a batch, or the error of the first image or mask that is none."""
        found = examples(self.source, keys, self.seed, self.example)
        if isinstance(found, ValueError):
            return found
        images, maps = (torch.stack(parts) for parts in zip(*found.made, strict=True))
        pixels = normalized(images, self.mean, self.std)
        return MapBatch(pixels, maps, torch.tensor(found.index), tuple(found.unreadable))

    __getitems__ = batch
    """What torch's loader calls in its workers."""

    def example(self, found: Decoded, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the view of an image in an epoch: uint8 [3, S, S], and its map [S, S].

        Raises ValueError for a mask that does not fit.
        """
        height, width = found.pixels.shape[1:]
        mapped = self.source.annotation(found.index, height, width)
        pixels, mapped = with_short_side(found.pixels, mapped, self.short_side)
        key = draw_key(epoch, found.index)
        low, high = self.config.scale
        factor = low + (high - low) * units(self.seed, "scale", *key, count=1).item()
        size = [max(round(side * factor), 1) for side in mapped.shape]
        resized = tv.resize(pixels, size, InterpolationMode.BILINEAR, antialias=True)
        pair = (tv_tensors.Image(resized), tv_tensors.Mask(nearest(mapped, size)))
        with seeded(self.seed, "scaled crop", *key):
            image, mask = self._transform(pair)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)
