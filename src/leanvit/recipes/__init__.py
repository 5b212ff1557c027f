"""Full configurations as functions. RECIPES lists every name that `leanvit pretrain` takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from leanvit.config import RunConfig, look_up
from leanvit.recipes.esvit import dino, dino_vit_tiny_in1k, esvit, esvit_swin_tiny_in1k
from leanvit.recipes.laptop import dino_laptop, esvit_laptop
from leanvit.recipes.mae import (
    d2mae,
    d2mae_laptop,
    d2mae_vit_tiny_in1k,
    dmae,
    dmae_laptop,
    dmae_vit_tiny_in1k,
    mae,
    mae_laptop,
    mae_vit_small_in1k,
    mae_vit_tiny_in1k,
)
from leanvit.recipes.mocov3 import mocov3, mocov3_vit_tiny_in1k
from leanvit.recipes.simmim import simmim, simmim_swin_mini_in1k
from leanvit.recipes.supervised import deit_tiny_h12_in1k, deit_tiny_in1k, supervised

RECIPES: Mapping[str, Callable[[], RunConfig]] = MappingProxyType(
    {
        "d2mae": d2mae,
        "d2mae_laptop": d2mae_laptop,
        "d2mae_vit_tiny_in1k": d2mae_vit_tiny_in1k,
        "deit_tiny_h12_in1k": deit_tiny_h12_in1k,
        "deit_tiny_in1k": deit_tiny_in1k,
        "dino": dino,
        "dino_laptop": dino_laptop,
        "dino_vit_tiny_in1k": dino_vit_tiny_in1k,
        "dmae": dmae,
        "dmae_laptop": dmae_laptop,
        "dmae_vit_tiny_in1k": dmae_vit_tiny_in1k,
        "esvit": esvit,
        "esvit_laptop": esvit_laptop,
        "esvit_swin_tiny_in1k": esvit_swin_tiny_in1k,
        "mae": mae,
        "mae_laptop": mae_laptop,
        "mae_vit_small_in1k": mae_vit_small_in1k,
        "mae_vit_tiny_in1k": mae_vit_tiny_in1k,
        "mocov3": mocov3,
        "mocov3_vit_tiny_in1k": mocov3_vit_tiny_in1k,
        "simmim": simmim,
        "simmim_swin_mini_in1k": simmim_swin_mini_in1k,
        "supervised": supervised,
    }
)


def recipe(name: str) -> RunConfig:
    """Return the configuration of a named recipe. Raises ValueError for an unknown name."""
    return look_up("recipe", name, RECIPES)()


__all__ = ["RECIPES", "recipe"]
