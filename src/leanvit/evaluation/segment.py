"""Semantic segmentation with a backbone: trained, chosen on one split, tested once on another.

Letters: C classes, h and w rows and columns of an image.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.config import look_up
from leanvit.config.dense import ScaledCropConfig, SegmentConfig, SegmenterConfig
from leanvit.core.distributed import require_alone
from leanvit.core.files import spared
from leanvit.core.precision import full
from leanvit.data.masks import MaskSource, has_split, open_masks
from leanvit.data.scaled_crops import ScaledCrops, with_short_side
from leanvit.evaluation.dense import Splits, open_splits, settle
from leanvit.evaluation.dense_task import DenseTraining, dense_result
from leanvit.evaluation.map_pictures import PICTURES, MapPicture, draw_maps
from leanvit.evaluation.pixels import Confusion
from leanvit.evaluation.result import Result
from leanvit.methods.segmenter import MapNetwork, Segmenter, build_segmenter
from leanvit.recipes.segment import SEGMENT_RECIPES
from leanvit.weights.loading import open_weights

STEP = 2 / 3
"""Share of a window's side that neighbouring windows lie apart."""


def segment_result(config: SegmentConfig, model: str | Path, quiet: bool) -> Result:
    """Train a backbone with a head to tell the class of every pixel; return the table.

    One row for each start (trained, untrained) and seed. Raises ValueError for a mistake in the
    request and NonFiniteError for a training that diverged.
    """
    require_alone("evaluate segment")
    recipe = look_up("recipe", config.recipe, SEGMENT_RECIPES)()
    weights = open_weights(model)
    opened = partial(open_masks, config.data, ignore=config.ignore)
    splits = open_splits(config, opened(config.train_split), opened, has_split)
    config = settle(config, recipe, len(splits.learn))
    return dense_result(
        SegmentTraining,
        config,
        _method(config, splits),
        splits,
        model,
        weights,
        fits=MaskSource.require_fitting,
        facts={name: getattr(config, name) for name in ("recipe", "head", "frozen", "crop")},
        quiet=quiet,
    )


def _method(config: SegmentConfig, splits: Splits[MaskSource]) -> SegmenterConfig:
    assert config.head != "auto" and config.channels != "auto" and config.crop != "auto"
    assert config.average != "auto"
    return SegmenterConfig(
        classes=len(splits.learn.classes),
        head=config.head,
        channels=config.channels,
        frozen=config.frozen,
        average=config.average,
        views=ScaledCropConfig(size=config.crop, scale=config.scale, distort=config.distort),
    )


@dataclass(frozen=True, slots=True)
class WholeImage:
    """An image to test on."""

    pixels: Tensor
    """uint8 [3, h, w], as it is stored."""
    seen: Tensor
    """The same with the shorter side that a network sees."""
    truth: Tensor
    """uint8 [h, w] class of every pixel."""


class SegmentTraining(DenseTraining[MaskSource, WholeImage]):
    """One training of a segmentation."""

    options: SegmentConfig
    method: Segmenter

    task = ("segment", "segmentation")
    measure = ("miou", "mean IoU")
    measures = ("miou", "pixels", "classes")
    figures = "miou, pixels and classes"
    apart = "iou"
    head = ("head", "channels")
    decides = ("short_side", "slide")
    build = staticmethod(build_segmenter)

    def learned(self) -> str:
        """Return what is learned, from how many images."""
        return f"{len(self.splits.learn)} images of {len(self.splits.learn.classes)} classes"

    def crops(self) -> ScaledCrops:
        """Return the examples to learn from."""
        assert self.options.short_side != "auto"
        return ScaledCrops(
            self.splits.learn,
            self.method.config.views,
            short_side=self.options.short_side,
            mean=self.config.data.mean,
            std=self.config.data.std,
            seed=self.config.train.seed,
        )

    def whole(self, source: MaskSource) -> Callable[[int, Tensor], WholeImage]:
        """Return what makes a whole image of a number and uint8 pixels [3, h, w]."""
        assert self.options.short_side != "auto"
        return partial(_whole, source, self.options.short_side)

    def measured(self, source: MaskSource, images: Iterable[WholeImage]) -> Confusion:
        """Return how the pixels of whole images are told."""
        confusion = Confusion(source.classes)
        for image in images:
            confusion.add(self.told(image), image.truth)
        return confusion

    def told(self, image: WholeImage) -> Tensor:
        """Return the class that is told of every pixel [h, w], on the CPU."""
        assert self.options.crop != "auto"
        network, seen = self.method.tested, self.seen(image.seen)
        with self.testing():
            if self.options.slide:
                scores = by_windows(network, seen, self.options.crop)
            else:
                scores = full(network(seen))
        size = tuple(image.truth.shape)
        if size != scores.shape[-2:]:
            scores = functional.interpolate(scores, size, mode="bilinear", align_corners=False)
        return scores[0].argmax(0).cpu()

    def drawn(self, images: Iterable[WholeImage]) -> None:
        """Draw whole images, with their labels and what is told of them, into the folder."""
        found = [MapPicture(image.pixels, image.truth, self.told(image)) for image in images]
        with spared(self.folder.path / PICTURES):
            draw_maps(found, self.splits.val.classes, self.folder.path / PICTURES)


def _whole(source: MaskSource, short_side: int, index: int, pixels: Tensor) -> WholeImage:
    truth = source.annotation(index, *pixels.shape[1:])
    return WholeImage(pixels, with_short_side(pixels, truth, short_side)[0], truth)


def by_windows(network: MapNetwork, images: Tensor, side: int) -> Tensor:
    """Return scores [B, C, h, w]: the mean of those of windows, two thirds of a side apart.

    The last window of a row or column ends where the image does. An image is no larger than a
    window in a direction that has one.
    """
    height, width = images.shape[-2:]
    total, count = torch.zeros(()), torch.zeros(1, 1, height, width, device=images.device)
    for top in _starts(height, side):
        for left in _starts(width, side):
            part = (..., slice(top, top + side), slice(left, left + side))
            scores = full(network(images[part]))
            if not total.ndim:
                total = scores.new_zeros(*scores.shape[:2], height, width)
            total[part] += scores
            count[part] += 1
    return total / count


def _starts(length: int, side: int) -> list[int]:
    last = max(length - side, 0)
    stride = max(round(side * STEP), 1)
    return [*range(0, last, stride), last]
