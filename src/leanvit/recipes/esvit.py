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


def esvit() -> RunConfig:
    """EsViT on a Swin-T, every schedule a share of the run.

    Paper: no figure at this setting; ours: not run.
    """
    return RunConfig(recipe="esvit", method=EsViTConfig(), backbone=BACKBONES["swin_tiny"])


def dino() -> RunConfig:
    """DINO, the view loss alone, on a ViT-S/16.

    Paper: no figure at this setting; ours: not run.
    """
    return RunConfig(recipe="dino", method=DinoConfig(), backbone=BACKBONES["vit_small"])


def esvit_swin_tiny_in1k() -> RunConfig:
    """EsViT's published Swin-T/W7 run on ImageNet-1k: 300 epochs, batch 512.

    Paper (official model zoo): 78.0 linear, 75.7 k-NN; ours: not run. The official teacher
    temperature moves once an epoch, ours at every step; weight decay reaches position tables and
    gains as there.
    """
    return RunConfig(
        recipe="esvit_swin_tiny_in1k",
        method=EsViTConfig(
            teacher_temp=Schedule(
                start=0.04, peak=0.07, end=0.07, warmup=Duration(30, "ep"), shape="linear"
            ),
            freeze_prototypes=Duration(1, "ep"),
        ),
        backbone=BACKBONES["swin_tiny"],
        optim=AdamWConfig(
            lr=Schedule(peak=5e-4, end=1e-6, warmup=Duration(10, "ep")), decay_all_matrices=True
        ),
        train=TrainConfig(duration=Duration(300, "ep"), batch=512, save_every=Duration(1, "ep")),
    )
