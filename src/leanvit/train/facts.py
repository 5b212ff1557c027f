"""What a run is resolved with: the images and the machine, looked at once."""

import os
from dataclasses import replace
from statistics import median

import torch

from leanvit.config import Facts
from leanvit.core.distributed import launched, neighbours
from leanvit.core.precision import PRECISIONS
from leanvit.data.batch import Unreadable
from leanvit.data.decode import read_image
from leanvit.data.sources import Source
from leanvit.kernels import multicrop
from leanvit.kernels.prototype_attention import best_form

SEEN = 32
"""Images that are read to see how large images are."""


def gather_facts(source: Source, *, sides: bool = False) -> Facts:
    """Find out once what the rules of `resolve` need to know.

    sides: whether to look at some images too, for how large they are.
    """
    return replace(
        machine_facts(),
        images=len(source),
        side=_side(source) if sides else 0,
        classes=len(source.classes),
        unlabelled=int((source.targets < 0).sum()),
    )


def _side(source: Source) -> int:
    """Return the middle of the shorter sides of some images; 0 if none of them can be read."""
    read = (read_image(source, place) for place in range(0, len(source), -(-len(source) // SEEN)))
    sides = [min(found[0].shape[1:]) for found in read if not isinstance(found, Unreadable)]
    return int(median(sides)) if sides else 0


def machine_facts() -> Facts:
    """Find out what they need to know of the machine alone."""
    cuda = torch.cuda.is_available()
    return Facts(
        images=0,
        cores=len(os.sched_getaffinity(0)),
        device="cuda" if cuda else "cpu",
        bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        matrix_units=torch.cpu._is_amx_tile_supported(),
        attention=_forms(),
        rendering={
            device: "device" if multicrop.best_form(device) == "triton" else "host"
            for device in ("cpu", "cuda")
        },
        world=launched(),
        neighbours=neighbours(),
    )


def _forms() -> dict[tuple[str, str], str]:
    """Return the fastest form of prototype attention by device and precision."""
    return {
        (device, precision): best_form(device, dtype)
        for device in ("cpu", "cuda")
        for precision, dtype in PRECISIONS.items()
    }
