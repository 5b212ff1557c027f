"""Recipes of segmentation: what `leanvit evaluate segment --recipe NAME` settles."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from leanvit.config import Duration
from leanvit.config.dense import SegmentConfig


def small() -> SegmentConfig:
    """For some hundred photographs and one machine: Semantic FPN, 40 epochs.

    Paper: none; ours: not run.
    """
    return SegmentConfig(
        recipe="small",
        duration=Duration(40, "ep"),
        train_batch=8,
        lr=5e-4,
        warmup=Duration(5, "%"),
        decay="linear",
        layer_decay=0.85,
        weight_decay=0.05,
        clip=1.0,
        drop_path=0.1,
        average=0.99,
        head="fpn",
        channels=128,
        crop=256,
        short_side=0,
        slide=False,
    )


def fpn_ade20k_160k() -> SegmentConfig:
    """The lightweight study's Semantic FPN on ADE20K (arXiv 2404.12210), 160,000 steps.

    Paper: mIoU of ViT-Tiny 38.0 (DeiT), 39.0 (D2-MAE); ours: not run. Images have a shorter side
    of 512 pixels, and are tested by windows 341 pixels apart. The warm-up is a share of any length,
    1,500 steps of this one.
    """
    return replace(
        small(),
        recipe="fpn_ade20k_160k",
        duration=Duration(160_000, "st"),
        train_batch=16,
        lr=1e-4,
        warmup=Duration(0.94, "%"),
        layer_decay=0.8,
        clip=0.0,
        average=0.0,
        channels=256,
        crop=512,
        short_side=512,
        slide=True,
    )


def upernet_ade20k_160k() -> SegmentConfig:
    """Swin's UPerNet on ADE20K (arXiv 2103.14030): a multi-stage network, 160,000 steps.

    Paper: 46.1 with Swin-T, tested at several scales, which ours is not; ours: not run.
    """
    return replace(
        fpn_ade20k_160k(),
        recipe="upernet_ade20k_160k",
        lr=6e-5,
        layer_decay=1.0,
        weight_decay=0.01,
        drop_path=0.2,
        head="upernet",
        channels=512,
        slide=False,
    )


SEGMENT_RECIPES: Mapping[str, Callable[[], SegmentConfig]] = MappingProxyType(
    {recipe.__name__: recipe for recipe in (small, fpn_ade20k_160k, upernet_ade20k_160k)}
)
"""Everything that `--recipe` of `evaluate segment` may name."""
