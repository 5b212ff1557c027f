"""SimMIM: a linear head predicts the pixels of large squares that are hidden from the network.

arXiv 2111.09886. Letters: B images, h and w rows and columns of the final regions, u squares a
side, S side of the view.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Ask, Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig, SimMIMConfig
from leanvit.core.precision import full, to_device
from leanvit.data.batch import ViewBatch
from leanvit.data.views import ViewSpec, single_crop
from leanvit.losses.masked import hidden_pixel_loss
from leanvit.methods.base import Method, Moment, StepOutput, learner_ask
from leanvit.methods.masking import (
    enlarged,
    mask_noise,
    require_hiding,
    require_whole,
    visible_count,
    visible_patches,
)


class SimMIM(Method):
    """Masked image modelling with a token in place of what is hidden."""

    def __init__(self, config: SimMIMConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(backbone)
        _require_fitting(config, self.backbone)
        self.squares = config.views.size // config.mask_patch
        self.visible = visible_count(self.patches, config.mask_ratio)
        token = torch.empty(self.backbone.stage_dims[0])
        self.fill_token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))
        self.decoder = nn.Conv2d(self.backbone.feature_dim, 3 * self.backbone.stride**2, 1)

    def views(self) -> ViewSpec:
        """Return one crop."""
        return single_crop(self.config.views)

    def encoder(self) -> Backbone:
        """Return the encoder."""
        return self.backbone

    def forward(self, batch: ViewBatch, at: Moment) -> StepOutput:
        """Hide squares and predict them."""
        images = batch.groups[0][0]
        noise = to_device(mask_noise(batch.index, self.patches, at), images.device)
        ask = learner_ask(self.backbone, 1, batch.index, at, images.device)
        return self.learn(images, self.hide(noise), ask)

    @property
    def view_size(self) -> int:
        """Side of the view in pixels."""
        return self.config.views.size

    @property
    def patches(self) -> int:
        """Squares of the view."""
        return self.squares**2

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden pixels [B, S, S] and the prediction of all [B, 3, S, S]."""
        hidden = self.hide(noise)
        return enlarged(hidden, self.config.mask_patch), full(self.predict(images, hidden, Ask()))

    def hide(self, noise: Tensor) -> Tensor:
        """Return which squares [B, u, u] are hidden (true) by noise [B, u * u]."""
        _, hidden = visible_patches(noise, self.visible)
        return hidden.view(-1, self.squares, self.squares)

    def predict(self, images: Tensor, hidden: Tensor, ask: Ask) -> Tensor:
        """Return the pixels [B, 3, S, S] as predicted of images of which squares are hidden."""
        tokens = enlarged(hidden, self.config.mask_patch // self.backbone.stage_strides[0])
        (found,) = self.backbone([images], replace(ask, fill=(tokens, self.fill_token)))
        predicted = self.decoder(found.grid.permute(0, 3, 1, 2))  # [B, 3 * stride^2, h, w]
        return functional.pixel_shuffle(predicted, self.backbone.stride)

    def learn(self, images: Tensor, hidden: Tensor, ask: Ask) -> StepOutput:
        """Return the loss of images [B, 3, S, S] of which squares [B, u, u] are hidden (true)."""
        loss = hidden_pixel_loss(
            self.predict(images, hidden, ask),
            images,
            enlarged(hidden, self.config.mask_patch),
            squared=self.config.loss == "l2",
        )
        return StepOutput(loss, {"reconstruction": loss})


def _require_fitting(config: SimMIMConfig, backbone: Backbone) -> None:
    """Raise ValueError if squares, tokens and regions do not fit into each other and the view.

    A square hides whole tokens of the first stage; it may be smaller than a region of the last,
    since pixels are what is compared.
    """
    require_hiding(config.kind, backbone)
    square, token = config.mask_patch, backbone.stage_strides[0]
    if square % token:
        raise ValueError(
            f"Hidden squares of {square} pixels (method.mask_patch) are not made of whole tokens "
            f"of {token}; choose a multiple of {token}."
        )
    require_whole(config.views.size, square, "hidden squares")
    require_whole(config.views.size, backbone.stride, "regions")
