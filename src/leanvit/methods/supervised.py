"""Supervised training: images with classes, as DeiT trains them (arXiv 2012.12877).

What self-supervised backbones are compared with. Letters: B images, C classes.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig, SupervisedConfig
from leanvit.core.ema import ema_update, follow_buffers
from leanvit.core.precision import to_device
from leanvit.data.batch import ViewBatch
from leanvit.data.views import ViewSpec, fine_tuning
from leanvit.losses.classes import class_distillation, class_loss
from leanvit.methods.base import Method, Moment, StepOutput, learner_ask
from leanvit.methods.class_head import ClassHead
from leanvit.methods.dino import feature_stats
from leanvit.methods.mixing import mix_views
from leanvit.methods.teacher import ClassTeacher


class Supervised(Method):
    """A linear layer on the view feature tells the class."""

    def __init__(self, config: SupervisedConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        if config.classes == "auto":
            raise ValueError("Nothing says how many classes there are: set method.classes.")
        self.config = config
        self.backbone = build_backbone(backbone)
        self.head = ClassHead(self.backbone, config.classes, distilled=bool(config.teacher))
        self.teacher = ClassTeacher(config.teacher, config.classes) if config.teacher else None
        self.average: Backbone | None = None
        self.average_head: ClassHead | None = None
        if config.average:
            self.average = copy.deepcopy(self.backbone).requires_grad_(False)
            self.average_head = copy.deepcopy(self.head).requires_grad_(False)

    def views(self) -> ViewSpec:
        """Return one strongly augmented crop."""
        return fine_tuning(self.config.views)

    def encoder(self) -> Backbone:
        """Return the moving average of the backbone if there is one, else the backbone."""
        return self.backbone if self.average is None else self.average

    def learner(self) -> Backbone | None:
        """Return the backbone, where its average is the encoder."""
        return None if self.average is None else self.backbone

    def classifiers(self) -> Mapping[str, tuple[Backbone, ClassHead]]:
        """Return what tells classes, each a backbone and its head: as trained, and averaged."""
        found: dict[str, tuple[Backbone, ClassHead]] = {"": (self.backbone, self.head)}
        if self.average is not None and self.average_head is not None:
            found["averaged"] = (self.average, self.average_head)
        return found

    def forward(self, batch: ViewBatch, at: Moment) -> StepOutput:
        """Tell the classes of images that were mixed."""
        (views,), mixing = mix_views(batch.groups[:1], self.config.mix, at.seed, at.step)
        ask = learner_ask(self.backbone, 1, batch.index, at, views.device, batch.copy)
        (found,) = self.backbone([views[0]], ask)
        loss, told = class_loss(
            self.head(found.pooled),
            to_device(batch.target, views.device),
            mixing,
            smoothing=self.config.smoothing,
        )
        stats = feature_stats(found, len(batch)) | {"accuracy": told}
        if self.teacher is None:
            return StepOutput(loss, {"class": loss}, stats)
        imitated = class_distillation(
            self.head.imitation(found),
            self.teacher(views[0], self.backbone.mean, self.backbone.std),
            hard=self.config.distillation == "hard",
            temperature=self.config.distillation_temperature,
        )
        share = self.config.distillation_weight
        total = (1 - share) * loss + share * imitated
        return StepOutput(total, {"class": loss, "distillation": imitated}, stats)

    @torch.no_grad()
    def after_step(self, at: Moment, sound: Tensor) -> None:
        """Move the average, with what its batch norms know: it never runs in training itself."""
        if self.average is None or self.average_head is None:
            return
        ema_update(self.average, self.backbone, self.config.average, sound)
        ema_update(self.average_head, self.head, self.config.average, sound)
        follow_buffers(self.average, self.backbone, self.config.average)
