"""Recipes of SimMIM."""

from dataclasses import replace

from leanvit.config import (
    BACKBONES,
    AdamWConfig,
    Duration,
    RunConfig,
    Schedule,
    SimMIMConfig,
    SwinConfig,
    TrainConfig,
    constant,
)


def simmim() -> RunConfig:
    """SimMIM on a Swin-T, 256 images a step, every schedule a share of the run.

    Paper: no figure at this setting; ours: not run.
    """
    return RunConfig(
        recipe="simmim",
        method=SimMIMConfig(),
        backbone=replace(BACKBONES["swin_tiny"], drop_path=0.0),
        optim=AdamWConfig(
            lr=Schedule(peak=1e-4, end=1e-6, warmup=Duration(10, "%")),
            weight_decay=constant(0.05),
            clip=5.0,
            clip_by="global",
        ),
        train=TrainConfig(batch=256),
    )


def simmim_swin_mini_in1k() -> RunConfig:
    """The lightweight study's SimMIM run on ImageNet-1k: a Swin of 48 channels, 400 epochs.

    Paper (arXiv 2404.12210, official documents): 77.4 after fine-tuning for 300 epochs; ours: not
    run. The learning rate stays at its peak, as there. The decoder there has a Swin block, ours is
    linear, as SimMIM's.
    """
    return RunConfig(
        recipe="simmim_swin_mini_in1k",
        method=SimMIMConfig(),
        backbone=SwinConfig(dim=48, drop_path=0.0),
        optim=AdamWConfig(
            lr=Schedule(peak=5e-5, end=5e-5, warmup=Duration(10, "ep")),
            weight_decay=constant(0.05),
            clip=5.0,
            clip_by="global",
            betas=(0.9, 0.99),
        ),
        train=TrainConfig(duration=Duration(400, "ep"), batch=2048, save_every=Duration(1, "ep")),
    )
