"""EsViT: view and region self-distillation for multi-stage transformers (arXiv 2106.09785).

Letters: V_g views of one size, B images, T regions of a view, d backbone channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Features
from leanvit.config import BackboneConfig, EsViTConfig
from leanvit.losses.region import region_loss
from leanvit.losses.view import TEACHER_VIEWS, Mixing
from leanvit.methods.base import Moment, StepOutput
from leanvit.methods.dino import DINO
from leanvit.methods.heads import Center


class EsViT(DINO):
    """DINO, and every student region predicts the teacher's most similar region."""

    regions = True
    config: EsViTConfig

    def __init__(self, config: EsViTConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        self.region_center = Center(config.head)

    def frozen(self, at: Moment) -> list[nn.Parameter]:
        """Return the student's frozen prototypes, and what the region loss does not use yet."""
        head = self.student.region_head
        assert head is not None
        unused: nn.Module | None = None
        if at.step < self.config.region_start.amount:
            unused = head
        elif self.config.region_loss == "mse":
            unused = head.last_layer
        known = super().frozen(at)
        return known if unused is None else [*known, *unused.parameters()]

    def objective(
        self, found: Sequence[Features], seen: Features, mixing: Mixing | None, at: Moment
    ) -> StepOutput:
        """Return (1 - w) L_V + w L_R; L_V alone before `region_start`."""
        out = super().objective(found, seen, mixing, at)
        if at.step < self.config.region_start.amount:
            return out
        region, distinct = self.region_term(found, seen, mixing, at)
        weight = self.config.region_weight
        return StepOutput(
            total=(1 - weight) * out.total + weight * region,
            terms={**out.terms, "region": region},
            stats={**out.stats, "distinct_matches": distinct},
        )

    def region_term(
        self, found: Sequence[Features], seen: Features, mixing: Mixing | None, at: Moment
    ) -> tuple[Tensor, Tensor]:
        """Return L_R and the share of distinct matches; note rows for the region center."""
        assert self.student.region_head is not None and self.teacher.region_head is not None
        with torch.no_grad():
            teacher = self.teacher.region_head(seen.grid.flatten(0, 2))
        temperature = at.value(self.config.teacher_temp)
        batch = len(seen.pooled) // TEACHER_VIEWS
        regions = [features.grid.flatten(1, 2).unflatten(0, (-1, batch)) for features in found]
        bias = self.region_center.key_bias(temperature)
        if self.config.region_loss == "prototypes":
            bias = self.key_bias(teacher, self.region_center, temperature)
        return region_loss(
            self.student.region_head(torch.cat([group.flatten(0, 2) for group in regions])),
            teacher,
            bias,
            student_features=regions,
            teacher_features=seen.grid.flatten(1, 2).unflatten(0, (-1, batch)),
            student_temp=self.config.student_temp,
            teacher_temp=temperature,
            mixing=mixing,
            matching=self.config.matching,
            metric=self.config.region_loss,
            form=self.config.attention,
        )

    def after_step(self, at: Moment, sound: Tensor) -> None:
        """Move both centers with the old teacher's prototypes, then the teacher."""
        assert self.teacher.region_head is not None
        centered = self.config.targets == "center" and self.config.region_loss == "prototypes"
        if centered and at.step >= self.config.region_start.amount:
            prototypes = self.teacher.region_head.last_layer
            self.region_center.update(prototypes, self.config.center_momentum)
        super().after_step(at, sound)
