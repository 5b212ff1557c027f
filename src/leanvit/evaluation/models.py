"""Which networks a name on the command line means."""

from collections.abc import Mapping
from pathlib import Path

import torch

from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.core.random import seeded
from leanvit.weights.file import FILE, STUDENT, read_header
from leanvit.weights.loading import load_backbone


def open_networks(model: str | Path, device: torch.device) -> Mapping[str, Backbone]:
    """Return the networks to evaluate, by the name of their row, on a device.

    model: the folder of a run (teacher, and student where the method has one), a backbone file,
    or the name of a backbone, which is untrained. Raises ValueError if it is none of these.
    """
    path = Path(model)
    if not path.is_dir():
        row = "trained" if path.is_file() else "untrained"
        return {row: load_backbone(model).to(device)}
    networks = {"trained (teacher)": load_backbone(path).to(device)}
    if (path / STUDENT).is_file():
        networks["trained (student)"] = load_backbone(path / STUDENT).to(device)
    return networks


def before_training(model: str | Path, backbone: Backbone) -> Backbone:
    """Return the network with the weights that a fresh run with the same seed begins with."""
    path = Path(model) / FILE if Path(model).is_dir() else Path(model)
    with seeded(int(read_header(path).get("seed", 0)), "weights"):
        fresh = build_backbone(backbone.config)
    fresh.mean, fresh.std = backbone.mean, backbone.std
    return fresh.to(next(backbone.parameters()).device).eval()
