"""Detection: Faster and Mask R-CNN of torchvision on any backbone, trained in the one loop.

Letters: B images, C classes, n objects of an image, S side of a crop.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from leanvit.backbones.base import PLAIN, Ask, Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig
from leanvit.config.dense import DetectorConfig
from leanvit.core.precision import full, unrounded
from leanvit.core.random import seeded
from leanvit.data.batch import ObjectBatch, Objects
from leanvit.methods.averaged import Averaged
from leanvit.methods.base import Moment, StepOutput, learner_ask
from leanvit.methods.pyramid import Pyramid, look, region_side

ANCHOR = 8
"""Strides that the side of a level's square anchor has."""
RATIOS = (0.5, 1.0, 2.0)
"""Height by width of anchors."""
ROI, MASK = 7, 14
"""Side of the grids that boxes are read into, to tell their class and their mask."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in an image."""

    boxes: Tensor
    """[n, 4] left, top, right, bottom in pixels."""
    labels: Tensor
    """[n] class, from 0."""
    scores: Tensor
    """[n] between 0 and 1, the highest first."""
    masks: Tensor | None
    """[n, 1, 28, 28] probability of the object in its box; None where masks are not learned."""


class Sampler:
    """Draws the boxes that are learned from on the CPU, whose generator a step has seeded."""

    def __init__(self, count: int, share: float) -> None:
        """count: boxes of an image; share: of objects among them, at most."""
        self._drawing = BalancedPositiveNegativeSampler(count, share)

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks of what is drawn, objects and background, of each image.

        matched_idxs: of each image, 1 or more for an object, 0 for background, -1 for neither.
        """
        device = matched_idxs[0].device
        drawn = self._drawing([matched.cpu() for matched in matched_idxs])
        objects, background = ([mask.to(device) for mask in part] for part in drawn)
        return objects, background


class PyramidMaps(nn.Module):
    """A backbone, its pyramid, and a feature pyramid network with a level more on top.

    torchvision takes every stride for a power of two, so maps of other strides are resized.
    """

    def __init__(self, config: DetectorConfig, backbone: Backbone) -> None:
        super().__init__()
        self.frozen, self.out_channels = config.frozen, config.channels
        self.backbone = backbone.requires_grad_(not config.frozen)
        self.pyramid = Pyramid(backbone, spread=False)
        self.strides = [2 ** round(math.log2(stride)) for stride in self.pyramid.strides]
        self.fpn = FeaturePyramidNetwork(
            list(self.pyramid.dims), config.channels, LastLevelMaxPool()
        )
        self.multiple = math.lcm(region_side(backbone), self.strides[-1])

    def forward(self, images: Tensor, ask: Ask = PLAIN) -> "OrderedDict[str, Tensor]":
        """Return maps by their names, the finest first; images [B, 3, h, w] of whole `multiple`."""
        maps = self.pyramid(
            *look(self.backbone, images, self.pyramid.blocks, ask, frozen=self.frozen)
        )
        sizes = [[side // stride for side in images.shape[-2:]] for stride in self.strides]
        even = [
            full(one)
            if list(one.shape[-2:]) == size
            else functional.interpolate(full(one), size, mode="bilinear", align_corners=False)
            for one, size in zip(maps, sizes, strict=True)
        ]
        found: OrderedDict[str, Tensor] = self.fpn(
            OrderedDict((str(level), one) for level, one in enumerate(even))
        )
        return OrderedDict((name, full(one)) for name, one in found.items())


class ObjectNetwork(nn.Module):
    """A backbone with what proposes boxes, and what tells their classes and masks."""

    def __init__(self, config: DetectorConfig, backbone: Backbone) -> None:
        super().__init__()
        self.maps = PyramidMaps(config, backbone)
        levels = [str(level) for level in range(len(self.maps.strides))]
        strides = [*self.maps.strides, 2 * self.maps.strides[-1]]
        side = ROI**2 * config.channels
        parts = {
            "rpn_anchor_generator": AnchorGenerator(
                tuple((ANCHOR * stride,) for stride in strides), (RATIOS,) * len(strides)
            ),
            "box_roi_pool": MultiScaleRoIAlign(levels, ROI, 2),
            "box_head": TwoMLPHead(side, config.hidden),
            "box_predictor": FastRCNNPredictor(config.hidden, config.classes + 1),
        }
        if config.masks:
            from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

            layers = (config.channels,) * 4
            parts["mask_roi_pool"] = MultiScaleRoIAlign(levels, MASK, 2)
            parts["mask_head"] = MaskRCNNHeads(config.channels, layers, 1)
            parts["mask_predictor"] = MaskRCNNPredictor(
                config.channels, config.channels, config.classes + 1
            )
        kind = MaskRCNN if config.masks else FasterRCNN
        whole = kind(self.maps, **parts)
        self.proposing, self.telling = whole.rpn, whole.roi_heads
        for part in (self.proposing, self.telling):
            sampler = part.fg_bg_sampler
            part.fg_bg_sampler = Sampler(sampler.batch_size_per_image, sampler.positive_fraction)
        pools = [self.telling.box_roi_pool, *([self.telling.mask_roi_pool] if config.masks else [])]
        for pool in pools:  # which would guess them from the first image, without its padding
            first, last = (round(math.log2(s)) for s in (strides[0], self.maps.strides[-1]))
            pool.scales = [1 / stride for stride in self.maps.strides]
            pool.map_levels = initLevelMapper(first, last)

    @property
    def backbone(self) -> Backbone:
        """The backbone."""
        return self.maps.backbone

    def losses(
        self, images: Tensor, objects: Sequence[Objects], ask: Ask = PLAIN
    ) -> dict[str, Tensor]:
        """Return the losses of crops [B, 3, S, S], each a mean over the batch."""
        targets = [_target(each) for each in objects]
        padded, sizes = self._padded(images)
        maps = self.maps(padded, ask)
        with unrounded(padded):
            listed = ImageList(full(padded), sizes)
            proposals, first = self.proposing(listed, maps, targets)
            _, second = self.telling(maps, proposals, sizes, targets)
        return {NAMES[name]: loss for name, loss in {**first, **second}.items()}

    @torch.no_grad()
    def find(self, images: Tensor) -> list[Found]:
        """Return what is found in images [B, 3, h, w], in a network that does not train."""
        padded, sizes = self._padded(images)
        maps = self.maps(padded)
        with unrounded(padded):
            proposals, _ = self.proposing(ImageList(full(padded), sizes), maps)
            found, _ = self.telling(maps, proposals, sizes)
        return [
            Found(one["boxes"], one["labels"] - 1, one["scores"], one.get("masks")) for one in found
        ]

    def _padded(self, images: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        height, width = images.shape[-2:]
        multiple = self.maps.multiple
        padded = functional.pad(images, (0, -width % multiple, 0, -height % multiple))
        return padded, [(height, width)] * len(images)


NAMES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal",
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}
"""torchvision's name of a loss -> ours."""


def _target(objects: Objects) -> dict[str, Tensor]:
    """Return objects as torchvision learns them: classes from 1, crowds left out."""
    kept = ~objects.crowd
    target = {"boxes": objects.boxes[kept], "labels": objects.labels[kept] + 1}
    return target if objects.masks is None else {**target, "masks": objects.masks[kept]}


class Detector(Averaged[ObjectNetwork]):
    """Every object tells its box and its class, and its mask if asked."""

    def __init__(self, config: DetectorConfig, backbone: BackboneConfig) -> None:
        super().__init__(ObjectNetwork(config, build_backbone(backbone)), config.average)
        self.config = config

    def forward(self, batch: ObjectBatch, at: Moment) -> StepOutput:
        """Find the objects of a batch of crops.

        The proposals that are learned from are drawn by (seed, step, first image).
        """
        ask = PLAIN
        if not self.config.frozen:
            ask = learner_ask(self.network.backbone, 1, batch.index, at, batch.images.device)
        with seeded(at.seed, "proposals", at.step, int(batch.index[0])):
            losses = self.network.losses(batch.images, batch.objects, ask)
        return StepOutput(torch.stack(list(losses.values())).sum(), losses)


def build_detector(config: DetectorConfig, backbone: BackboneConfig, seed: int) -> Detector:
    """Build a detector with fresh weights that depend on the seed alone."""
    with seeded(seed, "weights"):
        return Detector(config, backbone)
