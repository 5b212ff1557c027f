"""Cheaper steps: smaller views in the first ones (progressive resizing), and token dropout."""

from leanvit.config.backbones import TimmConfig, ViTConfig
from leanvit.config.methods import DinoConfig, MocoV3Config, SupervisedConfig
from leanvit.config.run import RunConfig

UNKNOWN_PATCH = 16
"""What sides of views are a multiple of where the patch is not an option, as in timm's networks."""


def small_side(side: int, config: RunConfig) -> int:
    """Return the side of a view of `side` pixels while views are small: of whole patches."""
    backbone = config.backbone
    patch = UNKNOWN_PATCH if isinstance(backbone, TimmConfig) else backbone.patch
    return max(round(side * config.train.progressive_scale / patch), 1) * patch


def small_steps(config: RunConfig) -> int:
    """Return how many steps of a resolved run see small views, from the first."""
    share = config.train.progressive
    return max(round(share * config.train.duration.amount), 1) if share else 0


def check_cheaper(config: RunConfig) -> None:
    """Raise ValueError if cheaper steps are asked for that cannot be had, or are not cheaper."""
    method = config.method
    missed = method.token_dropout if isinstance(method, DinoConfig) else 0.0
    if missed and not isinstance(config.backbone, ViTConfig):
        raise ValueError(
            f"method.token_dropout {missed:g} takes patches away, which a {config.backbone.kind} "
            f"cannot do without; set it to 0, or take a plain ViT."
        )
    if not config.train.progressive:
        return
    if not isinstance(method, DinoConfig | MocoV3Config | SupervisedConfig):
        raise ValueError(
            f"train.progressive begins with smaller views, but {method.kind} works with views of "
            f"one size; set it to 0."
        )
    sides = method.views.sides if isinstance(method, DinoConfig) else (method.views.size,)
    small = [small_side(side, config) for side in sides]
    if not all(few < side for few, side in zip(small, sides, strict=True)):
        raise ValueError(
            f"train.progressive_scale {config.train.progressive_scale:g} makes views of "
            f"{', '.join(map(str, small))} pixels, in whole patches, out of those of "
            f"{', '.join(map(str, sides))}; each has to become smaller."
        )
