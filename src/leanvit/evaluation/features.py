"""Frozen features for probes. Letters: B images, D channels of a block's output."""

import torch
from torch import Tensor

from leanvit.backbones.base import Ask, Backbone, Tokens


def last_block_features(backbone: Backbone, images: Tensor, blocks: int = 4) -> Tensor:
    """Return the view features of the last blocks side by side [B, sum of D] (DINO, EsViT probe).

    Outputs of the last stage pass through the final norm; those of earlier stages, which it does
    not fit, are taken as they are.
    """
    (features,) = backbone([images], Ask(hidden=tuple(range(-blocks, 0))))
    ends = backbone.stage_ends
    last_stage = backbone.depth - (ends[-2] + 1 if len(ends) > 1 else 0)
    parts = []
    for place, tokens in zip(range(-blocks, 0), features.hidden, strict=True):
        if place >= -last_stage:
            tokens = Tokens(
                backbone.norm(tokens.grid),
                None if tokens.prefix is None else backbone.norm(tokens.prefix),
            )
        parts.append(backbone.pool(tokens))
    return torch.cat(parts, 1)
