"""The grid of a linear probe: its columns are what a pass of the network of its own would say."""

from itertools import combinations

import pytest
import torch

from leanvit.backbones.base import Ask
from leanvit.config import BackboneConfig
from leanvit.evaluation.features import last_block_features
from leanvit.evaluation.grid import block_dims, grid_of
from tests.tiny import FAMILIES, VIT, build, noise

POOLINGS = ("view", "mean", "both")


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_columns_are_those_of_each_choice_alone(config: BackboneConfig) -> None:
    backbone = build(config).eval()
    backbone.mean, backbone.std = (0.0,) * 3, (1.0,) * 3
    images = noise(2, 3, backbone.config.image_size, backbone.config.image_size)
    alone = {
        (blocks, pooling): last_block_features(backbone, images, blocks, pooling).detach()
        for blocks in (1, 2, backbone.depth)
        for pooling in POOLINGS
    }
    assert alone[1, "both"].shape[1] == 2 * block_dims(backbone)[-1]
    for count in (1, 2, 3):
        for pooling in combinations(POOLINGS, count):
            grid = grid_of({"net": backbone}, ["color"], (2, 1, backbone.depth), pooling)
            (way,) = grid.ways
            found = grid.cut({way: grid.ways[way](images)})
            assert len(found) == len({(c.blocks, c.pooling) for c in grid.choices})
            for choice in grid.choices:
                rows = found[f"{way}{choice}"]
                torch.testing.assert_close(rows, alone[choice.blocks, choice.pooling])


def test_a_mean_is_that_of_the_regions() -> None:
    backbone = build(VIT).eval()
    images = noise(2, 3, 32, 32)
    (found,) = backbone([images], Ask(hidden=(-2, -1)))
    means = [backbone.norm(tokens.grid).mean((1, 2)) for tokens in found.hidden]
    views = [backbone.norm(tokens.prefix)[:, 0] for tokens in found.hidden]
    torch.testing.assert_close(
        last_block_features(backbone, images, 2, "both"), torch.cat([*views, *means], 1)
    )
