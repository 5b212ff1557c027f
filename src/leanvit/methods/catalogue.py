"""How a configuration becomes a method."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from leanvit.config import BackboneConfig, DinoConfig, EsViTConfig, MethodConfig
from leanvit.core.random import seeded
from leanvit.methods.base import Method
from leanvit.methods.dino import DINO
from leanvit.methods.esvit import EsViT

METHODS: Mapping[type[MethodConfig], Callable[..., Method]] = MappingProxyType(
    {DinoConfig: DINO, EsViTConfig: EsViT}
)


def build_method(config: MethodConfig, backbone: BackboneConfig, seed: int) -> Method:
    """Build a method with fresh weights that depend on the seed alone.

    Raises ValueError if its networks cannot take its views.
    """
    with seeded(seed, "weights"):
        method = METHODS[type(config)](config, backbone)
    views = method.views()
    for group in views.groups if views is not None else ():
        method.encoder().require_size(group[0].size, group[0].size)
    return method
