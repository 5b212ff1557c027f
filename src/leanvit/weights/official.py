"""Checkpoints in the layouts of the official codes, written so that those codes load them."""

from collections.abc import Mapping
from pathlib import Path

import torch

from leanvit.backbones.base import Backbone
from leanvit.config import SwinConfig, TimmConfig, ViTConfig
from leanvit.core.files import sync
from leanvit.weights.folds import as_dinov2
from leanvit.weights.layouts import LAYOUTS
from leanvit.weights.model_folder import require_written
from leanvit.weights.names import NAMINGS

OFFICIAL = tuple(name for name in LAYOUTS if name not in ("timm", "torchvision", "huggingface"))
"""The layouts that `write_official` knows."""

CODES: Mapping[str, str] = {
    "swin": "microsoft/Swin-Transformer",
    "esvit": "microsoft/esvit",
    "dinov2": "facebookresearch/dinov2",
    "dino": "facebookresearch/dino",
    "mae_lite": "wangsr126/MAE-Lite",
    "moco_v3": "facebookresearch/moco-v3",
    "mae": "facebookresearch/mae",
    "deit": "facebookresearch/deit",
}
"""Layout -> the repository of its code on GitHub."""

ADDITIONS: Mapping[str, frozenset[str]] = {
    "dinov2": frozenset({"registers", "layer_scale"}),
    "mae_lite": frozenset({"position_bias", "mean_norm"}),
    "deit": frozenset({"mean_norm"}),
}
"""What a layout's plain ViT may have besides a class token."""


def write_official(backbone: Backbone, layout: str, path: Path) -> None:
    """Write a backbone as one pickled dictionary in an official layout.

    Raises ValueError, which says why, if that code has no such network, and OSError if the disk
    refuses.
    """
    config = backbone.config
    writes = LAYOUTS[layout].writes
    require_written(layout, config)
    _require_known(backbone, layout)
    naming, place = writes[config.kind]
    state = dict(backbone.state_dict())
    if layout == "dinov2":
        state = as_dinov2(state)
    container, _, inner = place.partition(".")
    named = {f"{inner}{name}": value for name, value in NAMINGS[naming].theirs(state).items()}
    with path.open("wb") as file:  # given a path, torch would write its name into the file
        torch.save({container: named} if container else named, file)
    sync(path)


def _require_known(backbone: Backbone, layout: str) -> None:
    """Refuse what the official code of a layout would load as another function."""
    config = backbone.config
    if isinstance(config, SwinConfig) and config.skip_padding:
        raise ValueError(f"{layout} has no Swin whose tokens do not see padding (skip_padding).")
    if isinstance(config, TimmConfig) and config.name != "resnet50":
        raise ValueError(f"{layout} has resnet50 of timm's networks alone, not {config.name}.")
    if not isinstance(config, ViTConfig):
        return
    extras = {
        "registers": bool(config.registers),
        "layer_scale": bool(config.layer_scale),
        "position_bias": config.position_bias,
        "mean_norm": config.pool == "mean_norm",
    }
    more = [n for n, there in extras.items() if there and n not in ADDITIONS.get(layout, ())]
    if more:
        raise ValueError(f"{layout} has no ViT with {' and '.join(more)}.")
    heads = LAYOUTS[layout].heads.get(config.dim)
    if heads and heads != config.heads:
        raise ValueError(
            f"A ViT of {config.dim} channels has {heads} heads in {layout}, this one has "
            f"{config.heads}: there the same tensors would fit and give other features."
        )
