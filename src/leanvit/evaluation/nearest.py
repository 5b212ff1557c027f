"""Exact search for the nearest of many rows, in bounded memory, over any number of processes.

A similarity and the place of a row become one whole number, a key: the greater key is the more
similar row and, of equally similar ones, that of the lower place. So the best of several parts, of
the rows or of the processes, are the greatest of their keys, whatever the order of the parts.

Letters: N rows of the bank, n those of this process, M queries, D channels, k neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.core.distributed import all_rows, world_size
from leanvit.kernels.linear import product

BLOCK = 8192
"""Rows of the bank that are compared at a time."""
QUERIES = 1024
"""Queries that they are compared with at a time."""
KEYS = 2**22
"""Keys that are held at a time; every pass over the bank serves as many queries as that allows."""
PLACES = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest rows of some queries, the most similar first."""

    queries: slice
    similarity: Tensor
    """[m, k] cosine of the angle between the two."""
    place: Tensor
    """[m, k] number of the row among the rows of all processes."""


@torch.no_grad()
def nearest(
    rows: Tensor,
    queries: Tensor,
    k: int,
    *,
    first: int | None = None,
    leave_one_out: bool = False,
) -> Iterator[Near]:
    """Yield the k nearest rows to each query, some queries at a time, in order.

    rows [n, D]; queries [M, D]: neither needs to have unit length. Of equally similar rows that of
    the lower place is nearer. Similarities are fp32. first: the place of rows[0] among the rows of
    all processes, which search together for the same queries; None: this process searches alone.
    leave_one_out: query i is the row of place i, which is not its own neighbour. There are to be k
    rows in all processes, not counting that one. Raises ValueError for rows that are not finite.
    """
    offset = first or 0
    chunk = max(min(KEYS // k, 16 * QUERIES), 1)
    for start in range(0, len(queries), chunk):
        asked = _unit(queries[start : start + chunk], "image to test on", start)
        keys = asked.new_full((len(asked), k), _key(-torch.inf), dtype=torch.long)
        for block, size in _blocks(len(rows)):
            bank = _unit(rows[block : block + size], "image to learn from", block)
            for some in range(0, len(asked), QUERIES):
                like = _product(asked[some : some + QUERIES], bank)
                if leave_one_out:
                    _leave_out(like, start + some, offset + block)
                _improve(keys[some : some + QUERIES], like, offset + block)
        if first is not None:
            parts = all_rows(keys).view(world_size(), len(keys), k)
            keys = parts.transpose(0, 1).flatten(1).topk(k).values
        place = PLACES - (keys & PLACES)
        yield Near(slice(start, start + len(asked)), _similarity(keys), place)


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Yield start and size of blocks of so many rows.

    Each of the first is as large as all before it: they tell early what is too far to be kept.
    """
    start = 0
    while start < rows:
        size = min(max(start, BLOCK // 8), BLOCK)
        yield start, size
        start += size


def _unit(rows: Tensor, what: str, first: int) -> Tensor:
    """Return rows of length 1, or 0. Raises ValueError if the length of one is not finite."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32)
    if not length.isfinite().all():
        bad = (~length[:, 0].isfinite()).nonzero()
        raise ValueError(
            f"k-NN compares finite features, and those of {what} number {first + int(bad[0])} are "
            f"not, or are too large: the weights are damaged, or the training diverged."
        )
    return rows.float() / length.clamp_min(1e-12)


def _product(queries: Tensor, rows: Tensor) -> Tensor:
    """Return the products of all pairs, by the fastest exact form here."""
    return product(queries, rows) if queries.device.type == "cpu" else queries @ rows.T


def _leave_out(like: Tensor, query: int, place: int) -> None:
    """Make nothing less similar to a query than itself; they and the rows begin at these places."""
    low = max(query, place)
    same = torch.arange(low, max(min(query + like.shape[0], place + like.shape[1]), low))
    like[same - query, same - place] = -torch.inf


def _improve(keys: Tensor, like: Tensor, place: int) -> None:
    """Put into keys [m, k] what is nearer among the next rows, by their similarities [m, b].

    What is as near as the last of the keys comes later, and so is no nearer.
    """
    query, row = (like > _similarity(keys[:, -1:])).nonzero(as_tuple=True)
    if not len(query):
        return
    counts = query.bincount(minlength=len(keys))
    column = torch.arange(len(query), device=like.device) - (counts.cumsum(0) - counts)[query]
    better = keys.new_full((len(keys), int(counts.max())), _key(-torch.inf))
    better[query, column] = _keys(like[query, row], place + row)
    keys.copy_(torch.cat([keys, better], 1).topk(keys.shape[1]).values)


def _keys(similarity: Tensor, place: Tensor) -> Tensor:
    """Return keys of fp32 similarities and of places below 2^32 - 1.

    The bits of a number, with those of a negative one turned, are in the order of the numbers.
    """
    bits = (similarity + 0.0).view(torch.int32)  # the sum makes -0 the same as 0
    return (_turned(bits).long() << 32) | (PLACES - place)


def _key(similarity: float) -> int:
    """Return the least key of a similarity."""
    return int(_keys(torch.tensor([similarity]), torch.tensor([PLACES])))


def _similarity(keys: Tensor) -> Tensor:
    """Return the similarities of keys."""
    return _turned((keys >> 32).int()).view(torch.float32)


def _turned(bits: Tensor) -> Tensor:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
