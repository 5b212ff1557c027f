"""From an order of images to batches of views, the same with any number of workers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leanvit.config import DataConfig
from leanvit.core.workers import calmly, serve_parent
from leanvit.data.batch import Unreadable, ViewBatch
from leanvit.data.decode import read_image
from leanvit.data.ragged import pack, tabulate
from leanvit.data.render import Normalizer
from leanvit.data.sampler import Key, Order, replacement
from leanvit.data.sources import Source
from leanvit.data.views import Plan, ViewSpec, draw, plan
from leanvit.kernels.multicrop import Channels, Plans, Ragged, render_group

T = TypeVar("T")

REPLACEMENTS = 20
"""Unreadable images in a row after which the source counts as broken."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image that could be read."""

    pixels: Tensor
    """uint8 [3, height, width]."""
    index: int
    """Its number in the source."""
    target: int
    """Its class, -1 if there is none."""
    unreadable: list[Unreadable]
    """Images that it stands in for."""
    copy: int = 0
    """Which of the places of its key's image it is."""


class Origins:
    """Where the images of a batch come from: number, class, copy, what each stands in for."""

    def __init__(self) -> None:
        self.index: list[int] = []
        self.target: list[int] = []
        self.unreadable: list[Unreadable] = []
        self.copy: list[int] = []

    def add(self, image: Decoded) -> None:
        """Write down one image more."""
        self.index.append(image.index)
        self.target.append(image.target)
        self.unreadable += image.unreadable
        self.copy.append(image.copy)

    def all(self) -> tuple[Tensor, Tensor, tuple[Unreadable, ...], Tensor]:
        """Return numbers [B], classes [B], images that were replaced, and copies [B]."""
        index, target, copy = map(torch.tensor, (self.index, self.target, self.copy))
        return index, target, tuple(self.unreadable), copy


def read_or_replace(source: Source, key: Key, seed: int) -> Decoded | ValueError:
    """Return the image at a place in the order, or the one that stands in for it.

    An error is returned where too many in a row cannot be read.
    """
    index = key.index
    unreadable: list[Unreadable] = []
    for attempt in range(REPLACEMENTS):
        found = read_image(source, index)
        if not isinstance(found, Unreadable):
            pixels, target = found
            return Decoded(pixels, index, target, unreadable, key.copy)
        unreadable.append(found)
        index = replacement(seed, key, attempt, len(source))
    names = ", ".join(repr(name) for name in list({e.name: e for e in unreadable})[:3])
    return ValueError(
        f"{REPLACEMENTS} images in a row could not be read, among them {names}; the first "
        f"because of {unreadable[0].error}"
    )


@dataclass(frozen=True, slots=True)
class Examples(Generic[T]):
    """What was made of the images of a batch."""

    made: list[T]
    index: list[int]
    """Number of each in its source."""
    unreadable: list[Unreadable]
    """Images that were replaced on the way."""


def examples(
    source: Source, keys: Sequence[Key], seed: int, make: Callable[[Decoded, int], T]
) -> Examples[T] | ValueError:
    """Return what becomes of the images at some places in the order, each with its epoch.

    An error of `make`, or of images that cannot be read, is returned.
    """
    found: Examples[T] = Examples([], [], [])
    for key in keys:
        image = read_or_replace(source, key, seed)
        if isinstance(image, ValueError):
            return image
        try:
            found.made.append(make(image, key.epoch))
        except ValueError as error:
            return error
        found.index.append(image.index)
        found.unreadable.extend(image.unreadable)
    return found


class Views(Dataset[ViewBatch | ValueError]):
    """The views of the images at given places in the order."""

    def __init__(self, source: Source, spec: ViewSpec, data: DataConfig, seed: int) -> None:
        self.source, self.spec, self.seed = source, spec, seed
        self.normalizer = Normalizer(data.mean, data.std)

    def batch(self, keys: Sequence[Key]) -> ViewBatch | ValueError:
        """Return a batch, rendered on this core.

        An error of the source is returned, not raised: torch would wrap what a worker raises in
        its own words and a traceback.
        """
        groups = tuple(
            torch.empty(len(group), len(keys), 3, group[0].size, group[0].size)
            for group in self.spec.groups
        )
        origins = Origins()
        for place, key in enumerate(keys):
            image = self.decode(key)
            if isinstance(image, ValueError):
                return image
            for group, plans in zip(groups, self.plans(key.epoch, image), strict=True):
                for view, planned in zip(group[:, place], plans, strict=True):
                    self.normalizer.render(planned, image.pixels, view)
            origins.add(image)
        return ViewBatch(groups, *origins.all())

    __getitems__ = batch
    """What torch's loader calls in its workers."""

    def plans(self, epoch: int, image: Decoded) -> list[list[Plan]]:
        """Return what becomes of an image in the views of each size."""
        height, width = image.pixels.shape[1:]
        units = iter(draw(self.spec, self.seed, epoch, image.index, image.copy))
        return [
            [plan(view, next(units), height, width) for view in group] for group in self.spec.groups
        ]

    def decode(self, key: Key) -> Decoded | ValueError:
        """Return the image at a place in the order, or the one that stands in for it."""
        return read_or_replace(self.source, key, self.seed)

    def join(
        self, keys: Sequence[Key], found: Sequence[Decoded | ValueError], *, pin: bool = False
    ) -> "DecodedBatch":
        """Return B images with the plans of their views, in page-locked memory if pin.

        Raises the first error among them.
        """
        origins, images, planned = Origins(), [], []
        for key, image in zip(keys, found, strict=True):
            if isinstance(image, ValueError):
                raise image
            origins.add(image)
            images.append(image.pixels)
            planned.append(self.plans(key.epoch, image))
        plans = [tabulate(list(zip(*group, strict=True))) for group in zip(*planned, strict=True)]
        mean, std = self.normalizer.mean, self.normalizer.std
        return DecodedBatch(pack(images, pin=pin), tuple(plans), mean, std, *origins.all())


def load_views(
    views: Views,
    order: Order,
    start: int,
    end: int,
    *,
    workers: int,
    device: torch.device,
    rendering: str = "host",
) -> Iterator[ViewBatch]:
    """Yield the batches of steps start..end - 1 on a device; workers changes their speed alone.

    rendering: where pixels of views are made. `host`: by `workers` processes, since rendering holds
    Python's lock too often for threads. `device`: where the step runs, from images that `workers`
    threads decode, since decoders let go of the lock. Raises ValueError if too many images in a
    row cannot be read.
    """
    cuda = device.type == "cuda"
    side = torch.cuda.Stream(device) if cuda else None
    if rendering == "device":
        found = decoded(views, order, start, end, threads=workers, pin=cuda)
        yield from map(partial(_moved, device=device, side=side), found)  # and forgets each at once
        return
    for batch in load_batches(views, order.steps(start, end), workers=workers, pin=cuda):
        yield _moved(batch, device, side)


def at_hand(workers: int) -> int:
    """Return how many steps a run's first batches serve that lie ready when it begins, at most.

    Those after them show what waiting for data costs.
    """
    return 1 + 2 * workers  # processes read ahead by two batches each


def load_batches(
    examples: Dataset[Any], keys: Iterable[list[Any]], *, workers: int, pin: bool
) -> Iterator[Any]:
    """Yield what a data set makes of each batch of places, by so many processes.

    Raises the error that it returned in a batch's place.
    """
    loader = DataLoader(
        examples,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        generator=torch.Generator(),  # torch would otherwise draw from the global one
        worker_init_fn=serve_parent,
    )
    # no other name for the iterator: an error's traceback would keep its processes
    for batch in calmly(loader):
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


class Waiting(Protocol):
    """A batch on the host."""

    def to(self, device: torch.device) -> ViewBatch:
        """Return its views on a device; the host does not wait for them."""


def _moved(batch: Waiting, device: torch.device, side: torch.cuda.Stream | None) -> ViewBatch:
    """Return a batch on a device; a GPU copies and renders it beside the step before.

    The host is a step ahead of a GPU, so that what a stream of its own is given here is done
    meanwhile; the next step waits on the device for its batch alone.
    """
    if side is None:
        return batch.to(device)
    with torch.cuda.stream(side):
        made = batch.to(device)
    step = torch.cuda.current_stream(device)
    step.wait_stream(side)
    for group in made.groups:
        group.record_stream(step)
    return made


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """B images and the plans of their views, in page-locked memory where there is a GPU."""

    images: Ragged
    plans: tuple[Plans, ...]
    """For each size of views."""
    mean: Channels
    """Of the channels, pixels in [0, 1]."""
    std: Channels
    index: Tensor
    """[B] as in `ViewBatch`."""
    target: Tensor
    unreadable: tuple[Unreadable, ...]
    copy: Tensor

    def to(self, device: torch.device) -> ViewBatch:
        """Return the views, rendered on a device."""
        images = self.images.to(device)
        groups = (render_group(images, p.to(device), self.mean, self.std) for p in self.plans)
        return ViewBatch(tuple(groups), self.index, self.target, self.unreadable, self.copy)


BATCHES_AHEAD = 1
"""Batches that threads decode before they are asked for: of large images, one takes gigabytes."""


def decoded(
    views: Views, order: Order, start: int, end: int, *, threads: int, pin: bool = False
) -> Iterator[DecodedBatch]:
    """Yield the images of steps start..end - 1, decoded by threads and joined by one more."""
    with ThreadPoolExecutor(max(threads, 1)) as decoders, ThreadPoolExecutor(1) as joiner:

        def join(keys: list[Key], images: list[Future[Decoded | ValueError]]) -> DecodedBatch:
            return views.join(keys, [image.result() for image in images], pin=pin)

        ahead: deque[Future[DecodedBatch]] = deque()
        try:
            for keys in order.steps(start, end):
                ahead.append(
                    joiner.submit(join, keys, [decoders.submit(views.decode, key) for key in keys])
                )
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # whoever stops early waits for no more than what has begun
            decoders.shutdown(wait=False, cancel_futures=True)
            joiner.shutdown(wait=False, cancel_futures=True)
