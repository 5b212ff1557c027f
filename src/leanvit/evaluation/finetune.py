"""Fine-tuning: all weights learn classes, in the one training loop (arXiv 2205.14443, 2012.12877).

Letters: N images, C classes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from leanvit.backbones.base import evaluating
from leanvit.config import (
    AdamWConfig,
    FineTuneViewsConfig,
    MixConfig,
    RunConfig,
    Schedule,
    SupervisedConfig,
    TrainConfig,
    WatchConfig,
    compose,
    constant,
    look_up,
    resolve,
    settled,
)
from leanvit.config.evaluation import FinetuneConfig
from leanvit.core.console import say
from leanvit.data.batch import ViewBatch
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import Source
from leanvit.evaluation.adapting import fit_to_tune, keep_first
from leanvit.evaluation.features import Described, describe_classes
from leanvit.evaluation.inputs import Seen, see
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.tuned import (
    COMMON,
    Files,
    Folder,
    Tuning,
    begin,
    data_of,
    in_own_words,
    with_readable,
)
from leanvit.methods.catalogue import build_method
from leanvit.methods.supervised import Supervised
from leanvit.recipes.finetuning import FINETUNE_RECIPES
from leanvit.train.facts import gather_facts
from leanvit.train.state import TrainState
from leanvit.weights.file import FILE, HEAD_FILE, HEADER, facts_of_run, header
from leanvit.weights.loading import open_weights
from leanvit.weights.report import Weights

OPTIONS: Mapping[str, tuple[str, ...]] = {
    **COMMON,
    "lr": ("optim.lr.peak",),
    "randaugment": ("method.views.randaugment",),
    "erase": ("method.views.erase",),
    "repeats": ("method.views.repeats",),
    "smoothing": ("method.smoothing",),
    "average": ("method.average",),
    "teacher": ("method.teacher",),
    "distillation": ("method.distillation",),
    "distillation_weight": ("method.distillation_weight",),
    "distillation_temperature": ("method.distillation_temperature",),
}
"""Option of fine-tuning -> what it is called in a run."""
LAST = (
    "Accuracy is that of the last step, and nothing was chosen on the images that it was measured "
    "on."
)


def finetune(
    config: FinetuneConfig, model: str | Path, learn: Source, test: Source, *, quiet: bool = False
) -> Result:
    """Train a model's weights, and a new head, on images with classes; return the table.

    One row for each start (trained, untrained) and seed, and one more for its averaged weights;
    the facts hold the curve. Raises ValueError for a mistake in the request and NonFiniteError for
    a training that diverged.
    """
    config = settle(config, len(learn))
    assert config.drop_path != "auto" and config.position_bias != "auto"
    weights = fit_to_tune(
        open_weights(model), drop_path=config.drop_path, position_bias=config.position_bias
    )
    seen = see(config, weights.config.image_size, learn, quiet)
    if weights.state is None and config.keep_blocks != "auto":
        raise ValueError(f"keep_blocks keeps trained blocks, and {str(model)!r} has none.")
    states = {"untrained" if weights.state is None else "trained": weights.state}
    if config.untrained:
        states["untrained"] = None
    rows: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    for name, state in states.items():
        for seed in config.seeds:
            run = run_config(config, seen, weights, learn, seed)
            folder = folder_of(config, run, model, learn)
            method = start(run, state, config.keep_blocks)
            training = Training(seen, run, method, learn, test, folder)
            if not quiet:
                say(
                    f"{name}, seed {seed}: {len(learn)} images, {training.state.run} steps of "
                    f"{run.train.batch}, {run.train.precision} on {run.train.device}."
                )
            training.run()
            rows += training.table(name)
            curve += [{"network": name, "seed": seed, **row} for row in training.curve]
    facts = {
        "image_size": seen.size,
        "crop": seen.crop,
        "recipe": config.recipe,
        "batch": run.train.batch,
        "steps": int(run.train.duration.amount),
        "curve": curve,
    }
    top1 = headline(rows, "fine-tuned", "top1", of="network")
    return Result(
        "finetune", facts, rows, [LAST, *over_seeds(rows, "top1", "top-1")], headline=top1
    )


def settle(config: FinetuneConfig, images: int) -> FinetuneConfig:
    """Return a fine-tuning with its recipe's values wherever they were left to it.

    images: how many it learns from; of few, a step takes an eighth. Raises ValueError for an
    unknown recipe.
    """
    recipe = look_up("recipe", config.recipe, FINETUNE_RECIPES)()
    assert recipe.train_batch != "auto"
    # an even number, since images are mixed by pairs
    recipe = replace(recipe, train_batch=min(recipe.train_batch, max(images // 16, 1) * 2))
    left = [field.name for field in fields(config) if getattr(config, field.name) == "auto"]
    return replace(config, **{name: getattr(recipe, name) for name in left})


def run_config(
    config: FinetuneConfig, seen: Seen, weights: Weights, learn: Source, seed: int
) -> RunConfig:
    """Return a settled fine-tuning as a resolved run of supervised training."""
    assert config.mixup != "auto" and config.cutmix != "auto" and config.optimizer != "auto"
    assert config.train_batch != "auto"
    mixed = config.mixup > 0 or config.cutmix > 0
    run = RunConfig(
        recipe=f"finetune {config.recipe}",
        method=SupervisedConfig(
            views=FineTuneViewsConfig(size=seen.size),
            mix=MixConfig(views=1, mixup=config.mixup, cutmix=config.cutmix)
            if mixed
            else MixConfig(),
        ),
        backbone=weights.config,
        data=data_of(config, weights, seen.workers),
        optim=AdamWConfig(
            lr=Schedule(peak=1.0, end=1e-6), weight_decay=constant(0.0), clip_by="global"
        ),
        train=TrainConfig(batch=config.train_batch, seed=seed),
        watch=WatchConfig(images=0),
    )
    options = {place: getattr(config, name) for name, places in OPTIONS.items() for place in places}
    run = compose(run, optimizer=config.optimizer, options=options)
    if config.optimizer == "sgd":
        run = compose(run, options={"optim.nesterov": True})
    with in_own_words({**OPTIONS, "train_batch": ("train.batch",)}):
        return resolve(run, gather_facts(learn)).config


def start(
    run: RunConfig, state: Mapping[str, Tensor] | None, keep_blocks: int | str = "auto"
) -> Supervised:
    """Return the method as its training begins: weights from elsewhere, the rest by the seed.

    state: of the backbone, None for fresh weights; keep_blocks: how many of its blocks are taken,
    auto for all.
    """
    method = build_method(run.method, run.backbone, run.train.seed)
    assert isinstance(method, Supervised)
    if state is not None and isinstance(keep_blocks, int):
        state = keep_first(state, method.backbone, keep_blocks)
    begin(method, state, run)
    return method


def folder_of(config: FinetuneConfig, run: RunConfig, model: str | Path, learn: Source) -> Folder:
    """Return where a fine-tuning is written, and what it continues from."""
    decides = {
        "model": str(model),
        "keep_blocks": config.keep_blocks,
        "images": learn.fingerprint(),
    }
    return Folder(config.out, config.resume, run, decides, ("top",))


@dataclass
class Training(Tuning):
    """One fine-tuning: a start, a seed."""

    seen: Seen
    config: RunConfig
    method: Supervised
    learn: Source
    test: Source
    folder: Folder
    once: bool = False
    """Whether the images to test on are looked at when all is done and not before."""

    def __post_init__(self) -> None:
        config = self.config
        repeats = self.method.views().repeats
        batch, seed = settled(config.train.batch), config.train.seed
        self.quiet = self.seen.quiet
        self.order = Order(len(self.learn), batch, seed, repeats=repeats)
        self.state = TrainState(self.method, config, epoch_steps=self.order.epoch_steps)
        self.curve: list[dict[str, float]] = []
        self.told: Described | None = None
        """The scores [N, C] of the images to test on, when they were last looked at."""

    def look(self) -> dict[str, float]:
        """Return the accuracy on the images to test on, as the curve goes on."""
        if self.once and self.state.step < self.state.run:
            return {}
        classifiers = self.method.classifiers()
        ways = {
            name: describe_classes(backbone, head.scores)
            for name, (backbone, head) in classifiers.items()
        }
        with evaluating(self.method):
            found = self.seen.describe(self.test, "images to test on", ways)
        self.told = found
        accuracies = {
            f"{top}{name and f'/{name}'}": accuracy
            for name, logits in found.rows.items()
            for top, accuracy in told(logits, found.target).items()
        }
        return self.noted(**accuracies)

    def files(self) -> Files:
        """Return the network and its head, the averaged ones if there are such."""
        *_, (backbone, head) = self.method.classifiers().values()
        about = header(backbone, facts_of_run(self.config, self.state.step))
        named = {HEADER: json.dumps({"classes": self.learn.classes})}
        return {FILE: (backbone.state_dict(), about), HEAD_FILE: (head.state_dict(), named)}

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a finished training."""
        last = self.curve[-1]
        return [
            {
                "network": f"{name}, {kind}" if kind else name,
                "seed": self.config.train.seed,
                **{
                    top.partition("/")[0]: last[top]
                    for top in last
                    if top.startswith("top") and top.partition("/")[2] == kind
                },
                "epochs": last["epoch"],
                "minutes": self.minutes,
            }
            for kind in self.method.classifiers()
        ]

    def batches(self) -> Iterator[ViewBatch]:
        """Yield the batches of the steps that are left."""
        data = self.config.data
        views = Views(self.learn, self.method.views(), data, self.config.train.seed)
        batches = load_views(
            views,
            self.order,
            self.state.step,
            self.state.run,
            workers=self.seen.workers,
            device=self.state.device,
            rendering=data.rendering,
        )
        return with_readable(batches, len(self.learn), data.max_unreadable)


def told(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Return top-1 and, where there are more than five classes, top-5 accuracy in percent.

    logits: [N, C], target: [N]. Of equal scores the lower class comes first.
    """
    ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :5] == target[:, None]
    found = {"top1": ranked[:, 0], "top5": ranked.any(1)}
    if logits.shape[1] <= 5:
        del found["top5"]
    return {name: 100 * hits.double().mean().item() for name, hits in found.items()}


def over_seeds(rows: list[dict[str, Any]], column: str, called: str) -> list[str]:
    """Return mean and deviation of a column for each network that was trained several times."""
    networks: dict[str, list[float]] = {}
    for row in rows:
        networks.setdefault(row["network"], []).append(row[column])
    return [
        f"{name}: {called} {mean(found):.1f}, standard deviation {stdev(found):.1f} over "
        f"{len(found)} seeds."
        for name, found in networks.items()
        if len(found) > 1
    ]
