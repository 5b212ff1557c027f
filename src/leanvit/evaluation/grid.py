"""Which features a linear probe reads: so many of the last blocks, pooled in one of three ways.

All are columns of what one pass of the network says, so a grid of them costs no further pass.

Letters: B images, L blocks of a network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.evaluation.features import Described, Description, describe_baselines, describe_network


@dataclass(frozen=True, slots=True)
class Choice:
    """The last blocks that are read, and how they are pooled: view, mean or both."""

    blocks: int
    pooling: str

    def __str__(self) -> str:
        return f", last {self.blocks} {self.pooling}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Every choice, of every network under every protocol."""

    choices: Sequence[Choice]
    ways: Mapping[str, Description]
    """Descriptions by protocol and name; columns of a network's hold all choices."""
    widths: Mapping[str, Sequence[int]]
    """Channels of the blocks [L], for each way that is a network's."""

    def cut(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows [B, D] of each choice, by `name`."""
        return {
            name: self._columns(way, choice, rows[way])
            for way in rows
            for name, choice in self.names(way).items()
        }

    def cut_all(self, found: Described) -> Described:
        """Return the rows of each choice of all images."""
        return replace(found, rows=self.cut(found.rows))

    def names(self, way: str) -> Mapping[str, Choice | None]:
        """Return the names of a way's rows, with their choices; what is no network has none."""
        if way not in self.widths:
            return {way: None}
        return {f"{way}{choice}": choice for choice in self.choices}

    def _columns(self, way: str, choice: Choice | None, rows: Tensor) -> Tensor:
        if choice is None:
            return rows
        most, pooling = widest(self.choices)
        widths = self.widths[way]
        whole, tail = sum(widths[-most:]), sum(widths[-choice.blocks :])
        if pooling != "both":
            return rows[:, whole - tail :]
        parts = {"view": rows[:, :whole], "mean": rows[:, whole:]}
        asked = parts.values() if choice.pooling == "both" else [parts[choice.pooling]]
        return torch.cat([part[:, whole - tail :] for part in asked], 1)


def widest(choices: Sequence[Choice]) -> tuple[int, str]:
    """Return how many blocks, pooled how, hold the columns of all choices."""
    ways = {choice.pooling for choice in choices}
    pooling = next(iter(ways)) if len(ways) == 1 else "both"
    return max(choice.blocks for choice in choices), pooling


def grid_of(
    networks: Mapping[str, Backbone],
    protocols: Sequence[str],
    blocks: Sequence[int],
    pooling: Sequence[str],
    *,
    baselines: bool = False,
) -> Grid:
    """Return the grid of some networks, and of what needs none.

    Raises ValueError if one of them has too few blocks.
    """
    choices = [Choice(count, pool) for count in blocks for pool in pooling]
    ways: dict[str, Description] = {}
    for protocol in protocols:
        if baselines:
            ways |= describe_baselines(protocol)
        for name, network in networks.items():
            ways[f"{protocol}/{name}"] = describe_network(network, protocol, *widest(choices))
    widths = {
        f"{protocol}/{name}": block_dims(network)
        for protocol in protocols
        for name, network in networks.items()
    }
    return Grid(choices, ways, widths)


def block_dims(backbone: Backbone) -> list[int]:
    """Return the channels of each block [L]."""
    starts = (-1, *backbone.stage_ends)
    counts = (end - before for before, end in zip(starts, backbone.stage_ends, strict=False))
    return [
        dim for dim, count in zip(backbone.stage_dims, counts, strict=True) for _ in range(count)
    ]
