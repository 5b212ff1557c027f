"""Recipes of EsViT and of DINO, its view-only case."""

from leanvit.config import (
    BACKBONES,
    AdamWConfig,
    DinoConfig,
    Duration,
    EsViTConfig,
    RunConfig,
    Schedule,
    TrainConfig,
)
from leanvit.recipes.sizes import CROPS, PROTOTYPES, SWIN, TEACHER, VIT

OFFICIAL_TEMP = Schedule(start=0.04, peak=0.07, end=0.07, warmup=Duration(30, "ep"), shape="linear")
OFFICIAL_ADAMW = AdamWConfig(
    lr=Schedule(peak=5e-4, end=1e-6, warmup=Duration(10, "ep")), decay_all_matrices=True
)
"""What both official codes train transformers with: EsViT's has grown out of DINO's."""


def esvit() -> RunConfig:
    """EsViT on a Swin-T, every schedule a share of the run.

    Paper: no figure at this setting; ours: not run.
    """
    return RunConfig(
        recipe="esvit",
        method=EsViTConfig(),
        backbone=BACKBONES["swin_tiny"],
        fit=(*SWIN, *CROPS, PROTOTYPES, *TEACHER),
    )


def dino() -> RunConfig:
    """DINO, the view loss alone, on a ViT-S/16.

    Paper: no figure at this setting; ours: not run.
    """
    return RunConfig(
        recipe="dino",
        method=DinoConfig(),
        backbone=BACKBONES["vit_small"],
        fit=(*VIT, *CROPS, PROTOTYPES, *TEACHER),
    )


def dino_vit_tiny_in1k() -> RunConfig:
    """The lightweight study's DINO-Tiny on ImageNet-1k: a ViT-Tiny of 12 heads, 400 epochs.

    Paper (arXiv 2205.14443): no figure in the official documents; ours: not run. The study
    published weights, no training code, so none of these settings is confirmed by it: heads and
    epochs are those of its other pre-trainings, all else what DINO's official code documents for
    ViT-S/16 (arXiv 2104.14294) with sixteen processes of 64 images, its longer run: a teacher
    temperature that rises to 0.07 in 30 epochs, prototypes whose lengths are trained.
    """
    return RunConfig(
        recipe="dino_vit_tiny_in1k",
        method=DinoConfig(
            teacher_temp=OFFICIAL_TEMP,
            freeze_prototypes=Duration(1, "ep"),
        ),
        backbone=BACKBONES["vit_tiny_h12"],
        optim=OFFICIAL_ADAMW,
        train=TrainConfig(duration=Duration(400, "ep"), batch=1024, save_every=Duration(1, "ep")),
    )


def esvit_swin_tiny_in1k() -> RunConfig:
    """EsViT's published Swin-T/W7 run on ImageNet-1k: 300 epochs, batch 512.

    Paper (official model zoo): 78.0 linear, 75.7 k-NN; ours: not run. The official teacher
    temperature moves once an epoch, ours at every step; weight decay reaches position tables and
    gains as there.
    """
    return RunConfig(
        recipe="esvit_swin_tiny_in1k",
        method=EsViTConfig(teacher_temp=OFFICIAL_TEMP, freeze_prototypes=Duration(1, "ep")),
        backbone=BACKBONES["swin_tiny"],
        optim=OFFICIAL_ADAMW,
        train=TrainConfig(duration=Duration(300, "ep"), batch=512, save_every=Duration(1, "ep")),
    )
