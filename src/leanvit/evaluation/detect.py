"""Detection with a backbone: trained, chosen on one split, tested once on another.

Letters: n objects of an image, h and w its rows and columns.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from leanvit.config import look_up
from leanvit.config.dense import DetectConfig, DetectorConfig, ObjectCropConfig
from leanvit.core.distributed import require_alone
from leanvit.core.files import spared
from leanvit.data.batch import Objects
from leanvit.data.object_crops import ObjectCrops, fitted
from leanvit.data.objects import ObjectSource, has_objects, open_objects
from leanvit.evaluation.dense import Splits, open_splits, settle
from leanvit.evaluation.dense_task import DenseTraining, dense_result
from leanvit.evaluation.object_pictures import PICTURES, ObjectPicture, draw_objects
from leanvit.evaluation.precision import Precision, Told, require_pycocotools
from leanvit.evaluation.result import Result
from leanvit.methods.detector import Detector, build_detector
from leanvit.recipes.detect import DETECT_RECIPES
from leanvit.weights.loading import open_weights

SHOWN = 0.5
"""Confidence from which an object is drawn."""
OUTSIDE = 0.5
"""Probability from which a pixel belongs to an object."""


def detect_result(config: DetectConfig, model: str | Path, quiet: bool) -> Result:
    """Train a backbone with a head to find objects; return the table.

    One row for each start (trained, untrained) and seed. Raises ValueError for a mistake in the
    request and NonFiniteError for a training that diverged.
    """
    require_alone("evaluate detect")
    require_pycocotools()
    recipe = look_up("recipe", config.recipe, DETECT_RECIPES)()
    weights = open_weights(model)
    learn = open_objects(config.data, config.train_split)
    learn.require_objects()
    opened = partial(open_objects, config.data, known=learn.classes)
    splits = open_splits(config, learn, opened, has_objects)
    config = settle(config, recipe, len(learn))
    config = replace(config, masks=_masks(config, splits))
    return dense_result(
        DetectTraining,
        config,
        _method(config, splits),
        splits,
        model,
        weights,
        fits=partial(ObjectSource.require_fitting, masks=config.masks is True),
        facts={name: getattr(config, name) for name in ("recipe", "masks", "frozen", "crop")},
        quiet=quiet,
    )


def _masks(config: DetectConfig, splits: Splits[ObjectSource]) -> bool:
    """Return whether masks are learned. Raises ValueError if they are asked for and missing."""
    outlined = all(source.outlined for source in (splits.learn, splits.val, splits.test) if source)
    if config.masks is True and not outlined:
        raise ValueError("masks are asked for, but not every object has an outline.")
    return outlined if config.masks == "auto" else config.masks


def _method(config: DetectConfig, splits: Splits[ObjectSource]) -> DetectorConfig:
    assert config.channels != "auto" and config.hidden != "auto" and config.crop != "auto"
    assert config.average != "auto" and config.distort != "auto"
    assert config.masks != "auto" and config.min_scale != "auto" and config.max_scale != "auto"
    if config.min_scale > config.max_scale:
        raise ValueError(
            f"min_scale is {config.min_scale:g}, above max_scale, which is {config.max_scale:g}."
        )
    return DetectorConfig(
        classes=len(splits.learn.classes),
        masks=config.masks,
        channels=config.channels,
        hidden=config.hidden,
        frozen=config.frozen,
        average=config.average,
        views=ObjectCropConfig(
            size=config.crop,
            scale=(config.min_scale, config.max_scale),
            distort=config.distort,
        ),
    )


@dataclass(frozen=True, slots=True)
class WholeImage:
    """An image to test on."""

    pixels: Tensor
    """uint8 [3, h, w], as it is stored."""
    objects: Objects


class DetectTraining(DenseTraining[ObjectSource, WholeImage]):
    """One training of a detection."""

    options: DetectConfig
    method: Detector

    task = ("detect", "detection")
    measure = ("ap", "AP")
    measures = ("ap", "small", "medium", "large", "mask ap")
    figures = "ap and the rest"
    apart = "ap"
    head = ("masks", "channels", "hidden")
    build = staticmethod(build_detector)

    def learned(self) -> str:
        """Return what is learned, from how many images."""
        what = "boxes and masks" if self.options.masks else "boxes"
        learn = self.splits.learn
        return f"{what} of {len(learn.classes)} classes in {len(learn)} images"

    def crops(self) -> ObjectCrops:
        """Return the examples to learn from."""
        return ObjectCrops(
            self.splits.learn,
            self.method.config.views,
            masks=self.method.config.masks,
            mean=self.config.data.mean,
            std=self.config.data.std,
            seed=self.config.train.seed,
        )

    def whole(self, source: ObjectSource) -> Callable[[int, Tensor], WholeImage]:
        """Return what makes a whole image of a number and uint8 pixels [3, h, w]."""
        return partial(_whole, source, self.method.config.masks)

    def measured(self, source: ObjectSource, images: Iterable[WholeImage]) -> Precision:
        """Return what is found in whole images, and what is there."""
        precision = Precision(source.classes)
        for image in images:
            precision.add(self.told(image), image.objects, *image.pixels.shape[1:])
        return precision

    def told(self, image: WholeImage) -> Told:
        """Return what is found in an image, in its own pixels, on the CPU."""
        assert self.options.crop != "auto"
        small = fitted(image.pixels, self.options.crop)
        with self.testing():
            (found,) = self.method.tested.find(self.seen(small))
        height, width = image.pixels.shape[1:]
        ratio = torch.tensor([width / small.shape[2], height / small.shape[1]])
        boxes = found.boxes.cpu() * ratio.repeat(2)
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        masks = None
        if found.masks is not None:
            masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
            for mask, one, box in zip(masks, found.masks.cpu(), boxes, strict=True):
                pasted = paste_masks_in_image(one[None], box[None], (height, width))
                mask.copy_(pasted[0, 0] > OUTSIDE)
        return Told(boxes, found.labels.cpu(), found.scores.cpu(), masks)

    def drawn(self, images: Iterable[WholeImage]) -> None:
        """Draw whole images, with what is there and what is told of it, into the folder."""
        found = []
        for image in images:
            there, told = image.objects, self.told(image)
            sure = told.scores >= SHOWN
            masks = None if told.masks is None else told.masks[sure]
            found.append(
                ObjectPicture(
                    image.pixels,
                    (there.boxes, there.labels, there.masks),
                    (told.boxes[sure], told.labels[sure], masks),
                )
            )
        with spared(self.folder.path / PICTURES):
            draw_objects(found, self.splits.val.classes, self.folder.path / PICTURES)


def _whole(source: ObjectSource, masks: bool, index: int, pixels: Tensor) -> WholeImage:
    return WholeImage(pixels, source.objects(index, *pixels.shape[1:], masks=masks))
