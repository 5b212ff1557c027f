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
from torch.autograd.function import once_differentiable

from leanvit.core.tracing import exporting, once_per_size

Shapes = tuple[tuple[int, int, int], ...]
"""(images, rows, columns) of each group of equally sized images."""

Pattern = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Places [G, T], regions [G, T] and mask [G, T, T] of the windows of one image."""

MASKED = -100.0  # Swin's constant; kept because official weights were trained with it.
UNSEEN = np.float32(-1e30)
"""A logit whose exponential is 0, and whose differences are finite."""


@dataclass(frozen=True, slots=True)
class Run:
    """Windows that have the same mask and the same slots filled."""

    windows: int
    queries: int
    """n."""
    keys: int
    """n, and one more where there is padding that can be seen."""
    masked: bool
    """Whether there are pairs that the mask keeps apart."""


@dataclass(frozen=True, slots=True)
class KernelTables:
    """All windows of all images, as the kernels take them."""

    runs: tuple[Run, ...]
    """Windows that are alike together."""
    masks: Tensor
    """[1 or 2, runs, T, T]: 0 or -100; then, where a run has padding that can be seen, the same
    for that padding alone, and `UNSEEN` for all else."""
    logits: Tensor
    """[all n * keys, run after run] which of [runs, T, T + 1], or T without padding, they are."""
    tokens_by_run: Tensor
    """[N] the tokens of run after run, window after window."""
    places_by_run: Tensor
    """[N] where each token stands in `tokens_by_run`."""
    windows: Tensor
    """[S / T, 2] int32: number of each window's pattern, and the first token of its image."""
    patterns: Tensor
    """[G of all sizes, 2, T] int32: place of each slot, as in `places`, and its region: logits
    between regions are masked. Skipped padding has the region -1, which nothing sees."""

    def biases(self, bias: Tensor) -> Tensor:
        """Return what is added to the logits of all runs [H, all n * keys], of bias [H, T, T].

        All padding slots of a window have the same key and value, so that one key stands for them,
        with the log-sum-exp of their biases: the same attention, computed for n tokens alone.
        """
        if torch.compiler.is_compiling():  # what is kept is the compiler's to say
            return self.flat(bias)
        found: Tensor = _Biases.apply(bias, self)
        return found

    def flat(self, bias: Tensor) -> Tensor:
        """Return what `biases` does, by torch's operations alone."""
        every, padding = self.of_runs(bias)
        if padding is not None:
            every = torch.cat([every, padding.logsumexp(-1, keepdim=True)], -1)
        return every.flatten(1).gather(1, self.logits.expand(len(bias), -1))

    def of_runs(self, bias: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the biases of all slots [H, runs, T, T]; beside them those of padding alone.

        In the latter all else is `UNSEEN`; None where no run has padding.
        """
        every, *padding = (bias[:, None, None] + self.masks).unbind(1)
        return every, padding[0] if padding else None


class _Biases(torch.autograd.Function):
    """What `KernelTables.biases` returns; keeps nothing but its argument."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, tables: KernelTables) -> Tensor:
        ctx.tables = tables
        ctx.save_for_backward(bias)
        return tables.flat(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (bias,), tables = ctx.saved_tensors, ctx.tables
        every, padding = tables.of_runs(bias)
        side = every.shape[-1]
        wide = gradient.new_zeros(*every.shape[:-1], side + (padding is not None))
        wide.flatten(1).scatter_(1, tables.logits.expand(len(bias), -1), gradient)
        to_every = wide[..., :side]
        if padding is not None:
            to_every = to_every + padding.softmax(-1) * wide[..., side:]
        return to_every.sum(1), None


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
    padded = np.stack([place < (-1 if skip_padding else 0) for place, _, _ in alikes])
    entries = [
        _entries(number, place, padded[number].any(), padded.any())
        for number, (place, _, _) in enumerate(alikes)
    ]
    masks = np.stack([mask for _, mask, _ in alikes])[None]
    if padded.any():
        masks = np.concatenate([masks, np.where(padded[:, None], masks, UNSEEN)])
    return KernelTables(
        runs=tuple(
            Run(len(numbers), each.shape[0], each.shape[1], bool((mask == MASKED).any()))
            for each, (_, mask, numbers) in zip(entries, alikes, strict=True)
        ),
        masks=tensor(masks),
        logits=tensor(np.concatenate([each.ravel() for each in entries])),
        tokens_by_run=tensor(by_run),
        places_by_run=tensor(np.argsort(by_run)),
        windows=tensor(_numbered(shapes, [len(place) for place, _, _ in patterns])),
        patterns=tensor(np.concatenate([np.stack(two, 1) for *two, _ in patterns], dtype=np.int32)),
    )


def _entries(
    number: int, place: NDArray[np.int64], padded: np.bool, extended: np.bool
) -> NDArray[np.int64]:
    """Return which of [runs, T, T or T + 1] are the logits [n, keys] of a run of this number.

    padded: whether it has padding to be seen; extended: whether any run does.
    """
    side = len(place)
    slots = np.flatnonzero(place >= 0)
    keys = np.append(slots, side) if padded else slots
    return (number * side + slots[:, None]) * (side + bool(extended)) + keys


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
