"""D-MAE: a masked autoencoder that also imitates a teacher's attention on the patches it sees.

arXiv 2205.14443. Letters: B images, N patches, H heads, T visible tokens, D channels.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from leanvit.backbones.base import PLAIN, Ask, Backbone, Features, Tokens
from leanvit.backbones.vit import ViT
from leanvit.config import BackboneConfig, DmaeConfig
from leanvit.losses.attention_distil import attention_distillation, hidden_distillation
from leanvit.methods.base import StepOutput
from leanvit.methods.mae import MAE, Seen
from leanvit.methods.teacher import Teacher


class DMAE(MAE):
    """Masked autoencoder with a teacher for attention and, if asked, for hidden states."""

    config: DmaeConfig
    backbone: ViT

    def __init__(self, config: DmaeConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        self.teacher = Teacher(config.teacher)
        student, teacher = self.backbone, self.teacher.backbone
        _require_alike(student, teacher, config)
        self.attention = _pairs(
            config.attention_layers,
            config.teacher_attention_layers,
            self.logit_depth(),
            teacher.depth,
        )
        self.compared = _pairs(
            config.hidden_layers, config.teacher_hidden_layers, student.depth, teacher.depth
        )
        heads = student.config.heads, teacher.config.heads  # type: ignore[attr-defined]
        if heads[0] != heads[1] and not config.adapt_heads:
            raise ValueError(
                f"The student has {heads[0]} heads and the teacher {heads[1]}: set "
                f"method.adapt_heads to true."
            )
        self.head_adapters = nn.ParameterList(
            _adapter(heads[1], heads[0]) for _ in self.attention if config.adapt_heads
        )
        self.width_adapters = nn.ParameterList(
            _adapter(teacher.feature_dim, student.feature_dim) for _ in self.compared
        )

    def logit_depth(self) -> int:
        """Return how many blocks of the student have attention logits."""
        return self.backbone.depth

    def learn(self, images: Tensor, noise: Tensor, drawn: Ask = PLAIN) -> StepOutput:
        """Return the loss of images [B, 3, S, S] whose patches are hidden by noise [B, N]."""
        seen = self.hide(noise, drawn)
        (found,) = self.backbone([images], self.ask(seen))
        known = self.teacher(
            images,
            Ask(
                keep=seen.kept,
                logits=tuple(layer for _, layer in self.attention),
                hidden=tuple(layer for _, layer in self.compared),
            ),
        )
        terms = {"reconstruction": self.reconstruction(self.read(found), images, seen)}
        total = terms["reconstruction"]
        if self.attention:
            terms["attention"] = self.attention_loss(self.logits(found), known)
            total = total + self.config.attention_weight * terms["attention"]
        if self.compared:
            terms["hidden"] = self.hidden_loss(found, known)
            total = total + self.config.hidden_weight * terms["hidden"]
        return StepOutput(total, terms)

    def ask(self, seen: Seen) -> Ask:
        """Return what is asked of the student."""
        logits = tuple(layer for layer, _ in self.attention)
        hidden = tuple(layer for layer, _ in self.compared)
        return replace(seen.ask, logits=logits, hidden=hidden)

    def logits(self, found: Features) -> list[Tensor]:
        """Return the student's attention logits [B, H, T, T], one for each compared block."""
        return [logits.values[:, 0] for logits in found.logits]

    def attention_loss(self, ours: list[Tensor], known: Features) -> Tensor:
        """Return the distance of attention logits, summed over the compared blocks."""
        theirs = [logits.values[:, 0] for logits in known.logits]
        adapters: list[Tensor | None] = [*self.head_adapters] or [None] * len(ours)
        losses = map(attention_distillation, ours, theirs, adapters)
        return torch.stack([*losses]).sum()

    def hidden_loss(self, found: Features, known: Features) -> Tensor:
        """Return the distance of normed hidden states, summed over the compared blocks."""
        losses = [
            hidden_distillation(
                _normed(self.backbone, layer, ours),
                _normed(self.teacher.backbone, other, theirs),
                adapter,
            )
            for (layer, other), ours, theirs, adapter in zip(
                self.compared, found.hidden, known.hidden, self.width_adapters, strict=False
            )
        ]
        return torch.stack(losses).sum()


def _normed(backbone: Backbone, layer: int, tokens: Tokens) -> Tensor:
    """Return the output of a block as the next one sees it [B, T, D]: after its first norm."""
    blocks = list(backbone.blocks())
    norm = backbone.norm if layer == len(blocks) - 1 else blocks[layer + 1].norm1
    normed: Tensor = norm(tokens.sequence())  # type: ignore[operator]
    return normed


def _adapter(rows: int, columns: int) -> nn.Parameter:
    """Return a matrix as torch's 1 x 1 convolution begins with."""
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rows, columns), a=5**0.5))


def _pairs(
    ours: tuple[int, ...], theirs: tuple[int, ...], depth: int, teacher_depth: int
) -> list[tuple[int, int]]:
    """Return which block is compared with which, counted from 0."""
    pairs = []
    for layer, other in zip(ours, theirs or ours, strict=True):
        for name, number, blocks in (("student", layer, depth), ("teacher", other, teacher_depth)):
            if not -blocks <= number < blocks:
                raise ValueError(f"The {name} has {blocks} blocks; there is no block {number}.")
        pairs.append((layer % depth, other % teacher_depth))
    return pairs


def _require_alike(student: Backbone, teacher: Backbone, config: DmaeConfig) -> None:
    """Raise ValueError if teacher and student do not see the same tokens."""
    for name, network in (("student", student), ("teacher", teacher)):
        if not isinstance(network, ViT):
            raise ValueError(
                f"{config.kind} compares attention over visible patches, so the {name} is to be a "
                f"plain ViT, not a {type(network).__name__}."
            )
    if student.stride != teacher.stride:
        raise ValueError(
            f"The teacher's patches are {teacher.stride} pixels a side, the student's "
            f"{student.stride}: they do not see the same patches. Choose another teacher, or "
            f"--backbone.patch {teacher.stride}."
        )
    prefixes = [1 + network.config.registers for network in (student, teacher)]  # type: ignore[attr-defined]
    if prefixes[0] != prefixes[1]:
        raise ValueError(
            f"The teacher has {prefixes[1]} tokens before the patches, the student {prefixes[0]}: "
            f"--backbone.registers {prefixes[1] - 1}."
        )
