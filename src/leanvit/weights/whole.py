"""Official states of a whole network, backbone and heads, under the names of our methods.

The official codes keep the backbone beside `head` and `head_dense` (EsViT) or under `backbone`
(DINO); ours under `backbone`, beside `head` and `region_head`.
"""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from leanvit.weights.layouts import reason_to_drop
from leanvit.weights.names import NAMINGS

V = TypeVar("V")

HEADS: Mapping[str, str] = {"head.": "head.", "head_dense.": "region_head."}
"""Official prefix -> ours; everything else belongs to the backbone."""
FAMILIES = ("cvt", "vil", "vit", "swin", "resnet")
"""Namings of EsViT's and DINO's networks."""


def from_official(state: Mapping[str, V]) -> dict[str, V]:
    """Return an official student or teacher under our names (`backbone.`, `head.`, ...).

    Raises ValueError if it holds none of the families.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    found = ((n, place) for n in FAMILIES for place in NAMINGS[n].found_under(state))
    naming, place = next(found, ("", ""))
    if not naming:
        raise ValueError("These are not the names of a network of EsViT or DINO.")
    renamed = {}
    for name, value in state.items():
        head = next((prefix for prefix in HEADS if name.startswith(prefix)), "")
        if head:
            renamed[HEADS[head] + name.removeprefix(head)] = value
            continue
        inner = name.removeprefix(place)
        if not reason_to_drop(inner):
            renamed["backbone." + NAMINGS[naming].ours(inner)] = value
    return renamed


def to_official(state: Mapping[str, Tensor], naming: str) -> dict[str, Tensor]:
    """Return a state of ours under the names of EsViT; naming: a key of `NAMINGS`."""
    heads = {ours: theirs for theirs, ours in HEADS.items()}
    found, backbone = {}, {}
    for name, value in state.items():
        head = next((prefix for prefix in heads if name.startswith(prefix)), "")
        if head:
            found[heads[head] + name.removeprefix(head)] = value
        else:
            backbone[name.removeprefix("backbone.")] = value
    return NAMINGS[naming].theirs(backbone) | found


def strip(state: Mapping[str, V], prefix: str) -> dict[str, V]:
    """Return the entries under a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
