"""What the page should show of a report, computed from the report alone."""

import base64
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]
Floats = NDArray[np.float64]


def matches(report: Record, model: int, layer: str, pair: int) -> Record:
    """Return what the report says of a layer and a pair; KeyError if it says nothing."""
    for one in report["explorer"]["matches"]:
        if (one["model"], one["layer"], one["pair"]) == (model, layer, pair):
            found: Record = one
            return found
    raise KeyError((model, layer, pair))


def cosines(record: Record) -> Floats:
    """Return [T, T], left regions by right ones."""
    levels = np.frombuffer(base64.b64decode(record["similarity"]), np.uint8)
    low, high = record["range"]
    size = len(record["match"])
    return low + levels.reshape(size, size).astype(np.float64) / 255 * (high - low)


def hit(record: Record, region: int) -> str:
    """Return whether a region's match is right, to within one region in each direction."""
    truth = -1 if record["truth"] is None else record["truth"][region]
    if truth < 0:
        return "unknown"
    w = record["grid"][1]
    (y, x), (v, u) = divmod(record["match"][region], w), divmod(truth, w)
    return "yes" if abs(y - v) <= 1 and abs(x - u) <= 1 else "no"


def said(record: Record, region: int) -> dict[str, str]:
    """Return the state that the explorer shows for a region."""
    match = record["match"][region]
    state = {
        "region": str(region),
        "match": str(match),
        "cycle": str(record["cycle"][region]),
        "hit": hit(record, region),
        "similarity": f"{cosines(record)[region, match]:.4f}",
    }
    truth = -1 if record["truth"] is None else record["truth"][region]
    return state if truth < 0 else {**state, "truth": str(truth)}


def counts(record: Record) -> tuple[int, int]:
    """Return how many regions are matched right, and how many could be."""
    verdicts = [hit(record, region) for region in range(len(record["match"]))]
    return verdicts.count("yes"), len(verdicts) - verdicts.count("unknown")


def moved(region: int, start: tuple[int, int], end: tuple[int, int]) -> int:
    """Return the region of another grid (h, w) at the same place."""
    y, x = divmod(region, start[1])
    return int((y + 0.5) / start[0] * end[0]) * end[1] + int((x + 0.5) / start[1] * end[1])


def attention(record: Record, head: int | None) -> Floats:
    """Return [T, T] of a head, or of the mean of heads (None); each row's maximum is 1."""
    size = record["grid"][0] * record["grid"][1]
    levels = np.frombuffer(base64.b64decode(record["values"]), np.uint8)
    rows = levels.reshape(record["heads"], size, size).astype(np.float64)
    rows /= rows.sum(2, keepdims=True)
    kept: Floats = rows.mean(0) if head is None else rows[head]
    return kept / kept.max(1, keepdims=True)


def colors(values: Floats, low: float, high: float) -> NDArray[np.int64]:
    """Return the colours [T, 3], 0 to 255, of a map."""
    shades = matplotlib.colormaps["viridis"]((values - low) / (high - low))
    return (255 * np.asarray(shades)[:, :3]).round().astype(np.int64)
