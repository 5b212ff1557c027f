"""The plain ViT against timm."""

from dataclasses import replace
from functools import partial
from typing import Literal

import pytest
import timm
import torch
from torch import nn

from tests.tiny import VIT, build, noise


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_vit_equals_timm(pool: Literal["class", "mean"]) -> None:
    ours = build(replace(VIT, pool=pool)).eval()
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=VIT.image_size,
        patch_size=VIT.patch,
        embed_dim=VIT.dim,
        depth=VIT.depth,
        num_heads=VIT.heads,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    renamed = {name.replace("layers.", "blocks."): v for name, v in ours.state_dict().items()}
    theirs.load_state_dict(renamed, strict=True)
    image = noise(2, 3, 32, 32)
    with torch.no_grad():
        (found,) = ours([image])
        tokens = theirs.forward_features(image)  # type: ignore[operator]
    assert found.prefix is not None
    torch.testing.assert_close(found.prefix[:, 0], tokens[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.grid.flatten(1, 2), tokens[:, 1:], rtol=1e-4, atol=1e-5)
    expected = tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(1)
    torch.testing.assert_close(found.pooled, expected, rtol=1e-4, atol=1e-5)


def test_positions_follow_the_image() -> None:
    vit = build(VIT).eval()
    (small,) = vit([noise(1, 3, 16, 48)])
    assert small.grid.shape == (1, 4, 12, 16)
    square = vit.positions(8, 8)  # type: ignore[operator]
    assert square.flatten(1, 2).equal(vit.pos_embed[:, 1:])  # type: ignore[index]
