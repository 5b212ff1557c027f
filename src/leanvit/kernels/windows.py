"""Which tokens lie in which (shifted) window, for images of several sizes.

A `WindowLayout` says for every window slot which place of an image lies there. It is built once for
a set of image sizes by padding, rolling and partitioning a map of place numbers; after that, tokens
are moved into windows and back by their numbers.

Letters: N tokens of all images, S = windows * T slots, T = window side squared, H heads,
G = window patterns (a window's place in an image of one size), n tokens of a window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanvit.core.tracing import exporting, once_per_size

Shapes = tuple[tuple[int, int, int], ...]
"""(images, rows, columns) of each group of equally sized images."""

Pattern = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Places [G, T], regions [G, T] and mask [G, T, T] of the windows of one image."""

MASKED = -100.0  # Swin's constant; kept because official weights were trained with it.


@dataclass(frozen=True, slots=True)
class Run:
    """Windows that have the same mask and the same slots filled."""

    windows: int
    slots: Tensor
    """[n] slots that hold a token."""
    padding: Tensor
    """[T - n] the others; none where padding is skipped."""
    mask: Tensor
    """[T, T] 0 or -100."""

    def bias(self, bias: Tensor) -> Tensor:
        """Return what is added to logits of the n tokens [H, n, n or n + 1], of bias [H, T, T].

        All padding slots have the same key and value, so that one key stands for them, with the
        log-sum-exp of their biases: the same attention, computed for n tokens alone.
        """
        rows = (bias + self.mask).index_select(1, self.slots)
        tokens = rows.index_select(2, self.slots)
        if not len(self.padding):
            return tokens
        return torch.cat([tokens, rows.index_select(2, self.padding).logsumexp(-1, True)], -1)


@dataclass(frozen=True, slots=True)
class KernelTables:
    """All windows of all images, as the kernels take them."""

    runs: tuple[Run, ...]
    """Windows that are alike together."""
    tokens_by_run: Tensor
    """[N] the tokens of run after run, window after window."""
    places_by_run: Tensor
    """[N] where each token stands in `tokens_by_run`."""
    windows: Tensor
    """[S / T, 2] int32: number of each window's pattern, and the first token of its image."""
    patterns: Tensor
    """[G of all sizes, 2, T] int32: place of each slot, as in `places`, and its region: logits
    between regions are masked. Skipped padding has the region -1, which nothing sees."""


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """Which place of an image lies in which slot of which window, for each size."""

    images: tuple[int, ...]
    """Images of each size; a symbol where an exported graph counts them when it runs."""
    places: tuple[Tensor, ...]
    """[G, T] row-major place in the image of each slot, -1 for padding."""
    slots: tuple[Tensor, ...]
    """[rows * columns] slot of each place, of the G * T slots of an image."""
    masks: tuple[Tensor | None, ...]
    """[G, T, T] 0 or -100 added to logits, -inf for keys of skipped padding; None: all is 0."""
    tables: KernelTables | None
    """None in an exported graph, where there are no kernels of ours."""


@once_per_size
def window_layout(
    shapes: Shapes, window: int, shift: int, device: torch.device, skip_padding: bool = False
) -> WindowLayout:
    """Return the layout for images that are zero-padded right and below, then rolled (EsViT).

    The mask follows the real padded size. skip_padding: no token sees padding, unlike in EsViT.
    """
    patterns = [_one_image(*shape[1:], window, shift, skip_padding) for shape in shapes]

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return WindowLayout(
        images=tuple(images for images, _, _ in shapes),
        places=tuple(tensor(place) for place, _, _ in patterns),
        slots=tuple(tensor(_slots(place)) for place, _, _ in patterns),
        masks=tuple(tensor(mask) if mask.any() else None for _, _, mask in patterns),
        tables=None if exporting() else _tables(shapes, patterns, skip_padding, tensor),
    )


def _slots(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the slot of each place [rows * columns] of an image, of its places [G, T]."""
    real = np.flatnonzero(places >= 0)
    slots = np.empty_like(real)
    slots[places.ravel()[real]] = real
    return slots


def _tables(
    shapes: Shapes,
    patterns: Sequence[Pattern],
    skip_padding: bool,
    tensor: Callable[[NDArray[Any]], Tensor],
) -> KernelTables:
    """Spread the patterns of each size over its images."""
    tokens, start = [], 0
    for (images, rows, columns), (place, _, _) in zip(shapes, patterns, strict=True):
        offset = start + np.arange(images).reshape(-1, 1, 1) * rows * columns
        tokens.append(np.where(place < 0, -1, place + offset).reshape(-1, place.shape[1]))
        start += images * rows * columns
    alikes = _alike(patterns, [images for images, _, _ in shapes])
    sorted_windows = np.concatenate(tokens)[np.concatenate([numbers for *_, numbers in alikes])]
    by_run = sorted_windows[sorted_windows >= 0]
    return KernelTables(
        runs=tuple(
            Run(
                len(numbers),
                slots=tensor(np.flatnonzero(place >= 0)),
                padding=tensor(np.flatnonzero(place < (-1 if skip_padding else 0))),
                mask=tensor(mask),
            )
            for place, mask, numbers in alikes
        ),
        tokens_by_run=tensor(by_run),
        places_by_run=tensor(np.argsort(by_run)),
        windows=tensor(_numbered(shapes, [len(place) for place, _, _ in patterns])),
        patterns=tensor(np.concatenate([np.stack(two, 1) for *two, _ in patterns], dtype=np.int32)),
    )


def _one_image(rows: int, columns: int, window: int, shift: int, skip_padding: bool) -> Pattern:
    """Return the windows of one image."""
    place = np.arange(rows * columns).reshape(rows, columns)
    place = np.pad(place, ((0, -rows % window), (0, -columns % window)), constant_values=-1)
    down, right = (_regions(side, window, shift) for side in place.shape)
    place = partition(np.roll(place, (-shift, -shift), (0, 1)), window)
    region = partition(down[:, None] * 3 + right[None, :], window)
    differ = region[:, :, None] != region[:, None, :]
    mask = np.where(differ, np.float32(MASKED), np.float32(0))
    if skip_padding:
        region = np.where(place < 0, -1, region)
        mask = np.where(place[:, None] < 0, np.float32(-np.inf), mask)
    return place, region, mask


def _regions(side: int, window: int, shift: int) -> NDArray[np.int64]:
    """Number the parts of a rolled side that were not neighbours before rolling."""
    position = np.arange(side)
    if not shift:
        return np.zeros_like(position)
    return (position >= side - window).astype(np.int64) + (position >= side - shift)


def _numbered(shapes: Shapes, counts: Sequence[int]) -> NDArray[np.int32]:
    """Return `KernelTables.windows`; counts: patterns of each size."""
    found, pattern, token = [], 0, 0
    for (images, rows, columns), count in zip(shapes, counts, strict=True):
        firsts = token + np.arange(images)[:, None] * rows * columns
        pairs = np.broadcast_arrays(pattern + np.arange(count), firsts)
        found.append(np.stack(pairs, -1).reshape(-1, 2))
        pattern, token = pattern + count, token + images * rows * columns
    return np.concatenate(found).astype(np.int32)


def _alike(
    patterns: Sequence[Pattern], images: Sequence[int]
) -> list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]]:
    """Return place [T], mask [T, T] and the numbers of the windows of each run."""
    known: dict[bytes, tuple[NDArray[np.int64], NDArray[np.float32], list[NDArray[np.int64]]]] = {}
    first = 0
    for (places, _, masks), count in zip(patterns, images, strict=True):
        for number, (place, mask) in enumerate(zip(places, masks, strict=True), start=first):
            key = (place < 0).tobytes() + mask.tobytes()
            numbers = number + np.arange(count) * len(places)
            known.setdefault(key, (place, mask, []))[2].append(numbers)
        first += count * len(places)
    return [(place, mask, np.concatenate(numbers)) for place, mask, numbers in known.values()]


def partition(grid: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Cut [rows, columns] into [G, T]."""
    rows, columns = grid.shape
    grid = grid.reshape(rows // window, window, columns // window, window)
    return grid.swapaxes(1, 2).reshape(-1, window * window)
