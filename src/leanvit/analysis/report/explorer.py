"""What a reader of the report can explore: matches and attention of every region of a few pairs.

Letters: h and w rows and columns of regions, T = h * w regions, H heads, D channels.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.analysis.attention import attention_of
from leanvit.analysis.pairs import Matching, Pair, matching
from leanvit.analysis.report.pictures import as_bytes, photograph
from leanvit.analysis.subjects import Subject
from leanvit.backbones.base import Ask, Backbone

LAYERS = 4
"""Layers of a network that can be chosen, the final one among them."""
FINEST = 16
"""Rows or columns of regions at most; finer grids are averaged to so many."""
FINAL = "final"


def explorer(
    subjects: Sequence[Subject], pairs: Sequence[Pair], *, most_bytes: float
) -> tuple[dict[str, Any], int]:
    """Return pairs, matches and attention as the page takes them.

    Attention comes from the last block backwards, of all networks alike, as long as all stays below
    `most_bytes`; and how many blocks it left out.
    """
    shown = [
        {
            "name": pair.names[0] if pair.plans else " and ".join(pair.names),
            "left": photograph(pair.left),
            "right": photograph(pair.right),
            "known": pair.plans is not None,
        }
        for pair in pairs
    ]
    matches = [
        {"model": model, "layer": layer, "pair": number, **as_plain(found)}
        for model, subject in enumerate(subjects)
        for number, pair in enumerate(pairs)
        for layer, found in matches_of(subject, pair)
    ]
    used = len(json.dumps([shown, matches]))
    attention, left = list[dict[str, Any]](), 0
    for level in _attention(subjects, pairs):
        used += len(json.dumps(level))
        if used > most_bytes:
            left += len({(entry["model"], entry["block"]) for entry in level})
        else:
            attention += level
    return {"pairs": shown, "matches": matches, "attention": attention}, left


def blocks_of(backbone: Backbone) -> list[int]:
    """Return the blocks whose outputs can be chosen besides the final features, evenly spread.

    Of a network of several stages, the ends of those before the last.
    """
    ends = list(backbone.stage_ends[:-1])
    if not ends:
        ends = [round(backbone.depth * part / LAYERS) - 1 for part in range(1, LAYERS)]
    return sorted({end for end in ends[1 - LAYERS :] if 0 <= end < backbone.depth - 1})


def matches_of(subject: Subject, pair: Pair) -> Iterator[tuple[str, Matching]]:
    """Yield what a network makes of a pair, layer by layer, the final one last."""
    blocks = blocks_of(subject.backbone)
    features = subject.says(torch.stack([pair.left, pair.right]), Ask(hidden=tuple(blocks)))
    named = [(f"block {b}", t.grid) for b, t in zip(blocks, features.hidden, strict=True)]
    for name, grid in [*named, (FINAL, features.grid)]:
        coarse = coarser(grid)
        if coarse.shape != grid.shape:
            name += f" (regions of {grid.shape[1] / coarse.shape[1]:g} tokens a side)"
        left, right = coarse.cpu()
        yield name, matching(left, right, pair.truth(*left.shape[:2]))


def coarser(grid: Tensor) -> Tensor:
    """Return region features [B, h, w, D] of no more than `FINEST` rows and columns."""
    h, w = grid.shape[1:3]
    sides = min(h, FINEST), min(w, FINEST)
    if sides == (h, w):
        return grid
    return functional.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2).float(), sides).permute(
        0, 2, 3, 1
    )


def as_plain(found: Matching) -> dict[str, Any]:
    """Return a matching in numbers: similarity as bytes between its least and its greatest."""
    low, high = float(found.similarity.min()), float(found.similarity.max())
    return {
        "grid": list(found.grid),
        "similarity": as_bytes((found.similarity - low) / max(high - low, 1e-12)),
        "range": [low, high],
        "match": found.match.tolist(),
        "cycle": found.cycle.long().tolist(),
        "truth": found.truth.tolist() if found.known.any() else None,
    }


def _attention(
    subjects: Sequence[Subject], pairs: Sequence[Pair]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the attention of left pictures: of the last block of all networks, then before it."""
    able = [(n, s) for n, s in enumerate(subjects) if "logits" in s.backbone.can]
    lists = {number: [*blocks_of(s.backbone), s.backbone.depth - 1][::-1] for number, s in able}
    for place in range(LAYERS):
        yield [
            entry
            for number, subject in able
            if place < len(lists[number])
            for entry in _of_block(number, subject, lists[number][place], pairs)
        ]


def _of_block(
    number: int, subject: Subject, block: int, pairs: Sequence[Pair]
) -> Iterator[dict[str, Any]]:
    """Yield a block's attention in each left picture; nothing where its regions are too fine."""
    for pair_number, pair in enumerate(pairs):
        features = subject.says(pair.left[None], Ask(hidden=(block,), logits=(block,)))
        attention = attention_of(features.logits[0], features.hidden[0])
        if max(attention.grid) > FINEST:
            return
        values = attention.matrix()[0].cpu()
        peak = values.amax(-1, keepdim=True).clamp_min(1e-12)
        yield {
            "model": number,
            "block": block,
            "pair": pair_number,
            "grid": list(attention.grid),
            "heads": len(values),
            "values": as_bytes(values / peak),
        }
