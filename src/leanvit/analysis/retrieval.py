"""Nearest neighbours of images: what a network takes for alike.

Letters: N images, Q queries, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.analysis.subjects import Scene, Subject
from leanvit.config.analysis import RetrievalConfig
from leanvit.core import random


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The most similar images of each query, the query itself left out."""

    subject: Subject
    images: Tensor
    """[Q, k] places in `Found.index`, the most similar first."""
    similarity: Tensor
    """[Q, k] cosine."""


@dataclass(frozen=True, slots=True)
class Found:
    """Queries and their neighbours."""

    index: Tensor
    """[N] numbers of the images that were looked at, in the scene's source."""
    target: Tensor
    """[N] class, -1 for none."""
    queries: Tensor
    """[Q] places in `index`."""
    neighbors: Sequence[Neighbors]


def nearest(features: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the k most similar rows [Q, k] of features [N, D] to some of them, and the cosines.

    A row is no neighbour of itself; of equal ones the first comes first.
    """
    unit = functional.normalize(features.double(), dim=1)
    similarity = unit[queries] @ unit.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    values, order = similarity.sort(dim=1, descending=True, stable=True)
    return order[:, :count], values[:, :count]


def look_at_neighbors(config: RetrievalConfig, scene: Scene) -> Found:
    """Return every network's neighbours of the same queries.

    Raises ValueError for fewer than two images, or a name that no image or more than one ends in.
    """
    rows: dict[str, list[Tensor]] = {subject.name: [] for subject in scene.subjects}
    index, target = [], []
    for batch in scene.batches("features"):
        index.append(batch.index)
        target.append(batch.target)
        for subject in scene.subjects:
            rows[subject.name].append(subject.says(batch.pixels).pooled.float().cpu())
    numbers = torch.cat(index) if index else torch.empty(0, dtype=torch.long)
    if len(numbers) < 2:
        raise ValueError(f"{len(numbers)} images have no neighbours; name two images or more.")
    queries = _queries(config, scene, numbers.tolist())
    count = min(config.neighbors, len(numbers) - 1)
    neighbors = []
    for subject in scene.subjects:
        images, similarity = nearest(torch.cat(rows[subject.name]), queries, count)
        neighbors.append(Neighbors(subject, images, similarity))
    return Found(numbers, torch.cat(target), queries, neighbors)


def _queries(config: RetrievalConfig, scene: Scene, numbers: Sequence[int]) -> Tensor:
    if not config.names:
        order = random.permutation(0, "queries", count=len(numbers))
        return torch.from_numpy(order[: config.queries].copy()).long()
    found = []
    for name in config.names:
        places = [i for i, n in enumerate(numbers) if scene.source.name(n).endswith(name)]
        if len(places) != 1:
            raise ValueError(
                f"{len(places)} of the {len(numbers)} images that are looked at end in {name!r}; "
                f"expected one. Name it in full, or look at all: --images {scene.whole}."
            )
        found += places
    return torch.tensor(found)


def rows_of(scene: Scene, found: Found) -> list[dict[str, Any]]:
    """Return a table: for each query and network, its nearest image and who shares its class."""
    rows = []
    for each in found.neighbors:
        for query, images, similarity in zip(
            found.queries.tolist(), each.images, each.similarity, strict=True
        ):
            own = int(found.target[query])
            same = float((found.target[images] == own).double().mean()) if own >= 0 else None
            rows.append(
                {
                    "network": each.subject.name,
                    "image": scene.source.name(int(found.index[query])),
                    "nearest": scene.source.name(int(found.index[images[0]])),
                    "similarity %": 100 * float(similarity[0]),
                    "same class %": None if same is None else 100 * same,
                }
            )
    return rows
