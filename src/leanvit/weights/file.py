"""One file that is a backbone: safetensors whose header says what it is and how to feed it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig, from_dict, named_backbone, to_dict
from leanvit.config.backbones import TIMM
from leanvit.core.random import seeded

FILE = "backbone.safetensors"
"""The weights that a run is for: a method's teacher, where it has one."""
STUDENT = "student.safetensors"
"""Beside it, the network that took the gradients."""
HEADER = "leanvit"


def header(backbone: Backbone, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the file's header: the architecture, and facts such as mean, std and method."""
    return {HEADER: json.dumps({"backbone": to_dict(backbone.config), **facts})}


def read_header(path: Path) -> dict[str, Any]:
    """Return what a backbone file says of itself. Raises ValueError if it is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})[HEADER])
    except PermissionError as error:
        raise ValueError(f"{path} may not be read.") from error
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a backbone that leanvit wrote.") from error
    return dict(found)


def load_backbone(path_or_name: str | Path) -> Backbone:
    """Return a backbone, in evaluation mode, on the CPU.

    path_or_name: a backbone file, the folder of a run, or a name of `list_backbones()` or
    `timm:NAME`, which give untrained weights. Its `mean` and `std` are those it was trained with.
    Raises ValueError if it is none of these or does not fit exactly.
    """
    path = Path(path_or_name)
    if path.is_dir():
        path = path / FILE
    if path.is_file():
        return _from_file(path)
    name = str(path_or_name)
    if not name.startswith(TIMM) and (path.suffix or path.parent != Path()):
        raise ValueError(f"There is no backbone file {str(path)!r}.")
    config = named_backbone(name, "backbone file or name")
    with seeded(0, "weights"):
        return build_backbone(config).eval()


def _from_file(path: Path) -> Backbone:
    facts = read_header(path)
    config = from_dict(BackboneConfig, facts["backbone"], "backbone")
    with seeded(0, "weights"):
        backbone = build_backbone(config)
    try:
        backbone.load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        raise ValueError(f"The weights in {path} do not fit its own header: {error}") from error
    backbone.mean = tuple(facts.get("mean", backbone.mean))
    backbone.std = tuple(facts.get("std", backbone.std))
    return backbone.eval()
