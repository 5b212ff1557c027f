"""SimMIM: a linear head predicts the pixels of large squares that are hidden from the network.

arXiv 2111.09886. Letters: B images, h and w rows and columns of the final regions, u squares a
side, S side of the view.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import PLAIN, Ask, Backbone
from leanvit.config import BackboneConfig, SimMIMConfig
from leanvit.core.precision import full
from leanvit.losses.masked import hidden_pixel_loss
from leanvit.methods.base import StepOutput
from leanvit.methods.masking import Masked, enlarged, require_whole, visible_patches


class SimMIM(Masked):
    """Masked image modelling with a token in place of what is hidden."""

    def __init__(self, config: SimMIMConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone, "squares (method.mask_patch)", config.mask_patch)
        self.config = config
        _require_fitting(self.backbone, self.patch, self.view_size)
        token = torch.empty(self.backbone.stage_dims[0])
        self.fill_token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))
        self.decoder = nn.Conv2d(self.backbone.feature_dim, 3 * self.backbone.stride**2, 1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Hide squares by noise [B, u * u] and predict them; see `Masked`."""
        hidden = self.hide(noise)
        return enlarged(hidden, self.patch), full(self.predict(images, hidden))

    def hide(self, noise: Tensor) -> Tensor:
        """Return which squares [B, u, u] are hidden (true) by noise [B, u * u]."""
        *_, hidden = visible_patches(noise, self.visible)
        return hidden.view(-1, self.rows, self.rows)

    def predict(self, images: Tensor, hidden: Tensor, drawn: Ask = PLAIN) -> Tensor:
        """Return the pixels [B, 3, S, S] as predicted of images of which squares are hidden."""
        tokens = enlarged(hidden, self.patch // self.backbone.stage_strides[0])
        (found,) = self.backbone([images], replace(drawn, fill=(tokens, self.fill_token)))
        predicted = self.decoder(found.grid.permute(0, 3, 1, 2))  # [B, 3 * stride^2, h, w]
        return functional.pixel_shuffle(predicted, self.backbone.stride)

    def learn(self, images: Tensor, noise: Tensor, drawn: Ask = PLAIN) -> StepOutput:
        """Return the loss of images [B, 3, S, S] whose squares are hidden by noise [B, u * u]."""
        return self.reconstruction(images, self.hide(noise), drawn)

    def reconstruction(self, images: Tensor, hidden: Tensor, drawn: Ask = PLAIN) -> StepOutput:
        """Return the loss of images [B, 3, S, S] of which squares [B, u, u] are hidden (true)."""
        loss = hidden_pixel_loss(
            self.predict(images, hidden, drawn),
            images,
            enlarged(hidden, self.patch),
            squared=self.config.loss == "l2",
        )
        return StepOutput(loss, {"reconstruction": loss})


def _require_fitting(backbone: Backbone, square: int, size: int) -> None:
    """Raise ValueError if a view is not made of whole regions, or a square of whole tokens.

    A square hides tokens of the first stage; it may be smaller than a region of the last, since
    pixels are what is compared.
    """
    token = backbone.stage_strides[0]
    if square % token:
        raise ValueError(
            f"Hidden squares of {square} pixels (method.mask_patch) are not made of whole tokens "
            f"of {token}; choose a multiple of {token}."
        )
    require_whole(size, backbone.stride, "regions")
