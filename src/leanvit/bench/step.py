"""`leanvit bench step`: whole training steps, ours beside the published one and lightly's.

Letters: V_g views of one size, B images, S side in pixels.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch

from leanvit.bench.lightly_step import LightlyDINO, LightlyMAE
from leanvit.bench.machine import device_named, in_own_process, product_rate
from leanvit.bench.operations import count_flops, count_operations
from leanvit.bench.plain_step import PlainStep
from leanvit.bench.step_report import Alone, Form, Grown, StepReport
from leanvit.bench.twins import has_twin
from leanvit.config import (
    DinoConfig,
    MaeConfig,
    MethodConfig,
    MocoV3Config,
    RunConfig,
    SimMIMConfig,
    SwinConfig,
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
from leanvit.core.random import generator
from leanvit.data.batch import ViewBatch
from leanvit.data.views import ViewSpec, multi_crop, single_crop, two_views
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.recipes import recipe
from leanvit.train.facts import machine_facts
from leanvit.train.state import TrainState

AT, RUN = 100, 1000
"""The step that is measured lies here: behind warm-ups and freezing, before the end."""
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

    def __init__(self, config: RunConfig) -> None:
        method = build_method(config.method, config.backbone, config.train.seed)
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
    """Resolved, but for its precision."""
    threads: int

    def configured(self, precision: str) -> RunConfig:
        """Return the resolved run in a precision."""
        asked = replace_options(self.config, {"train.precision": precision})
        facts = replace(machine_facts(), images=settled(asked.train.batch) * RUN)
        return resolve(asked, facts).config

    def build(self, form: Form) -> Step:
        """Return the step in a form, with the same weights in every one of them."""
        config = self.configured(form.precision)
        if form.name == "ours":
            return OurStep(config)
        method = build_method(config.method, config.backbone, config.train.seed)
        at = Moment(AT, RUN, 0, config.train.seed)
        if form.name == "plain":
            assert isinstance(method, DINO)
            return PlainStep(method, config, at)
        backbone = method.learner() or method.encoder()
        if isinstance(config.method, MaeConfig):
            return LightlyMAE(backbone, config, at)
        return LightlyDINO(backbone, config, at, twin="timm" in form.name)

    def views(self) -> ViewBatch:
        """Return views of random pixels."""
        batch, device = settled(self.config.train.batch), self.config.train.device
        draw = generator(0, "bench step")
        groups = tuple(
            torch.from_numpy(
                draw.standard_normal((len(group), batch, 3, *[group[0].size] * 2), dtype=np.float32)
            ).to(device)
            for group in views_of(self.config.method).groups
        )
        return ViewBatch(groups, torch.arange(batch), torch.zeros(batch, dtype=torch.long))


def views_of(method: MethodConfig) -> ViewSpec:
    """Return the views that a method's batches hold. Raises ValueError where they are no crops."""
    for kind, make in VIEWS.items():
        if isinstance(method, kind):
            spec: ViewSpec = make(method.views)  # type: ignore[attr-defined]
            return spec
    raise ValueError(
        f"The step of {method.kind} is not measured: its batches hold classes. Name a recipe of "
        f"another method, such as esvit, dino or mae."
    )


VIEWS: Mapping[type[MethodConfig], Callable[..., ViewSpec]] = MappingProxyType(
    {
        DinoConfig: multi_crop,
        MaeConfig: single_crop,
        SimMIMConfig: single_crop,
        MocoV3Config: two_views,
    }
)


class Task:
    """A problem in one form, to be done again and again."""

    def __init__(self, problem: Problem, form: Form) -> None:
        self._step, self._views = problem.build(form), problem.views()
        self._cuda = problem.config.train.device == "cuda"

    def step(self) -> float:
        """Do it once; return the seconds that took."""
        self._wait()
        start = time.perf_counter()
        self._step.step(self._views)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def bench_step(config: BenchStepConfig, *, quiet: bool = False) -> StepReport:
    """Measure times in turn, and what each form takes alone in a process of its own.

    Raises ValueError for an opponent that has no such step.
    """
    require_alone("bench")
    device = device_named(config.device)
    threads = torch.get_num_threads() if config.threads == "auto" else config.threads
    torch.set_num_threads(threads)
    config = replace_options(config, {"device": device, "threads": threads})
    problem = _problem(config)
    forms = _forms(problem.config, config)
    views = views_of(problem.config.method).groups
    words = " + ".join(f"{len(group)}x{group[0].size}" for group in views)
    report = StepReport(config, problem.config, words, in_own_process(_flops, problem))
    for precision in config.precisions:
        report.rates[precision] = product_rate(PRECISIONS[precision], device)
    if config.growth:
        _grow(report, quiet)
        return report
    if not quiet:
        say(f"{len(forms)} forms, each alone, then in turn for 1 + {config.rounds} rounds")
    for form in track(forms, "memory, operations, first step", len(forms), quiet=quiet):
        report.alone[form] = in_own_process(_alone, problem, form)
    tasks = {form: Task(problem, form) for form in forms}
    turns = [form for _ in range(config.rounds + 1) for form in forms]
    seconds: dict[Form, list[float]] = {form: [] for form in forms}
    for form in track(turns, "time", len(turns), quiet=quiet):
        seconds[form].append(tasks[form].step())
    report.seconds.update({form: found[1:] for form, found in seconds.items()})
    return report


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
    asked = compose(asked, backbone=config.backbone, options=options)
    views_of(asked.method)
    assert config.threads != "auto"
    return Problem(asked, config.threads)


def _forms(asked: RunConfig, config: BenchStepConfig) -> list[Form]:
    """Return what is measured. Raises ValueError where an opponent has no such step."""
    names = []
    if "plain" in config.against:
        if not (isinstance(asked.method, DinoConfig) and isinstance(asked.backbone, SwinConfig)):
            views = isinstance(asked.method, DinoConfig)
            other = "--backbone swin_tiny" if views else "--against lightly"
            raise ValueError(
                f"The plain step is that of esvit or dino on a Swin, not {asked.method.kind} on "
                f"{asked.backbone.kind}: {other}, or --against without a word for ours alone."
            )
        names.append("plain")
    if "lightly" in config.against:
        names += _lightly_forms(asked)
    return [Form(name, each) for each in config.precisions for name in (*names, "ours")]


def _lightly_forms(asked: RunConfig) -> list[str]:
    if why := missing("lightly"):
        raise ValueError(f"{why}; pip install lightly, or leave --against lightly out.")
    if type(asked.method) is DinoConfig:
        return [*(["lightly, timm"] if has_twin(asked.backbone) else []), "lightly, our backbone"]
    if type(asked.method) is MaeConfig and has_twin(asked.backbone):
        return ["lightly, timm"]
    raise ValueError(
        f"lightly's step is that of dino, or of mae on a ViT, not {asked.method.kind} on "
        f"{asked.backbone.kind}; leave it out of --against."
    )


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


def _flops(problem: Problem) -> int:
    """Return the floating-point operations that our step needs for an image."""
    options = {"train.device": "cpu", "train.batch": 2}
    small = Problem(replace_options(problem.config, options), problem.threads)
    torch.set_num_threads(problem.threads)
    task = Task(small, Form("ours", "fp32"))
    return count_flops(task.step) // 2


def _grow(report: StepReport, quiet: bool) -> None:
    """Measure ours with one thing growing after the other."""
    config, form = report.config, Form("ours", report.config.precisions[0])
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
