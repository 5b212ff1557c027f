"""The training and the table of dense tasks; each is a `DenseTraining` of its own.

Letters: h and w rows and columns of an image.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from leanvit.backbones.base import evaluating
from leanvit.config import RunConfig, settled
from leanvit.config.dense import DenseConfig, DetectorConfig, SegmenterConfig
from leanvit.core.console import say, track
from leanvit.core.precision import autocast
from leanvit.data.batch import Batch, Unreadable
from leanvit.data.decode import read_image
from leanvit.data.loader import load_batches
from leanvit.data.sampler import Order
from leanvit.data.scaled_crops import normalized
from leanvit.data.sources import Source
from leanvit.evaluation.dense import NAMED, Splits, hinting, run_of, test_note
from leanvit.evaluation.finetune import over_seeds
from leanvit.evaluation.inputs import require_readable, workers_of
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.tuned import Files, Folder, Tuning, begin, in_own_words, with_readable
from leanvit.methods.averaged import Averaged
from leanvit.train.state import TrainState
from leanvit.weights.file import DENSE_FILE, FILE, HEADER, facts_of_run, header
from leanvit.weights.report import Weights


class Scored(Protocol):
    """What was found in images, and what is there."""

    def scores(self) -> dict[str, float]:
        """Return the figures of a table's row."""

    def of_classes(self) -> Mapping[str, float | None]:
        """Return a figure of each class."""


S = TypeVar("S", bound=Source)
W = TypeVar("W")
"""A whole image, with what is there."""


class WholeImages(Dataset[W | Unreadable | ValueError], Generic[W]):
    """All images of a source, one by one, since their sizes differ."""

    def __init__(self, source: Source, make: Callable[[int, Tensor], W]) -> None:
        """make: number and uint8 pixels [3, h, w] of an image -> what it is tested on."""
        self.source, self.make = source, make

    def one(self, indices: Sequence[int]) -> W | Unreadable | ValueError:
        """Return the image of one index, or why there is none; an error for a wrong annotation."""
        (index,) = indices
        found = read_image(self.source, index)
        if isinstance(found, Unreadable):
            return found
        try:
            return self.make(index, found[0])
        except ValueError as error:
            return error

    __getitems__ = one
    """What torch's loader calls in its workers."""


class DenseTraining(Tuning, Generic[S, W]):
    """One training of a dense task; of all looks the best is kept, and tested in the end."""

    options: DenseConfig
    method: Averaged[Any]

    task: ClassVar[tuple[str, str]]
    """Its name as an evaluation, and as a figure among others."""
    measure: ClassVar[tuple[str, str]]
    """By which the best look is chosen, more being better: its column, and its name in a note."""
    measures: ClassVar[tuple[str, ...]]
    """What the columns of the curve begin with."""
    figures: ClassVar[str]
    """What a note calls all columns."""
    apart: ClassVar[str]
    """Key of the figures of each class among the facts."""
    head: ClassVar[tuple[str, ...]]
    """Options of the method that the file of the head names."""
    decides: ClassVar[tuple[str, ...]] = ()
    """Options that decide the numbers, and that the run does not hold."""
    build: ClassVar[Callable[..., Averaged[Any]]]
    """Configurations of method and backbone, seed -> the method with fresh weights."""

    def __init__(
        self,
        options: DenseConfig,
        run: RunConfig,
        splits: Splits[S],
        model: str | Path,
        state: Mapping[str, Tensor] | None,
        *,
        quiet: bool,
    ) -> None:
        """state: weights of the backbone, which are the model's; None for fresh ones."""
        self.options, self.config, self.splits, self.quiet = options, run, splits, quiet
        with in_own_words(NAMED):
            self.method = self.build(run.method, run.backbone, run.train.seed)
        begin(self.method, state, run)
        about = self._about(model) if options.out else {}
        self.folder = Folder(options.out, options.resume, run, about, self.measures)
        self.order = Order(len(splits.learn), settled(run.train.batch), run.train.seed)
        self.state = TrainState(self.method, run, epoch_steps=self.order.epoch_steps)
        self.curve = []
        self._best: dict[str, Tensor] = {}

    # What differs

    def learned(self) -> str:
        """Return what is learned, from how many images."""
        raise NotImplementedError

    def crops(self) -> Dataset[Any]:
        """Return the examples to learn from."""
        raise NotImplementedError

    def whole(self, source: S) -> Callable[[int, Tensor], W]:
        """Return what makes a whole image of a number and uint8 pixels [3, h, w]."""
        raise NotImplementedError

    def measured(self, source: S, images: Iterable[W]) -> Scored:
        """Return what is found in whole images."""
        raise NotImplementedError

    def drawn(self, images: Iterable[W]) -> None:
        """Draw whole images, with what is there and what is told, into the folder."""
        raise NotImplementedError

    # What does not

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the steps that are left."""
        data, device = self.config.data, self.state.device
        assert data.workers != "auto"
        keys = self.order.steps(self.state.step, self.state.run)
        found = load_batches(self.crops(), keys, workers=data.workers, pin=device.type == "cuda")
        moved = (batch.to(device) for batch in found)
        return with_readable(moved, len(self.splits.learn), data.max_unreadable)

    def found(self) -> dict[str, float]:
        """Return what the images of val_split show now."""
        return self.tested(self.splits.val, f"{self.options.val_split} images").scores()

    def tested(self, source: S, text: str) -> Scored:
        """Return what is found in all images of a source.

        Raises ValueError for a wrong annotation, and if too many images cannot be read.
        """
        bad: list[Unreadable] = []
        images = self._whole(source, range(len(source)))
        shown = track(images, text, len(source), quiet=self.quiet)
        found = self.measured(source, _readable(shown, bad))
        require_readable(bad, len(source), self.options.max_unreadable)
        return found

    def draw(self) -> None:
        """Draw a few images of val_split with what is told of them, into the folder."""
        val = self.splits.val
        count = min(self.options.pictures, len(val))
        if self.folder.name and count:
            chosen = range(0, len(val), max(len(val) // count, 1))[:count]
            self.drawn(_readable(self._whole(val, chosen), []))

    def seen(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [3, h, w] as the network takes them: [1, 3, h, w]."""
        data = self.config.data
        return normalized(pixels, data.mean, data.std)[None].to(self.state.device)

    @contextmanager
    def testing(self) -> Iterator[None]:
        """Let the network see as it does in use, in the run's precision."""
        precision, device = self.config.train.precision, self.state.device.type
        with torch.no_grad(), evaluating(self.method.tested), autocast(precision, device):
            yield

    def look(self) -> dict[str, float]:
        """Look at the images of val_split, and keep the network if it was never better.

        What was never trained tells nothing, so nothing is looked at before the first step.
        """
        if not self.state.step:
            return {}
        found = self.found()
        if not self.curve or found[self.measure[0]] > self.best()[self.measure[0]]:
            state = self.method.tested.state_dict()
            self._best = {name: value.detach().cpu().clone() for name, value in state.items()}
        return self.noted(**found)

    def best(self) -> dict[str, float]:
        """Return the first of the best looks."""
        return max(self.curve, key=lambda row: row[self.measure[0]])

    def take_best(self) -> None:
        """Let the network be what it was at the best look."""
        self.method.tested.load_state_dict(self._best)

    def kept(self) -> Mapping[str, Tensor]:
        """Return the best network, which a checkpoint keeps."""
        return self._best

    def take_up(self, kept: Mapping[str, Tensor]) -> None:
        """Take the best network from a checkpoint."""
        self._best = dict(kept)

    def files(self) -> Files:
        """Return the backbone and the head of the best look; nothing before the first one."""
        if not self._best:
            return {}
        place = _place_of(self.method.encoder(), self.method.tested)
        backbone = {n.removeprefix(place): v for n, v in self._best.items() if n.startswith(place)}
        rest = {name: v for name, v in self._best.items() if not name.startswith(place)}
        step = int(self.best()["step"])
        about = header(self.method.encoder(), facts_of_run(self.config, step))
        head = {name: getattr(self.config.method, name) for name in self.head}
        named = {HEADER: json.dumps({"classes": self.splits.learn.classes, **head})}
        return {FILE: (backbone, about), DENSE_FILE: (rest, named)}

    def _about(self, model: str | Path) -> dict[str, Any]:
        """Return what decides the numbers besides the run."""
        images = [source.fingerprint() for source in (self.splits.learn, self.splits.val)]
        options = {name: getattr(self.options, name) for name in self.decides}
        return {"model": str(model), "images": images, **options}

    def _whole(self, source: S, indices: Sequence[int]) -> Iterator[W | Unreadable]:
        keys = ([index] for index in indices)
        whole = WholeImages(source, self.whole(source))
        return load_batches(whole, keys, workers=workers_of(self.options), pin=False)


def _readable(images: Iterable[W | Unreadable], bad: list[Unreadable]) -> Iterator[W]:
    """Pass on the images that could be read; the others are added to a list."""
    for image in images:
        if isinstance(image, Unreadable):
            bad.append(image)
        else:
            yield image


def _place_of(part: nn.Module, whole: nn.Module) -> str:
    """Return what the names of a part's parameters begin with."""
    return next(f"{name}." for name, module in whole.named_modules() if module is part)


def dense_result(
    kind: type[DenseTraining[S, W]],
    config: DenseConfig,
    method: SegmenterConfig | DetectorConfig,
    splits: Splits[S],
    model: str | Path,
    weights: Weights,
    *,
    fits: Callable[[S], None],
    facts: Mapping[str, Any],
    quiet: bool,
) -> Result:
    """Train a backbone with a head, by settled options; return the table.

    One row for each start (trained, untrained) and seed. fits: raises ValueError for annotations to
    choose by or to test on that are wrong, before hours pass; facts: what the table says first.
    """
    assert config.drop_path != "auto"
    weights = replace(weights, config=replace(weights.config, drop_path=config.drop_path))
    run_of(config, method, weights, splits.learn, 0)  # refuses what cannot run
    fits(splits.val)
    with hinting(config):
        if splits.test:
            fits(splits.test)
    states = {"untrained" if weights.state is None else "trained": weights.state}
    if config.untrained:
        states["untrained"] = None
    trained = []
    for name, state in states.items():
        for seed in config.seeds:
            run = run_of(config, method, weights, splits.learn, seed)
            training = kind(config, run, splits, model, state, quiet=quiet)
            if not quiet:
                frozen = ", the backbone frozen" if config.frozen else ""
                say(
                    f"{name}, seed {seed}: {training.learned()}, {training.state.run} steps of "
                    f"{run.train.batch} crops of {method.views.size}{frozen}; "
                    f"{run.train.precision} on {run.train.device}."
                )
            training.run()
            trained.append((name, training))
    return _result(config, splits, trained, facts)


def _result(
    config: DenseConfig,
    splits: Splits[S],
    trained: Sequence[tuple[str, DenseTraining[S, W]]],
    first: Mapping[str, Any],
) -> Result:
    """Return the table of trainings; each is tested as it was at its best look."""
    rows, curve, classes = [], list[dict[str, Any]](), []
    last, kind = splits.test or splits.val, trained[0][1]
    (evaluation, title), (column, called) = kind.task, kind.measure
    for name, training in trained:
        training.take_best()
        training.draw()
        best = training.best()
        found = training.tested(last, f"{'test' if splits.test else 'val'} images")
        which = {"network": name, "seed": training.config.train.seed}
        chosen = {"epoch": best["epoch"], f"val {column}": best[column]}
        rows.append({**which, **chosen, **found.scores(), "minutes": training.minutes})
        curve += [{**which, **row} for row in training.curve]
        classes.append({**which, "classes": found.of_classes()})
    facts = {
        **first,
        **{"classes": splits.learn.classes},
        **{"train_images": len(splits.learn), "val_images": len(splits.val)},
        **({"test_images": len(splits.test)} if splits.test else {}),
        **{"curve": curve, kind.apart: classes},
    }
    note = test_note(config, len(last), kind.figures, tested=splits.test is not None)
    notes = [note, *over_seeds(rows, column, called)]
    top = headline(rows, title, column, of="network")
    return Result(evaluation, facts, rows, notes, headline=top)
