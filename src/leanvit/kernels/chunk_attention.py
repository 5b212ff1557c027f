"""Attention of chunks of an image to the chunks around them and to global tokens.

An image's token grid is cut into square chunks. The tokens of a chunk see their own chunk, its
eight neighbours and the image's global tokens (Vision Longformer, arXiv 2103.15358). Packed tokens
lie image after image, global tokens first. A `ChunkLayout` says which tokens each chunk sees; it
is built once for a set of image sizes. Neighbours beyond the border wrap around and are masked, so
that every chunk is seen by as many chunks as it sees, and the gradient is a gather too.

Letters: N tokens of all images, I images, g global tokens an image, G chunks of all images,
P chunks of one image, T places of a chunk (window side squared), K chunks that one chunk sees,
M = K * T + g keys, C channels, H heads, d = C / H.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from leanvit.core.precision import full
from leanvit.core.tracing import once_per_size
from leanvit.kernels.attention import attend
from leanvit.kernels.windows import Shapes, partition

AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Where the neighbours 0..7 of a chunk lie: chunks down, chunks right."""


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """Which tokens each chunk sees: its own chunk, its neighbours, the image's global tokens."""

    keys: Tensor
    """[G, M] token of each key; where there is none, the first of that chunk, which is masked."""
    slots: Tensor
    """[N] number of each token among the G * T places; any for global tokens."""
    readers: Tensor
    """[K, G] the chunk that sees a chunk as its neighbour of this number."""
    prefixes: Tensor
    """[I * g] the global tokens."""
    offsets: Tensor
    """[T, K * T] row of the position table for each query and key."""
    masks: tuple[Tensor, ...]
    """[P, M] of each size: 0, or -inf where there is no key."""
    images: tuple[int, ...]
    """Images of each size."""

    def chunks(self) -> list[int]:
        """Return the chunks of all images of each size."""
        return [n * len(mask) for n, mask in zip(self.images, self.masks, strict=True)]


@once_per_size
def chunk_layout(shapes: Shapes, prefix: int, window: int, device: torch.device) -> ChunkLayout:
    """Return the layout for images that are padded right and below to whole chunks.

    prefix: g. What is counted over images is torch's, so that an exported graph counts its own.
    """
    keys, slots, readers, prefixes, masks = [], [], [], [], []
    token = chunk = 0
    for images, rows, columns in shapes:
        key, mask, slot, reader = _one_image(rows, columns, prefix, window)
        first, places = np.arange(prefix), window**2
        keys.append(_of_images(key, images, token, len(slot)).flatten(0, 1))
        slots.append(_of_images(slot, images, chunk * places, len(key) * places).flatten())
        readers.append(_of_images(reader, images, chunk, len(key)).transpose(0, 1).flatten(1))
        prefixes.append(_of_images(first, images, token, len(slot)).flatten())
        masks.append(mask)
        token += images * len(slot)
        chunk += images * len(key)
    return ChunkLayout(
        keys=torch.cat(keys).to(device),
        slots=torch.cat(slots).to(device),
        readers=torch.cat(readers, 1).to(device),
        prefixes=torch.cat(prefixes).to(device),
        offsets=torch.from_numpy(_offsets(window)).to(device),
        masks=tuple(torch.from_numpy(mask).to(device) for mask in masks),
        images=tuple(images for images, _, _ in shapes),
    )


def _of_images(table: NDArray[np.int64], images: int, first: int, step: int) -> Tensor:
    """Return [images, ...]: a table of numbers, counted from `first`, and `step` on each image."""
    starts = first + step * torch.arange(images)
    return starts.view(-1, *[1] * table.ndim) + torch.from_numpy(table)


def one_neighbor(layout: ChunkLayout, neighbor: Tensor) -> ChunkLayout:
    """Return the layout in which a chunk sees itself and one neighbour, [] of 0..7 as in AROUND."""
    side = len(layout.offsets)
    seen = functional.pad(neighbor.reshape(1) + 1, (1, 0))
    columns = (seen[:, None] * side + torch.arange(side, device=seen.device)).flatten()
    last = torch.arange(layout.offsets.shape[1], layout.keys.shape[1], device=seen.device)
    keys = torch.cat([columns, last])
    return replace(
        layout,
        keys=layout.keys.index_select(1, keys),
        readers=layout.readers.index_select(0, seen),
        offsets=layout.offsets.index_select(1, columns),
        masks=tuple(mask.index_select(1, keys) for mask in layout.masks),
    )


def _one_image(
    rows: int, columns: int, prefix: int, window: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return keys and mask [P, M], slots [g + rows * columns], readers [K, P] of one image."""
    place = np.arange(prefix, prefix + rows * columns).reshape(rows, columns)
    place = np.pad(place, ((0, -rows % window), (0, -columns % window)), constant_values=-1)
    sides = [side // window for side in place.shape]
    place = partition(place, window)
    slots = np.zeros(prefix + rows * columns, dtype=np.int64)
    slots[place[place >= 0]] = np.flatnonzero(place >= 0)
    chunk = np.stack(np.unravel_index(np.arange(len(place)), sides))[:, None]
    step = np.array(((0, 0), *AROUND)).T[..., None]
    seen, readers = (
        np.ravel_multi_index(tuple(c), sides, "wrap") for c in (chunk + step, chunk - step)
    )
    inside = ((chunk + step >= 0) & (chunk + step < np.reshape(sides, (2, 1, 1)))).all(0)
    hidden = (place < 0)[seen] | ~inside[..., None]  # [K, P, T]
    keys = np.where(place < 0, place[:, :1], place)[seen]
    keys, hidden = (part.swapaxes(0, 1).reshape(len(place), -1) for part in (keys, hidden))
    keys = np.concatenate([keys, np.broadcast_to(np.arange(prefix), (len(place), prefix))], 1)
    mask = np.pad(np.where(hidden, np.float32(-np.inf), np.float32(0)), ((0, 0), (0, prefix)))
    return keys, mask, slots, readers


def _offsets(window: int) -> NDArray[np.int64]:
    """Return [T, K * T]: the row of a table of (4 w - 1)^2 offsets, query less key."""
    reach = 2 * window - 1
    place = np.stack(np.unravel_index(np.arange(window**2), (window, window)))
    step = np.array(((0, 0), *AROUND)).T * window
    key = (step[..., None] + place[:, None]).reshape(2, -1)
    down, right = place[..., None] - key[:, None] + reach
    return down * (2 * reach + 1) + right


class _Keys(torch.autograd.Function):
    """[N, C] tokens -> [G, M, C] what each chunk sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: ChunkLayout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.keys.flatten()).view(*layout.keys.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum, in fp32, what comes back from all chunks that see a token; masked keys bring 0."""
        layout: ChunkLayout = ctx.layout
        side, seen = len(layout.offsets), len(layout.readers)
        local, prefixes = gradient[:, : seen * side], full(gradient[:, seen * side :])
        readers = zip(local.unflatten(1, (seen, side)).unbind(1), layout.readers, strict=True)
        places = sum(full(part.index_select(0, reader)) for part, reader in readers)
        assert isinstance(places, Tensor)
        tokens = places.flatten(0, 1).index_select(0, layout.slots)
        of_images = [
            part.unflatten(0, (images, -1)).sum(1).flatten(0, 1)
            for part, images in zip(prefixes.split(layout.chunks()), layout.images, strict=True)
        ]
        tokens.index_copy_(0, layout.prefixes, torch.cat(of_images))
        return tokens.to(gradient.dtype), None


def chunk_attention(
    q: Tensor, kv: Tensor, bias: Tensor, layout: ChunkLayout, with_logits: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Attend from the tokens of each chunk to what it sees; rows of global tokens mean nothing.

    q [N, C]; kv [N, 2C]; bias [H, T, M] for `layout.offsets`, then the global tokens. Returns the
    attended values [N, C] and, if asked, logits [images * P, H, T, M] of each size, -inf where
    there is no key.
    """
    heads, side = bias.shape[:2]
    own = layout.keys[:, :side].flatten()
    queries = q.index_select(0, own).view(-1, side, heads, q.shape[1] // heads).transpose(1, 2)
    k, v = _Keys.apply(kv, layout).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    attended, found = [], []
    sizes = [part.split(layout.chunks()) for part in (queries, k, v)]
    for own_, k_, v_, mask in zip(*sizes, layout.masks, strict=True):
        near = bias + mask[:, None, None]
        out, logits = attend(own_, k_, v_, near, with_logits=with_logits)
        attended.append(out.transpose(1, 2).reshape(-1, q.shape[1]))
        found += [] if logits is None else [logits]
    return torch.cat(attended).index_select(0, layout.slots), found


def logits_of_pairs(
    logits: list[Tensor], layout: ChunkLayout, shapes: Shapes, prefix: int
) -> list[Tensor]:
    """Spread the logits of chunks over all pairs of tokens, -inf where one does not see the other.

    logits as of `chunk_attention`; prefix: g. Returns [images, H, h * w, g + h * w] of each size.
    """
    found, token = [], 0
    firsts = layout.keys.split(layout.chunks())
    for (images, rows, columns), part, key, mask in zip(
        shapes, logits, firsts, layout.masks, strict=True
    ):
        length = prefix + rows * columns
        # what is masked goes to a row and a column more, which are cut off
        place = torch.where(mask == 0, key[: len(mask)] - token, length)
        own = place[:, : len(layout.offsets), None]
        pairs = part.new_full((images, part.shape[1], length + 1, length + 1), -torch.inf)
        pairs[:, :, own, place[:, None]] = part.unflatten(0, (images, -1)).transpose(1, 2)
        found.append(pairs[:, :, prefix:length, :length])
        token += images * length
    return found
