"""Which networks a name on the command line means."""

from collections.abc import Mapping
from pathlib import Path

import torch

from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.core.console import say
from leanvit.core.random import seeded
from leanvit.weights.file import FILE, STUDENT, read_header
from leanvit.weights.loading import load_backbone, open_weights
from leanvit.weights.report import build


def open_networks(
    model: str | Path, device: torch.device, quiet: bool = False
) -> Mapping[str, Backbone]:
    """Return the networks to evaluate, by the name of their row, on a device.

    model: the folder of a run (teacher, and student where the method has one), or anything else
    that `load_backbone` takes: a name without weights is untrained. What was assumed of a file is
    said on stderr unless quiet. Raises ValueError if it is none of these.
    """
    path = Path(model)
    if not (path / FILE).is_file():
        weights = open_weights(model)
        for note in () if quiet or weights.state is None else weights.report.notes:
            say(f"Of {model}: {note}.")
        row = "untrained" if weights.state is None else "trained"
        return {row: build(weights).to(device)}
    network = load_backbone(path).to(device)
    if not (path / STUDENT).is_file():
        return {"trained": network}
    student = load_backbone(path / STUDENT).to(device)
    return {"trained (teacher)": network, "trained (student)": student}


def before_training(model: str | Path, backbone: Backbone) -> Backbone:
    """Return the network with the weights that a fresh run with the same seed begins with.

    Files of other codes do not say their seed; 0 stands for it.
    """
    path = Path(model) / FILE if Path(model).is_dir() else Path(model)
    try:
        seed = int(read_header(path).get("seed", 0))
    except ValueError:
        seed = 0
    with seeded(seed, "weights"):
        fresh = build_backbone(backbone.config)
    fresh.mean, fresh.std = backbone.mean, backbone.std
    return fresh.to(next(backbone.parameters()).device).eval()


def with_untrained(networks: Mapping[str, Backbone], model: str | Path) -> Mapping[str, Backbone]:
    """Return the networks of a model, and before them the same network before its training."""
    if "untrained" in networks:
        return networks
    return {"untrained": before_training(model, next(iter(networks.values()))), **networks}
