"""A frozen teacher from a file: beside a method, never inside its checkpoints."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Ask, Backbone, Features
from leanvit.config.backbones import TIMM
from leanvit.core.precision import to_device
from leanvit.methods.class_head import ClassHead, load_head
from leanvit.weights.file import HEAD_FILE
from leanvit.weights.loading import load_backbone

Channels = tuple[float, ...]
"""A number for each channel."""


class Frozen(nn.Module):
    """A network that is only looked at.

    Of it, a checkpoint holds a fingerprint of the weights: a run that is resumed with another
    teacher stops. It runs in bf16 on CUDA.
    """

    fingerprint: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.requires_grad_(False).eval()
        self._outside = [network]  # a list, so that it is no part of this module's state
        self.register_buffer("fingerprint", _fingerprint(network))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._outside[0]._apply(fn)
        moved: Self = super()._apply(fn, recurse)
        return moved

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state.get(f"{prefix}fingerprint")
        if saved is not None and not saved.cpu().equal(self.fingerprint.cpu()):
            raise ValueError(
                "The run was trained with another teacher than the one that is named now "
                "(method.teacher); name the same file."
            )
        super()._load_from_state_dict(state, prefix, *rest)


class Teacher(Frozen):
    """A backbone as teacher."""

    def __init__(self, name: str) -> None:
        if not name:
            raise ValueError(
                "Name the teacher: --method.teacher with a run, a backbone file or an official "
                "checkpoint."
            )
        super().__init__(load_backbone(name))

    @property
    def backbone(self) -> Backbone:
        """The network."""
        network = self._outside[0]
        assert isinstance(network, Backbone)
        return network

    @torch.no_grad()
    def forward(self, images: Tensor, ask: Ask) -> Features:
        """Return the features of [B, 3, S, S]."""
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            (found,) = self.backbone([images], ask)
        return found


class ClassTeacher(Frozen):
    """A network that tells the classes: a fine-tuned one of ours, or a trained one of timm.

    name: the folder that `leanvit evaluate finetune --out` wrote, or timm:NAME.TAG, with the
    classifier that timm has of it. Raises ValueError if it is neither or tells another number of
    classes.
    """

    def __init__(self, name: str, classes: int) -> None:
        network, mean, std, told = _timm(name) if name.startswith(TIMM) else _tuned(Path(name))
        super().__init__(network)
        if told != classes:
            raise ValueError(
                f"The teacher {name!r} tells {told} classes and the images have {classes}; they "
                f"are to be the same, in the same order. Fine-tune a teacher on these images: "
                f"leanvit evaluate finetune MODEL --out FOLDER."
            )
        self.mean, self.std = mean, std

    @torch.no_grad()
    def forward(self, images: Tensor, mean: Channels, std: Channels) -> Tensor:
        """Return the scores [B, C] of images [B, 3, S, S] that were normalised with mean and std.

        The teacher sees them normalised as it was trained.
        """
        if (mean, std) != (self.mean, self.std):
            ours, our_std, theirs, their_std = (
                to_device(torch.tensor(values, dtype=images.dtype), images.device).view(-1, 1, 1)
                for values in (mean, std, self.mean, self.std)
            )
            images = (images * our_std + ours - theirs) / their_std
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            scores: Tensor = self._outside[0](images)
        return scores


class _Tuned(nn.Module):
    """A backbone and its head."""

    def __init__(self, backbone: Backbone, head: ClassHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, C]."""
        return self.head.scores(self.backbone.features(images))


def _tuned(folder: Path) -> tuple[nn.Module, Channels, Channels, int]:
    """Return what a fine-tuning wrote: network, mean, std, classes."""
    if not (folder / HEAD_FILE).is_file():
        raise ValueError(
            f"{str(folder)!r} is no teacher that tells classes: name the folder that "
            f"`leanvit evaluate finetune --out` wrote, or timm:NAME.TAG."
        )
    backbone = load_backbone(folder)
    head, _ = load_head(folder / HEAD_FILE, backbone)
    return _Tuned(backbone, head), backbone.mean, backbone.std, len(head.weight)


def _timm(name: str) -> tuple[nn.Module, Channels, Channels, int]:
    """Return trained weights of timm with their classifier."""
    from leanvit.weights.timm_weights import trained_classifier  # here, as timm loads slowly

    return trained_classifier(name.removeprefix(TIMM))


def _fingerprint(network: nn.Module) -> Tensor:
    """Return the SHA-256 of all weights [32]."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
