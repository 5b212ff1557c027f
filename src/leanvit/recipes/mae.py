"""Recipes of masked autoencoders and their distillation (arXiv 2205.14443 and 2404.12210)."""

from dataclasses import replace

from leanvit.config import (
    BACKBONES,
    AdamWConfig,
    CropConfig,
    D2maeConfig,
    DecoderConfig,
    DmaeConfig,
    Duration,
    MaeConfig,
    MethodConfig,
    MuonConfig,
    RunConfig,
    Schedule,
    TrainConfig,
    ViTConfig,
    WatchConfig,
)
from leanvit.recipes.sizes import VIT

TINY, SMALL = "vit_tiny_h12", "vit_small_h12"
LIGHT = DecoderConfig()
WIDER = DecoderConfig(dim=192, heads=6)
"""The lightweight paper's decoders for ViT-Tiny and ViT-Small."""
SMALL_VIEWS = CropConfig(size=32, scale=(0.2, 1.0))
SMALL_DECODER = DecoderConfig(dim=64, depth=1, heads=4)


def mae() -> RunConfig:
    """MAE on a ViT-Ti/16 of 12 heads, every schedule a share of the run.

    Paper: no figure at this setting; ours: not run.
    """
    return replace(_shares("mae", MaeConfig()), fit=(*VIT, "method.views.size"))


def dmae() -> RunConfig:
    """D-MAE on a ViT-Ti/16 of 12 heads, every schedule a share; name the teacher.

    Paper: no figure at this setting; ours: not run.
    """
    return _shares("dmae", DmaeConfig())


def d2mae() -> RunConfig:
    """D2-MAE on a ViT-Ti/16 of 12 heads, every schedule a share; name the teacher.

    Paper: no figure at this setting; ours: not run.
    """
    return _shares("d2mae", D2maeConfig())


def mae_vit_tiny_in1k() -> RunConfig:
    """MAE-Tiny on ImageNet-1k: 400 epochs, batch 4096, learning rate 2.4e-3.

    Paper: 78.0 fine-tuned for 300 epochs with the improved recipe, 79.0 for 1000 with a position
    bias; ours: not run.
    """
    return _published("mae_vit_tiny_in1k", MaeConfig(views=_views(), decoder=LIGHT), TINY)


def mae_vit_small_in1k() -> RunConfig:
    """MAE-Small on ImageNet-1k: 400 epochs, batch 4096, learning rate 2.4e-3.

    Paper: 82.1 fine-tuned for 300 epochs with the improved recipe; ours: not run.
    """
    return _published("mae_vit_small_in1k", MaeConfig(views=_views(), decoder=WIDER), SMALL)


def dmae_vit_tiny_in1k() -> RunConfig:
    """D-MAE-Tiny on ImageNet-1k: MAE-Tiny with the last attention of an MAE ViT-B as teacher.

    Paper: 78.4 fine-tuned for 300 epochs with the improved recipe; ours: not run. Name the teacher:
    the first MAE's ViT-B/16 of 1600 epochs.
    """
    return _published("dmae_vit_tiny_in1k", DmaeConfig(views=_views(), decoder=LIGHT), TINY)


def d2mae_vit_tiny_in1k() -> RunConfig:
    """D2-MAE-Tiny on ImageNet-1k: the decoder reads block 8, a 13th block imitates the teacher.

    Paper: 78.7 fine-tuned for 300 epochs with the improved recipe, 79.4 for 1000 with a position
    bias; ours: not run. Name the teacher: the first MAE's ViT-B/16 of 1600 epochs.
    """
    return _published("d2mae_vit_tiny_in1k", D2maeConfig(views=_views(), decoder=LIGHT), TINY)


def mae_laptop() -> RunConfig:
    """MAE in minutes on a CPU, for images of 32 to 100 pixels: a ViT of 1.2 M parameters.

    Paper: no figure at this setting; ours: on CIFAR-10, a ViT of 4 blocks of 96 channels, after ten
    minutes of one core a linear layer of 48.6, fine-tuned 39.9 from 10,000 images, untrained 30.1
    and 30.9 (docs/results.md).
    """
    config = MaeConfig(views=SMALL_VIEWS, decoder=SMALL_DECODER)
    return replace(_laptop("mae_laptop", config), fit=(*VIT, "method.views.size"))


def dmae_laptop() -> RunConfig:
    """D-MAE of the same size; name the teacher, such as a wider `mae_laptop`.

    Paper: no figure at this setting; ours: on CIFAR-10 as `mae_laptop`, whose teacher had ten
    minutes too, a linear layer of 49.6, fine-tuned 40.8 (docs/results.md).
    """
    return _laptop("dmae_laptop", DmaeConfig(views=SMALL_VIEWS, decoder=SMALL_DECODER))


def d2mae_laptop() -> RunConfig:
    """D2-MAE on such images; name a teacher of the same patches, such as a run of `mae_laptop`.

    Paper: no figure at this setting; ours: not run.
    """
    config = D2maeConfig(views=SMALL_VIEWS, decoder=SMALL_DECODER, decode_from=4)
    return _laptop("d2mae_laptop", config)


def _laptop(name: str, method: MethodConfig) -> RunConfig:
    return RunConfig(
        recipe=name,
        method=method,
        backbone=ViTConfig(
            image_size=32,
            patch=4,
            dim=128,
            depth=6,
            heads=4,
            positions="sincos",
            pool="mean",
            drop_path=0.0,
        ),
        optim=MuonConfig(
            lr=Schedule(peak=1e-3, end=0.0, warmup=Duration(10, "%")),
            lr_rule="none",
            weight_decay=Schedule(start=0.05, peak=0.05, end=0.05),
            betas=(0.9, 0.95),
            clip=0.0,
        ),
        train=TrainConfig(
            duration=Duration(2000, "st"),
            batch=64,
            log_every=Duration(2, "%"),
            save_every=Duration(20, "%"),
        ),
        watch=WatchConfig(every=Duration(20, "%"), images=640),
    )


def _views() -> CropConfig:
    return CropConfig(interpolation="random")


def _encoder(name: str) -> ViTConfig:
    config = BACKBONES[name]
    assert isinstance(config, ViTConfig)
    return replace(config, positions="sincos", pool="mean", drop_path=0.0)


def _optim(warmup: Duration) -> AdamWConfig:
    return AdamWConfig(
        lr=Schedule(peak=1.5e-4, end=0.0, warmup=warmup),
        weight_decay=Schedule(start=0.05, peak=0.05, end=0.05),
        betas=(0.9, 0.95),
        clip=0.0,
    )


def _shares(name: str, method: MethodConfig) -> RunConfig:
    return RunConfig(
        recipe=name, method=method, backbone=_encoder(TINY), optim=_optim(Duration(10, "%"))
    )


def _published(name: str, method: MethodConfig, backbone: str) -> RunConfig:
    return RunConfig(
        recipe=name,
        method=method,
        backbone=_encoder(backbone),
        optim=replace(_optim(Duration(40, "ep")), decay_all_matrices=True),
        train=TrainConfig(duration=Duration(400, "ep"), batch=4096, save_every=Duration(1, "ep")),
    )
