"""Recipes of detection: what `leanvit evaluate detect --recipe NAME` settles."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from leanvit.config import Duration
from leanvit.config.dense import DetectConfig


def small() -> DetectConfig:
    """For some hundred photographs and one machine: 30 epochs in squares of 320 pixels.

    Paper: none; ours: not run.
    """
    return DetectConfig(
        recipe="small",
        duration=Duration(30, "ep"),
        train_batch=8,
        lr=5e-4,
        warmup=Duration(5, "%"),
        decay="linear",
        layer_decay=0.85,
        weight_decay=0.05,
        clip=1.0,
        drop_path=0.1,
        average=0.99,
        channels=128,
        hidden=256,
        crop=320,
        min_scale=0.6,
        max_scale=1.4,
        distort=0.5,
    )


def vitdet_coco_100ep() -> DetectConfig:
    """The lightweight study's ViTDet on COCO (arXiv 2205.14443): a plain ViT, 100 epochs.

    Paper: AP of boxes and masks of ViT-Tiny 40.4 and 35.5 (DeiT), 39.9 and 35.4 (MAE), 42.3 and
    37.4 (D-MAE), 42.5 and 37.5 (D2-MAE); ours: not run. Its attention is global in every block.
    """
    return DetectConfig(
        recipe="vitdet_coco_100ep",
        duration=Duration(100, "ep"),
        train_batch=64,
        lr=1e-4,
        warmup=Duration(0.14, "%"),
        decay="steps",
        layer_decay=1.0,
        weight_decay=0.05,
        clip=0.0,
        drop_path=0.0,
        average=0.0,
        channels=256,
        hidden=1024,
        crop=640,
        min_scale=0.1,
        max_scale=2.0,
        distort=0.0,
    )


DETECT_RECIPES: Mapping[str, Callable[[], DetectConfig]] = MappingProxyType(
    {"small": small, "vitdet_coco_100ep": vitdet_coco_100ep}
)
"""Everything that `--recipe` of `evaluate detect` may name."""
