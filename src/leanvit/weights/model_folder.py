"""The folder that libraries load a network from: its weights beside a JSON that describes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from leanvit.config import BackboneConfig, SwinConfig, ViTConfig
from leanvit.core.files import save_tensors, write_synced
from leanvit.weights.layouts import LAYOUTS

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CROP = 0.875
"""Share of the resized image that evaluation sees, as in the papers."""
EPS = "norm_eps"
"""Our own word in config.json: what our norms add to the variance, where the library's add more."""
RESNETS = ("resnet50",)
"""Networks of timm that torchvision and Hugging Face have too, and whose names we know there."""
WORDS: Mapping[str, str] = {
    "swin": "Swin",
    "vit": "plain ViT",
    "cvt": "CvT",
    "vil": "Vision Longformer",
    "timm": "network of timm's name",
}


def write_weights(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a network into a folder. Raises OSError if the disk refuses."""
    save_tensors(state, folder / WEIGHTS, {"format": "pt"})
    write_json(folder / CONFIG, config)


def write_json(path: Path, plain: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON."""
    write_synced(path, f"{json.dumps(plain, indent=2)}\n".encode())


def from_photograph(side: str, mean: str, std: str) -> str:
    """Return code of a card that makes `pixels` [1, 3, side, side] of a PIL `image`.

    side, mean, std: expressions. It needs torch, and v2 of torchvision.transforms.
    """
    return f"""\
transform = v2.Compose([
    v2.PILToTensor(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Resize(round({side} / {CROP}), v2.InterpolationMode.BICUBIC),
    v2.CenterCrop({side}),
    v2.Normalize({mean}, {std}),
])
pixels = transform(image.convert("RGB"))[None]"""


def require_written(library: str, config: BackboneConfig) -> None:
    """Refuse a family that a library does not have, and name the formats that hold it."""
    if config.kind in LAYOUTS[library].writes:
        return
    able = [name for name, layout in LAYOUTS.items() if config.kind in layout.writes]
    raise ValueError(
        f"{library} has no {WORDS[config.kind]}; what can hold one: "
        f"{', '.join(['leanvit', *able, 'onnx', 'export'])}."
    )


def require_plain(library: str, config: BackboneConfig, *allowed: str) -> None:
    """Refuse what makes a Swin or a plain ViT another function than a library's.

    allowed: of registers, layer_scale, position_bias and mean_norm, what its plain ViT has.
    """
    if not isinstance(config, SwinConfig | ViTConfig):
        return
    if config.image_size % config.patch:
        raise ValueError(
            f"{library} cuts images into whole patches: {config.image_size} pixels "
            f"(backbone.image_size) are no multiple of {config.patch}."
        )
    if isinstance(config, SwinConfig):
        if config.skip_padding:
            raise ValueError(
                f"{library} has no Swin whose tokens do not see the padding of their windows "
                f"(backbone.skip_padding): it would give other features."
            )
        return
    there = {
        "registers": config.registers > 0,
        "layer_scale": config.layer_scale > 0,
        "position_bias": config.position_bias,
        "mean_norm": config.pool == "mean_norm",
    }
    more = [name for name, has in there.items() if has and name not in allowed]
    if more:
        raise ValueError(
            f"{library} has no plain ViT with {' and '.join(more)} as this one has; timm takes "
            f"registers, layer_scale and mean_norm, or position_bias without registers."
        )


def require_windows(library: str, config: SwinConfig) -> None:
    """Refuse windows that are smaller where a map is, for a library of one size of windows."""
    sides = [
        -(-(config.image_size // config.patch) // 2**stage) for stage in range(len(config.depths))
    ]
    if min(sides) < config.window:
        raise ValueError(
            f"{library}'s Swin has windows of one size; here those of {config.window} tokens "
            f"shrink to {min(sides)} where the map of a stage has no more (image_size "
            f"{config.image_size}). timm can hold it."
        )


def regions_pooled(library: str, config: BackboneConfig) -> list[str]:
    """Return a note where our view feature is a mean and a library's the class token; else none."""
    if not (isinstance(config, ViTConfig) and config.pool == "mean"):
        return []
    return [
        f"{library} pools to the class token; the view feature here is the mean of the regions, "
        f"which the card shows how to get"
    ]


def require_resnet(library: str, name: str) -> None:
    """Refuse networks of timm that another library does not have by a name that we know."""
    if name not in RESNETS:
        raise ValueError(f"{library} takes {' and '.join(RESNETS)} of timm's networks, not {name}.")
