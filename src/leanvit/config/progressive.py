"""Progressive resizing: a run's first steps see smaller views, which are cheaper."""

from leanvit.config.backbones import TimmConfig
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
    return round(config.train.progressive * config.train.duration.amount)


def check_progressive(config: RunConfig) -> None:
    """Raise ValueError if small views are asked for and cannot be had, or are not smaller."""
    if not config.train.progressive:
        return
    method = config.method
    if not isinstance(method, DinoConfig | MocoV3Config | SupervisedConfig):
        raise ValueError(
            f"train.progressive begins with smaller views, but {method.kind} works with views of "
            f"one size; set it to 0."
        )
    if isinstance(method, DinoConfig):
        sides = [method.views.global_size, *method.views.local_sizes]
    else:
        sides = [method.views.size]
    small = [small_side(side, config) for side in sides]
    if not all(few < side for few, side in zip(small, sides, strict=True)):
        raise ValueError(
            f"train.progressive_scale {config.train.progressive_scale:g} makes views of "
            f"{', '.join(map(str, small))} pixels, in whole patches, out of those of "
            f"{', '.join(map(str, sides))}; each has to become smaller."
        )
