"""`leanvit bench step`: whole training steps, ours beside the published one and lightly's."""

import time
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch

from leanvit.bench.fed_step import fed
from leanvit.bench.lightly_step import LightlyDINO, LightlyMAE
from leanvit.bench.machine import in_own_process, on_this_machine, product_rate
from leanvit.bench.operations import count_flops, count_operations
from leanvit.bench.plain_step import PlainStep
from leanvit.bench.step_report import Alone, Grown, StepReport
from leanvit.bench.tables import Form
from leanvit.bench.turns import in_turn, seconds_of
from leanvit.bench.twins import has_twin
from leanvit.config import (
    DinoConfig,
    MaeConfig,
    RunConfig,
    SwinConfig,
    ViTConfig,
    compose,
    replace_options,
    resolve,
)
from leanvit.config.bench import BenchStepConfig
from leanvit.config.run import settled
from leanvit.core.console import say, track
from leanvit.core.distributed import require_alone
from leanvit.core.memory import peak_bytes
from leanvit.core.packages import missing
from leanvit.core.precision import PRECISIONS
from leanvit.data.batch import ViewBatch
from leanvit.data.sources import Source, open_source
from leanvit.methods.base import Method, Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.recipes import recipe
from leanvit.train.facts import machine_facts
from leanvit.train.state import TrainState
from leanvit.train.trial import noise_views

OURS, FED, PLAIN = "ours", "ours, from images", "plain"
TIMM, OWN = "lightly, timm", "lightly, our backbone"
"""Forms."""
HAS: Mapping[str, str] = MappingProxyType(
    {"plain": "esvit and dino on a Swin", "lightly": "dino, and mae on a ViT"}
)
"""What opponents have."""
AT, RUN = 100, 1000
"""The step that is measured lies here: behind warm-ups and freezing, before the end."""
CLASSES = 10
"""Of the images, where a method learns such."""
GROWING: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "batch": (1, 2, 4, 8),
        "crops": (0, 4, 8, 16),
        "prototypes": (4096, 16_384, 65_536, 131_072),
        "image": (96, 160, 224, 288),
    }
)


class Step(Protocol):
    """A training step that can be done again and again."""

    def step(self, batch: ViewBatch) -> object:
        """Train on a batch."""


class OurStep:
    """The loop's own step."""

    def __init__(self, method: Method, config: RunConfig) -> None:
        self.state = TrainState(method, config, epoch_steps=RUN)
        self.state.step = AT

    def step(self, batch: ViewBatch) -> None:
        """Train on a batch."""
        at = self.state.begin_step()
        self.state.backward(batch, at, 1)
        self.state.update(at)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is trained, on what."""

    config: RunConfig
    """As it was asked, but for its precision."""
    threads: int

    def configured(self, precision: str, source: Source | None = None) -> RunConfig:
        """Return the resolved run in a precision, on noise or on images."""
        asked = replace_options(self.config, {"train.precision": precision})
        images, classes = settled(asked.train.batch) * RUN, CLASSES
        if source is not None:
            images, classes = len(source), len(source.classes)
        return resolve(asked, replace(machine_facts(), images=images, classes=classes)).config


class Task:
    """A problem in one form, to be done again and again on the same views of noise."""

    def __init__(self, problem: Problem, form: Form) -> None:
        config = problem.configured(form.precision)
        self.device = config.train.device
        method = build_method(config.method, config.backbone, config.train.seed)
        spec = method.views()
        assert spec is not None
        self.sizes = " + ".join(f"{len(group)}x{group[0].size}" for group in spec.groups)
        self.views = noise_views(spec, settled(config.train.batch), CLASSES).to(
            torch.device(self.device)
        )
        self.trained = _built(form, method, config)

    def step(self) -> float:
        """Do it once; return the seconds that took."""
        return seconds_of(lambda: self.trained.step(self.views), self.device)


def _built(form: Form, method: Method, config: RunConfig) -> Step:
    """Return the step in a form; its networks begin with the weights of the method."""
    if form.name == OURS:
        return OurStep(method, config)
    at = Moment(AT, RUN, 0, config.train.seed)
    if form.name == PLAIN:
        assert isinstance(method, DINO)
        return PlainStep(method, config, at)
    backbone = method.learner() or method.encoder()
    if isinstance(config.method, MaeConfig):
        return LightlyMAE(backbone, config, at)
    return LightlyDINO(backbone, config, at, twin=form.name == TIMM)


def bench_step(config: BenchStepConfig, *, quiet: bool = False) -> StepReport:
    """Measure times in turn, and what each form takes alone in a process of its own.

    Raises ValueError for an opponent that has no such step.
    """
    require_alone("bench")
    config = on_this_machine(config)
    problem = _problem(config)
    if config.source:
        problem.configured("fp32", open_source(config.source))  # says what is wrong with it
    forms = _forms(problem.config, config)
    sizes, flops = in_own_process(_needed, problem)
    report = StepReport(config, problem.config, sizes, flops)
    for precision in config.precisions:
        report.rates[precision] = product_rate(PRECISIONS[precision], problem.config.train.device)
    if config.growth:
        _grow(report, quiet)
        return report
    if not quiet:
        say(f"{len(forms)} forms, each alone, then in turn for 1 + {config.rounds} rounds")
    for form in track(forms, "memory, operations, first step", len(forms), quiet=quiet):
        try:
            report.alone[form] = in_own_process(_alone, problem, form)
        except (torch.OutOfMemoryError, BrokenProcessPool):
            report.failed[form] = "finds too little memory"
    tasks = {form: Task(problem, form) for form in report.alone}
    seconds, failed = in_turn(tasks, config.rounds, "time", quiet)
    report.seconds.update(seconds)
    report.failed.update({form: said for form, (said, _) in failed.items()})
    if config.source:
        for precision in track(
            config.precisions, "from images", len(config.precisions), quiet=quiet
        ):
            found = in_own_process(_fed, problem, precision, config)
            form = Form(FED, precision)
            report.seconds[form], report.alone[form] = found
    return report


def _fed(problem: Problem, precision: str, config: BenchStepConfig) -> tuple[list[float], Alone]:
    """Return what our step takes on views of images."""
    torch.set_num_threads(problem.threads)
    source = open_source(config.source)
    run = problem.configured(precision, source)
    method = build_method(run.method, run.backbone, run.train.seed)
    spec = method.views()
    assert spec is not None
    return fed(OurStep(method, run).step, spec, run, source, config.rounds)


def _problem(config: BenchStepConfig) -> Problem:
    options: dict[str, Any] = {
        "train.batch": config.batch,
        "train.accumulate": 1,
        "train.duration": f"{RUN}st",
        "train.device": config.device,
        "train.seed": 0,
    }
    asked = recipe(config.recipe)
    if isinstance(asked.method, DinoConfig):
        options["method.head.prototypes"] = config.prototypes
    if isinstance(asked.method, MaeConfig):
        options["backbone.drop_path"] = 0.0  # as masked autoencoders are trained, here and there
    asked = compose(asked, backbone=config.backbone, options=options)
    assert config.threads != "auto"
    return Problem(asked, config.threads)


def _forms(asked: RunConfig, config: BenchStepConfig) -> list[Form]:
    """Return what is measured. Raises ValueError where an opponent has no such step."""
    method, backbone = asked.method, asked.backbone
    there = {"plain": [PLAIN] if _is_published(asked) else [], "lightly": _of_lightly(asked)}
    if "auto" in config.against:
        names = there["plain"] + ([] if missing("lightly") else there["lightly"])
    else:
        for word in config.against:
            if not there[word]:
                raise ValueError(
                    f"{word} has no step of {method.kind} on {backbone.kind}: it has {HAS[word]}. "
                    f"Name another recipe or --backbone, or leave {word} out of --against."
                )
        if "lightly" in config.against and (why := missing("lightly")):
            raise ValueError(f"{why}; pip install lightly, or leave lightly out of --against.")
        names = [name for word in config.against for name in there[word]]
    return [Form(name, each) for each in config.precisions for name in (*names, OURS)]


def _is_published(asked: RunConfig) -> bool:
    return isinstance(asked.method, DinoConfig) and isinstance(asked.backbone, SwinConfig)


def _of_lightly(asked: RunConfig) -> list[str]:
    twin = [TIMM] if has_twin(asked.backbone) else []
    if type(asked.method) is DinoConfig:
        return [*twin, OWN]
    on_vit = type(asked.method) is MaeConfig and isinstance(asked.backbone, ViTConfig)
    return twin if on_vit else []


def _alone(problem: Problem, form: Form) -> Alone:
    """Return what a form takes in a process of its own."""
    torch.set_num_threads(problem.threads)
    start = time.perf_counter()
    task = Task(problem, form)
    task.step()
    first = time.perf_counter() - start
    task.step()
    memory = peak_bytes(problem.config.train.device)
    found = count_operations(task.step)
    return Alone(memory, first, found.counts.total(), found.reads.total())


def _needed(problem: Problem) -> tuple[str, int]:
    """Return the views of an image, and the operations of products that our step needs for it."""
    options = {"train.device": "cpu", "train.batch": 2}
    small = Problem(replace_options(problem.config, options), problem.threads)
    torch.set_num_threads(problem.threads)
    task = Task(small, Form(OURS, "fp32"))
    return task.sizes, count_flops(task.step) // 2


def _grow(report: StepReport, quiet: bool) -> None:
    """Measure ours with one thing growing after the other."""
    config, form = report.config, Form(OURS, report.config.precisions[0])
    problems = {
        (what, value): problem
        for what, values in GROWING.items()
        for value in values
        if (problem := _grown(config, what, value)) is not None
    }
    for (what, value), problem in track(problems.items(), "growth", len(problems), quiet=quiet):
        memory, seconds = in_own_process(_alone_in_turn, problem, form, config.rounds)
        images = settled(problem.config.train.batch)
        report.grown.append(Grown(what, value, images, seconds, memory))


def _grown(config: BenchStepConfig, what: str, value: int) -> Problem | None:
    """Return the problem with one thing changed; None where the method has no such thing."""
    problem = _problem(replace(config, batch=value) if what == "batch" else config)
    method = problem.config.method
    options: dict[str, Any] = {}
    if what == "image":
        name = "global_size" if isinstance(method, DinoConfig) else "size"
        options = {f"method.views.{name}": value}
    elif what != "batch" and not isinstance(method, DinoConfig):
        return None
    elif what == "crops":
        options = {"method.views.local_counts": (value,)}
    elif what == "prototypes":
        options = {"method.head.prototypes": value}
    return replace(problem, config=replace_options(problem.config, options))


def _alone_in_turn(problem: Problem, form: Form, rounds: int) -> tuple[int, list[float]]:
    torch.set_num_threads(problem.threads)
    task = Task(problem, form)
    seconds = [task.step() for _ in range(rounds + 1)]
    return peak_bytes(problem.config.train.device), seconds[1:]
