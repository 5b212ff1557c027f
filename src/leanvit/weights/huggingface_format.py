"""A backbone as a folder that `AutoModel.from_pretrained(FOLDER)` of transformers loads.

Files carry the names that transformers has had from the first; its version 5 renames them when it
loads. Letters: B images, h and w rows and columns of the grid, P prefix tokens, D channels.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from leanvit.backbones.base import Backbone
from leanvit.config import BackboneConfig, SwinConfig, TimmConfig, ViTConfig
from leanvit.core.errors import RunError
from leanvit.core.random import seeded
from leanvit.weights.folds import as_dinov2
from leanvit.weights.layouts import LAYOUTS
from leanvit.weights.model_folder import (
    CROP,
    EPS,
    regions_pooled,
    require_plain,
    require_resnet,
    require_windows,
    require_written,
    write_json,
    write_weights,
)
from leanvit.weights.names import NAMINGS

SWIN_EPS = 1e-5
"""What some norms of its Swin add to the variance, whatever its configuration says."""
PROCESSOR = "preprocessor_config.json"
BICUBIC = 3
"""Pillow's number of that filter."""


def described(config: BackboneConfig) -> dict[str, Any]:
    """Return the config.json of a network.

    Raises ValueError, which says why, if transformers has no such network.
    """
    require_written("huggingface", config)
    require_plain("huggingface", config, "registers", "layer_scale")
    if isinstance(config, TimmConfig):
        require_resnet("huggingface", config.name)
        return {
            "architectures": ["ResNetModel"],
            "model_type": "resnet",
            "num_channels": 3,
            "embedding_size": 64,
            "hidden_sizes": [256, 512, 1024, 2048],
            "depths": [3, 4, 6, 3],
            "layer_type": "bottleneck",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
            "image_size": config.image_size,  # ours: transformers carries it along
        }
    shared = {
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    if isinstance(config, SwinConfig):
        require_windows("huggingface", config)
        return _swin(config) | shared
    assert isinstance(config, ViTConfig)
    return _dinov2(config) | shared


def _swin(config: SwinConfig) -> dict[str, Any]:
    return {
        "architectures": ["SwinModel"],
        "model_type": "swin",
        "embed_dim": config.dim,
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": config.window,
        "mlp_ratio": config.mlp_ratio,
        "layer_norm_eps": config.norm_eps,
        **({EPS: config.norm_eps} if config.norm_eps != SWIN_EPS else {}),
        "use_absolute_embeddings": False,
        "encoder_stride": config.patch * 2 ** (len(config.depths) - 1),
    }


def _dinov2(config: ViTConfig) -> dict[str, Any]:
    if config.mlp_ratio != int(config.mlp_ratio):
        raise ValueError(
            f"huggingface's plain ViT is as wide inside as a whole multiple of its channels, not "
            f"{config.mlp_ratio:g} times (backbone.mlp_ratio); timm can hold it."
        )
    name = "Dinov2WithRegistersModel" if config.registers else "Dinov2Model"
    plain: dict[str, Any] = {
        "architectures": [name],
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": int(config.mlp_ratio),
        "layer_norm_eps": config.norm_eps,
        "layerscale_value": config.layer_scale or 1.0,
        "use_swiglu_ffn": False,
        "apply_layernorm": True,
        "reshape_hidden_states": True,
        "pool": config.pool,  # ours: transformers carries it along
    }
    if config.registers:
        return plain | {"num_register_tokens": config.registers}
    return plain | {"use_mask_token": True}


def write(backbone: Backbone, folder: Path) -> list[str]:
    """Write weights, config.json and preprocessor_config.json; return what was changed.

    Raises ValueError, which says why, if transformers has no such network.
    """
    config, notes = backbone.config, list[str]()
    plain = described(config)
    naming, _ = LAYOUTS["huggingface"].writes[config.kind]
    state = dict(backbone.state_dict())
    if isinstance(config, SwinConfig) and other_eps(config):
        notes.append(
            f"some norms of transformers' Swin, of patches and of merging, add {SWIN_EPS:g} to the "
            f"variance whatever it is told; all of ours add {config.norm_eps:g}"
        )
    if isinstance(config, ViTConfig):
        state = as_dinov2(state)
        if not config.layer_scale:
            notes.append("the factors that DINOv2 has in every block (LayerScale) are 1")
    notes += regions_pooled("huggingface", config)
    write_weights(folder, NAMINGS[naming].theirs(state), plain)
    write_json(folder / PROCESSOR, _processor(backbone))
    return notes


def other_eps(config: BackboneConfig) -> bool:
    """Return whether some norms of transformers' network add another number than ours."""
    return isinstance(config, SwinConfig) and config.norm_eps != SWIN_EPS


def _processor(backbone: Backbone) -> dict[str, Any]:
    side = backbone.config.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(side / CROP)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }


def network(folder: Path) -> nn.Module:
    """Return transformers' own network, loaded from a folder strictly.

    Raises RunError if it misses weights, or finds some that it does not know.
    """
    import transformers

    words = transformers.utils.logging
    shown = words.is_progress_bar_enabled()
    words.disable_progress_bar()
    try:
        with seeded(0, "library"):
            model, found = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
    finally:
        if shown:
            words.enable_progress_bar()
    wrong = {kind: sorted(map(str, names)) for kind, names in found.items() if names}
    if wrong:
        raise RunError(f"transformers does not load what was written as it is: {wrong}.")
    return model.eval()


def features(config: BackboneConfig, model: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return region features [B, h * w, D] and, unless ours is a mean, the view feature [B, D]."""
    found = model(pixel_values=images)
    tokens, pooled = found.last_hidden_state, found.pooler_output.flatten(1)
    if isinstance(config, TimmConfig):
        return tokens.flatten(2).mT, pooled
    if isinstance(config, ViTConfig):
        return tokens[:, 1 + config.registers :], pooled if config.pool == "class" else None
    return tokens, pooled


def elsewhere(config: BackboneConfig) -> str:
    """Return why features of images of another size may differ; empty if they should not."""
    if isinstance(config, SwinConfig):
        return (
            "transformers' Swin pads pixels to whole patches, and decides by the images that come "
            "which windows are shifted and how large they are, and keeps to that; ours decides by "
            "the size that the network was built for"
        )
    if isinstance(config, ViTConfig) and config.registers:
        return "transformers smooths positions here when it resizes them (antialias), ours do not"
    return ""


BACKBONES = {
    "swin": "SwinBackbone",
    "dinov2": "Dinov2Backbone",
    "dinov2_with_registers": "Dinov2WithRegistersBackbone",
    "resnet": "ResNetBackbone",
}
"""transformers' family -> its class for feature pyramids."""


def usage(config: BackboneConfig, folder: str) -> str:
    """Return code that loads the folder in transformers and describes a PIL `image`."""
    plain = described(config)
    name = BACKBONES[plain["model_type"]]
    prefix = 1 + plain.get("num_register_tokens", 0)
    pooled = "found.pooler_output.flatten(1)"
    if plain.get("pool") == "mean":
        pooled = f"found.last_hidden_state[:, {prefix}:].mean(1)"
    return f"""\
from transformers import AutoImageProcessor, AutoModel, {name}

processor = AutoImageProcessor.from_pretrained("{folder}")
network = AutoModel.from_pretrained("{folder}").eval()
found = network(**processor(image, return_tensors="pt"))
pooled = {pooled}  # [1, D]

# maps of stages for detection or segmentation; AutoBackbone asks the hub, even for a folder
pyramid = {name}.from_pretrained("{folder}", out_features=["stage1", "stage2"])
"""
