"""What leaves no trace in weights: heads, the images' side, what norms add, mean and deviation.

A user says it, it stands beside the file or shows in other tensors, or it is as published; what was
assumed goes into a note.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.backbones.vit import sincos_positions
from leanvit.config import TimmConfig, ViTConfig, named_backbone
from leanvit.config.weights import WeightsConfig
from leanvit.weights.layouts import LAYOUTS, Part
from leanvit.weights.model_folder import EPS
from leanvit.weights.reading import Contents, read_json
from leanvit.weights.shapes import Shapes, swin_config
from leanvit.weights.unknown import told

TWELVE_HEADS = ("mae_lite", "moco_v3")
"""Layouts whose light networks have more heads than everybody else's."""
LIGHT = (192, 384)
"""Their channels."""


def beside(checkpoint: Contents, section: str) -> Mapping[str, Any]:
    """Return a section of the config.json beside a file; empty without one."""
    return checkpoint.config.get(section) or {}


def timm_name(checkpoint: Contents, asked: WeightsConfig) -> str:
    """Return timm's name of the network, if it was given or stands beside the file."""
    if asked.network:
        config = named_backbone(asked.network, "network")
        return config.name if isinstance(config, TimmConfig) else ""
    return str(checkpoint.config.get("architecture", ""))


def image_size(checkpoint: Contents, asked: WeightsConfig) -> int:
    """Return the image's side as it was said or stands beside the file; 0 if it is unknown."""
    if asked.image_size:
        return asked.image_size
    size = checkpoint.config.get("image_size") or beside(checkpoint, "model_args").get("img_size")
    size = size or beside(checkpoint, "pretrained_cfg").get("input_size")
    side = size[-1] if isinstance(size, list) and size else size  # [C, H, W] or [H, W]
    return side if isinstance(side, int) else 0


@dataclass(frozen=True, slots=True)
class Untraced:
    """A network of a file, and where to look for what its weights do not show."""

    checkpoint: Contents
    asked: WeightsConfig
    layout: str
    """Key of `LAYOUTS`."""
    part: Part
    state: Mapping[str, Tensor]
    """Under our names."""
    notes: list[str]
    """Gets what was assumed."""

    def as_said(self, config: ViTConfig) -> ViTConfig:
        """Take over what leaves no trace in the weights from what stands beside the file."""
        config_json, args = self.checkpoint.config, beside(self.checkpoint, "model_args")
        norm_last = args.get("fc_norm", args.get("use_fc_norm"))
        mean = args.get("global_pool") == "avg" and norm_last is False
        if config.pool == "class" and (mean or config_json.get("pool") == "mean"):
            config = replace(config, pool="mean")
        first = args.get("init_values") or config_json.get("layerscale_value")
        return replace(config, layer_scale=float(first)) if first and config.layer_scale else config

    def heads(self, config: ViTConfig) -> int:
        """Return the heads of a plain ViT: shown by other tensors, said, or as published."""
        shown = self._heads_shown()
        published = LAYOUTS[self.layout].heads.get(config.dim)
        light = published and config.dim in LIGHT and self.layout not in TWELVE_HEADS
        if light and self._positions_are_waves(config):
            published = None  # a file of MAE-Lite or MoCo-v3 without its prefixes looks like this
        said = self.asked.heads[0] if self.asked.heads else 0
        usual = f"a network of {config.dim} channels has in {self.layout}"
        guarded = published if self.layout == "mae_lite" else None
        for known, source in ((shown, "the file shows"), (guarded, usual)):
            if said and known and said != known:
                raise ValueError(
                    f"{source} {known} heads, not {said}: with {said} the same tensors would fit "
                    f"and give other features."
                )
        heads = said or shown or published
        if not heads:
            raise ValueError(
                f"the number of heads leaves no trace in weights, and networks of {config.dim} "
                f"channels have 12 in MAE-Lite and MoCo-v3, 3 or 6 elsewhere: {told('--heads N')}."
            )
        if config.dim % heads:
            raise ValueError(f"{heads} heads do not divide {config.dim} channels.")
        if not (said or shown):
            self.notes.append(
                f"{heads} heads, as networks of {config.dim} channels have in {self.layout}: "
                f"weights do not show it (--heads)"
            )
        return heads

    def _heads_shown(self) -> int:
        """Return the heads that something beside the projections shows; 0 if nothing does."""
        table = self.state.get("layers.0.attn.relative_position_bias_table")
        if table is not None:
            return table.shape[1]
        for name in self.checkpoint.tensors:  # D-MAE: from the student's heads to the teacher's
            if "attn_adapter." in name:
                shape = self.checkpoint.tensors[name].shape
                return int(shape[0 if "tch_model" in self.part.place else 1])
        count = self.checkpoint.config.get("num_attention_heads")
        count = count or beside(self.checkpoint, "model_args").get("num_heads")
        if isinstance(count, int):
            return count
        name = timm_name(self.checkpoint, self.asked)
        if not name:
            return 0
        from leanvit.backbones.timm_adapter import heads_of  # timm takes a while to load

        return heads_of(name)

    def _positions_are_waves(self, config: ViTConfig) -> bool:
        """Whether positions are the fixed ones of MAE, or of MoCo-v3, which says the row first."""
        places = self.state["pos_embed"].float()
        fixed = sincos_positions(config.image_size // config.patch, config.dim)
        both = (fixed, fixed.roll(config.dim // 2, -1))
        return any(torch.allclose(places, each, rtol=0, atol=1e-3) for each in both)

    def norm_eps(self, kind: str) -> float:
        """Return what norms add to the variance; kind: our family."""
        config = self.checkpoint.config
        if EPS in config:  # a folder that leanvit wrote
            return float(config[EPS])
        said = config.get("layer_norm_eps")
        if self.part.naming == "swin huggingface" and said not in (None, 1e-5):
            raise ValueError(
                f"some norms of transformers' Swin add 1e-05 to the variance and the others {said} "
                f"(layer_norm_eps), which no Swin here does."
            )
        if said is None:
            usual = LAYOUTS[self.layout].norm_eps
            said = usual.get(self.part.naming, usual.get(kind, 1e-6))
            bare = not re.search(r"\b(teacher|student)\.", self.part.place)
            if self.part.naming == "swin" and self.layout == "esvit" and bare:
                self.notes.append(
                    "norms add 1e-06 to the variance, as in EsViT; in supervised Swins they add "
                    "1e-05, and without masks weights do not show it"
                )
        return float(said)

    def swin_size(self, shapes: Shapes) -> int:
        """Return the image's side, which decides whether the windows of a stage are shifted."""
        size = image_size(self.checkpoint, self.asked)
        mask = self.state.get("layers.0.blocks.1.attn_mask")  # [windows, T, T]
        if not size and mask is not None:
            windows, tokens, _ = mask.shape
            size = math.isqrt(windows * tokens) * shapes["patch_embed.proj.weight"][-1]
        if not size:
            size = swin_config(shapes).image_size
            self.notes.append(
                f"windows are laid out for images of {size} pixels, where the last stage is one "
                f"window, as published: weights do not show it (--image-size)"
            )
        return size

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation: said, beside the file, or ImageNet's."""
        found = beside(self.checkpoint, "pretrained_cfg") or self.checkpoint.config
        path = self.checkpoint.path
        processor = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
        if self.layout == "huggingface" and processor.is_file():
            words = read_json(processor)
            found = {"mean": words.get("image_mean"), "std": words.get("image_std")}
            if words.get("do_normalize") is False:  # whatever else it says
                found = {"mean": [0.0] * 3, "std": [1.0] * 3}
        given = {name: getattr(self.asked, name) or found.get(name) for name in ("mean", "std")}
        for name, value in given.items():
            plain = value is None or (
                isinstance(value, list | tuple)
                and len(value) in (0, 3)
                and all(isinstance(number, int | float) for number in value)
                and (name == "mean" or all(number > 0 for number in value))
            )
            if not plain:
                raise ValueError(f"its {name} is {value!r}; expected one number a channel: 3.")
        mean, std = (tuple(given[name] or ()) for name in ("mean", "std"))
        if not (mean and std):
            self.notes.append("mean and deviation of ImageNet: the file does not say (--mean)")
        return mean or Backbone.mean, std or Backbone.std
