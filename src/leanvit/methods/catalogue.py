"""How a configuration becomes a method."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from leanvit.config import (
    BackboneConfig,
    D2maeConfig,
    DinoConfig,
    DmaeConfig,
    EsViTConfig,
    MaeConfig,
    MethodConfig,
    MocoV3Config,
    SimMIMConfig,
    SupervisedConfig,
)
from leanvit.core.random import seeded
from leanvit.data.views import ViewSpec
from leanvit.methods.base import Method
from leanvit.methods.d2mae import D2MAE
from leanvit.methods.dino import DINO
from leanvit.methods.dmae import DMAE
from leanvit.methods.esvit import EsViT
from leanvit.methods.mae import MAE
from leanvit.methods.mocov3 import MoCoV3
from leanvit.methods.simmim import SimMIM
from leanvit.methods.supervised import Supervised

METHODS: Mapping[type[MethodConfig], Callable[..., Method]] = MappingProxyType(
    {
        D2maeConfig: D2MAE,
        DinoConfig: DINO,
        DmaeConfig: DMAE,
        EsViTConfig: EsViT,
        MaeConfig: MAE,
        MocoV3Config: MoCoV3,
        SimMIMConfig: SimMIM,
        SupervisedConfig: Supervised,
    }
)


def build_method(config: MethodConfig, backbone: BackboneConfig, seed: int) -> Method:
    """Build a method with fresh weights that depend on the seed alone.

    Raises ValueError if its networks cannot take its views, or if it is no pre-training.
    """
    if type(config) not in METHODS:
        raise ValueError(
            f"{config.kind} is no pre-training, but the method of an evaluation: leanvit evaluate."
        )
    with seeded(seed, "weights"):
        method = METHODS[type(config)](config, backbone)
    if (views := method.views()) is not None:
        require_sizes(method, views)
    return method


def require_sizes(method: Method, views: ViewSpec) -> None:
    """Raise ValueError if the networks of a method cannot take views of these sizes."""
    for group in views.groups:
        method.encoder().require_size(group[0].size, group[0].size)
