"""Tensors of plain ViTs that other codes keep in another form than ours.

Each fold changes a state under our names in place, and says of which tensors of the file a
parameter is made. Letters: D channels, N patches.
"""

import math
from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

State = MutableMapping[str, Tensor]
Origin = MutableMapping[str, list[str]]
"""Our name -> the tensors of the file that it comes from."""


def fold_vit(state: State, origin: Origin) -> tuple[list[str], dict[str, str]]:
    """Bring a plain ViT into our form.

    Returns notes of what was done besides renaming, and tensors that are not needed, with why.
    Raises ValueError where half of what belongs together is missing.
    """
    notes = list[str]()
    _move(state, origin, "register_tokens", "reg_token")
    for name in [n for n in state if n.endswith((".gamma_1", ".gamma_2"))]:
        owner, _, number = name.rpartition(".gamma_")
        _move(state, origin, name, f"{owner}.ls{number}.gamma")
    _join_biases(state, origin)
    places = state.get("pos_embed")
    if places is None or places.ndim != 3:  # no plain ViT's, as whoever reads its sizes will say
        return notes, {}
    needless = _drop_half_a_block(state, origin)
    notes += _give_class_token_a_place(state)
    notes += _make_registers_of_distillation(state, origin)
    return notes, needless


def _move(state: State, origin: Origin, theirs: str, ours: str) -> None:
    if theirs in state:
        state[ours] = state.pop(theirs)
        origin[ours] = origin.pop(theirs)


def _join_biases(state: State, origin: Origin) -> None:
    """Make BEiT's biases of queries and values one with that of keys, which is zero there."""
    for name in [n for n in state if n.endswith(".q_bias")]:
        owner = name.removesuffix("q_bias")
        if f"{owner}v_bias" not in state:
            raise ValueError(f"{origin[name][0]!r} has no v_bias beside it.")
        parts = [state.pop(name), state.pop(f"{owner}v_bias")]
        state[f"{owner}qkv.bias"] = torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]])
        origin[f"{owner}qkv.bias"] = origin.pop(name) + origin.pop(f"{owner}v_bias")


def _drop_half_a_block(state: State, origin: Origin) -> dict[str, str]:
    """Leave out the last block of D2-MAE, which is a norm and the projection before attention."""
    blocks = [name.split(".")[1] for name in state if name.startswith("layers.")]
    numbers = [int(block) for block in blocks if block.isdecimal()]
    last = f"layers.{max(numbers, default=0)}."
    names = [name for name in state if name.startswith(last)]
    whole = any(name.startswith((f"{last}mlp.", f"{last}attn.proj.")) for name in names)
    if whole or f"{last}attn.qkv.weight" not in state:
        return {}
    for name in names:
        del state[name]
    theirs = [each for name in names for each in origin.pop(name)]
    return dict.fromkeys(theirs, "makes logits for distillation (D2-MAE)")


def _give_class_token_a_place(state: State) -> list[str]:
    """Give the class token the position 0 where a code adds none to it."""
    places, token = state["pos_embed"], state.get("cls_token")
    if token is None or math.isqrt(places.shape[1]) ** 2 != places.shape[1]:
        return []
    state["pos_embed"] = torch.cat([torch.zeros_like(places[:, :1]), places], 1)
    return ["the class token has no position of its own: 0 is added to it"]


def _make_registers_of_distillation(state: State, origin: Origin) -> list[str]:
    """Make a register of DeiT's distillation token, which has a position as the class token has."""
    token = state.pop("dist_token", None)
    if token is None:
        return []
    places = state["pos_embed"]
    state["reg_token"] = token + places[:, 1:2]
    state["pos_embed"] = torch.cat([places[:, :1], places[:, 2:]], 1)
    origin["reg_token"] = origin.pop("dist_token") + origin["pos_embed"]
    return ["the distillation token is a register; the view feature is the class token alone"]


def as_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of ours with what every network of DINOv2 has.

    Registers go by its name; a mask token, which only its pre-training uses, is 0; factors of
    branches that have none are 1.
    """
    found = {name.replace("reg_token", "register_tokens"): v for name, v in state.items()}
    width = state["cls_token"].shape[-1]
    found["mask_token"] = torch.zeros(1, width)
    for name in [n for n in state if n.endswith("norm1.weight")]:
        block = name.removesuffix("norm1.weight")
        for scale in ("ls1", "ls2"):
            found.setdefault(f"{block}{scale}.gamma", torch.ones(width))
    return found


def as_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of a plain ViT with a position bias in the form of BEiT.

    A bias of keys adds the same to all logits of a query, which the softmax ignores: BEiT has none.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        owner = name.removesuffix("qkv.bias")
        if owner != name:
            found[f"{owner}q_bias"], _, found[f"{owner}v_bias"] = value.chunk(3)
        else:
            name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
            found[name] = value
    return found


def without_class_position(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state whose positions are those of patches alone; the class token has its own."""
    places = state["pos_embed"]
    token = state["cls_token"] + places[:, :1]
    return dict(state) | {"cls_token": token, "pos_embed": places[:, 1:]}
