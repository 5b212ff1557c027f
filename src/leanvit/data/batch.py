"""What travels from the loader to the method. Of a batch the loop asks nothing but `split`.

Letters: V_g views of one size, B images, S side in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor


class Batch(Protocol):
    """What the loop needs of a batch."""

    def __len__(self) -> int:
        """Return the number of images."""

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""

    def split(self, parts: int) -> Iterator[Self]:
        """Yield equal micro-batches."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that could not be decoded and was replaced."""

    index: int
    """Its number in the source."""
    name: str
    """Its name in the source."""
    error: str
    """Type and text of what went wrong."""


@dataclass(frozen=True, slots=True)
class ViewBatch:
    """Views of B images."""

    groups: tuple[Tensor, ...]
    """One [V_g, B, 3, S, S] for each size, normalised; global views first."""
    index: Tensor
    """[B] number of each image in its source, on the CPU."""
    target: Tensor
    """[B] class, -1 where the source has none, on the CPU."""
    unreadable: tuple[Unreadable, ...] = ()
    """Images that were replaced on the way."""
    copy: Tensor | None = None
    """[B] which of its image's places in the epoch each is, on the CPU; None: the first alone."""

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "ViewBatch":
        """Return the batch with its views on a device."""
        return replace(self, groups=tuple(g.to(device, non_blocking=True) for g in self.groups))

    def split(self, parts: int) -> Iterator["ViewBatch"]:
        """Yield equal micro-batches of neighbouring images."""
        size = len(self) // parts
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield ViewBatch(
                tuple(group[:, part] for group in self.groups),
                self.index[part],
                self.target[part],
                copy=None if self.copy is None else self.copy[part],
            )

    def pin_memory(self) -> "ViewBatch":
        """Return the batch with its views in page-locked memory (called by the data loader)."""
        return replace(self, groups=tuple(group.pin_memory() for group in self.groups))


@dataclass(frozen=True, slots=True)
class MapBatch:
    """B images with a class for every pixel."""

    images: Tensor
    """[B, 3, S, S], normalised."""
    maps: Tensor
    """[B, S, S] uint8 class of every pixel, 255 where it has none."""
    index: Tensor
    """[B] number of each image in its source, on the CPU."""
    unreadable: tuple[Unreadable, ...] = ()
    """Images that were replaced on the way."""

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "MapBatch":
        """Return the batch with images and maps on a device."""
        images, maps = (part.to(device, non_blocking=True) for part in (self.images, self.maps))
        return replace(self, images=images, maps=maps)

    def split(self, parts: int) -> Iterator["MapBatch"]:
        """Yield equal micro-batches of neighbouring images."""
        size = len(self) // parts
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield MapBatch(self.images[part], self.maps[part], self.index[part])

    def pin_memory(self) -> "MapBatch":
        """Return the batch in page-locked memory (called by the data loader)."""
        return replace(self, images=self.images.pin_memory(), maps=self.maps.pin_memory())


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of an image of h rows and w columns; n of them."""

    boxes: Tensor
    """[n, 4] left, top, right, bottom in pixels, inside of the image, with an area."""
    labels: Tensor
    """[n] class, from 0."""
    crowd: Tensor
    """[n] whether it is not learned and not counted."""
    masks: Tensor | None
    """[n, h, w] uint8, 1 where the object is; None where only boxes are known."""
    areas: Tensor | None = None
    """[n] pixels as the annotations say, 0 where they do not; None where none does."""

    def to(self, device: torch.device) -> "Objects":
        """Return the objects on a device."""
        boxes, labels, crowd = (
            part.to(device, non_blocking=True) for part in (self.boxes, self.labels, self.crowd)
        )
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return Objects(boxes, labels, crowd, masks)


@dataclass(frozen=True, slots=True)
class ObjectBatch:
    """B images with objects in them."""

    images: Tensor
    """[B, 3, S, S], normalised."""
    objects: tuple[Objects, ...]
    """Of each image."""
    index: Tensor
    """[B] number of each image in its source, on the CPU."""
    unreadable: tuple[Unreadable, ...] = ()
    """Images that were replaced on the way."""

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "ObjectBatch":
        """Return the batch with images and objects on a device."""
        objects = tuple(each.to(device) for each in self.objects)
        return replace(self, images=self.images.to(device, non_blocking=True), objects=objects)

    def split(self, parts: int) -> Iterator["ObjectBatch"]:
        """Yield equal micro-batches of neighbouring images."""
        size = len(self) // parts
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield ObjectBatch(self.images[part], self.objects[part], self.index[part])

    def pin_memory(self) -> "ObjectBatch":
        """Return the batch with its images in page-locked memory (called by the data loader)."""
        return replace(self, images=self.images.pin_memory())
