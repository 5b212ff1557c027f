"""A backbone as a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

Letters: B images, h and w rows and columns of the grid, D channels.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from leanvit.backbones.base import Backbone
from leanvit.config import BackboneConfig, SwinConfig, TimmConfig, ViTConfig
from leanvit.core.random import seeded
from leanvit.weights.folds import as_beit, without_class_position
from leanvit.weights.layouts import LAYOUTS
from leanvit.weights.model_folder import (
    CONFIG,
    CROP,
    EPS,
    require_plain,
    require_written,
    write_weights,
)
from leanvit.weights.names import NAMINGS

NORM_EPS: Mapping[str, float] = {"swin": 1e-5, "vit": 1e-6}
"""What norms of timm's networks add to the variance; its config.json can say nothing else."""
CLASSIFIER: Mapping[str, str] = {"swin": "head.fc", "vit": "head"}
"""Where timm puts a new classifier."""


def architecture(config: BackboneConfig) -> tuple[str, dict[str, Any]]:
    """Return timm's name of the network and the arguments that make it this one.

    Raises ValueError, which says why, if timm has no such network.
    """
    require_written("timm", config)
    if isinstance(config, TimmConfig):
        from leanvit.backbones.timm_adapter import size_options  # timm takes a while to load

        return config.name, size_options(config)
    if isinstance(config, SwinConfig):
        require_plain("timm", config)
        return "swin_tiny_patch4_window7_224", {
            "img_size": config.image_size,
            "patch_size": config.patch,
            "embed_dim": config.dim,
            "depths": list(config.depths),
            "num_heads": list(config.heads),
            "window_size": config.window,
            "mlp_ratio": config.mlp_ratio,
            "strict_img_size": False,
        }
    assert isinstance(config, ViTConfig)
    return _vit(config)


def _vit(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    more = ("position_bias",) if config.position_bias else ("registers",)
    require_plain("timm", config, "layer_scale", "mean_norm", *more)
    shared = {
        "img_size": config.image_size,
        "patch_size": config.patch,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "global_pool": "token" if config.pool == "class" else "avg",
    }
    norm_last = config.pool == "mean_norm"
    if config.position_bias:
        bias = {"use_abs_pos_emb": True, "use_rel_pos_bias": True, "use_fc_norm": norm_last}
        return "beit_base_patch16_224", shared | bias | {"init_values": config.layer_scale}
    more_tokens = {"reg_tokens": config.registers, "no_embed_class": True}
    return "vit_small_patch16_224", {
        **shared,
        "fc_norm": norm_last,
        "dynamic_img_size": True,
        **({"init_values": config.layer_scale} if config.layer_scale else {}),
        **(more_tokens if config.registers else {}),
    }


def write(backbone: Backbone, folder: Path) -> list[str]:
    """Write the weights and timm's config.json into a folder; return what was changed.

    Raises ValueError, which says why, if timm has no such network.
    """
    config = backbone.config
    name, arguments = architecture(config)
    state, notes = _state(backbone)
    described: dict[str, Any] = {
        "input_size": [3, config.image_size, config.image_size],
        "interpolation": "bicubic",
        "crop_pct": CROP,
        "crop_mode": "center",
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "num_classes": 0,
        "fixed_input_size": config.kind == "vit" and "dynamic_img_size" not in arguments,
        **_ends(backbone),
    }
    plain = {
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.feature_dim,
        "pretrained_cfg": described,
        "model_args": arguments,
        **({EPS: config.norm_eps} if _other_eps(config) else {}),  # type: ignore[attr-defined]
    }
    write_weights(folder, state, plain)
    return notes


def _ends(backbone: Backbone) -> dict[str, Any]:
    """Return the names of the first convolution and of the classifier, which timm exchanges."""
    kind = backbone.config.kind
    if kind != "timm":
        return {"first_conv": "patch_embed.proj", "classifier": CLASSIFIER[kind]}
    model: Any = backbone.get_submodule("network.model")
    known = model.pretrained_cfg
    return {end: known[end] for end in ("first_conv", "classifier") if end in known}


def _state(backbone: Backbone) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state under timm's names, and what is not as it was."""
    config, state, notes = backbone.config, dict(backbone.state_dict()), []
    naming, _ = LAYOUTS["timm"].writes[config.kind]
    if isinstance(config, TimmConfig):
        _require_whole(backbone)
    if _other_eps(config):
        notes.append(
            f"timm's norms add {NORM_EPS[config.kind]:g} to the variance unless they are told to "
            f"add ours, {config.norm_eps:g}, as the card does (norm_layer)"  # type: ignore[attr-defined]
        )
    if isinstance(config, ViTConfig) and config.registers:
        state = without_class_position(state)
        notes.append("the position of the class token is added to that token")
    if isinstance(config, ViTConfig) and config.position_bias:
        state = as_beit(state)
        notes.append("keys have no bias, which attention ignores")
    return NAMINGS[naming].theirs(state), notes


def _other_eps(config: BackboneConfig) -> bool:
    """Return whether our norms add something else than timm's, which its JSON cannot say."""
    return isinstance(config, SwinConfig | ViTConfig) and config.norm_eps != NORM_EPS[config.kind]


def _require_whole(backbone: Backbone) -> None:
    """Refuse a network whose head we leave out."""
    network: Any = backbone.get_submodule("network")
    if not network.own_head:
        raise ValueError(
            f"timm's {network.model.default_cfg['architecture']} makes its features wider before "
            f"the classifier; leanvit leaves that out, so timm would find weights missing."
        )


def network(folder: Path) -> nn.Module:
    """Return timm's own network, loaded from a folder strictly."""
    import timm

    eps = json.loads((folder / CONFIG).read_text()).get(EPS)
    told: dict[str, Any] = {"norm_layer": partial(nn.LayerNorm, eps=eps)} if eps else {}
    with seeded(0, "library"):
        return timm.create_model(f"local-dir:{folder}", pretrained=True, **told)


def features(_: BackboneConfig, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return region features [B, h * w, D] and the view feature [B, D] of images."""
    return timm_features(model, images)


def timm_features(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same of any network of timm."""
    tokens: Tensor = model.forward_features(images)
    pooled: Tensor = model.forward_head(tokens, pre_logits=True)
    if tokens.ndim == 3:
        return tokens[:, int(getattr(model, "num_prefix_tokens", 0)) :], pooled
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return tokens.flatten(1, 2), pooled
    return tokens.flatten(2).mT, pooled


def elsewhere(config: BackboneConfig) -> str:
    """Return why features of images of another size may differ; empty if they should not."""
    if isinstance(config, SwinConfig):
        return "timm rolls a map before it pads it to whole windows, ours is padded first"
    if isinstance(config, ViTConfig) and config.position_bias:
        return "timm's BEiT takes images of its own size alone"
    if isinstance(config, ViTConfig):
        return (
            "timm smooths positions when it resizes them (antialias), ours and DINO's code do not"
        )
    return ""


def usage(config: BackboneConfig, folder: str) -> str:
    """Return code that loads the folder in timm and describes a PIL `image`."""
    regions = "[1, h, w, D]" if config.kind == "swin" else "[1, tokens, D]"
    if config.kind == "timm":
        regions = "as this network of timm has it"
    imports, told = "import timm", ""
    if _other_eps(config):
        imports = "from functools import partial\n\nimport timm\nimport torch"
        told = f", norm_layer=partial(torch.nn.LayerNorm, eps={config.norm_eps})"  # type: ignore[attr-defined]
    return f"""\
{imports}

network = timm.create_model("local-dir:{folder}", pretrained=True{told}).eval()
settings = timm.data.resolve_model_data_config(network)
transform = timm.data.create_transform(**settings, is_training=False)
pixels = transform(image)[None]  # [1, 3, {config.image_size}, {config.image_size}]
pooled = network(pixels)  # [1, D]
regions = network.forward_features(pixels)  # {regions}

# to fine-tune: a new classifier on top
classifier = timm.create_model("local-dir:{folder}", pretrained=True, num_classes=10{told})
"""
