"""Recipes of MoCo-v3."""

from dataclasses import replace

from leanvit.config import (
    BACKBONES,
    AdamWConfig,
    BackboneConfig,
    Duration,
    MocoV3Config,
    RunConfig,
    Schedule,
    TrainConfig,
    ViTConfig,
)
from leanvit.recipes.sizes import KEYS, VIT


def _fixed_positions(name: str) -> BackboneConfig:
    """Return a named ViT as the papers train it: sine-cosine positions, no stochastic depth."""
    backbone = BACKBONES[name]
    assert isinstance(backbone, ViTConfig)
    return replace(backbone, positions="sincos", drop_path=0.0)


def _adamw(warmup: Duration) -> AdamWConfig:
    return AdamWConfig(
        lr=Schedule(start=1e-6, peak=1.5e-4, end=0.0, warmup=warmup),
        weight_decay=Schedule(start=0.1, peak=0.1, end=0.1),
        decay_all_matrices=True,
        clip=0.0,
    )


def mocov3() -> RunConfig:
    """MoCo-v3 on a ViT-S/16 of 12 heads, 256 images a step, every schedule a share of the run.

    Paper: no figure at this setting; ours: not run.
    """
    return RunConfig(
        recipe="mocov3",
        method=MocoV3Config(),
        backbone=_fixed_positions("vit_small_h12"),
        optim=_adamw(Duration(13, "%")),
        train=TrainConfig(batch=256),
        fit=(*VIT, "method.views.size", *KEYS),
    )


def mocov3_vit_tiny_in1k() -> RunConfig:
    """The lightweight study's MoCo-v3 run on ImageNet-1k: ViT-Tiny of 12 heads, 400 epochs.

    Paper (arXiv 2205.14443, official documents): 76.8 after its improved fine-tuning of 300 epochs;
    ours: not run. Its patch embedding is trained. There weight decay reaches biases and norms too,
    here matrices alone.
    """
    return RunConfig(
        recipe="mocov3_vit_tiny_in1k",
        method=MocoV3Config(freeze_patch_embed=False),
        backbone=_fixed_positions("vit_tiny_h12"),
        optim=_adamw(Duration(40, "ep")),
        train=TrainConfig(duration=Duration(400, "ep"), batch=1024, save_every=Duration(1, "ep")),
    )
