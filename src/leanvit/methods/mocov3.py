"""MoCo-v3: each view's query finds, among all images, the key of the same image's other view.

arXiv 2104.02057. Keys come from a teacher, the moving average of the student, without predictor.
Letters: B images, D channels.
"""

import copy
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Ask, Backbone, Features
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig, MocoV3Config
from leanvit.core.ema import ema_update
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.data.batch import ViewBatch
from leanvit.data.views import ViewSpec, two_views
from leanvit.kernels.linear import Linear
from leanvit.losses.contrastive import info_nce
from leanvit.methods.base import Method, Moment, StepOutput, learner_ask
from leanvit.methods.dino import feature_stats


def mlp(*widths: int) -> nn.Sequential:
    """Return layers between these widths: linear without bias, batch norm, ReLU.

    The last has no ReLU, and a batch norm without weights.
    """
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [Linear(wide, narrow, bias=False), SyncBatchNorm(narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-2], SyncBatchNorm(widths[-1], affine=False))


class Network(nn.Module):
    """Backbone and projector."""

    def __init__(self, backbone: BackboneConfig, config: MocoV3Config) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        hidden = config.hidden
        self.projector = mlp(self.backbone.feature_dim, hidden, hidden, config.output)

    def forward(self, views: Sequence[Tensor], ask: Ask) -> tuple[list[Features], list[Tensor]]:
        """Return the features of each view, and their projections [B, output].

        Views do not share the statistics of a batch norm.
        """
        found = self.backbone(views, ask)
        return found, [self.projector(features.pooled) for features in found]


class MoCoV3(Method):
    """Contrast of two views with a momentum encoder."""

    def __init__(self, config: MocoV3Config, backbone: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Network(backbone, config)
        self.predictor = mlp(config.output, config.hidden, config.output)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        if config.freeze_patch_embed:
            for parameter in _patch_embedding(self.student.backbone):
                parameter.requires_grad_(False)

    def views(self) -> ViewSpec:
        """Return two crops that differ in blur and solarization."""
        return two_views(self.config.views)

    def encoder(self) -> Backbone:
        """Return the backbone that takes the gradients, as the official evaluation does."""
        return self.student.backbone

    def backbones(self) -> list[Backbone]:
        """Return both backbones."""
        return [self.student.backbone, self.teacher.backbone]

    def part(self, name: str) -> str:
        """Return backbone, projector or predictor."""
        return name.removeprefix("student.").split(".")[0]

    def forward(self, batch: ViewBatch, at: Moment) -> StepOutput:
        """Let the queries of each view find the keys of the other."""
        views = batch.groups[0].unbind(0)
        device = batch.groups[0].device
        ask = learner_ask(self.student.backbone, len(views), batch.index, at, device)
        with torch.no_grad():
            _, keys = self.teacher(views, Ask())
        found, projected = self.student(views, ask)
        queries = [self.predictor(rows) for rows in projected]
        pairs = zip(queries, reversed(keys), strict=True)
        losses, hits = zip(
            *(info_nce(query, key, self.config.temperature) for query, key in pairs), strict=True
        )
        loss = losses[0] + losses[1]
        stats = feature_stats(found[0], len(batch)) | {"accuracy": (hits[0] + hits[1]) / 2}
        return StepOutput(loss, {"contrast": loss}, stats)

    def after_step(self, at: Moment, sound: Tensor) -> None:
        """Move the teacher."""
        ema_update(self.teacher, self.student, at.value(self.config.momentum), sound)


def _patch_embedding(backbone: Backbone) -> list[nn.Parameter]:
    """Return the projection of pixels to patches. Raises ValueError if there is none."""
    place = re.compile(r"(^|\.)(patch_embed|stages\.0\.embed)\.proj\.")
    found = [parameter for name, parameter in backbone.named_parameters() if place.search(name)]
    if not found:
        raise ValueError(
            "This backbone has no patch embedding that could be frozen: set "
            "method.freeze_patch_embed to false."
        )
    return found
