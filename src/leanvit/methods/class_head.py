"""The layer that tells classes, and beside it, where a teacher is imitated, a second one.

Letters: B images, C classes, D channels.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from leanvit.backbones.base import Backbone, Features
from leanvit.backbones.layers import LayerNorm, init_linear
from leanvit.config import ViTConfig
from leanvit.core.random import seeded
from leanvit.kernels.linear import Linear
from leanvit.weights.file import HEADER


class ClassHead(Linear):
    """A linear layer on the view feature.

    With a teacher, a second layer imitates it (DeiT, arXiv 2012.12877, section 4): on the class
    token, after a norm of its own, where a plain ViT pools its patches and leaves the token free
    (arXiv 2205.14443); else on the view feature too.
    """

    def __init__(self, backbone: Backbone, classes: int, *, distilled: bool) -> None:
        super().__init__(backbone.feature_dim, classes)
        config = backbone.config
        free = isinstance(config, ViTConfig) and config.pool == "mean_norm"
        self.on_token = distilled and free
        self.token_norm = LayerNorm(backbone.feature_dim) if self.on_token else nn.Identity()
        self.token = Linear(backbone.feature_dim, classes) if distilled else None
        init_linear(self)

    def imitation(self, found: Features) -> Tensor:
        """Return what the second layer says [B, C]."""
        assert self.token is not None
        read = found.pooled
        if self.on_token:
            assert found.prefix is not None
            read = self.token_norm(found.prefix[:, 0])
        scores: Tensor = self.token(read)
        return scores

    def scores(self, found: Features) -> Tensor:
        """Return logits [B, C] of features: with two layers, the mean of what they say."""
        told: Tensor = self(found.pooled)
        return told if self.token is None else torch.stack([told, self.imitation(found)]).mean(0)


def load_head(path: Path, backbone: Backbone) -> tuple[ClassHead, tuple[str, ...]]:
    """Return the head that a fine-tuning wrote for a backbone, and the names of its classes."""
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        told = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    with seeded(0, "weights"):
        head = ClassHead(backbone, len(state["weight"]), distilled="token.weight" in state)
    head.load_state_dict(state)
    return head.eval(), tuple(told.get("classes", ()))
