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
    views: Views, order: Order, start: int, end: int, *, workers: int, device: torch.device
) -> Iterator[ViewBatch]:
    """Yield the batches of steps start..end - 1 on a device; workers changes their speed alone.

    Raises ValueError if too many images in a row cannot be read.
    """
    loader = DataLoader(
        views,
        batch_sampler=order.steps(start, end),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # torch would otherwise draw from the global one
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch.to(device)
