"""What names of tensors betray of files whose network is none of ours, and what to do with them."""

import re
from collections.abc import Sequence

from leanvit.config.backbones import TIMM

OTHERS = (
    (r"(^|\.)mlp\.w(12|[123])\.", "gated MLPs (SwiGLU), as the largest DINOv2 and EVA have"),
    (r"(^|\.)attn\.(logit_scale|cpb_mlp\.)", "Swin v2"),
    (r"(^|\.)rope\w*(\.|$)", "rotary positions, as EVA-02 and DINOv3 have"),
    (r"(^|\.)visual\.", "CLIP"),
)
"""Pattern of a name, and what it shows."""
RELATIVE = r"\.(relative_position_bias_table|rel_pos_[hw]|relative_position_bias\.)"
ABSOLUTE = r"(^|\.)(pos_embed\w*|position_embeddings|positional_embedding)(\.|$)"
OPTIMIZER = r"(^|\.)(state\.\d+\.|param_groups(\.|$))"


def told(words: str) -> str:
    """Return what to do where a file does not show something, in any command.

    words: the options of `leanvit convert` that say it.
    """
    return (
        f"say it with {words}, once for all commands: `leanvit convert FILE {words} --out "
        f"X.safetensors`"
    )


def of_timm() -> str:
    """Return what to do with a file of a network that is timm's alone."""
    return f"if timm has the network and wrote the file, {told(f'--network {TIMM}NAME')}"


def other_family(names: Sequence[str], kind: str = "") -> str:
    """Return which family names betray that none of ours computes; empty if none is known.

    kind: our family whose names these seem to be.
    """
    for pattern, what in OTHERS:
        if any(re.search(pattern, name) for name in names):
            return what
    bias, place = (any(re.search(p, name) for name in names) for p in (RELATIVE, ABSOLUTE))
    return "relative positions alone, as BEiT has" if bias and not place and kind != "swin" else ""


def no_network(names: Sequence[str]) -> str:
    """Return what a file holds instead of a network, and what to do; empty if that is unknown."""
    if {"features", "targets"} <= set(names):
        return (
            "it holds features, as `leanvit embed` writes them, and no network; name the model "
            "that they were made with."
        )
    if names and all(re.search(OPTIMIZER, name) for name in names):
        return (
            "it holds the state of an optimizer and no network; name the file beside it that has "
            "the weights."
        )
    return ""
