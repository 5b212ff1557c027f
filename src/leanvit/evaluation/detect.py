"""Detection with a backbone: trained, chosen on one split, tested once on another.

Letters: n objects of an image, h and w its rows and columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.models.detection.roi_heads import paste_masks_in_image

from leanvit.backbones.base import evaluating
from leanvit.config import look_up
from leanvit.config.dense import DetectConfig, DetectorConfig, ObjectCropConfig
from leanvit.core.console import say, track
from leanvit.core.files import spared
from leanvit.core.precision import autocast
from leanvit.data.batch import ObjectBatch, Objects, Unreadable
from leanvit.data.decode import read_image
from leanvit.data.loader import load_batches
from leanvit.data.object_crops import ObjectCrops, fitted
from leanvit.data.objects import ObjectSource, has_objects, open_objects
from leanvit.data.scaled_crops import normalized
from leanvit.evaluation.dense import (
    DenseTraining,
    begin,
    decides,
    hinting,
    in_own_words,
    require_apart,
    require_one_process,
    run_of,
    settle,
    test_note,
    test_split_of,
    workers_of,
)
from leanvit.evaluation.finetune import over_seeds
from leanvit.evaluation.inputs import require_readable
from leanvit.evaluation.object_pictures import PICTURES, ObjectPicture, draw_objects
from leanvit.evaluation.precision import Precision, Told, require_pycocotools
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.tuned import Folder, with_readable
from leanvit.methods.detector import Detector, build_detector
from leanvit.recipes.detect import DETECT_RECIPES
from leanvit.weights.loading import open_weights
from leanvit.weights.report import Weights

SHOWN = 0.5
"""Confidence from which an object is drawn."""
OUTSIDE = 0.5
"""Probability from which a pixel belongs to an object."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The images of the three splits."""

    learn: ObjectSource
    val: ObjectSource
    test: ObjectSource | None


def open_splits(config: DetectConfig) -> Splits:
    """Return the images of a request. Raises ValueError if a split is missing, or differs."""
    learn = open_objects(config.data, config.train_split)
    learn.require_objects()
    val = open_objects(config.data, config.val_split, learn.classes)
    name = test_split_of(config, has_objects)
    with hinting(config):
        test = open_objects(config.data, name, learn.classes) if name else None
    require_apart(config, (learn, val, test))
    return Splits(learn, val, test)


def require_fitting(config: DetectConfig, splits: Splits) -> None:
    """Raise ValueError for objects to choose by or to test on that are wrong, before hours pass."""
    masks = config.masks is True
    splits.val.require_fitting(masks=masks)
    with hinting(config):
        if splits.test:
            splits.test.require_fitting(masks=masks)


def detect_result(config: DetectConfig, model: str | Path, quiet: bool) -> Result:
    """Train a backbone with a head to find objects; return the table.

    One row for each start (trained, untrained) and seed. Raises ValueError for a mistake in the
    request and NonFiniteError for a training that diverged.
    """
    require_one_process("detect")
    require_pycocotools()
    recipe = look_up("recipe", config.recipe, DETECT_RECIPES)()
    weights = open_weights(model)
    splits = open_splits(config)
    config = settle(config, recipe, len(splits.learn))
    config = replace(config, masks=_masks(config, splits))
    assert config.drop_path != "auto"
    weights = replace(weights, config=replace(weights.config, drop_path=config.drop_path))
    run_of(config, _method(config, splits), weights, splits.learn, 0)  # refuses what cannot run
    require_fitting(config, splits)
    states = {"untrained" if weights.state is None else "trained": weights.state}
    if config.untrained:
        states["untrained"] = None
    trained = [
        (name, _train(config, splits, weights, model, state, seed, name, quiet))
        for name, state in states.items()
        for seed in config.seeds
    ]
    return _result(config, splits, trained)


def _masks(config: DetectConfig, splits: Splits) -> bool:
    """Return whether masks are learned. Raises ValueError if they are asked for and missing."""
    outlined = all(source.outlined for source in (splits.learn, splits.val, splits.test) if source)
    if config.masks is True and not outlined:
        raise ValueError("masks are asked for, but not every object has an outline.")
    return outlined if config.masks == "auto" else config.masks


def _train(
    config: DetectConfig,
    splits: Splits,
    weights: Weights,
    model: str | Path,
    state: Mapping[str, Tensor] | None,
    seed: int,
    name: str,
    quiet: bool,
) -> "DetectTraining":
    """Return a training from one start with one seed, when it is over."""
    run = run_of(config, _method(config, splits), weights, splits.learn, seed)
    assert isinstance(run.method, DetectorConfig)
    with in_own_words():
        method = build_detector(run.method, run.backbone, seed)
    begin(method, state, run)
    about = decides(model, splits.learn, splits.val) if config.out else {}
    folder = Folder(config.out, config.resume, run, about, DetectTraining.measures)
    training = DetectTraining(config, run, method, splits.learn, splits.val, folder, quiet)
    if not quiet:
        what = "boxes and masks" if config.masks else "boxes"
        frozen = ", the backbone frozen" if config.frozen else ""
        say(
            f"{name}, seed {seed}: {what} of {len(splits.learn.classes)} classes in "
            f"{len(splits.learn)} images, {training.state.run} steps of {run.train.batch} crops of "
            f"{config.crop}{frozen}; {run.train.precision} on {run.train.device}."
        )
    training.run()
    return training


def _method(config: DetectConfig, splits: Splits) -> DetectorConfig:
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


@dataclass
class DetectTraining(DenseTraining):
    """One training of a detection."""

    options: DetectConfig
    method: Detector
    learn: ObjectSource
    val: ObjectSource

    measure: ClassVar[str] = "ap"
    measures: ClassVar[tuple[str, ...]] = ("ap", "small", "medium", "large", "mask ap")

    @property
    def masks(self) -> bool:
        """Whether masks are learned."""
        return self.options.masks is True

    def batches(self) -> Iterator[ObjectBatch]:
        """Yield the batches of the steps that are left."""
        data = self.config.data
        assert isinstance(self.config.method, DetectorConfig) and data.workers != "auto"
        crops = ObjectCrops(
            self.learn,
            self.config.method.views,
            masks=self.masks,
            mean=data.mean,
            std=data.std,
            seed=self.config.train.seed,
        )
        device = self.state.device
        keys = self.order.steps(self.state.step, self.state.run)
        found = load_batches(crops, keys, workers=data.workers, pin=device.type == "cuda")
        moved = (batch.to(device) for batch in found)
        return with_readable(moved, len(self.learn), data.max_unreadable)

    def found(self) -> dict[str, float]:
        """Return average precisions on the images of val_split."""
        return self.tested(self.val, f"{self.options.val_split} images").scores()

    def tested(self, source: ObjectSource, text: str) -> Precision:
        """Return what is found in all images of a source, and what is there.

        Raises ValueError if too many images cannot be read, or an outline.
        """
        precision, bad = Precision(source.classes), list[Unreadable]()
        everything = range(len(source))
        for image in track(self._whole(source, everything), text, len(source), quiet=self.quiet):
            if isinstance(image, Unreadable):
                bad.append(image)
            else:
                height, width = image.pixels.shape[1:]
                precision.add(self.told(image), image.objects, height, width)
        require_readable(bad, len(source), self.options.max_unreadable)
        return precision

    def told(self, image: "WholeImage") -> Told:
        """Return what is found in an image, in its own pixels, on the CPU."""
        data = self.config.data
        assert self.options.crop != "auto"
        small = fitted(image.pixels, self.options.crop)
        seen = normalized(small, data.mean, data.std)[None].to(self.state.device)
        precision = self.config.train.precision
        with evaluating(self.method.tested), autocast(precision, self.state.device.type):
            (found,) = self.method.tested.find(seen)
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

    def draw(self) -> None:
        """Draw a few images of val_split with what is there and what is told, into the folder."""
        count = min(self.options.pictures, len(self.val))
        if not self.folder.name or not count:
            return
        chosen = range(0, len(self.val), max(len(self.val) // count, 1))[:count]
        found = []
        for image in self._whole(self.val, chosen):
            if isinstance(image, WholeImage):
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
            draw_objects(found, self.val.classes, self.folder.path / PICTURES)

    def about_head(self) -> dict[str, Any]:
        """Return what the file of the head says of it."""
        assert isinstance(self.config.method, DetectorConfig)
        method = self.config.method
        return {"masks": method.masks, "channels": method.channels, "hidden": method.hidden}

    def _whole(
        self, source: ObjectSource, indices: Sequence[int]
    ) -> Iterator["WholeImage | Unreadable"]:
        whole = WholeImages(source, masks=self.masks)
        keys = ([index] for index in indices)
        return load_batches(whole, keys, workers=workers_of(self.options), pin=False)


@dataclass(frozen=True, slots=True)
class WholeImage:
    """An image to test on."""

    pixels: Tensor
    """uint8 [3, h, w], as it is stored."""
    objects: Objects


class WholeImages(Dataset[WholeImage | Unreadable | ValueError]):
    """All images of a source, one by one, since their sizes differ."""

    def __init__(self, source: ObjectSource, *, masks: bool) -> None:
        self.source, self.masks = source, masks

    def one(self, indices: Sequence[int]) -> WholeImage | Unreadable | ValueError:
        """Return the image of one index, or why there is none; an error for a wrong outline."""
        (index,) = indices
        found = read_image(self.source, index)
        if isinstance(found, Unreadable):
            return found
        pixels, _ = found
        try:
            return WholeImage(
                pixels, self.source.objects(index, *pixels.shape[1:], masks=self.masks)
            )
        except ValueError as error:
            return error

    __getitems__ = one
    """What torch's loader calls in its workers."""


def _result(
    config: DetectConfig, splits: Splits, trained: Sequence[tuple[str, DetectTraining]]
) -> Result:
    """Return the table of trainings; each is tested as it was at its best look."""
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {
        **{"recipe": config.recipe, "masks": config.masks, "frozen": config.frozen},
        **{"crop": config.crop, "classes": splits.learn.classes},
        **{"train_images": len(splits.learn), "val_images": len(splits.val)},
        **({"test_images": len(splits.test)} if splits.test else {}),
        **{"curve": [], "ap": []},
    }
    last = splits.test or splits.val
    for name, training in trained:
        training.take_best()
        training.draw()
        best = training.best()
        precision = training.tested(last, f"{'test' if splits.test else 'val'} images")
        which = {"network": name, "seed": training.config.train.seed}
        scores = precision.scores()
        minutes = {"minutes": training.minutes}
        rows.append({**which, "epoch": best["epoch"], "val ap": best["ap"], **scores, **minutes})
        facts["curve"] += [{**which, **row} for row in training.curve]
        facts["ap"].append({**which, "classes": precision.of_classes()})
    note = test_note(config, len(last), "ap and the rest", tested=splits.test is not None)
    notes = [note, *over_seeds(rows, "ap", "AP")]
    top = headline(rows, "detection", "ap", of="network")
    return Result("detect", facts, rows, notes, headline=top)
