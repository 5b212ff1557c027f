"""From an order of images to batches of views, the same with any number of workers."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leanvit.config import DataConfig
from leanvit.data.batch import Unreadable, ViewBatch
from leanvit.data.decode import read_image
from leanvit.data.render import render
from leanvit.data.sampler import Key, Order, replacement
from leanvit.data.sources import Source
from leanvit.data.views import ViewSpec, draw, plan

REPLACEMENTS = 20
"""Unreadable images in a row after which the source counts as broken."""

Rendered = tuple[list[Tensor], int, int, list[Unreadable]]
"""Views of each size [V_g, 3, S, S], image number, class, what had to be replaced."""


class Views(Dataset[Rendered | ValueError]):
    """The views of the image at a place in the order.

    An error of the source is returned, not raised: torch would wrap what a worker raises in its
    own words and a traceback.
    """

    def __init__(self, source: Source, spec: ViewSpec, data: DataConfig, seed: int) -> None:
        self.source, self.spec, self.seed = source, spec, seed
        self.mean = torch.tensor(data.mean).view(-1, 1, 1)
        self.std = torch.tensor(data.std).view(-1, 1, 1)

    def __getitem__(self, key: Key) -> Rendered | ValueError:
        found = self._readable(key)
        if isinstance(found, ValueError):
            return found
        pixels, index, target, unreadable = found
        height, width = pixels.shape[1:]
        units = iter(draw(self.spec, self.seed, key.epoch, index))
        groups = []
        for group in self.spec.groups:
            plans = [plan(view, next(units), height, width) for view in group]
            groups.append(torch.stack([(render(p, pixels) - self.mean) / self.std for p in plans]))
        return groups, index, target, unreadable

    def _readable(self, key: Key) -> tuple[Tensor, int, int, list[Unreadable]] | ValueError:
        """Return the pixels of the image, or of the one that stands in for it."""
        index = key.index
        unreadable: list[Unreadable] = []
        for attempt in range(REPLACEMENTS):
            found = read_image(self.source, index)
            if not isinstance(found, Unreadable):
                pixels, target = found
                return pixels, index, target, unreadable
            unreadable.append(found)
            index = replacement(self.seed, key, attempt, len(self.source))
        names = ", ".join(repr(name) for name in list({e.name: e for e in unreadable})[:3])
        return ValueError(
            f"{REPLACEMENTS} images in a row could not be read, among them {names}; the first "
            f"because of {unreadable[0].error}"
        )


def collate(found: list[Rendered | ValueError]) -> ViewBatch | ValueError:
    """Join the views of B images, or pass on the first error."""
    rendered: list[Rendered] = []
    for entry in found:
        if isinstance(entry, ValueError):
            return entry
        rendered.append(entry)
    groups, index, target, unreadable = zip(*rendered, strict=True)
    return ViewBatch(
        groups=tuple(torch.stack(views, 1) for views in zip(*groups, strict=True)),
        index=torch.tensor(index),
        target=torch.tensor(target),
        unreadable=tuple(entry for entries in unreadable for entry in entries),
    )


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
    if rendering == "device":
        yield from _ahead(decoded(views, order, start, end, workers), device)
        return
    loader = DataLoader(
        views,
        batch_sampler=order.steps(start, end),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # torch would otherwise draw from the global one
    )
    yield from _ahead(map(_require_batch, loader), device)


class Waiting(Protocol):
    """A batch on the host."""

    def to(self, device: torch.device) -> ViewBatch:
        """Return its views on a device; the host does not wait for them."""


def _ahead(batches: Iterable[Waiting], device: torch.device) -> Iterator[ViewBatch]:
    """Yield batches on a device; a GPU copies and renders them beside the step before.

    The host is a step ahead of a GPU, so that what a stream of its own is given here is done
    meanwhile; the next step waits on the device for its batch alone.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        if side is None:
            yield batch.to(device)
            continue
        with torch.cuda.stream(side):
            made = batch.to(device)
        step = torch.cuda.current_stream(device)
        step.wait_stream(side)
        for group in made.groups:
            group.record_stream(step)
        yield made


def _require_batch(found: ViewBatch | ValueError) -> ViewBatch:
    if isinstance(found, ValueError):
        raise found
    return found


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """B images and the plans of their views, in page-locked memory where there is a GPU."""

    images: Ragged
    plans: tuple[Plans, ...]
    """For each size of views."""
    index: Tensor
    target: Tensor
    unreadable: tuple[Unreadable, ...]
    mean: Channels
    std: Channels

    def to(self, device: torch.device) -> ViewBatch:
        """Return the views, rendered on a device."""
        images = self.images.to(device)
        groups = (render_group(images, p.to(device), self.mean, self.std) for p in self.plans)
        return ViewBatch(tuple(groups), self.index, self.target, self.unreadable)


BATCHES_AHEAD = 2
"""Batches that threads decode before they are asked for."""


def decoded(
    views: Views, order: Order, start: int, end: int, threads: int
) -> Iterator[DecodedBatch]:
    """Yield the images of the steps, decoded by threads and joined by one more."""
    with ThreadPoolExecutor(max(threads, 1)) as decoders, ThreadPoolExecutor(1) as joiner:
        ahead: deque[Future[DecodedBatch]] = deque()
        try:
            for keys in order.steps(start, end):
                images = [decoders.submit(views.decode, key) for key in keys]
                ahead.append(joiner.submit(views.join, keys, images))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for pool in (decoders, joiner):
                pool.shutdown(wait=False, cancel_futures=True)
