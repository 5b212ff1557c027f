"""What the trainings of dense tasks share: from options to a run, and the best look kept."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

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
from leanvit.methods.base import Method
from leanvit.train.facts import gather_facts
from leanvit.train.state import TrainState
from leanvit.weights.file import FILE, HEAD_FILE, HEADER, facts_of_run, header
from leanvit.weights.report import Weights

C = TypeVar("C", bound=DenseConfig)

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "duration": ("train.duration",),
    "accumulate": ("train.accumulate",),
    "precision": ("train.precision",),
    "device": ("train.device",),
    "lr": ("optim.lr.peak",),
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


def settle(config: C, recipe: C, images: int) -> C:
    """Return options with the recipe's values wherever they were left to it.

    images: how many it learns from; of few, a step takes an eighth.
    """
    assert recipe.train_batch != "auto"
    recipe = replace(recipe, train_batch=min(recipe.train_batch, max(images // 8, 1)))
    if config.frozen:
        recipe = replace(recipe, layer_decay=1.0)
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
            lr=Schedule(peak=1.0, end=0.0, shape="linear"),
            lr_rule="none",
            weight_decay=constant(0.0),
            clip_by="global",
        ),
        train=TrainConfig(batch=config.train_batch, seed=seed, log_every=Duration(2, "%")),
        watch=WatchConfig(images=0),
    )
    options = {place: getattr(config, name) for name, places in OPTIONS.items() for place in places}
    try:
        return resolve(compose(run, options=options), gather_facts(learn)).config
    except ValueError as error:
        text = str(error)
        for name, places in {**OPTIONS, "train_batch": ("train.batch",)}.items():
            for place in places:
                text = text.replace(place, name)
        raise ValueError(text) from error


def workers_of(config: DenseConfig) -> int:
    """Return how many processes read images."""
    if config.workers != "auto":
        return config.workers
    return min(len(os.sched_getaffinity(0)) - 1, 16)


def require_one_process(task: str) -> None:
    """Raise ValueError in one of several processes."""
    require_alone(f"evaluate {task}")


@dataclass
class DenseTraining(Tuning):
    """One training of a dense task; of all looks the best is kept, and tested in the end."""

    options: DenseConfig
    config: RunConfig
    method: Method
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

    @property
    def network(self) -> Any:
        """The network that is tested."""
        raise NotImplementedError

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
            state = self.network.state_dict()
            self._best = {name: value.detach().cpu().clone() for name, value in state.items()}
        return self.noted(**found)

    def best(self) -> dict[str, float]:
        """Return the first of the best looks."""
        return max(self.curve, key=lambda row: row[self.measure])

    def take_best(self) -> None:
        """Let the network be what it was at the best look."""
        self.network.load_state_dict(self._best)

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
        parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
        for name, value in self._best.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        step = int(self.best()["step"])
        about = header(self.network.backbone, facts_of_run(self.config, step))
        named = {HEADER: json.dumps({"classes": self.learn.classes, **self.about_head()})}
        return {FILE: (parts["backbone"], about), HEAD_FILE: (parts["head"], named)}

    def about_head(self) -> dict[str, Any]:
        """Return what the file of the head says of it."""
        return {}


def decides(model: str | Path, *sources: Source | None, **more: Any) -> dict[str, Any]:
    """Return what decides the numbers of a training besides its run."""
    images = [source.fingerprint() if source else "" for source in sources]
    return {"model": str(model), "images": images, **more}
