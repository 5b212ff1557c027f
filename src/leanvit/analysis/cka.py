"""How alike what two networks say is, block by block: centered kernel alignment.

Mini-batch CKA (Nguyen et al., arXiv 2010.15327, equations 1 to 3): the unbiased HSIC of Song et al.
is averaged over batches, and CKA is formed of the averages. Kernels are linear, on all regions of
an image side by side.

Letters: n images of a batch, L_a and L_b layers of two networks, D numbers that say an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.analysis.subjects import Scene, Subject
from leanvit.backbones.base import Ask
from leanvit.config.analysis import CkaConfig

LEAST = 4
"""Images of a batch that the estimator needs: it divides by n - 3."""
ROUNDING = 1e-6
"""Share of its largest number by which a layer varies at most that says the same of all images."""


def grams(layers: Sequence[Tensor]) -> Tensor:
    """Return the linear kernels [L, n, n] of layers [n, ...] in fp64, the diagonals zero.

    The mean over the batch is taken off each layer first, which no unbiased HSIC sees: it spares
    digits, and of a layer that says the same of all images it leaves nothing. Raises ValueError for
    fewer than four images.
    """
    found = []
    for layer in layers:
        rows = layer.flatten(1).double()
        if len(rows) < LEAST:
            raise ValueError(f"The unbiased estimator needs {LEAST} images at least: {len(rows)}.")
        varying = rows - rows.mean(0)
        if varying.abs().max() <= ROUNDING * rows.abs().max():
            varying = torch.zeros_like(rows)
        found.append((varying @ varying.T).fill_diagonal_(0))
    return torch.stack(found)


def unbiased_hsic(left: Tensor, right: Tensor) -> Tensor:
    """Return the unbiased HSIC [L_a, L_b] of kernels [L_a, n, n] and [L_b, n, n].

    Diagonals are zero. Song et al. (2012), as equation 3 of arXiv 2010.15327.
    """
    n = left.shape[-1]
    traces = left.flatten(1) @ right.flatten(1).T
    ours, others = left.sum(-1), right.sum(-1)
    ones = ours.sum(1)[:, None] * others.sum(1)[None] / ((n - 1) * (n - 2))
    crossed = (ours @ others.T) * 2 / (n - 2)
    return (traces + ones - crossed) / (n * (n - 3))


class MiniBatchCka:
    """CKA of two networks' layers, gathered batch by batch: memory does not grow with them."""

    def __init__(self) -> None:
        self.cross = self.left = self.right = torch.zeros(())
        self.batches = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        """Take in the kernels [L_a, n, n] and [L_b, n, n] of a batch of images."""
        self.cross = self.cross + unbiased_hsic(left, right)
        self.left = self.left + unbiased_hsic(left, left).diagonal()
        self.right = self.right + unbiased_hsic(right, right).diagonal()
        self.batches += 1

    def value(self) -> Tensor:
        """Return CKA [L_a, L_b].

        0 where a layer says the same of all images, or where chance leaves its own HSIC no greater
        than 0: what does not vary has nothing in common with anything. The estimator is unbiased,
        so that figures of few images may lie a little below 0 or above 1.
        """
        both = self.left[:, None] * self.right[None]
        valid = (self.left[:, None] > 0) & (self.right[None] > 0)
        safe = torch.where(valid, both, torch.ones_like(both))
        return torch.where(valid, self.cross / safe.sqrt(), torch.zeros_like(both))


def layers_of(subject: Subject, pixels: Tensor) -> dict[str, Tensor]:
    """Return what each layer says of images [n, ...], by name, without prefix tokens.

    As in the official code of arXiv 2205.14443: what enters each block, after the norm that the
    block begins with, and the regions after the final norm. Where a block has no such norm, or
    begins a stage, it is what the block before it gives out.
    """
    backbone = subject.backbone
    features = subject.says(pixels, Ask(hidden=tuple(range(backbone.depth))))
    norms = [getattr(block, "norm1", None) for block in backbone.blocks()]
    entering = [tokens.grid for tokens in features.hidden[:-1]]
    found: dict[str, Tensor] = {}
    first = subject.embeds(pixels)
    if first is not None:
        found["embedding"] = _normed(norms[0], first)
    for block, tokens in enumerate(entering):
        within = block not in backbone.stage_ends
        found[f"block {block}"] = _normed(norms[block + 1] if within else None, tokens)
    return {**found, "final": features.grid}


@torch.no_grad()
def _normed(norm: nn.Module | None, tokens: Tensor) -> Tensor:
    return tokens if norm is None else norm(tokens)


@dataclass(frozen=True, slots=True)
class Likeness:
    """CKA of two networks' layers."""

    left: str
    right: str
    layers: tuple[Sequence[str], Sequence[str]]
    values: Tensor
    """[L_a, L_b]."""
    images: int
    """How many it is of."""


def look_at_likeness(config: CkaConfig, scene: Scene) -> list[Likeness]:
    """Return CKA of every two networks, or of one with itself.

    Only full batches count, unless there is none. Raises ValueError for fewer than four images.
    """
    subjects = scene.subjects
    pairs = list(combinations(range(len(subjects)), 2)) or [(0, 0)]
    gathered = [MiniBatchCka() for _ in pairs]
    names: list[list[str]] = [[] for _ in subjects]
    images = 0
    for batch in scene.batches("similarity"):
        count = len(batch.index)
        if count < LEAST or (images and count < config.batch):
            continue
        images += count
        kernels = []
        for number, subject in enumerate(subjects):
            layers = layers_of(subject, batch.pixels)
            names[number] = list(layers)
            kernels.append(grams(list(layers.values())))
        for (a, b), one in zip(pairs, gathered, strict=True):
            one.add(kernels[a], kernels[b])
    if not images:
        raise ValueError(
            f"{len(scene.source)} images are too few for CKA: its estimator needs {LEAST} at "
            f"least, and some dozens before its figures mean much."
        )
    return [
        Likeness(
            *(subjects[a].name, subjects[b].name),
            (names[a], names[b]),
            one.value().cpu(),
            images,
        )
        for (a, b), one in zip(pairs, gathered, strict=True)
    ]


def rows_of(found: Sequence[Likeness]) -> list[dict[str, Any]]:
    """Return a table: of each layer of the first network, the layer of the second most like it."""
    rows = []
    for pair in found:
        for place, (name, values) in enumerate(zip(pair.layers[0], pair.values, strict=True)):
            best = int(values.argmax())
            same = place < len(pair.layers[1]) and pair.layers[1][place] == name
            rows.append(
                {
                    "network": pair.left,
                    "layer": name,
                    "other": pair.right,
                    "same layer %": 100 * float(values[place]) if same else None,
                    "most alike": pair.layers[1][best],
                    "CKA %": 100 * float(values[best]),
                }
            )
    return rows
