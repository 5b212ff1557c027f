"""What a config.json says of weights that leaves no trace in them, and makes another function."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_BLOCKS = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
_DINOV2 = _BLOCKS | {"use_swiglu_ffn": False, "apply_layernorm": True}
TRANSFORMERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "vit": _BLOCKS,
        "vit_mae": _BLOCKS,
        "vit_msn": _BLOCKS,
        "deit": _BLOCKS,
        "dinov2": _DINOV2,
        "dinov2_with_registers": _DINOV2,
        "swin": _BLOCKS | {"use_absolute_embeddings": False},
        "resnet": {
            "hidden_act": "relu",
            "num_channels": 3,
            "embedding_size": 64,
            "hidden_sizes": [256, 512, 1024, 2048],
            "depths": [3, 4, 6, 3],
            "layer_type": "bottleneck",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        },
    }
)
"""model_type of transformers -> what its config.json must say, where it says anything of it."""
USUAL: Mapping[str, str] = MappingProxyType({"vit": "vit", "swin": "swin", "timm": "resnet"})
"""Our family -> model_type of a config.json without one."""


def require_ours(config: Mapping[str, Any], kind: str) -> None:
    """Refuse a config.json of transformers that describes another function than ours.

    kind: our family. Raises ValueError with the word that makes the difference.
    """
    if "model_args" in config and "architecture" not in config:
        raise ValueError(
            "its config.json has model_args without the architecture that they are of; give it as "
            "timm wrote it."
        )
    name = config.get("model_type") or USUAL.get(kind, "")
    if not isinstance(name, str) or (name and name not in TRANSFORMERS):
        raise ValueError(
            f"its model_type is {name!r}; leanvit reads those of transformers that compute "
            f"what its own networks do: {', '.join(TRANSFORMERS)}."
        )
    for word, expected in TRANSFORMERS.get(name, {}).items():
        if word in config and config[word] != expected:
            raise ValueError(
                f"its {word} is {config[word]!r}, which leaves no trace in weights; leanvit's "
                f"{name} has {expected!r}."
            )
