"""Temporary."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class Checkpoint:
    """x"""

    path: Path
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]


def flat(t, p=""):
    """x"""
    out = {}
    for k, v in t.items():
        if isinstance(v, Mapping):
            out |= flat(v, f"{p}{k}.")
        elif isinstance(v, Tensor):
            out[".".join(x for x in f"{p}{k}".split(".") if x not in ("module", "_orig_mod"))] = (
                v.float() if v.is_floating_point() else v
            )
    return out


def read_checkpoint(path: Path) -> Checkpoint:
    """x"""
    path = Path(path)
    cfg = {}
    f = path
    if path.is_dir():
        f = path / "model.safetensors"
    if (f.parent / "config.json").exists():
        cfg = json.loads((f.parent / "config.json").read_text())
    if f.suffix == ".safetensors":
        with safe_open(f, "pt") as h:
            meta = h.metadata() or {}
        return Checkpoint(path, flat(load_file(f)), {}, meta, cfg)
    with torch.serialization.safe_globals([argparse.Namespace]):
        t = torch.load(f, weights_only=True, map_location="cpu")
    return Checkpoint(path, flat(t), {}, {}, cfg)
