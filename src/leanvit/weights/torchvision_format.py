"""A backbone as weights under torchvision's names, and the arguments of its constructors.

torchvision has no format of its own for folders, so `config.json` is ours. Letters: B images, h and
w rows and columns of the grid, D channels.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from leanvit.backbones.base import Backbone
from leanvit.backbones.swin import Swin, relative_position_index
from leanvit.config import BackboneConfig, SwinConfig, TimmConfig, ViTConfig
from leanvit.core.random import seeded
from leanvit.weights.layouts import LAYOUTS
from leanvit.weights.model_folder import (
    CONFIG,
    WEIGHTS,
    from_photograph,
    regions_pooled,
    require_plain,
    require_resnet,
    require_windows,
    require_written,
    write_weights,
)
from leanvit.weights.names import NAMINGS

HEADS = {"SwinTransformer": "head", "VisionTransformer": "heads", "resnet50": "fc"}
"""torchvision's network -> its classifier, which exported weights lack."""


def arguments(config: BackboneConfig) -> tuple[str, dict[str, Any]]:
    """Return the name in `torchvision.models` and the arguments that make it this network.

    Raises ValueError, which says why, if torchvision has no such network.
    """
    require_written("torchvision", config)
    require_plain("torchvision", config)
    if isinstance(config, TimmConfig):
        require_resnet("torchvision", config.name)
        return config.name, {}
    if isinstance(config, SwinConfig):
        require_windows("torchvision", config)
        return "SwinTransformer", {
            "patch_size": [config.patch] * 2,
            "embed_dim": config.dim,
            "depths": list(config.depths),
            "num_heads": list(config.heads),
            "window_size": [config.window] * 2,
            "mlp_ratio": config.mlp_ratio,
        }
    assert isinstance(config, ViTConfig)
    return "VisionTransformer", {
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "hidden_dim": config.dim,
        "mlp_dim": int(config.dim * config.mlp_ratio),
    }


def write(backbone: Backbone, folder: Path) -> list[str]:
    """Write the weights and a config.json into a folder; return what a user should know.

    Raises ValueError, which says why, if torchvision has no such network.
    """
    config = backbone.config
    name, given = arguments(config)
    naming, _ = LAYOUTS["torchvision"].writes[config.kind]
    state = NAMINGS[naming].theirs(backbone.state_dict())
    if isinstance(backbone, Swin):
        for stage, layer in enumerate(backbone.stages):
            index = relative_position_index(layer.window).flatten()
            for block in range(len(layer.blocks)):
                place = f"features.{2 * stage + 1}.{block}.attn"
                state[f"{place}.relative_position_index"] = index.clone()
    plain: dict[str, Any] = {
        "library": "torchvision",
        "network": name,
        "arguments": given,
        "image_size": config.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
    }
    if isinstance(config, SwinConfig | ViTConfig):
        plain["layer_norm_eps"] = config.norm_eps
    if isinstance(config, ViTConfig):
        plain |= {"num_attention_heads": config.heads, "pool": config.pool}
    write_weights(folder, state, plain)
    return regions_pooled("torchvision", config)


def network(folder: Path) -> nn.Module:
    """Return torchvision's own network without classifier, loaded from a folder strictly."""
    import torchvision

    plain = json.loads((folder / CONFIG).read_text())
    given = dict(plain["arguments"])
    if "layer_norm_eps" in plain:
        given["norm_layer"] = partial(nn.LayerNorm, eps=plain["layer_norm_eps"])
    with seeded(0, "library"):
        model: nn.Module = getattr(torchvision.models, plain["network"])(**given)
    setattr(model, HEADS[plain["network"]], nn.Identity())
    model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return model.eval()


def features(config: BackboneConfig, model: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return region features [B, h * w, D] and, unless ours is a mean, the view feature [B, D]."""
    last = {"swin": "norm", "vit": "encoder", "timm": "layer4"}[config.kind]
    seen: list[Tensor] = []
    hook = model.get_submodule(last).register_forward_hook(lambda *given: seen.append(given[2]))
    pooled: Tensor | None = model(images)
    hook.remove()
    (tokens,) = seen
    if isinstance(config, SwinConfig):
        return tokens.flatten(1, 2), pooled
    if isinstance(config, ViTConfig):
        return tokens[:, 1:], pooled if config.pool == "class" else None
    return tokens.flatten(2).mT, pooled


def elsewhere(config: BackboneConfig) -> str:
    """Return why features of images of another size may differ; empty if they should not."""
    if isinstance(config, SwinConfig):
        return (
            "torchvision shifts windows wherever a map is larger than one of them, ours where it "
            "is at the size that the network was built for"
        )
    if isinstance(config, ViTConfig):
        return "torchvision's ViT takes images of its own size alone"
    return ""


def usage(config: BackboneConfig, folder: str) -> str:
    """Return code that loads the folder in torchvision and describes a PIL `image`."""
    name, _ = arguments(config)
    pixels = from_photograph('config["image_size"]', 'config["mean"]', 'config["std"]')
    pooled, extractor = "network(pixels)", ""
    if regions_pooled("torchvision", config):
        pooled = 'tokens(pixels)["encoder"][:, 1:].mean(1)'
        extractor = '\ntokens = create_feature_extractor(network, ["encoder"])'
    tool = "\nfrom torchvision.models.feature_extraction import create_feature_extractor"
    norm = name in ("SwinTransformer", "VisionTransformer")
    imports = "from functools import partial\n" if norm else ""
    eps = '\nnorm = partial(nn.LayerNorm, eps=config["layer_norm_eps"])' if norm else ""
    layer = ", norm_layer=norm" if norm else ""
    return f"""\
import json
{imports}from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import {name}{tool if extractor else ""}
from torchvision.transforms import v2

folder = Path("{folder}")
config = json.loads((folder / "{CONFIG}").read_text()){eps}
network = {name}(**config["arguments"]{layer}).eval()
network.{HEADS[name]} = nn.Identity()
network.load_state_dict(load_file(folder / "{WEIGHTS}")){extractor}
{pixels}
pooled = {pooled}  # [1, D]
"""
