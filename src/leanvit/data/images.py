"""Whole images for evaluation: the shorter side resized, the middle taken, nothing drawn.

Letters: B images, S side of the input in pixels.
"""

import hashlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from leanvit.core.workers import calmly, serve_parent
from leanvit.data.batch import Unreadable
from leanvit.data.decode import read_image
from leanvit.data.sources import Sample, Source

PAPER_CROP = 0.875
"""Share of the shorter side that the papers' evaluations show: 224 pixels of 256."""
FURTHEST = 8
"""Shorter sides that the longer one is cut to: far beyond what is seen, and little to resize."""


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """B images that could be read, and those between them that could not."""

    pixels: Tensor
    """[B, 3, S, S] in [0, 1], not normalised; or what a change made of each."""
    index: Tensor
    """[B] number in the source."""
    target: Tensor
    """[B] class, -1 where the source has none."""
    unreadable: tuple[Unreadable, ...]
    marks: bytes = b""
    """Digests of what the images were decoded from, `mark` of each."""


Middle = tuple[Tensor, int, bytes] | Unreadable
"""Pixels, class and mark of an image, or why there are none."""


MARK = 32
"""Bytes of a mark."""


def mark(image: bytes | NDArray[np.uint8]) -> bytes:
    """Return a digest of an encoded image or of its pixels."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    shape = repr(image.shape).encode()
    return hashlib.sha256(shape + image.tobytes()).digest()


class _Marking:
    """A source that remembers the mark of the image that was read last."""

    def __init__(self, source: Source) -> None:
        self.source, self.mark = source, b""

    def name(self, index: int) -> str:
        return self.source.name(index)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        self.mark = mark(sample.image)
        return sample


def middle(pixels: Tensor, size: int, crop: float) -> Tensor:
    """Return the middle of an image [3, h, w] as [3, size, size].

    Its shorter side becomes size / crop pixels (bicubic, antialiased), of which the middle `size`
    stay. uint8 becomes [0, 1]; what is floating-point already is taken as it is.
    """
    shorter = min(pixels.shape[-2:])
    sides = [min(side, FURTHEST * shorter) for side in pixels.shape[-2:]]
    pixels = tv.center_crop(pixels, sides)
    target = [round(size / crop) * side // shorter for side in sides]  # torchvision's Resize floors
    values = pixels if pixels.is_floating_point() else pixels.float() / 255
    if target != sides:
        values = tv.resize(values, target, InterpolationMode.BICUBIC, antialias=True).clamp_(0, 1)
    return tv.center_crop(values, [size, size])


class Change(Protocol):
    """What is made of an image's middle where it is read, before a network sees it."""

    @property
    def key(self) -> str:
        """Words that are the same only where the same is made of the same image."""

    def __call__(self, pixels: Tensor, index: int) -> Tensor:
        """Return what becomes of [3, S, S] in [0, 1], of the image of this number."""


class Images(Dataset[tuple[int, Middle]]):
    """The middle of every image of a source, or what a change makes of it."""

    def __init__(
        self, source: Source, size: int, crop: float, change: Change | None = None
    ) -> None:
        self.source, self.size, self.crop, self.change = source, size, crop, change

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Middle]:
        source = _Marking(self.source)
        found = read_image(source, index)
        if isinstance(found, Unreadable):
            return index, found
        pixels, target = found
        seen = middle(pixels, self.size, self.crop)
        return index, (self.change(seen, index) if self.change else seen, target, source.mark)


def _collate(found: list[tuple[int, Middle]]) -> ImageBatch:
    read = [(i, entry) for i, entry in found if not isinstance(entry, Unreadable)]
    pixels = [entry[0] for _, entry in read]
    return ImageBatch(
        torch.stack(pixels) if pixels else torch.empty(0, 3, 0, 0),
        torch.tensor([index for index, _ in read], dtype=torch.long),
        torch.tensor([entry[1] for _, entry in read], dtype=torch.long),
        tuple(entry for _, entry in found if isinstance(entry, Unreadable)),
        b"".join(entry[2] for _, entry in read),
    )


def load_images(
    source: Source,
    *,
    size: int,
    crop: float,
    batch: int | Sequence[range],
    workers: int,
    change: Change | None = None,
) -> Iterator[ImageBatch]:
    """Yield all images of a source once, in order, on the CPU.

    batch: how many at a time, or, where not all are wanted, which ones each time; change: what is
    made of each.
    """
    batches = in_batches(range(len(source)), batch) if isinstance(batch, int) else batch
    loader = DataLoader(
        Images(source, size, crop, change),
        batch_sampler=[list(images) for images in batches],
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # torch would otherwise draw from the global one
        worker_init_fn=serve_parent,
    )
    yield from calmly(loader)


def in_batches(images: range, batch: int) -> list[range]:
    """Return a row of images cut into batches; the last one may be smaller."""
    return [images[start : start + batch] for start in range(0, len(images), batch)]


def usual_crop(source: Source, size: int, look_at: int = 32) -> float:
    """Return the papers' share, or 1 if images are no larger than the input.

    The middle one of a few shorter sides decides for all images.
    """
    sides = []
    for index in range(0, len(source), max(len(source) // look_at, 1)):
        found = read_image(source, index)
        if not isinstance(found, Unreadable):
            sides.append(min(found[0].shape[1:]))
    return 1.0 if sides and statistics.median(sides) <= size else PAPER_CROP
