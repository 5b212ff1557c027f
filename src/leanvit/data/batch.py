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
