"""What dense tasks share before a training: from options to splits and to a run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Generic, TypeVar

from leanvit.config import (
    AdamWConfig,
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
from leanvit.data.sources import Source
from leanvit.evaluation.inputs import workers_of
from leanvit.evaluation.tuned import COMMON, data_of, in_own_words
from leanvit.train.facts import gather_facts
from leanvit.weights.report import Weights

C = TypeVar("C", bound=DenseConfig)
S = TypeVar("S", bound=Source)

NAMED: Mapping[str, tuple[str, ...]] = {
    **COMMON,
    "train_batch": ("train.batch",),
    "drop_path": ("backbone.drop_path",),
}
"""Option of a dense task -> what it is called in what is said of a run."""


def settle(config: C, recipe: C, images: int) -> C:
    """Return options with the recipe's values wherever they were left to it.

    images: how many it learns from; of few, a step takes an eighth.
    """
    assert recipe.train_batch != "auto"
    recipe = replace(recipe, train_batch=min(recipe.train_batch, max(images // 8, 1)))
    if config.frozen:
        recipe = replace(recipe, layer_decay=1.0, drop_path=0.0)
    left = [field.name for field in fields(config) if getattr(config, field.name) == "auto"]
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
        data=data_of(config, weights, workers_of(config)),
        optim=AdamWConfig(
            lr=_schedule(config),
            lr_rule="none",
            weight_decay=constant(0.0),
            clip_by="global",
        ),
        train=TrainConfig(batch=config.train_batch, seed=seed, log_every=Duration(2, "%")),
        watch=WatchConfig(images=0),
    )
    options = {place: getattr(config, name) for name, places in COMMON.items() for place in places}
    with in_own_words(NAMED):
        return resolve(compose(run, options=options), gather_facts(learn)).config


def _schedule(config: DenseConfig) -> Schedule:
    """Return the way of the learning rate."""
    assert config.lr != "auto" and config.decay != "auto"
    end = config.lr / 100 if config.decay == "steps" else 0.0
    return Schedule(peak=config.lr, end=end, shape=config.decay)


TESTED = "test"
"""What test_split auto stands for, where there is such a split."""


@dataclass(frozen=True, slots=True)
class Splits(Generic[S]):
    """The images to learn from, to choose the best look by, and to test it on, if there are any."""

    learn: S
    val: S
    test: S | None


def open_splits(
    config: DenseConfig, learn: S, opened: Callable[[str], S], has: Callable[[str, str], bool]
) -> Splits[S]:
    """Return the images to learn from with those of the other splits.

    opened: split -> its images; has: whether a folder has a split. Raises ValueError if one is
    missing, and if an image is in two of them.
    """
    val = opened(config.val_split)
    name = config.test_split
    if name == "auto":
        other = TESTED not in (config.train_split, config.val_split)
        name = TESTED if other and has(config.data, TESTED) else ""
    with hinting(config):
        test = opened(name) if name else None
    named = {"train_split": (config.train_split, learn), "val_split": (config.val_split, val)}
    _require_apart({**named, **({"test_split": (name, test)} if test else {})})
    return Splits(learn, val, test)


def _require_apart(splits: Mapping[str, tuple[str, Source]]) -> None:
    """Raise ValueError if an image is in two splits. splits: option -> its value, its images."""
    names = {
        f"{option} {name!r}": {source.name(index) for index in range(len(source))}
        for option, (name, source) in splits.items()
    }
    for (first, some), (second, others) in combinations(names.items(), 2):
        if both := some & others:
            raise ValueError(
                f"{len(both)} images are in {first} and in {second}, such as {min(both)!r}: "
                f"what is learned from, chosen by and tested on lies apart."
            )


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
