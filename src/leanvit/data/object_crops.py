"""The views of detection: an image and its objects, scaled, cropped, flipped, recolored.

Letters: n objects of an image, h and w its rows and columns, S side of a crop, B images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from leanvit.config.dense import ObjectCropConfig
from leanvit.core.random import seeded, units
from leanvit.data.batch import ObjectBatch, Objects
from leanvit.data.loader import Decoded, examples
from leanvit.data.objects import ObjectSource
from leanvit.data.sampler import Key, draw_key
from leanvit.data.scaled_crops import cropping, nearest, normalized
from leanvit.kernels.multicrop import Channels

SMALLEST = 1.0
"""Pixels of a side below which a box that was cut is left out."""


def fitted(pixels: Tensor, size: int, factor: float = 1.0) -> Tensor:
    """Return an image [3, h, w] as a square just holds it, times a factor."""
    height, width = pixels.shape[-2:]
    scale = factor * size / max(height, width)
    sides = [max(round(side * scale), 1) for side in (height, width)]
    return tv.resize(pixels, sides, antialias=True)


class ObjectCrops(Dataset[ObjectBatch | ValueError]):
    """The examples at given places of the order, drawn by (seed, epoch, image)."""

    def __init__(
        self,
        source: ObjectSource,
        config: ObjectCropConfig,
        *,
        masks: bool,
        mean: Channels,
        std: Channels,
        seed: int,
    ) -> None:
        self.source, self.config, self.masks, self.seed = source, config, masks, seed
        self.mean, self.std = mean, std
        self._transform = cropping(config, mean, 0)

    def batch(self, keys: Sequence[Key]) -> ObjectBatch | ValueError:
        """Return a batch, or the error of the first image or outline that is none."""
        found = examples(self.source, keys, self.seed, self.example)
        if isinstance(found, ValueError):
            return found
        images, objects = zip(*found.made, strict=True)
        pixels = normalized(torch.stack(images), self.mean, self.std)
        return ObjectBatch(pixels, objects, torch.tensor(found.index), tuple(found.unreadable))

    __getitems__ = batch
    """What torch's loader calls in its workers."""

    def example(self, found: Decoded, epoch: int) -> tuple[Tensor, Objects]:
        """Return the view of an image in an epoch: uint8 [3, S, S], and the objects in it.

        Raises ValueError for an outline that cannot be read.
        """
        height, width = found.pixels.shape[1:]
        objects = self.source.objects(found.index, height, width, masks=self.masks)
        key = draw_key(epoch, found.index)
        low, high = self.config.scale
        factor = low + (high - low) * units(self.seed, "scale", *key, count=1).item()
        pixels = fitted(found.pixels, self.config.size, factor)
        size = list(pixels.shape[1:])
        boxes = tv_tensors.BoundingBoxes(
            objects.boxes,
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        )
        sample = {"image": tv_tensors.Image(pixels), "boxes": tv.resize(boxes, size)}
        if objects.masks is not None:
            sample["masks"] = tv_tensors.Mask(nearest(objects.masks, size))
        with seeded(self.seed, "object crop", *key):
            view = self._transform(sample)
        return view["image"].as_subclass(Tensor), _seen(view, objects)


def _seen(view: dict[str, Tensor], objects: Objects) -> Objects:
    """Return the objects of which a crop has something left."""
    boxes = view["boxes"].as_subclass(Tensor)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST).all(1)
    masks = None
    if objects.masks is not None:
        masks = view["masks"].as_subclass(Tensor)
        kept &= masks.flatten(1).bool().any(1)
        masks = masks[kept]
    return Objects(boxes[kept], objects.labels[kept], objects.crowd[kept], masks)
