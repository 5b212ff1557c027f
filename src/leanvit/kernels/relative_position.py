"""A learned bias of attention for every relative position of two patches of an image (BEiT).

A table has (2 S - 1)^2 + 3 rows for images of S x S patches: one for each way from a key to a
query, then three for prefix to patch, patch to prefix, and prefix to prefix (query first). Images
of h x w patches read it as a picture [2 S - 1, 2 S - 1] that is resized to [2 h - 1, 2 w - 1].

Letters: B images, T tokens (prefix first), H heads, n patches kept of each image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.tracing import once_per_size

SPECIAL = 3
"""Rows of a table for pairs that have no distance, since the prefix lies nowhere."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which entry of a resized table belongs to each pair of an image's tokens."""

    grid: tuple[int, int]
    """Rows and columns of the whole image."""
    entries: Tensor
    """[1 or B, T, T] of query and key; the special entries come last."""

    def among(self, where: Tensor) -> "Pairs":
        """Return the pairs of the tokens that are left: `where` [B, n] numbers them."""
        return Pairs(self.grid, self.entries[0][where[:, :, None], where[:, None, :]])


def table_rows(side: int) -> int:
    """Return the rows of a table for images of side x side patches."""
    return (2 * side - 1) ** 2 + SPECIAL


@once_per_size
def pairs_of(rows: int, columns: int, prefix: int, device: torch.device) -> Pairs:
    """Return the pairs of an image of rows x columns patches behind `prefix` tokens."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    down = row[:, None] - row[None, :] + rows - 1
    right = column[:, None] - column[None, :] + columns - 1
    ways = (2 * rows - 1) * (2 * columns - 1)
    entries = np.full((1, prefix + len(row), prefix + len(row)), ways + 2, dtype=np.int64)
    entries[:, :prefix, prefix:] = ways
    entries[:, prefix:, :prefix] = ways + 1
    entries[:, prefix:, prefix:] = down * (2 * columns - 1) + right
    return Pairs((rows, columns), torch.from_numpy(entries).to(device))


def relative_bias(table: Tensor, pairs: Pairs) -> Tensor:
    """Return the bias of attention logits [1 or B, H, T, T] that a table [rows, H] holds."""
    heads = table.shape[1]
    side = round((len(table) - SPECIAL) ** 0.5)
    height, width = (2 * count - 1 for count in pairs.grid)
    ways = table[:-SPECIAL].mT.reshape(1, heads, side, side)
    if (height, width) != (side, side):
        ways = functional.interpolate(ways, (height, width), mode="bicubic")
    entries = torch.cat([ways.view(heads, -1), table[-SPECIAL:].mT], 1)
    bias = entries.index_select(1, pairs.entries.flatten())
    return bias.view(heads, *pairs.entries.shape).transpose(0, 1)
