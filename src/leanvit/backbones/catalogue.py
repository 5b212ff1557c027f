"""Every backbone that has a name, and how a configuration becomes a network."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from leanvit.backbones.base import Backbone
from leanvit.backbones.cvt import CvT
from leanvit.backbones.swin import Swin
from leanvit.backbones.vil import ViL
from leanvit.backbones.vit import ViT
from leanvit.config import (
    BACKBONES,
    BackboneConfig,
    CvTConfig,
    SwinConfig,
    TimmConfig,
    ViLConfig,
    ViTConfig,
)


def _timm(config: TimmConfig) -> Backbone:
    # here, since timm takes a while to load
    from leanvit.backbones.timm_adapter import TimmNetwork

    return TimmNetwork(config)


FAMILIES: Mapping[type[BackboneConfig], Callable[..., Backbone]] = MappingProxyType(
    {CvTConfig: CvT, SwinConfig: Swin, TimmConfig: _timm, ViLConfig: ViL, ViTConfig: ViT}
)


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build the network of a configuration with fresh weights.

    Constructors draw from torch's global generator; call it inside `core.random.seeded`.
    """
    return FAMILIES[type(config)](config)


def list_backbones() -> list[str]:
    """Return the names that `--backbone` takes, besides `timm:NAME` for a network of timm."""
    return sorted(BACKBONES)
