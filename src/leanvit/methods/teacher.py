"""A frozen teacher from a file: beside a method, never inside its checkpoints."""

import hashlib
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Ask, Backbone, Features
from leanvit.weights.loading import load_backbone


class Teacher(nn.Module):
    """A backbone that is only looked at.

    Of it, a checkpoint holds a fingerprint of the weights: a run that is resumed with another
    teacher stops. It runs in bf16 on CUDA.
    """

    fingerprint: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        if not name:
            raise ValueError(
                "Name the teacher: --method.teacher with a run, a backbone file or an official "
                "checkpoint."
            )
        backbone = load_backbone(name).requires_grad_(False).eval()
        self._outside = [backbone]  # a list, so that it is no part of this module's state
        self.register_buffer("fingerprint", _fingerprint(backbone))

    @property
    def backbone(self) -> Backbone:
        """The network."""
        return self._outside[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.backbone._apply(fn)
        moved: Self = super()._apply(fn, recurse)
        return moved

    @torch.no_grad()
    def forward(self, images: Tensor, ask: Ask) -> Features:
        """Return the features of [B, 3, S, S]."""
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            (found,) = self.backbone([images], ask)
        return found

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state.get(f"{prefix}fingerprint")
        if saved is not None and not saved.cpu().equal(self.fingerprint.cpu()):
            raise ValueError(
                "The run was trained with another teacher than the one that is named now "
                "(method.teacher); name the same file."
            )
        super()._load_from_state_dict(state, prefix, *rest)


def _fingerprint(backbone: Backbone) -> Tensor:
    """Return the SHA-256 of all weights [32]."""
    digest = hashlib.sha256()
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
