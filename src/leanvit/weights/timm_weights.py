"""Weights that timm made: trained ones by name, and the folders that it keeps them in.

A network that one of our families computes too is read as that family, which packs views of several
sizes, shows attention and takes hidden patches; any other stays timm's, behind `TimmNetwork`. Which
of them it is shows in the features of an image.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from leanvit.backbones.timm_adapter import require_architecture
from leanvit.config import TimmConfig, unknown_name
from leanvit.config.backbones import TIMM
from leanvit.config.weights import WeightsConfig
from leanvit.core.random import seeded
from leanvit.weights.compare import TOLERANCE, difference, images_for
from leanvit.weights.foreign import understand
from leanvit.weights.reading import Contents
from leanvit.weights.report import Weights, build


def trained_tags(arch: str) -> list[str]:
    """Return what names the trained weights that timm has of a network.

    Raises ValueError if timm has no such network.
    """
    require_architecture(arch)
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]


def trained_checkpoint(name: str) -> Contents:
    """Return trained weights of timm by their name, NAME.TAG, as the folder of such would.

    timm takes them from the cache of Hugging Face, or downloads them there. Raises ValueError for
    an unknown name or tag, and where they are neither in the cache nor can be downloaded.
    """
    model = _trained(name)
    return Contents(
        Path(TIMM + name), model.state_dict(), {}, {}, _beside(name.partition(".")[0], model)
    )


def trained_classifier(
    name: str,
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], int]:
    """Return a trained network of timm with its classifier, its mean and std, and its classes.

    Raises ValueError as `trained_checkpoint` does.
    """
    model = _trained(name)
    usual = model.pretrained_cfg
    return model, tuple(usual["mean"]), tuple(usual["std"]), int(model.num_classes)


def _trained(name: str) -> Any:
    """Return a network of timm with its trained weights."""
    arch, _, tag = name.partition(".")
    tags = trained_tags(arch)
    if not tags:
        raise ValueError(f"timm has no trained weights of {arch}; {TIMM}{arch} is untrained.")
    if tag not in tags:
        raise unknown_name(f"trained weights of timm's {arch}", tag, tags)
    try:
        with seeded(0, "weights"):
            model: Any = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"The weights {TIMM}{name} are not in the cache of Hugging Face and cannot be "
            f"downloaded, or are damaged there: {cause}. Download them where there is a network, "
            f"or name a file that holds them."
        ) from error
    return model


def _beside(arch: str, model: Any) -> dict[str, Any]:
    """Return what timm writes beside such weights, and what a built network shows besides."""
    usual = {name: list(model.pretrained_cfg[name]) for name in ("input_size", "mean", "std")}
    beside: dict[str, Any] = {"architecture": arch, "pretrained_cfg": usual}
    heads = [m.num_heads for m in model.modules() if hasattr(m, "num_heads")]
    norms = [m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)]
    beside |= {"model_args": {"num_heads": heads[0]}} if heads else {}
    return beside | ({"layer_norm_eps": norms[-1]} if norms else {})


def understand_timm(checkpoint: Contents, asked: WeightsConfig) -> Weights:
    """Return the network of a checkpoint beside which stands what timm calls it.

    Raises ValueError as `understand` does, where neither a family of ours nor timm's fits.
    """
    name = str(checkpoint.config["architecture"])
    as_timm = replace(asked, network=TIMM + name)
    try:
        ours = understand(checkpoint, asked)
    except ValueError as refusal:
        try:
            return understand(checkpoint, as_timm)
        except ValueError:
            raise refusal from None
    if isinstance(ours.config, TimmConfig):
        return ours
    try:
        theirs = understand(checkpoint, as_timm)
    except ValueError:  # sizes of its own, which timm knows from `model_args` alone
        return ours
    return ours if _same(ours, theirs) else theirs


@torch.no_grad()
def _same(ours: Weights, theirs: Weights) -> bool:
    """Whether both give the same features of an image of the size that timm's was made for."""
    image = images_for(theirs.config.image_size, 1)
    first, second = (build(weights).features(image) for weights in (ours, theirs))
    pairs = ((first.pooled, second.pooled), (first.grid, second.grid))
    return all(difference(*pair) <= TOLERANCE for pair in pairs)
