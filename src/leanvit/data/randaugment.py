"""RandAugment (arXiv 1909.13719) as timm does it: `rand-m9-mstd0.5-inc1`.

`choose` turns unit numbers into operations with their arguments, `augment` applies timm's. Its own
classes draw from global generators, which threads would share; its operations draw nothing.
Letters: s side of the view.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

OPERATIONS_A_VIEW = 2
PROBABILITY = 0.5
"""How likely each of them is done."""
HIGHEST = 10.0
"""Magnitudes beyond it are cut off."""
UNITS_OF_RANDAUGMENT = 4 * OPERATIONS_A_VIEW
"""Unit numbers that a view needs: which operation, whether, how much and which way."""

Operation = tuple[str, tuple[float, ...]]
"""Its name in timm, and its arguments."""
Arguments = Callable[[float, int], tuple[float, ...]]
"""Share of the highest magnitude, and 1 or -1 -> arguments."""


def _signed(most: float) -> Arguments:
    return lambda share, sign: (sign * (share * most),)


def _none(share: float, sign: int) -> tuple[float, ...]:
    return ()


def _factor(share: float, sign: int) -> tuple[float, ...]:
    return (max(0.1, 1 + sign * (share * 0.9)),)


ARGUMENTS: Mapping[str, Arguments] = MappingProxyType(
    {
        "AutoContrast": _none,
        "Equalize": _none,
        "Invert": _none,
        "Rotate": _signed(30.0),  # degrees
        "PosterizeIncreasing": lambda share, sign: (4 - int(share * 4),),  # bits that stay
        "SolarizeIncreasing": lambda share, sign: (256 - int(share * 256),),  # first to invert
        "SolarizeAdd": lambda share, sign: (int(share * 110),),  # to what is below 128
        "ColorIncreasing": _factor,
        "ContrastIncreasing": _factor,
        "BrightnessIncreasing": _factor,
        "SharpnessIncreasing": _factor,
        "ShearX": _signed(0.3),
        "ShearY": _signed(0.3),
        "TranslateXRel": _signed(0.45),  # share of the side
        "TranslateYRel": _signed(0.45),
    }
)
"""The operations that timm chooses from, and what a magnitude means to each."""
NO_BITS: Operation = ("PosterizeIncreasing", (0,))
"""At the highest magnitude no bit stays."""


def choose(magnitude: float, std: float, units: NDArray[np.float64]) -> tuple[Operation, ...]:
    """Return the operations of one view, decided by its unit numbers [UNITS_OF_RANDAUGMENT]."""
    names, found = tuple(ARGUMENTS), []
    for which, done, much, way in units.reshape(-1, 4):
        if done < PROBABILITY:
            name = names[int(which * len(names))]
            drawn = magnitude + std * NormalDist().inv_cdf(max(float(much), 2**-54))
            share = min(max(drawn, 0.0), HIGHEST) / HIGHEST
            found.append((name, ARGUMENTS[name](share, 1 if way < 0.5 else -1)))
    return tuple(found)


def augment(
    pixels: Tensor,
    operations: tuple[Operation, ...],
    *,
    interpolation: str,
    fill: tuple[int, int, int],
) -> Tensor:
    """Return a view [3, s, s] (uint8) after some operations; `fill` is what comes in from outside.

    Interpolation is bicubic or bilinear.
    """
    from timm.data.auto_augment import NAME_TO_OP  # here, since timm takes a while to load

    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    resample = Image.Resampling[interpolation.upper()]
    for name, arguments in operations:
        if (name, arguments) == NO_BITS:  # Pillow made it black, and refuses it now
            image = Image.new("RGB", image.size)
            continue
        apply: Any = NAME_TO_OP[name]
        image = apply(image, *arguments, fillcolor=fill, resample=resample)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
