"""Weights that timm made: trained ones by name, and the folders that it keeps them in.

A network that one of our families computes too is read as that family, which packs views of several
sizes, shows attention and takes hidden patches; any other stays timm's, behind `TimmNetwork`. Which
of them it is shows in the features of an image.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from leanvit.backbones.timm_adapter import TimmNetwork, options_of, require_architecture
from leanvit.config import unknown_name
from leanvit.config.backbones import TIMM
from leanvit.config.weights import WeightsConfig
from leanvit.core.random import seeded
from leanvit.weights.compare import TOLERANCE, difference, images_for
from leanvit.weights.foreign import understand
from leanvit.weights.model_folder import EPS
from leanvit.weights.reading import Contents
from leanvit.weights.report import Weights, build
from leanvit.weights.timm_format import timm_features

WHOLE = ("state_dict_ema.", "state_dict.", "model.")
"""Places where timm's own trainer keeps a network."""


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
    """Return what timm writes beside such weights."""
    usual = {name: list(model.pretrained_cfg[name]) for name in ("input_size", "mean", "std")}
    return {"architecture": arch, "pretrained_cfg": usual}


def understand_timm(checkpoint: Contents, asked: WeightsConfig) -> Weights:
    """Return the network of a checkpoint beside which stands what timm calls it.

    timm builds that network from its name and `model_args`; ours, or `TimmNetwork`, is taken if it
    gives the same features. Raises ValueError where neither does, or neither reads the file.
    """
    name = str(checkpoint.config["architecture"])
    theirs = _timms_own(checkpoint, asked)
    norms = [module.eps for module in theirs.modules() if isinstance(module, nn.LayerNorm)]
    if norms:  # the last one's, as our families have one for all
        told = {"layer_norm_eps": norms[-1], **checkpoint.config}
        checkpoint = replace(checkpoint, config=told)
    refusal, different = None, False
    for network in dict.fromkeys((asked.network, asked.network or TIMM + name)):
        try:
            found = understand(checkpoint, replace(asked, network=network))
        except ValueError as error:
            refusal = refusal or error
            continue
        if _same(found, theirs):
            return found
        different = True
    raise _another(checkpoint) if different or refusal is None else refusal


def _another(checkpoint: Contents) -> ValueError:
    name, given = checkpoint.config["architecture"], checkpoint.config.get("model_args") or {}
    told = ", ".join(f"{word}={value!r}" for word, value in given.items()) or "nothing"
    return ValueError(
        f"{str(checkpoint.path)!r}: timm makes of these weights {name} with {told} (model_args in "
        f"its config.json), which gives other features than what leanvit makes of them; use it in "
        f"timm."
    )


def _timms_own(checkpoint: Contents, asked: WeightsConfig) -> Any:
    """Return the network that timm builds from what stands beside a checkpoint, in evaluation."""
    arch, beside = str(checkpoint.config["architecture"]), checkpoint.config
    require_architecture(arch)
    sections = {name: beside.get(name) or {} for name in ("model_args", "pretrained_cfg")}
    for section, found in sections.items():
        if not isinstance(found, dict):
            raise _refused(checkpoint, f"{section} in its config.json is {found!r}", "an object")
    given = {"num_classes": 0, **sections["model_args"]}
    known = options_of(arch) | {"num_classes"}
    if strange := [name for name in given if name not in known]:
        what = f"model_args in its config.json has {', '.join(map(repr, strange))}"
        raise _refused(checkpoint, what, f"arguments of timm's {arch}")
    blocks = given.get("depth", given.get("depths", 0))
    count = sum(blocks) if isinstance(blocks, list) else blocks
    if isinstance(count, int) and count > len(checkpoint.tensors):  # that would be built for good
        raise _refused(checkpoint, f"model_args has {count} blocks", "those that the file has")
    size = sections["pretrained_cfg"].get("input_size")
    if "img_size" in known and (asked.image_size or size):
        given |= {"img_size": given.get("img_size") or (size or [0])[-1]}
        given["img_size"] = asked.image_size or given["img_size"]
    if EPS in beside:  # a folder that leanvit wrote; timm's JSON has no word for it
        given["norm_layer"] = partial(nn.LayerNorm, eps=float(beside[EPS]))
    given["num_classes"] = 0
    try:
        with seeded(0, "library"):
            model: Any = timm.create_model(arch, **given)
        model.load_state_dict(_state(checkpoint, model))
    except (RuntimeError, TypeError, ValueError, AssertionError, LookupError) as error:
        why = " ".join(str(error).split())[:300].rstrip(".")
        what = f"timm's {arch} cannot be made of it as its config.json says ({why})"
        raise _refused(checkpoint, what, "weights that fit it") from error
    return model.eval()


def _refused(checkpoint: Contents, what: str, expected: str) -> ValueError:
    return ValueError(f"{str(checkpoint.path)!r}: {what}; expected {expected}.")


def _state(checkpoint: Contents, model: Any) -> dict[str, Tensor]:
    """Return the tensors that a network of timm has; older names as timm itself reads them."""
    expected, tensors = model.state_dict(), checkpoint.tensors
    place = next((p for p in ("", *WHOLE) if all(f"{p}{name}" in tensors for name in expected)), "")
    if not all(f"{place}{name}" in tensors for name in expected):
        read = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        tensors = read(dict(tensors), model) if read else tensors
    return {name: tensors[f"{place}{name}"] for name in expected if f"{place}{name}" in tensors}


@torch.no_grad()
def _same(found: Weights, theirs: Any) -> bool:
    """Whether both give the same features of an image of the size that the network is made for."""
    side, ours = found.config.image_size, build(found)
    image = images_for(side, 1)
    try:
        features, (regions, pooled) = ours.features(image), timm_features(theirs, image)
    except (RuntimeError, AssertionError, ValueError):
        return False
    pairs = [(features.grid.flatten(1, 2), regions)]
    if not isinstance(ours, TimmNetwork) or ours.network.own_head:
        pairs.append((features.pooled, pooled))
    return all(difference(*pair) <= TOLERANCE for pair in pairs)
