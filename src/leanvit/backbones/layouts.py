"""Key maps of foreign weight layouts, each used both ways.

The official EsViT code keeps the backbone at the top level beside `head` and `head_dense`, and
under `module.` in the student; our networks keep it under `backbone`, with `region_head`.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

from leanvit.config import HeadConfig, SwinConfig

V = TypeVar("V")

ESVIT_HEADS = {"head.": "head.", "head_dense.": "region_head."}
"""Official prefix -> ours; everything else belongs to the backbone."""

ESVIT_DERIVED = ("relative_position_index", "attn_mask")
"""Official buffers that follow from the configuration and are not stored here."""


def from_esvit(state: Mapping[str, V]) -> dict[str, V]:
    """Return an official EsViT state under our names (`backbone.`, `head.`, `region_head.`)."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if name.endswith(ESVIT_DERIVED):
            continue
        for theirs, ours in ESVIT_HEADS.items():
            if name.startswith(theirs):
                renamed[ours + name.removeprefix(theirs)] = value
                break
        else:
            renamed["backbone." + name] = value
    return renamed


def to_esvit(state: Mapping[str, V]) -> dict[str, V]:
    """Return a state of ours under the official EsViT names."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in ESVIT_HEADS.items():
            if name.startswith(ours):
                renamed[theirs + name.removeprefix(ours)] = value
                break
        else:
            renamed[name.removeprefix("backbone.")] = value
    return renamed


def swin_config(shapes: Mapping[str, tuple[int, ...]], image_size: int = 224) -> SwinConfig:
    """Read a Swin's sizes off the shapes of its parameters (our names, without `backbone.`).

    The window is that of the first stage; later ones are clamped by `image_size`.
    Raises ValueError where the shapes are not a Swin's.
    """
    try:
        dim, _, patch, _ = shapes["patch_embed.proj.weight"]
        stages = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        depths, heads = [], []
        for stage in range(stages):
            blocks = {
                name.split(".")[3] for name in shapes if name.startswith(f"layers.{stage}.blocks.")
            }
            table = shapes[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"]
            depths.append(len(blocks))
            heads.append(table[1])
        places = shapes["layers.0.blocks.0.attn.relative_position_bias_table"][0]
        hidden = shapes["layers.0.blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"These are not the parameters of a Swin transformer: {error}.") from error
    return SwinConfig(
        image_size=image_size,
        patch=patch,
        dim=dim,
        depths=tuple(depths),
        heads=tuple(heads),
        window=(math.isqrt(places) + 1) // 2,
        mlp_ratio=hidden / dim,
        drop_path=0.0,
    )


def head_config(shapes: Mapping[str, tuple[int, ...]], train_gain: bool = True) -> HeadConfig:
    """Read a head's sizes off the shapes of its parameters (names without the head's prefix)."""
    linear = sorted(
        (int(name.split(".")[1]), shape)
        for name, shape in shapes.items()
        if name.startswith("mlp.") and len(shape) == 2
    )
    return HeadConfig(
        prototypes=shapes["last_layer.weight_v"][0],
        hidden=linear[0][1][0],
        bottleneck=linear[-1][1][0],
        batch_norm=linear[-1][0] > 4,
        train_gain=train_gain,
    )


def strip(state: Mapping[str, V], prefix: str) -> dict[str, V]:
    """Return the entries under a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
