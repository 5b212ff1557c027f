"""Semantic segmentation: a backbone, its pyramid and a head, trained in the one loop.

Letters: B images, C classes, h and w rows and columns of an image.
"""

from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import PLAIN, Ask, Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig
from leanvit.config.dense import SegmenterConfig
from leanvit.core.random import seeded
from leanvit.data.batch import MapBatch
from leanvit.data.masks import IGNORED
from leanvit.losses.pixels import pixel_loss
from leanvit.methods.averaged import Averaged
from leanvit.methods.base import Moment, StepOutput, learner_ask
from leanvit.methods.map_heads import HEADS
from leanvit.methods.pyramid import look, region_side


class MapNetwork(nn.Module):
    """A backbone and a head that gives every pixel the scores of classes."""

    def __init__(self, config: SegmenterConfig, backbone: Backbone) -> None:
        super().__init__()
        self.frozen = config.frozen
        self.backbone = backbone.requires_grad_(not config.frozen)
        self.head = HEADS[config.head](backbone, config.channels, config.classes)

    def forward(self, images: Tensor, ask: Ask = PLAIN) -> Tensor:
        """Return scores [B, C, h, w] of normalised images [B, 3, h, w] of any size."""
        found = self.head(*look(self.backbone, images, self.head.blocks, ask, frozen=self.frozen))
        side = region_side(self.backbone)
        height, width = images.shape[-2:]
        padded = [height + -height % side, width + -width % side]
        large = functional.interpolate(found, padded, mode="bilinear", align_corners=False)
        return large[..., :height, :width]


class Segmenter(Averaged[MapNetwork]):
    """Every pixel tells its class."""

    def __init__(self, config: SegmenterConfig, backbone: BackboneConfig) -> None:
        super().__init__(MapNetwork(config, build_backbone(backbone)), config.average)
        self.config = config

    def forward(self, batch: MapBatch, at: Moment) -> StepOutput:
        """Tell the class of every pixel of a batch of crops."""
        backbone = self.network.backbone
        ask = PLAIN
        if not self.network.frozen:
            ask = learner_ask(backbone, 1, batch.index, at, batch.images.device)
        loss, right = pixel_loss(self.network(batch.images, ask), batch.maps, IGNORED)
        return StepOutput(loss, {"pixel": loss}, {"accuracy": 100 * right})


def build_segmenter(config: SegmenterConfig, backbone: BackboneConfig, seed: int) -> Segmenter:
    """Build a segmenter with fresh weights that depend on the seed alone."""
    with seeded(seed, "weights"):
        return Segmenter(config, backbone)
