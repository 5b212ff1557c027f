"""What the trainings of dense tasks share: from options to a run, and the best look kept."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from leanvit.config import (
    AdamWConfig,
    DataConfig,
    Duration,
    MethodConfig,
    RunConfig,
    Schedule,
    TrainConfig,
    WatchConfig,
    compose,
    constant,
    resolve,
)
from leanvit.config.dense import DenseConfig
from leanvit.core.distributed import require_alone
from leanvit.data.sampler import Order
from leanvit.data.sources import Source
from leanvit.evaluation.finetune import three
from leanvit.evaluation.tuned import Folder, Tuning
from leanvit.methods.averaged import Averaged
from leanvit.train.facts import gather_facts
from leanvit.train.state import TrainState
from leanvit.weights.file import DENSE_FILE, FILE, HEADER, facts_of_run, header
from leanvit.weights.report import Weights

C = TypeVar("C", bound=DenseConfig)

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "duration": ("train.duration",),
    "accumulate": ("train.accumulate",),
    "precision": ("train.precision",),
    "device": ("train.device",),
    "warmup": ("optim.lr.warmup",),
    "layer_decay": ("optim.layer_decay",),
    "weight_decay": (
        "optim.weight_decay.start",
        "optim.weight_decay.peak",
        "optim.weight_decay.end",
    ),
    "clip": ("optim.clip",),
    "every": ("watch.every",),
}
"""Option of a dense task -> what it is called in a run."""
BUILT: Mapping[str, tuple[str, ...]] = {
    "train_batch": ("train.batch",),
    "drop_path": ("backbone.drop_path",),
}
"""Those that are not set there, but named."""


def settle(config: C, recipe: C, images: int) -> C:
    """Return options with the recipe's values wherever they were left to it.

    images: how many it learns from; of few, a step takes an eighth.
    """
    assert recipe.train_batch != "auto"
    recipe = replace(recipe, train_batch=min(recipe.train_batch, max(images // 8, 1)))
    if config.frozen:
        recipe = replace(recipe, layer_decay=1.0, drop_path=0.0)
    names = [field.name for field in fields(config)]
    left = [n for n in names if getattr(config, n) == "auto" and getattr(recipe, n) != "auto"]
    return replace(config, **{name: getattr(recipe, name) for name in left})


def run_of(
    config: DenseConfig, method: MethodConfig, weights: Weights, learn: Source, seed: int
) -> RunConfig:
    """Return settled options as a resolved run. Raises ValueError in the options' own words."""
    assert config.train_batch != "auto"
    run = RunConfig(
        recipe=f"{method.kind} {config.recipe}",
        method=method,
        backbone=weights.config,
        data=DataConfig(
            source=config.data,
            workers=workers_of(config),
            mean=three(weights.mean),
            std=three(weights.std),
            max_unreadable=config.max_unreadable,
        ),
        optim=AdamWConfig(
            lr=_schedule(config),
            lr_rule="none",
            weight_decay=constant(0.0),
            clip_by="global",
        ),
        train=TrainConfig(batch=config.train_batch, seed=seed, log_every=Duration(2, "%")),
        watch=WatchConfig(images=0),
    )
    options = {place: getattr(config, name) for name, places in OPTIONS.items() for place in places}
    with in_own_words():
        return resolve(compose(run, options=options), gather_facts(learn)).config


def _schedule(config: DenseConfig) -> Schedule:
    """Return the way of the learning rate."""
    assert config.lr != "auto" and config.decay != "auto"
    end = config.lr / 100 if config.decay == "steps" else 0.0
    return Schedule(peak=config.lr, end=end, shape=config.decay)


def workers_of(config: DenseConfig) -> int:
    """Return how many processes read images."""
    if config.workers != "auto":
        return config.workers
    return min(len(os.sched_getaffinity(0)) - 1, 16)


def begin(method: Averaged[Any], state: Mapping[str, Tensor] | None, run: RunConfig) -> None:
    """Give a method's backbones the weights that they start from; None for those that they have."""
    for network in method.backbones():
        if state is not None:
            network.load_state_dict(state)
        network.mean, network.std = run.data.mean, run.data.std


TESTED = "test"
"""What test_split auto stands for, where there is such a split."""


def test_split_of(config: DenseConfig, has: Callable[[str, str], bool]) -> str:
    """Return the split to test on; empty for none. has: whether a folder has a split."""
    if config.test_split != "auto":
        return config.test_split
    other = TESTED not in (config.train_split, config.val_split)
    return TESTED if other and has(config.data, TESTED) else ""


def require_apart(config: DenseConfig, sources: Sequence[Source | None]) -> None:
    """Raise ValueError if an image is in two of the splits to learn from, choose by and test on."""
    names = [{source.name(i) for i in range(len(source))} for source in sources if source]
    splits = [f"train_split {config.train_split!r}", f"val_split {config.val_split!r}"]
    splits.append(f"test_split {test_split_of(config, lambda *_: True)!r}")
    for second in range(len(names)):
        for first in range(second):
            if both := names[first] & names[second]:
                raise ValueError(
                    f"{len(both)} images are in {splits[first]} and in {splits[second]}, such "
                    f"as {min(both)!r}: what is learned from, chosen by and tested on lies apart."
                )


@contextmanager
def in_own_words() -> Iterator[None]:
    """Name options of a run, in what is said of them, as those of a dense task are called."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for name, places in {**OPTIONS, **BUILT}.items():
            for place in places:
                text = text.replace(place, name)
        raise ValueError(text) from error


@contextmanager
def hinting(config: DenseConfig) -> Iterator[None]:
    """Say, in a mistake of a test split that nobody asked for, how to do without it."""
    try:
        yield
    except ValueError as error:
        if config.test_split != "auto":
            raise
        raise ValueError(
            f"{error} The split {TESTED!r} was taken since it is there; leave it out by "
            f"--test-split ''."
        ) from error


def test_note(config: DenseConfig, images: int, figures: str, *, tested: bool) -> str:
    """Return what a reader has to know of how the epoch was chosen."""
    if tested:
        return (
            f"The epoch was chosen by {config.val_split}; {figures} are of {images} images of the "
            f"test split, looked at once."
        )
    return (
        f"The epoch was chosen by the same {images} images that the figures are of, for want of a "
        f"test split: they flatter a little."
    )


def require_one_process(task: str) -> None:
    """Raise ValueError in one of several processes."""
    require_alone(f"evaluate {task}")


@dataclass
class DenseTraining(Tuning):
    """One training of a dense task; of all looks the best is kept, and tested in the end."""

    options: DenseConfig
    config: RunConfig
    method: Averaged[Any]
    learn: Source
    val: Source
    folder: Folder
    quiet: bool

    measure: ClassVar[str]
    """By which the best look is chosen; more is better."""

    def __post_init__(self) -> None:
        train = self.config.train
        self.order = Order(len(self.learn), train.batch, train.seed)
        self.state = TrainState(self.method, self.config, epoch_steps=self.order.epoch_steps)
        self.curve: list[dict[str, float]] = []
        self._best: dict[str, Tensor] = {}

    def found(self) -> dict[str, float]:
        """Return what the images of val_split show now."""
        raise NotImplementedError

    def look(self) -> dict[str, float]:
        """Look at the images of val_split, and keep the network if it was never better.

        What was never trained tells nothing, so nothing is looked at before the first step.
        """
        if not self.state.step:
            return {}
        found = self.found()
        if not self.curve or found[self.measure] > self.best()[self.measure]:
            state = self.method.tested.state_dict()
            self._best = {name: value.detach().cpu().clone() for name, value in state.items()}
        return self.noted(**found)

    def best(self) -> dict[str, float]:
        """Return the first of the best looks."""
        return max(self.curve, key=lambda row: row[self.measure])

    def take_best(self) -> None:
        """Let the network be what it was at the best look."""
        self.method.tested.load_state_dict(self._best)

    def kept(self) -> Mapping[str, Tensor]:
        """Return the best network, which a checkpoint keeps."""
        return self._best

    def take_up(self, kept: Mapping[str, Tensor]) -> None:
        """Take the best network from a checkpoint."""
        self._best = dict(kept)

    def files(self) -> dict[str, tuple[Mapping[str, Tensor], dict[str, str]]]:
        """Return the backbone and the head of the best look; nothing before the first one."""
        if not self._best:
            return {}
        place = _place_of(self.method.encoder(), self.method.tested)
        backbone = {n.removeprefix(place): v for n, v in self._best.items() if n.startswith(place)}
        rest = {name: v for name, v in self._best.items() if not name.startswith(place)}
        step = int(self.best()["step"])
        about = header(self.method.encoder(), facts_of_run(self.config, step))
        named = {HEADER: json.dumps({"classes": self.learn.classes, **self.about_head()})}
        return {FILE: (backbone, about), DENSE_FILE: (rest, named)}

    def about_head(self) -> dict[str, Any]:
        """Return what the file of the head says of it."""
        return {}


def _place_of(part: nn.Module, whole: nn.Module) -> str:
    """Return what the names of a part's parameters begin with."""
    return next(f"{name}." for name, module in whole.named_modules() if module is part)


def decides(model: str | Path, *sources: Source | None, **more: Any) -> dict[str, Any]:
    """Return what decides the numbers of a training besides its run."""
    images = [source.fingerprint() if source else "" for source in sources]
    return {"model": str(model), "images": images, **more}
