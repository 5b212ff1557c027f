"""DINO: the student's views predict what the teacher says of the other views.

arXiv 2104.14294; the view-only case of EsViT. Letters: V_g views of one size, B images.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Backbone, Features
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig, DinoConfig, HeadConfig
from leanvit.core.ema import ema_update
from leanvit.core.precision import to_device, unrounded
from leanvit.data.batch import ViewBatch
from leanvit.data.views import ViewSpec, multi_crop
from leanvit.kernels.prototypes import Projection
from leanvit.losses.koleo import koleo
from leanvit.losses.sinkhorn import sinkhorn_bias
from leanvit.losses.view import TEACHER_VIEWS, Mixing, view_loss
from leanvit.methods.base import Method, Moment, StepOutput, kept_patches, learner_ask
from leanvit.methods.heads import Center, Head
from leanvit.methods.mixing import mix_views


class Network(nn.Module):
    """Backbone and heads of the student, or of the teacher."""

    def __init__(self, backbone: BackboneConfig, head: HeadConfig, *, regions: bool) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.head = Head(self.backbone.feature_dim, head)
        self.region_head = Head(self.backbone.feature_dim, head) if regions else None


class DINO(Method):
    """View self-distillation; the teacher is the student's moving average."""

    regions = False
    """Whether the networks have a region head."""

    def __init__(self, config: DinoConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Network(backbone, config.head, regions=self.regions)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.center = Center(config.head)

    def views(self) -> ViewSpec:
        """Return two global crops and the local ones."""
        return multi_crop(self.config.views)

    def encoder(self) -> Backbone:
        """Return the teacher's backbone."""
        return self.teacher.backbone

    def learner(self) -> Backbone:
        """Return the student's backbone."""
        return self.student.backbone

    def part(self, name: str) -> str:
        """Return backbone, head or region_head."""
        return name.split(".")[1]

    def frozen(self, at: Moment) -> list[nn.Parameter]:
        """Return the student's prototypes while they are frozen."""
        if at.step >= self.config.freeze_prototypes.amount:
            return []
        heads = (self.student.head, self.student.region_head)
        return [p for head in heads if head is not None for p in head.last_layer.parameters()]

    def key_bias(self, teacher: Projection, center: Center, temperature: float) -> Tensor:
        """Return what is added to the teacher's scaled logits [K]; note rows for the center."""
        if self.config.targets == "sinkhorn":
            return sinkhorn_bias(teacher, temperature, self.config.sinkhorn_iterations)
        center.collect(teacher.rows)
        return center.key_bias(temperature)

    def forward(self, batch: ViewBatch, at: Moment) -> StepOutput:
        """Compare the student's views with the teacher's global ones."""
        groups, mixing = mix_views(batch.groups, self.config.mix, at.seed, at.step)
        with torch.no_grad():
            (seen,) = self.teacher.backbone([batch.groups[0].flatten(0, 1)])
        views = sum(len(group) for group in groups)
        ask = learner_ask(self.student.backbone, views, batch.index, at, groups[0].device)
        if self.config.token_dropout:
            ask = replace(ask, keep=self.drawn_patches(groups[0], batch.index, at))
        found = self.student.backbone([group.flatten(0, 1) for group in groups], ask)
        return self.spread_out(self.objective(found, seen, mixing, at), found[0])

    def drawn_patches(self, views: Tensor, index: Tensor, at: Moment) -> Tensor:
        """Return which patches of global views [V_g, B, 3, S, S] the student sees: `Ask.keep`."""
        count = (views.shape[-1] // self.student.backbone.stride) ** 2
        kept = kept_patches(self.config.token_dropout, count, len(views), index, at)
        return to_device(kept, views.device)

    def spread_out(self, out: StepOutput, seen: Features) -> StepOutput:
        """Add KoLeo of each global view [2 B, d] of the student, if it has a weight."""
        if not self.config.koleo:
            return out
        views = seen.pooled.chunk(TEACHER_VIEWS)
        term = torch.stack([koleo(view) for view in views]).mean()
        total = out.total + self.config.koleo * term
        return replace(out, total=total, terms={**out.terms, "koleo": term})

    def objective(
        self, found: Sequence[Features], seen: Features, mixing: Mixing | None, at: Moment
    ) -> StepOutput:
        """Return the loss of the student's features (one entry a size) against the teacher's."""
        with torch.no_grad():
            teacher = self.teacher.head(seen.pooled)
        temperature = at.value(self.config.teacher_temp)
        bias = self.key_bias(teacher, self.center, temperature)
        view = view_loss(
            self.student.head(torch.cat([features.pooled for features in found])),
            teacher,
            bias,
            student_temp=self.config.student_temp,
            teacher_temp=temperature,
            mixing=mixing,
            form=self.config.attention,
        )
        images = len(teacher.rows) // TEACHER_VIEWS
        stats = feature_stats(seen, images)
        if images > 1:
            stats |= teacher_stats(teacher, bias, temperature)
        return StepOutput(total=view, terms={"view": view}, stats=stats)

    def after_step(self, at: Moment, sound: Tensor) -> None:
        """Move the center with the old teacher's prototypes, then the teacher."""
        if self.config.targets == "center":
            self.center.update(self.teacher.head.last_layer, self.config.center_momentum)
        ema_update(self.teacher, self.student, at.value(self.config.teacher_momentum), sound)


FEW_ROWS = 64
"""Rows of a batch that are looked at: few, since K-wide rows are dear."""


@torch.no_grad()
def teacher_stats(teacher: Projection, key_bias: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return what the teacher's distributions over K prototypes say of n views of images.

    teacher_entropy: their mean entropy, over log K; 1 for a teacher that weighs all prototypes
    alike, 0 for one that is certain. teacher_information: the mutual information of views and
    prototypes, the entropy of the mean distribution less that mean, over log n or, if less, log K;
    0 for a teacher that says the same of all, 1 for one that tells each from all others. Views of
    a single image are alike to a good teacher, so that nothing can be said of it.
    """
    rows = teacher.rows[:FEW_ROWS]
    with unrounded(rows):
        logits = rows @ teacher.prototypes.to(rows.dtype).T / temperature + key_bias
    said = logits.softmax(1)
    entropy = torch.special.entr(said).sum(1).mean()
    together = torch.special.entr(said.mean(0)).sum()
    most, count = (max(math.log(size), 1e-9) for size in (logits.shape[1], min(logits.shape)))
    return {
        "teacher_entropy": entropy / most,
        "teacher_information": (together - entropy) / count,
    }


@torch.no_grad()
def feature_stats(features: Features, images: int) -> dict[str, Tensor]:
    """Return feature_std: the mean standard deviation of unit features, times the root of width.

    About 1 for features that point everywhere, 0 for a collapsed network; nothing for one image.
    """
    if images < 2:
        return {}
    unit = nn.functional.normalize(features.pooled.float(), dim=-1)
    return {"feature_std": unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5}
