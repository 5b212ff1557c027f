"""MAE: a decoder predicts the pixels of patches that the encoder never sees.

arXiv 2111.06377, with the light decoder of arXiv 2205.14443. Multi-stage backbones, whose windows
need all tokens, see a learned token in place of hidden patches instead.

Letters: B images, h and w rows and columns of patches, N of them, n visible ones, P prefix tokens,
S side of the view, p pixels between regions, D channels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import PLAIN, Ask, Backbone, Features, Packed, Tokens
from leanvit.backbones.layers import LayerNorm
from leanvit.backbones.vit import Plan, ViT, ViTBlock, sincos_positions
from leanvit.config import BackboneConfig, DecoderConfig, MaeConfig, ViTConfig
from leanvit.core.precision import full
from leanvit.losses.masked import (
    images_of,
    patch_moments,
    patches_of,
    pixel_targets,
)
from leanvit.methods.base import StepOutput
from leanvit.methods.masking import Masked, enlarged, visible_patches


class Decoder(nn.Module):
    """A light plain transformer over all patches of an image.

    encoder: whose tokens are read; side: patches a side.
    """

    def __init__(self, config: DecoderConfig, encoder: Backbone, side: int) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Linear(encoder.feature_dim, config.dim)
        self.mask_token = None
        if "keep" in encoder.can:
            token = nn.init.normal_(torch.empty(1, 1, config.dim), std=0.02)
            self.mask_token = nn.Parameter(token)
        self.register_buffer("pos_embed", sincos_positions(side, config.dim), persistent=False)
        block = ViTConfig(dim=config.dim, heads=config.heads, depth=config.depth)
        self.layers = nn.ModuleList(ViTBlock(block, 0) for _ in range(config.depth))
        self.norm = LayerNorm(config.dim)
        self.predict = nn.Linear(config.dim, 3 * encoder.stride**2)
        init_as_mae(self)

    def forward(self, tokens: Tokens, kept: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """Return the pixels of every patch [B, N, p * p * 3].

        tokens: the encoder's; kept: [B, n] which patches they are, None for all of them; hidden:
        [B, m] patches that are predicted alone, in this order.
        """
        x = full(self.embed(tokens.grid.flatten(1, 2)))
        b, _, d = x.shape
        if kept is not None and self.mask_token is not None:
            unseen = self.mask_token.to(x.dtype).expand(b, self.side**2, d)
            x = unseen.scatter(1, kept[..., None].expand(-1, -1, d), x)
        x = x + self.pos_embed[:, 1:]  # type: ignore[index]
        prefix = 0
        if tokens.prefix is not None:  # whose position is 0
            prefix = tokens.prefix.shape[1]
            x = torch.cat([full(self.embed(tokens.prefix)), x], 1)
        shapes = ((b, self.side, self.side),)
        packed = Packed(x.flatten(0, 1), shapes, prefix=prefix, plan=Plan((), ()))
        for layer in self.layers:
            packed, _ = layer(packed, None, False)
        grid = packed.tokens()[0].grid.flatten(1, 2)
        if hidden is not None:
            grid = grid.gather(1, hidden[..., None].expand(-1, -1, d))
        return full(self.predict(self.norm(grid)))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the encoder was shown of a batch, and what is to be predicted."""

    kept: Tensor | None
    """[B, n] visible patches, for an encoder that sees no others."""
    hidden: Tensor
    """[B, N - n] the others."""
    mask: Tensor
    """[B, N] true: hidden."""
    ask: Ask


class MAE(Masked):
    """Masked autoencoder."""

    def __init__(self, config: MaeConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone, "patches")
        self.config = config
        if isinstance(self.backbone, ViT):
            init_as_mae(self.backbone)
        self.decoder = Decoder(config.decoder, self.backbone, self.rows)
        self.fill_token = None
        if "keep" not in self.backbone.can:
            token = torch.empty(self.backbone.stage_dims[0])
            self.fill_token = nn.Parameter(nn.init.normal_(token, std=0.02))

    def predict(self, images: Tensor, seen: Seen) -> Tensor:
        """Return the prediction for every patch [B, N, p * p * 3], as the target has it."""
        (found,) = self.backbone([images], self.ask(seen))
        prediction: Tensor = self.decoder(self.read(found), seen.kept)
        return prediction

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Hide patches by noise [B, N] and predict them; see `Masked`.

        Where the target has mean 0 and deviation 1 in every patch, the prediction is given the
        patch's own, which the network never saw.
        """
        seen = self.hide(noise)
        prediction = full(self.predict(images, seen))
        if self.config.normalize:
            mean, deviation = patch_moments(patches_of(full(images), self.patch))
            prediction = prediction * deviation + mean
        hidden = enlarged(seen.mask.view(-1, self.rows, self.rows), self.patch)
        return hidden, images_of(prediction, self.patch)

    def ask(self, seen: Seen) -> Ask:
        """Return what is asked of the encoder."""
        return seen.ask

    def read(self, found: Features) -> Tokens:
        """Return the tokens that the decoder reads, normed."""
        return Tokens(found.grid, found.prefix)

    def learn(self, images: Tensor, noise: Tensor, drawn: Ask = PLAIN) -> StepOutput:
        """Return the loss of images [B, 3, S, S] whose patches are hidden by noise [B, N]."""
        seen = self.hide(noise, drawn)
        (found,) = self.backbone([images], self.ask(seen))
        loss = self.reconstruction(self.read(found), images, seen)
        return StepOutput(loss, {"reconstruction": loss})

    def hide(self, noise: Tensor, drawn: Ask = PLAIN) -> Seen:
        """Choose the visible patches of each image by noise [B, N]."""
        kept, hidden, mask = visible_patches(noise, self.visible)
        if self.fill_token is None:
            return Seen(kept, hidden, mask, replace(drawn, keep=kept))
        times = self.patch // self.backbone.stage_strides[0]  # first tokens a side of a final one
        fine = enlarged(mask.view(-1, self.rows, self.rows), times)
        return Seen(None, hidden, mask, replace(drawn, fill=(fine, self.fill_token)))

    def reconstruction(self, tokens: Tokens, images: Tensor, seen: Seen) -> Tensor:
        """Return the loss of the hidden pixels as the decoder predicts them from normed tokens."""
        prediction = self.decoder(tokens, seen.kept, seen.hidden)
        target = pixel_targets(
            images, self.patch, normalize=self.config.normalize, hidden=seen.hidden
        )
        return functional.mse_loss(prediction, target)


def init_as_mae(module: nn.Module) -> None:
    """Initialise as MAE does: projections, that of patches too, by Glorot's uniform rule."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif name == "patch_embed.proj":
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
