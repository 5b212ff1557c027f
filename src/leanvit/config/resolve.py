"""From what was asked to what runs: a pure function of the configuration and of facts.

Every `auto` becomes a value and every duration a number of steps; each value keeps its origin.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from leanvit.config.advice import advice
from leanvit.config.batch import Decisions, choose_batch
from leanvit.config.cheaper import check_cheaper
from leanvit.config.convert import leaves, replace_options, to_dict
from leanvit.config.defaults import follow, keep_pace
from leanvit.config.dense import DetectorConfig, SegmenterConfig
from leanvit.config.duration import Duration, steps
from leanvit.config.facts import Facts
from leanvit.config.methods import (
    DinoConfig,
    MixConfig,
    MocoV3Config,
    SupervisedConfig,
)
from leanvit.config.run import RunConfig, settled


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration without `auto`, with durations in steps, and where each value came from."""

    config: RunConfig
    origins: Mapping[str, str]
    followed: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Options that the images and the machine decided on."""
    advice: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """What is likely to keep the run from learning, a sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `resolved.json` holds."""
        return {"config": to_dict(self.config), "origins": dict(self.origins)}

    def spoken_fit(self) -> list[str]:
        """Return what the images and the machine decided on, and why, a line each."""
        values = dict(leaves(to_dict(self.config)))
        return [
            f"{name} {values[name]}: {self.origins[name].partition('; ')[2]}"
            for name in self.followed
        ]

    def spoken_rate(self) -> str:
        """Return the peak learning rate, and what it follows from."""
        peak, why = f"{self.config.optim.lr.peak:g}", self.origins["optim.lr.peak"]
        if "rule" in why:
            return f"{peak} ({why})"
        chosen = "; " in self.origins["train.batch"]
        free = chosen and "; " not in self.origins["optim.lr_rule"]
        return f"{peak} (optim.lr_rule none: whatever the batch)" if free else peak

    def spoken_batch(self) -> str:
        """Return the images of a step and its micro-batches, with what decided on them, if any."""
        train = self.config.train
        split = f"in {train.accumulate} parts" if train.accumulate != 1 else "undivided"
        words = []
        for name, text in (("batch", str(train.batch)), ("accumulate", split)):
            why = self.origins[f"train.{name}"].partition("; ")[2]
            if why or text != "undivided":
                words.append(f"{text} ({why})" if why else text)
        return ", ".join(words)


def resolve(config: RunConfig, facts: Facts, given: Collection[str] = ()) -> Resolved:
    """Decide every open value of a run.

    config: what was asked; facts: what is there; given: options, and whole sections, that the
    user set, by their dotted names.
    Raises ValueError where the request contradicts itself or the facts.
    """
    origins = {
        name: "given" if any(f"{name}.".startswith(f"{g}.") for g in given) else "recipe"
        for name, _ in leaves(to_dict(config))
    }
    followed = config.fit
    for rule in RULES:
        decided = rule(config, facts)
        config = replace_options(config, {name: value for name, (value, _) in decided.items()})
        for name, (_, reason) in decided.items():
            origins[name] = f"{origins[name]}; {reason}"
    _check(config, facts)
    chosen = tuple(name for name in followed if ";" in origins[name])
    return Resolved(config, origins, chosen, tuple(advice(config, facts)))


def rehearsal(config: RunConfig, facts: Facts) -> RunConfig:
    """Return a run that takes, of each image, what a step of this one takes at most.

    All that starts late has started, and all that is frozen at first has thawed; its batch stands
    for none. Raises ValueError as `resolve` does.
    """
    check_cheaper(config)  # which no trial would change, nor this:
    if config.train.batch != "auto":
        _check_images(config, facts)
    config = replace_options(config, {"train.batch": TRIED, "train.accumulate": 1})
    for rule in (_device, follow, _machine, _classes):
        decided = rule(config, facts)
        config = replace_options(config, {name: value for name, (value, _) in decided.items()})
    if isinstance(config.method, DinoConfig) and config.method.attention == "by_rows":
        config = replace_options(config, {"method.attention": "flash"})  # as with many images
    return at_once(replace_options(config, {"fit": ()}))


def at_once(config: RunConfig) -> RunConfig:
    """Return a run of some steps in which all that would begin or end later has done so."""
    now = {name: steps(0) for name, _ in _find_durations(config)}
    return replace_options(config, {**now, "train.duration": steps(TRIED)})


def times(config: RunConfig) -> set[str]:
    """Return the durations that are times, by name."""
    return {name for name, duration in _find_durations(config) if duration.timed}


TRIED = 100
"""Steps of a run that is tried; few of them are done."""


def _device(config: RunConfig, facts: Facts) -> Decisions:
    if config.train.device == "cuda" and facts.device != "cuda":
        raise ValueError("train.device is cuda, but torch finds no CUDA device here; use cpu.")
    if config.train.device != "auto":
        return {}
    device = "cuda" if facts.device == "cuda" else "cpu"
    return {"train.device": (device, f"the best device here is {device}")}


WIDE = 384
"""Channels from which bf16 is faster with a CPU's matrix units (benchmarks/step.md)."""


def _precision(config: RunConfig, facts: Facts, device: str) -> tuple[str, str]:
    """Return the faster precision, and why."""
    if device == "cuda" and facts.bf16:
        return "bf16", "this device computes in bf16"
    if device == "cpu" and facts.matrix_units:
        if config.backbone.width >= WIDE:
            return "bf16", "this CPU has matrix units, and the backbone is wide enough for them"
        return "fp32", f"below {WIDE} channels bf16 may be slower on this CPU"
    return "fp32", f"fp32 on this {device}"


def _machine(config: RunConfig, facts: Facts) -> Decisions:
    decided: Decisions = {}
    device, precision = config.train.device, config.train.precision
    if precision == "auto":
        decided["train.precision"] = _precision(config, facts, device)
        precision, _ = decided["train.precision"]
    if isinstance(config.method, DinoConfig) and config.method.attention == "auto":
        form = facts.attention.get((device, precision), "chunks")
        decided["method.attention"] = (form, f"the fastest on this {device} in {precision}")
    if config.data.rendering == "auto":
        who = facts.rendering.get(device, "host")
        decided["data.rendering"] = (who, f"the usual place where {device} trains")
    if config.data.workers == "auto":
        share = facts.cores // (facts.neighbours or facts.world)
        workers = min(share - 1, 16) if share > 1 else 0
        decided["data.workers"] = (
            workers,
            f"{share} cores a process, one of them for the step, 16 at most",
        )
    return decided


def _classes(config: RunConfig, facts: Facts) -> Decisions:
    if not isinstance(config.method, SupervisedConfig):
        return {}
    if not facts.classes:
        raise ValueError(
            "supervised learns classes and these images have none; docs/data.md says how a source "
            "names them. Other methods, such as mocov3, need no classes."
        )
    if facts.unlabelled:
        raise ValueError(
            f"supervised learns classes, and {facts.unlabelled} of {facts.images} images have "
            f"none; leave those out."
        )
    if config.method.classes == "auto":
        return {"method.classes": (facts.classes, "the images have so many")}
    if config.method.classes < facts.classes:
        raise ValueError(
            f"method.classes is {config.method.classes}, but the images have {facts.classes}; "
            f"leave it at auto."
        )
    return {}


def _learning_rate(config: RunConfig, facts: Facts) -> Decisions:
    rule, batch, peak = config.optim.lr_rule, settled(config.train.batch), config.optim.lr.peak
    if rule == "none":
        return {}
    ratio = batch / 256
    if rule == "sqrt":
        ratio = math.sqrt(ratio)
    decided: Decisions = {"optim.lr_rule": ("none", "applied to the peak")}
    if ratio != 1:
        reason = f"{peak:g} at 256 images, {rule} rule, batch {batch}"
        decided["optim.lr.peak"] = (peak * ratio, reason)
    return decided


def epoch_steps(images: int, batch: int) -> int:
    """Return the steps in one pass over the images; the last incomplete batch is left out."""
    return images // batch


def _durations(config: RunConfig, facts: Facts) -> Decisions:
    _check_images(config, facts)
    batch = settled(config.train.batch)
    epoch = epoch_steps(facts.images, batch)
    asked = config.train.duration
    run = asked.steps(epoch=epoch, batch=batch, seconds=facts.seconds)
    if run < 1:
        raise ValueError(f"train.duration {asked} is less than one step of {batch} images.")
    decided: Decisions = {}
    for name, duration in _find_durations(config):
        count = run
        if name != "train.duration":
            count = duration.steps(epoch=epoch, batch=batch, run=run, seconds=facts.seconds)
        if name in ("train.log_every", "train.save_every", "watch.every") or (
            name == "train.keep_every" and duration.amount
        ):
            count = max(count, 1)
        if str(steps(count)) != str(duration):
            reason = f"{duration} of {run} steps, {epoch} an epoch"
            if duration.timed:
                reason = f"{duration} at {facts.seconds:.3g} s a step, measured"
            decided[name] = (steps(count), reason)
    return decided


RULES = (
    _device,
    follow,
    choose_batch,
    _machine,
    _classes,
    _learning_rate,
    _durations,
    keep_pace,
)
"""What decides on the open values of a run, in order."""


def _find_durations(section: Any, place: str = "") -> list[tuple[str, Duration]]:
    found: list[tuple[str, Duration]] = []
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{place}{field.name}"
        if isinstance(value, Duration):
            found.append((name, value))
        elif dataclasses.is_dataclass(value):
            found += _find_durations(value, f"{name}.")
    return found


def _check_images(config: RunConfig, facts: Facts) -> None:
    if facts.images < settled(config.train.batch):
        raise ValueError(
            f"There are {facts.images} images, fewer than one batch of {config.train.batch}; "
            f"lower train.batch or add images."
        )


def _check(config: RunConfig, facts: Facts) -> None:
    """Refuse what cannot run as asked; the message says what to change."""
    train = config.train
    batch, parts = settled(train.batch), settled(train.accumulate)
    share = parts * facts.world
    if batch % share:
        raise ValueError(
            f"train.batch {batch} does not split into {parts} micro-batches on "
            f"each of {facts.world} processes; use a multiple of {share}."
        )
    frozen = isinstance(config.method, SegmenterConfig | DetectorConfig) and config.method.frozen
    if parts > 1 and config.backbone.batch_norm and not frozen:
        raise ValueError(
            "Batch norm in the backbone couples the images of a batch, so a step cannot be split: "
            "set train.accumulate to 1, or choose another backbone and heads without batch norm."
        )
    if isinstance(config.method, SupervisedConfig):
        _check_mixing(config.method.mix, 1, batch // share)
        _check_repeats(config.method.views.repeats, batch)
    if isinstance(config.method, MocoV3Config):
        _check_contrast(parts, batch)
    check_cheaper(config)
    if isinstance(config.method, DinoConfig):
        _check_dino(config.method, parts, batch // share, batch)
        only = {"residuals": "cpu", "flash": "cpu", "by_rows": "cpu", "triton": "cuda"}.get(
            config.method.attention, train.device
        )
        if train.device != only:
            raise ValueError(
                f"method.attention is {config.method.attention}, which runs on {only} alone, and "
                f"train.device is {train.device}; chunks run everywhere."
            )
        sides = config.method.views.sides
        if min(sides) < config.backbone.patch:
            raise ValueError(
                f"The smallest view has {min(sides)} pixels a side, less than one patch of the "
                f"backbone, which has {config.backbone.patch}."
            )
    for name, duration in _find_durations(config):
        limit = train.duration.amount - (not name.endswith(".warmup"))
        if not name.startswith(("train.", "watch.")) and duration.amount > limit:
            raise ValueError(
                f"{name} takes {duration.amount:g} steps, but the whole run has "
                f"{train.duration.amount:g}: shorten it to {limit:g} or train longer."
            )


def _check_dino(method: DinoConfig, accumulate: int, micro: int, batch: int) -> None:
    if accumulate > 1 and method.head.batch_norm:
        raise ValueError(
            "Batch norm in the heads couples the images of a batch, so a step cannot be split: "
            "set train.accumulate to 1 or, where the backbone has no batch norm either, "
            "method.head.batch_norm to false."
        )
    if accumulate > 1 and method.targets == "sinkhorn":
        raise ValueError(
            "Sinkhorn-Knopp shares the images of a whole batch among the prototypes, so a step "
            "cannot be split: set train.accumulate to 1 or method.targets to center."
        )
    if method.koleo and (accumulate > 1 or batch < 2):
        raise ValueError(
            "KoLeo compares the images of a whole batch with each other, so it needs two and a "
            "step cannot be split: set train.accumulate to 1, or method.koleo to 0."
        )
    _check_mixing(method.mix, 2 + sum(method.views.local_counts), micro)


def _check_mixing(mix: MixConfig, views: int, micro: int) -> None:
    if mix.views > views:
        there = f"there are {views} views" if views > 1 else "there is 1 view"
        raise ValueError(f"method.mix.views is {mix.views}, but {there}.")
    if mix.views and micro % 2:
        raise ValueError(
            f"Mixing pairs the images two by two, but a micro-batch has {micro}: make it even."
        )


def _check_repeats(repeats: int, batch: int) -> None:
    """Two images at least, so that mixing never meets two views of the same one."""
    if repeats > 1 and batch < 2 * repeats:
        raise ValueError(
            f"method.views.repeats is {repeats}, but a step has {batch} images, too few for two "
            f"different ones: raise train.batch to {2 * repeats}, or lower repeats."
        )


def _check_contrast(accumulate: int, batch: int) -> None:
    if accumulate > 1:
        raise ValueError(
            "mocov3 takes the other images of a whole batch as negatives, and its batch norms "
            "couple them, so a step cannot be split: set train.accumulate to 1."
        )
    if batch < 2:
        raise ValueError(
            f"mocov3 tells an image from the others of its batch, and a batch of {batch} has none: "
            f"raise train.batch to 2 or, far better, hundreds."
        )
