"""Where attention goes: how far, how widely, and whether every query looks elsewhere.

Attention among the regions of an image: prefix tokens and the padding of windows are left out
before the softmax, so what a region gives to other regions adds up to 1 (as in the official code of
arXiv 2205.14443). Windows lie where they are in the image.

Letters: B images, W windows, H heads, T tokens of a window, N regions of the image, L blocks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanvit.analysis.subjects import Scene, Subject
from leanvit.backbones.base import Ask, Features, Logits, Tokens
from leanvit.config.analysis import AttentionConfig
from leanvit.core.precision import full

MEASURES = ("distance", "entropy", "nmi")
"""Pixels, nats, and a share from 0 to 1."""
PAPER_STEP = 14.0
"""What the official code multiplies distances on the grid by: the grid's side, for the patch's."""
FLOOR = 1e-6
"""What is added to a probability before its logarithm (official code)."""
MOST = 2**24
"""Attention logits that are held at a time."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one block among the regions of images."""

    values: Tensor
    """[B, W, H, T, T] in fp32; zeros where a query or a key is no region of the image."""
    region: Tensor
    """[1 or B, W, T] number of the region that each token is, row by row; -1: none."""
    grid: tuple[int, int]
    """(h, w), N = h * w."""

    def row(self, query: int) -> Tensor:
        """Return where one region looks [B, H, N]; zeros for regions beyond its window."""
        b, _, heads = self.values.shape[:3]
        region = self.region.expand(b, -1, -1)
        image, window, place = (region == query).nonzero().unbind(1)
        found = self.values.new_zeros(b, heads, self.grid[0] * self.grid[1] + 1)
        where = region[image, window][:, None].expand(-1, heads, -1) % found.shape[-1]
        found[image] = found[image].scatter_add(2, where, self.values[image, window, :, place])
        return found[..., :-1]

    def matrix(self) -> Tensor:
        """Return how much every region looks at every other [B, H, N, N]; rows add up to 1."""
        b, windows, heads, tokens = self.values.shape[:4]
        size = self.grid[0] * self.grid[1] + 1
        region = self.region.expand(b, -1, -1) % size  # -1 is beyond the last
        place = region[..., :, None] * size + region[..., None, :]
        found = self.values.new_zeros(b, heads, size * size)
        values = self.values.transpose(1, 2).reshape(b, heads, windows * tokens * tokens)
        found.scatter_(2, place.reshape(b, 1, -1).expand(-1, heads, -1), values)
        return found.view(b, heads, size, size)[..., :-1, :-1]


def attention_of(logits: Logits, tokens: Tokens) -> Attention:
    """Return the attention among regions of a block whose output is `tokens`."""
    h, w = tokens.grid.shape[1:3]
    prefix = 0 if tokens.prefix is None else tokens.prefix.shape[1]
    region = torch.where(logits.where >= prefix, logits.where - prefix, -1)
    values, there = full(logits.values), region >= 0
    if there[..., prefix:].all() and not there[..., :prefix].any():  # the rest is regions
        inside = values[..., prefix:, prefix:]
        return Attention(torch.softmax(inside, -1), region[..., prefix:], (h, w))
    attention = torch.softmax(values.masked_fill(~there[:, :, None, None], -math.inf), -1)
    return Attention(
        torch.where(there[:, :, None, :, None], attention, torch.zeros_like(attention)),
        region,
        (h, w),
    )


def measure(attention: Attention, step: tuple[float, float]) -> Tensor:
    """Return `MEASURES` [B, H, 3] of an image's attention, each the mean over its regions.

    step: pixels between rows and between columns of regions. Distance is the mean over keys, in
    the measure of attention. Entropy is in nats. Normalised mutual information is that of query
    and key, all queries alike, over the root of the product of their entropies: 0 where all queries
    look at the same, 1 where each looks at one place of its own (Park et al., arXiv 2305.00729).
    """
    values = attention.values
    count = attention.grid[0] * attention.grid[1]
    row, column = attention.region // attention.grid[1], attention.region % attention.grid[1]
    places = torch.stack([row * step[0], column * step[1]], -1).to(values.dtype)
    apart = torch.linalg.vector_norm(places[..., :, None, :] - places[..., None, :, :], dim=-1)
    flat = values.flatten(-2)
    distance = torch.einsum("bwhn,bwn->bh", flat, apart.flatten(-2).expand(*flat.shape[:2], -1))
    distance = distance / count
    entropy = -torch.einsum("bwhn,bwhn->bh", flat, (flat + FLOOR).log()) / count
    keys = _of_keys(attention) / count
    marginal = -torch.xlogy(keys, keys).sum(-1)
    shared = (marginal - entropy).clamp_min(0)
    most = (marginal * math.log(count)).clamp_min(0).sqrt()
    nmi = torch.where(most > 0, shared / most.clamp_min(1e-12), torch.zeros_like(shared))
    return torch.stack([distance, entropy, nmi], -1)


def _of_keys(attention: Attention) -> Tensor:
    """Return what every region is given by all queries together [B, H, N]."""
    given = attention.values.sum(3).transpose(1, 2)
    b, heads = given.shape[:2]
    count = attention.grid[0] * attention.grid[1]
    where = attention.region.expand(b, -1, -1).flatten(1) % (count + 1)  # -1 is beyond the last
    found = given.new_zeros(b, heads, count + 1)
    found.scatter_add_(2, where[:, None].expand(-1, heads, -1), given.flatten(2))
    return found[..., :-1]


def uniform(grid: tuple[int, int], step: tuple[float, float]) -> dict[str, float]:
    """Return distance and entropy of attention that goes everywhere alike."""
    h, w = grid
    y, x = torch.meshgrid(torch.arange(h) * step[0], torch.arange(w) * step[1], indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1).double()
    return {"distance": float(torch.cdist(places, places).mean()), "entropy": math.log(h * w)}


def require_attention(subject: Subject) -> None:
    """Raise ValueError for a network whose attention cannot be had."""
    if "logits" not in subject.backbone.can:
        raise ValueError(
            f"{subject.name!r} has no attention that can be looked at: "
            f"{subject.backbone.config.kind} networks give none. Leave it out, or ask for "
            f"analyze report, which leaves its attention out, or for rank, cka, pca, "
            f"correspondence or retrieval, which need none."
        )


def steps_of(subject: Subject, grid: tuple[int, int]) -> tuple[float, float]:
    """Return the pixels between rows and between columns of a grid of regions."""
    return subject.size / grid[0], subject.size / grid[1]


def images_at_once(subject: Subject, pixels: Tensor) -> int:
    """Return how many images may be looked at together, by what the first one takes."""
    every = tuple(range(subject.backbone.depth))
    features = subject.says(pixels[:1], Ask(logits=every))
    return max(MOST // sum(block.values.numel() for block in features.logits), 1)


def heads_of(subject: Subject, features: Features, distance: str) -> list[Tensor]:
    """Return `MEASURES` [B, H, 3] of every block of features with `logits` and `hidden` of all."""
    found = []
    for logits, tokens in zip(features.logits, features.hidden, strict=True):
        attention = attention_of(logits, tokens)
        step = steps_of(subject, attention.grid)
        found.append(measure(attention, (PAPER_STEP,) * 2 if distance == "paper" else step))
    return found


@dataclass(frozen=True, slots=True)
class Heads:
    """Figures of every head of a network, the mean over images."""

    subject: Subject
    values: Sequence[Tensor]
    """[H, 3], `MEASURES`, of each block."""
    even: Sequence[Mapping[str, float]]
    """Of each block, what attention that goes everywhere alike would have."""


def look_at_heads(config: AttentionConfig, scene: Scene) -> list[Heads]:
    """Return the figures of every network's heads. Raises ValueError where there are none."""
    for subject in scene.subjects:
        require_attention(subject)
    sums: dict[str, list[Tensor]] = {}
    even: dict[str, list[dict[str, float]]] = {}
    at_once: dict[str, int] = {}
    images = 0
    for batch in scene.batches("attention"):
        images += len(batch.index)
        for subject in scene.subjects:
            every = tuple(range(subject.backbone.depth))
            ask = Ask(hidden=every, logits=every)
            if subject.name not in sums:
                sums[subject.name], even[subject.name] = [torch.zeros(())] * len(every), []
                at_once[subject.name] = images_at_once(subject, batch.pixels)
            for part in batch.pixels.split(at_once[subject.name]):
                features = subject.says(part, ask)
                found = heads_of(subject, features, config.distance)
                totals = [values.double().sum(0).cpu() for values in found]
                sums[subject.name] = [
                    total + new for total, new in zip(sums[subject.name], totals, strict=True)
                ]
                even[subject.name] = [
                    _even(subject, tokens, config.distance) for tokens in features.hidden
                ]
    return [
        Heads(subject, [total / images for total in sums[subject.name]], even[subject.name])
        for subject in scene.subjects
    ]


def _even(subject: Subject, tokens: Tokens, distance: str) -> dict[str, float]:
    h, w = tokens.grid.shape[1:3]
    step = (PAPER_STEP,) * 2 if distance == "paper" else steps_of(subject, (h, w))
    return uniform((h, w), step)


def rows_of(heads: Sequence[Heads]) -> list[dict[str, Any]]:
    """Return a table: a row for each network and block, the means over its heads."""
    return [
        {
            "network": each.subject.name,
            "block": block,
            "heads": len(values),
            **{name: float(values[:, i].mean()) for i, name in enumerate(MEASURES[:2])},
            "nmi %": 100 * float(values[:, 2].mean()),
            "uniform distance": each.even[block]["distance"],
            "uniform entropy": each.even[block]["entropy"],
        }
        for each in heads
        for block, values in enumerate(each.values)
    ]
