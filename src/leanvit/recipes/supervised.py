"""Recipes of supervised training, from scratch: what self-supervised backbones are held against."""

from dataclasses import replace

from leanvit.config import (
    BACKBONES,
    AdamWConfig,
    Duration,
    FineTuneViewsConfig,
    MixConfig,
    RunConfig,
    Schedule,
    SupervisedConfig,
    TrainConfig,
    ViTConfig,
    constant,
)
from leanvit.recipes.sizes import VIT


def supervised() -> RunConfig:
    """DeiT's training of a ViT-Ti/16, 256 images a step, every schedule a share of the run.

    Paper: no figure at this setting; ours: not run. Every image once an epoch, no repeats.
    """
    return RunConfig(
        recipe="supervised",
        method=SupervisedConfig(),
        backbone=BACKBONES["vit_tiny"],
        optim=AdamWConfig(
            lr=Schedule(start=1e-6, peak=2.5e-4, end=1e-5, warmup=Duration(2, "%")),
            weight_decay=constant(0.05),
            clip=0.0,
        ),
        train=TrainConfig(batch=256),
        fit=(*VIT, "method.views.size"),
    )


def deit_tiny_in1k() -> RunConfig:
    """DeiT-Ti's published run on ImageNet-1k: 300 epochs, batch 1024, every image three times.

    Paper (arXiv 2012.12877): 72.2; ours: not run. With repeated augmentation an epoch sees a third
    of the images, as there. The official learning rate moves once an epoch, ours at every step.
    """
    return RunConfig(
        recipe="deit_tiny_in1k",
        method=SupervisedConfig(views=FineTuneViewsConfig(repeats=3)),
        backbone=BACKBONES["vit_tiny"],
        optim=AdamWConfig(
            lr=Schedule(start=1e-6, peak=2.5e-4, end=1e-5, warmup=Duration(5, "ep")),
            weight_decay=constant(0.05),
            clip=0.0,
        ),
        train=TrainConfig(duration=Duration(300, "ep"), batch=1024, save_every=Duration(1, "ep")),
    )


def deit_tiny_h12_in1k() -> RunConfig:
    """The lightweight study's baseline on ImageNet-1k: ViT-Tiny of 12 heads, from scratch.

    Paper (arXiv 2205.14443, official documents): 75.8; ours: not run. Its improved recipe of 300
    epochs with weak augmentation and the norm after the mean of the patches. Whether the published
    run also let learning rates fall from layer to layer is not recorded; here they do not.
    """
    backbone = BACKBONES["vit_tiny_h12"]
    assert isinstance(backbone, ViTConfig)
    return RunConfig(
        recipe="deit_tiny_h12_in1k",
        method=SupervisedConfig(
            views=FineTuneViewsConfig(randaugment=10.0, erase=0.0),
            mix=MixConfig(views=1, mixup=0.2, cutmix=0.0),
            smoothing=0.0,
        ),
        backbone=replace(backbone, pool="mean_norm", drop_path=0.0),
        optim=AdamWConfig(
            lr=Schedule(peak=1e-3, end=1e-6, warmup=Duration(5, "ep")),
            weight_decay=constant(0.05),
            clip=0.0,
        ),
        train=TrainConfig(duration=Duration(300, "ep"), batch=1024, save_every=Duration(1, "ep")),
    )
