"""Libraries that load our backbones as networks of their own, and what comes out of them there.

Letters: B images, h and w rows and columns of the grid, D channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Backbone, evaluating
from leanvit.config import BackboneConfig
from leanvit.config.names import look_up
from leanvit.core.errors import RunError
from leanvit.core.packages import missing
from leanvit.weights import huggingface_format, timm_format, torchvision_format
from leanvit.weights.compare import OTHER_EPS, TOLERANCE, difference, images_for


@dataclass(frozen=True, slots=True)
class Library:
    """A library with networks of its own that ours can become."""

    what: str
    """In a few words."""
    package: str
    """What is imported and installed by this name, for verification; writing needs none."""
    part: str
    """What of it builds networks."""
    write: Callable[[Backbone, Path], list[str]]
    """Writes into an existing folder; returns what is not as it was. ValueError: it has no such."""
    network: Callable[[Path], nn.Module]
    """The library's own network, loaded strictly, for evaluation."""
    features: Callable[[BackboneConfig, Any, Tensor], tuple[Tensor, Tensor | None]]
    """Of our configuration, that network and images: regions [B, h * w, D], and the view feature
    [B, D] where the library pools as we do."""
    elsewhere: Callable[[BackboneConfig], str]
    """Why features of images of another size may differ; empty if they should not."""
    usage: Callable[[BackboneConfig, str], str]
    """Code for a user with the folder's name: loads it and describes a PIL image `image`."""


LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {
        "timm": Library(
            "timm: create_model on a folder",
            "timm",
            "create_model",
            timm_format.write,
            timm_format.network,
            timm_format.features,
            timm_format.elsewhere,
            timm_format.usage,
        ),
        "torchvision": Library(
            "torchvision: weights and arguments of its networks",
            "torchvision",
            "models",
            torchvision_format.write,
            torchvision_format.network,
            torchvision_format.features,
            torchvision_format.elsewhere,
            torchvision_format.usage,
        ),
        "huggingface": Library(
            "Hugging Face: AutoModel and AutoImageProcessor on a folder",
            "transformers",
            "AutoModel",
            huggingface_format.write,
            huggingface_format.network,
            huggingface_format.features,
            huggingface_format.elsewhere,
            huggingface_format.usage,
        ),
    }
)
"""By the name of the layout in `LAYOUTS`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Features of one backbone here and in a library."""

    package: str
    version: str
    apart: Mapping[tuple[int, int], float]
    """(height, width) in pixels, the nominal size first -> largest difference over largest."""
    notes: Sequence[str]
    """What a user should know of other sizes; nothing if features are equal there too."""


def compare(
    backbone: Backbone, folder: Path, library: str, sizes: Sequence[tuple[int, int]] = ()
) -> Comparison | str:
    """Load a folder in the library that it was written for and compare features of noise.

    sizes: (height, width) of images besides the nominal size. Returns why not, if the library
    cannot be used. Raises RunError if it gives other features at the nominal size.
    """
    chosen = look_up("library", library, LIBRARIES)
    if why := missing(chosen.package, chosen.part):
        return why
    side = backbone.config.image_size
    reason = chosen.elsewhere(backbone.config)
    why = reason and f": {reason}"
    nominal = _apart(backbone, chosen, folder, (side, side))
    eps = library == "huggingface" and huggingface_format.other_eps(backbone.config)
    if not nominal <= (OTHER_EPS if eps else TOLERANCE):
        raise RunError(
            f"{chosen.package} gives other features for images of {side} x {side} with these "
            f"weights: they differ by {nominal:.1g} of the largest{why}."
        )
    apart, notes = {(side, side): nominal}, list[str]()
    if nominal > TOLERANCE:
        notes.append(
            f"at {side} x {side} pixels features differ by {nominal:.1e} of the largest, since "
            f"norms add another number to the variance there"
        )
    for height, width in sizes:
        try:
            found = _apart(backbone, chosen, folder, (height, width))
        except (AssertionError, RuntimeError, ValueError) as error:
            said = str(error).partition("\n")[0].rstrip(".") or "it does not say why"
            notes.append(f"{chosen.package} cannot take {height} x {width} pixels ({said}){why}")
            continue
        apart[height, width] = found
        if not found <= TOLERANCE:
            notes.append(
                f"at {height} x {width} pixels features differ by {found:.1g} of the largest{why}"
            )
    return Comparison(chosen.package, version(chosen.package), apart, tuple(notes))


def _apart(backbone: Backbone, library: Library, folder: Path, size: tuple[int, int]) -> float:
    """Return the largest difference of features over the largest of ours.

    The network is loaded anew, since one of transformers keeps what an earlier image made of it.
    """
    images = images_for(size)
    with torch.no_grad(), evaluating(backbone):
        ours = backbone.features(images)
        model = library.network(folder).eval()
        regions, pooled = library.features(backbone.config, model, images)
    found = [difference(regions, ours.grid.flatten(1, 2))]
    if pooled is not None:
        found.append(difference(pooled, ours.pooled))
    return float(torch.tensor(found).max())  # what is not a number stays so
