"""Semantic segmentation with a backbone: trained, chosen on one split, tested once on another.

Letters: C classes, h and w rows and columns of an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from leanvit.backbones.base import evaluating
from leanvit.config import look_up
from leanvit.config.dense import ScaledCropConfig, SegmentConfig, SegmenterConfig
from leanvit.core.console import say, track
from leanvit.core.files import spared
from leanvit.core.precision import autocast, full
from leanvit.data.batch import MapBatch, Unreadable
from leanvit.data.decode import read_image
from leanvit.data.loader import load_batches
from leanvit.data.masks import MaskSource, has_split, open_masks
from leanvit.data.scaled_crops import ScaledCrops, normalized, with_short_side
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
from leanvit.evaluation.map_pictures import PICTURES, MapPicture, draw_maps
from leanvit.evaluation.pixels import Confusion
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.tuned import Folder, with_readable
from leanvit.methods.segmenter import MapNetwork, Segmenter, build_segmenter
from leanvit.recipes.segment import SEGMENT_RECIPES
from leanvit.weights.loading import open_weights
from leanvit.weights.report import Weights

STEP = 2 / 3
"""Share of a window's side that neighbouring windows lie apart."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The images of the three splits."""

    learn: MaskSource
    val: MaskSource
    test: MaskSource | None


def open_splits(config: SegmentConfig) -> Splits:
    """Return the images of a request. Raises ValueError if a split is missing."""
    learn, val = (
        open_masks(config.data, split, config.ignore)
        for split in (config.train_split, config.val_split)
    )
    name = test_split_of(config, has_split)
    with hinting(config):
        test = open_masks(config.data, name, config.ignore) if name else None
    require_apart(config, (learn, val, test))
    return Splits(learn, val, test)


def require_fitting(config: SegmentConfig, splits: Splits) -> None:
    """Raise ValueError for a mask to choose by or to test on that is wrong, before hours pass."""
    splits.val.require_fitting()
    with hinting(config):
        if splits.test:
            splits.test.require_fitting()


def segment_result(config: SegmentConfig, model: str | Path, quiet: bool) -> Result:
    """Train a backbone with a head to tell the class of every pixel; return the table.

    One row for each start (trained, untrained) and seed. Raises ValueError for a mistake in the
    request and NonFiniteError for a training that diverged.
    """
    require_one_process("segment")
    recipe = look_up("recipe", config.recipe, SEGMENT_RECIPES)()
    weights = open_weights(model)
    splits = open_splits(config)
    config = settle(config, recipe, len(splits.learn))
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


def _train(
    config: SegmentConfig,
    splits: Splits,
    weights: Weights,
    model: str | Path,
    state: Mapping[str, Tensor] | None,
    seed: int,
    name: str,
    quiet: bool,
) -> "SegmentTraining":
    """Return a training from one start with one seed, when it is over."""
    run = run_of(config, _method(config, splits), weights, splits.learn, seed)
    assert isinstance(run.method, SegmenterConfig)
    with in_own_words():
        method = build_segmenter(run.method, run.backbone, seed)
    begin(method, state, run)
    more = {"short_side": config.short_side, "slide": config.slide}
    about = decides(model, splits.learn, splits.val, **more) if config.out else {}
    folder = Folder(config.out, config.resume, run, about, SegmentTraining.measures)
    training = SegmentTraining(config, run, method, splits.learn, splits.val, folder, quiet)
    if not quiet:
        frozen = ", the backbone frozen" if config.frozen else ""
        say(
            f"{name}, seed {seed}: {len(splits.learn)} images of {len(splits.learn.classes)} "
            f"classes, {training.state.run} steps of {run.train.batch} crops of {config.crop}"
            f"{frozen}; {run.train.precision} on {run.train.device}."
        )
    training.run()
    return training


def _method(config: SegmentConfig, splits: Splits) -> SegmenterConfig:
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


@dataclass
class SegmentTraining(DenseTraining):
    """One training of a segmentation."""

    options: SegmentConfig
    method: Segmenter
    learn: MaskSource
    val: MaskSource

    measure: ClassVar[str] = "miou"
    measures: ClassVar[tuple[str, ...]] = ("miou", "pixels", "classes")

    def batches(self) -> Iterator[MapBatch]:
        """Yield the batches of the steps that are left."""
        data = self.config.data
        assert isinstance(self.config.method, SegmenterConfig) and data.workers != "auto"
        assert self.options.short_side != "auto"
        crops = ScaledCrops(
            self.learn,
            self.config.method.views,
            short_side=self.options.short_side,
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
        """Return mean IoU and accuracies on the images of val_split."""
        return self.tested(self.val, f"{self.options.val_split} images").scores()

    def tested(self, source: MaskSource, text: str) -> Confusion:
        """Return how the pixels of all images of a source are told.

        Raises ValueError for a mask that does not fit, and if too many images cannot be read.
        """
        confusion, bad = Confusion(len(source.classes)), list[Unreadable]()
        everything = range(len(source))
        for image in track(self._whole(source, everything), text, len(source), quiet=self.quiet):
            if isinstance(image, Unreadable):
                bad.append(image)
            else:
                confusion.add(self.told(image), image.truth)
        require_readable(bad, len(source), self.options.max_unreadable)
        return confusion

    def told(self, image: "WholeImage") -> Tensor:
        """Return the class that is told of every pixel [h, w], on the CPU."""
        data, options = self.config.data, self.options
        assert options.crop != "auto"
        seen = normalized(image.seen, data.mean, data.std)[None].to(self.state.device)
        precision = self.config.train.precision
        with (
            torch.no_grad(),
            evaluating(self.method.tested),
            autocast(precision, self.state.device.type),
        ):
            scores = (
                by_windows(self.method.tested, seen, options.crop)
                if options.slide
                else full(self.method.tested(seen))
            )
        size = tuple(image.truth.shape)
        if size != scores.shape[-2:]:
            scores = functional.interpolate(scores, size, mode="bilinear", align_corners=False)
        return scores[0].argmax(0).cpu()

    def draw(self) -> None:
        """Draw a few images of val_split with what is told of them, into the folder."""
        count = min(self.options.pictures, len(self.val))
        if not self.folder.name or not count:
            return
        chosen = range(0, len(self.val), max(len(self.val) // count, 1))[:count]
        found = [
            MapPicture(image.pixels, image.truth, self.told(image))
            for image in self._whole(self.val, chosen)
            if isinstance(image, WholeImage)
        ]
        with spared(self.folder.path / PICTURES):
            draw_maps(found, self.val.classes, self.folder.path / PICTURES)

    def about_head(self) -> dict[str, Any]:
        """Return what the file of the head says of it."""
        assert isinstance(self.config.method, SegmenterConfig)
        return {"head": self.config.method.head, "channels": self.config.method.channels}

    def _whole(
        self, source: MaskSource, indices: Sequence[int]
    ) -> Iterator["WholeImage | Unreadable"]:
        assert self.options.short_side != "auto"
        whole = WholeImages(source, self.options.short_side)
        keys = ([index] for index in indices)
        return load_batches(whole, keys, workers=workers_of(self.options), pin=False)


@dataclass(frozen=True, slots=True)
class WholeImage:
    """An image to test on."""

    pixels: Tensor
    """uint8 [3, h, w], as it is stored."""
    seen: Tensor
    """The same with the shorter side that a network sees."""
    truth: Tensor
    """uint8 [h, w] class of every pixel."""


class WholeImages(Dataset[WholeImage | Unreadable | ValueError]):
    """All images of a source, one by one, since their sizes differ."""

    def __init__(self, source: MaskSource, short_side: int) -> None:
        self.source, self.short_side = source, short_side

    def one(self, indices: Sequence[int]) -> WholeImage | Unreadable | ValueError:
        """Return the image of one index, or why there is none; an error for a wrong mask."""
        (index,) = indices
        found = read_image(self.source, index)
        if isinstance(found, Unreadable):
            return found
        pixels, _ = found
        try:
            truth = self.source.annotation(index, *pixels.shape[1:])
        except ValueError as error:
            return error
        return WholeImage(pixels, with_short_side(pixels, truth, self.short_side)[0], truth)

    __getitems__ = one
    """What torch's loader calls in its workers."""


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


def _result(
    config: SegmentConfig, splits: Splits, trained: Sequence[tuple[str, SegmentTraining]]
) -> Result:
    """Return the table of trainings; each is tested as it was at its best look."""
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {
        **{"recipe": config.recipe, "head": config.head, "frozen": config.frozen},
        **{"crop": config.crop, "classes": splits.learn.classes},
        **{"train_images": len(splits.learn), "val_images": len(splits.val)},
        **({"test_images": len(splits.test)} if splits.test else {}),
        **{"curve": [], "iou": []},
    }
    last = splits.test or splits.val
    for name, training in trained:
        training.take_best()
        training.draw()
        best = training.best()
        confusion = training.tested(last, f"{'test' if splits.test else 'val'} images")
        which = {"network": name, "seed": training.config.train.seed}
        rows.append(
            {
                **which,
                "epoch": best["epoch"],
                "val miou": best["miou"],
                **confusion.scores(),
                "minutes": training.minutes,
            }
        )
        facts["curve"] += [{**which, **row} for row in training.curve]
        overlaps = dict(zip(last.classes, confusion.overlaps(), strict=True))
        facts["iou"].append({**which, "classes": overlaps})
    figures = "miou, pixels and classes"
    note = test_note(config, len(last), figures, tested=splits.test is not None)
    notes = [note, *over_seeds(rows, "miou", "mean IoU")]
    return Result(
        "segment", facts, rows, notes, headline=headline(rows, "segmentation", "miou", of="network")
    )
