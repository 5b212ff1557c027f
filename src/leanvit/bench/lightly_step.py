"""Training steps built from the lightly package, as its examples put them together.

DINO's from its head, its loss and its moving averages, on timm's network with our weights or on
our own; MAE's from its masked encoder around timm's network and its decoder. One forward a view,
torch's AdamW, one clipped norm of all gradients.
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Backbone
from leanvit.bench.twins import Twin
from leanvit.config import AdamWConfig, DinoConfig, MaeConfig, RunConfig, ViTConfig
from leanvit.core.precision import autocast
from leanvit.data.batch import ViewBatch
from leanvit.methods.base import Moment


class LightlyStep(nn.Module):
    """What both steps share: optimiser, clipping, precision."""

    def __init__(self, config: RunConfig, at: Moment) -> None:
        super().__init__()
        self.config, self.at = config, at
        self.device = torch.device(config.train.device)

    def ready(self) -> None:
        """Move to the device, and let the optimiser know the parameters."""
        optim = self.config.optim
        assert isinstance(optim, AdamWConfig)
        self.to(self.device).train()
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        lr, decay = (self.at.value(each) for each in (optim.lr, optim.weight_decay))
        self.optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=decay, betas=optim.betas)

    def loss(self, batch: ViewBatch) -> Tensor:
        """Return what is minimised."""
        raise NotImplementedError

    def step(self, batch: ViewBatch) -> Tensor:
        """Train on a batch; return its loss."""
        with autocast(self.config.train.precision, self.device.type):
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.optim.clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.config.optim.clip)
        self.optimizer.step()
        return loss.detach()


class LightlyDINO(LightlyStep):
    """DINO on a backbone of ours, or on timm's twin of it."""

    def __init__(self, backbone: Backbone, config: RunConfig, at: Moment, *, twin: bool) -> None:
        super().__init__(config, at)
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        assert isinstance(config.method, DinoConfig)
        head = config.method.head
        network: nn.Module = Twin(backbone, flexible=True) if twin else copy.deepcopy(backbone)
        sizes = backbone.feature_dim, head.hidden, head.bottleneck, head.prototypes
        how = {"batch_norm": head.batch_norm, "norm_last_layer": not head.train_gain}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, at the older weight norm
            heads = [DINOProjectionHead(*sizes, **how) for _ in range(2)]
        heads[1].load_state_dict(heads[0].state_dict())
        self.student = nn.ModuleList([network, heads[0]])
        self.teacher = nn.ModuleList([copy.deepcopy(network), heads[1]]).requires_grad_(False)
        self.criterion = DINOLoss(
            output_dim=head.prototypes,
            teacher_temp=at.value(config.method.teacher_temp),
            student_temp=config.method.student_temp,
            warmup_teacher_temp_epochs=0,
            center_momentum=config.method.center_momentum,
        )
        self.momentum = at.value(config.method.teacher_momentum)
        self.ready()

    def loss(self, batch: ViewBatch) -> Tensor:
        """Average first, as the examples do; then one forward a view."""
        from lightly.models.utils import update_momentum

        update_momentum(self.student, self.teacher, self.momentum)
        views = [view for group in batch.groups for view in group]
        with torch.no_grad():
            seen = [_logits(self.teacher, view) for view in views[:2]]
        found: Tensor = self.criterion(seen, [_logits(self.student, view) for view in views])
        return found


def _logits(network: nn.ModuleList, view: Tensor) -> Tensor:
    """[B, 3, S, S] -> [B, K]."""
    backbone, head = network
    found = backbone([view])
    pooled = found[1] if isinstance(backbone, Twin) else found[0].pooled
    logits: Tensor = head(pooled)
    return logits


class LightlyMAE(LightlyStep):
    """A masked autoencoder around timm's network."""

    def __init__(self, backbone: Backbone, config: RunConfig, at: Moment) -> None:
        super().__init__(config, at)
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.masked_vision_transformer_decoder_timm import (
            MaskedVisionTransformerDecoderTIMM,
        )

        assert isinstance(config.method, MaeConfig) and isinstance(backbone.config, ViTConfig)
        method, self.patch = config.method, backbone.config.patch
        self.tokens = (method.views.size // self.patch) ** 2 + 1
        vit: Any = Twin(backbone, flexible=False).network
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        decoder = method.decoder
        self.enter = nn.Linear(backbone.feature_dim, decoder.dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=self.tokens - 1,
            embed_dim=decoder.dim,
            depth=decoder.depth,
            num_heads=decoder.heads,
        )
        self.predict = nn.Linear(decoder.dim, 3 * self.patch**2)
        self.ready()

    def loss(self, batch: ViewBatch) -> Tensor:
        """Encode what is visible, decode everything, compare what was hidden."""
        from lightly.models import utils

        images = batch.groups[0][0]
        assert isinstance(self.config.method, MaeConfig)
        keep, hidden = utils.random_token_mask(
            size=(len(images), self.tokens),
            mask_ratio=self.config.method.mask_ratio,
            device=images.device,
        )
        seen = self.enter(self.encoder.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.tokens))
        tokens = utils.set_at_index(tokens.to(seen.dtype), keep, seen)
        decoded = self.decoder.decode(self.decoder.add_pos_embed(tokens))
        predicted = self.predict(utils.get_at_index(decoded, hidden))
        target = utils.get_at_index(utils.patchify(images, self.patch), hidden - 1)
        if self.config.method.normalize:
            spread = target.var(-1, keepdim=True)
            target = (target - target.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt()
        return functional.mse_loss(predicted, target)
