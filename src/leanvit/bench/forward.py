"""`leanvit bench forward`: backbones beside timm's same networks, in one run.

Letters: B images.
"""

import ctypes
import gc
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from leanvit.backbones.catalogue import build_backbone
from leanvit.bench.forward_report import (
    BASE,
    OURS,
    SKIPPING,
    TIMM,
    Case,
    Failure,
    ForwardReport,
    Grown,
    Measured,
    Throughput,
)
from leanvit.bench.machine import device_named, in_own_process, on_this_machine
from leanvit.bench.tables import Form
from leanvit.bench.turns import in_turn, seconds_of
from leanvit.bench.twins import Ours, Twin, has_twin, require_equal
from leanvit.config import BackboneConfig, SwinConfig, named_backbone
from leanvit.config.bench import BenchForwardConfig
from leanvit.core.compiling import BACKEND, NOT_COMPILED, compiling, reason
from leanvit.core.console import say, track
from leanvit.core.distributed import require_alone
from leanvit.core.memory import extra_bytes
from leanvit.core.precision import autocast
from leanvit.core.random import generator, seeded
from leanvit.weights.loading import open_weights

SIDE = 224
"""Throughput is measured on images of so many pixels a side."""
GROWING: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"batch": (1, 2, 4, 8, 16), "window": (7, 14), "image": (96, 160, 224, 320, 448)}
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A network and what it is given."""

    config: BackboneConfig
    sizes: tuple[tuple[int, int], ...]
    """Images of each size and their side in pixels."""
    training: bool = False
    """Also gradients of all parameters; else evaluation mode without a graph."""

    def build(self, form: Form, device: str) -> Ours | Twin:
        """Return the network; its weights are the same in every form and process."""
        config = self.config
        if form.name == SKIPPING and isinstance(config, SwinConfig):
            config = replace(config, skip_padding=True)
        with seeded(0, "weights"):
            ours = build_backbone(config)
        flexible = any(side != self.config.image_size for _, side in self.sizes)
        network = Twin(ours, flexible=flexible) if form.name == TIMM else Ours(ours)
        if form.compiled:
            network.use_compiler(BACKEND)
        return network.to(device)


class Task:
    """A problem in one form, to be done again and again."""

    def __init__(self, problem: Problem, form: Form, config: BenchForwardConfig) -> None:
        self.training, self.precision = problem.training, form.precision
        self.device = device_named(config.device)
        self.network = problem.build(form, self.device).train(self.training)
        self.views = [_noise(n, 3, side, side).to(self.device) for n, side in problem.sizes]
        self.gradients: list[Tensor] = []

    def step(self) -> float:
        """Do it once; return the seconds that took."""
        seconds = seconds_of(self._once, self.device)
        self.network.zero_grad(set_to_none=True)
        return seconds

    def _once(self) -> None:
        with torch.set_grad_enabled(self.training), autocast(self.precision, self.device):
            found = self.network(self.views)
        if self.training:
            # a sum alone would have none: the final norm undoes it
            self.gradients = self.gradients or [_noise(*part.shape).to(part) for part in found]
            torch.autograd.backward(found, self.gradients)


def _noise(*shape: int) -> Tensor:
    draw = generator(0, "bench forward", *shape)
    return torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))


def bench_forward(config: BenchForwardConfig, *, quiet: bool = False) -> ForwardReport:
    """Measure times in turn, and the extra memory of each in a process of its own.

    Raises ValueError for a name that no backbone has, RunError if timm's network is another one.
    """
    require_alone("bench")
    named = {name: _sizes_of(name) for name in config.backbones}
    config = on_this_machine(config)
    report = ForwardReport(config, alone=[n for n, b in named.items() if not has_twin(b)])
    compared = {} if config.growth or config.throughput else named
    with compiling():
        for name, backbone in compared.items():
            for case, problem in _cases(name, backbone, config).items():
                _measure(report, case, problem, quiet)
    if config.growth:
        for name, backbone in named.items():
            _grow(report, name, backbone, quiet)
    if config.throughput:
        _throughput(report, quiet)
    return report


def _sizes_of(name: str) -> BackboneConfig:
    """Return the network of a name or of a file; what its weights are changes no time."""
    weighted = Path(name).exists() or "." in name
    return open_weights(name).config if weighted else named_backbone(name)


def _cases(name: str, backbone: BackboneConfig, config: BenchForwardConfig) -> dict[Case, Problem]:
    """Return what one backbone is measured on."""
    batch, side = config.batch, backbone.image_size
    large, small = config.global_size, config.local_size
    passes = {
        "image": (str(side), ((batch, side),)),
        "views": (f"2 x {large} + 8 x {small}", ((2 * batch, large), (8 * batch, small))),
    }
    return {
        Case(name, passes[word][0], training): Problem(backbone, passes[word][1], training)
        for word in config.passes
        for training in (False, True)
    }


def _measure(report: ForwardReport, case: Case, problem: Problem, quiet: bool) -> None:
    """Measure all forms of a case."""
    config = report.config
    names = [TIMM, OURS] if has_twin(problem.config) else [OURS]
    if isinstance(problem.config, SwinConfig) and len(problem.sizes) > 1:
        names.append(SKIPPING)
    forms = [
        Form(name, precision, compiled)
        for precision in config.precisions
        for compiled in ((False, True) if config.compiled else (False,))
        for name in names
    ]
    patch, cut = problem.config.patch, [s for _, s in problem.sizes if s % problem.config.patch]
    if TIMM in names and cut:
        why = "takes whole patches alone", f"{cut[0]} pixels are no multiple of a patch of {patch}"
        report.failed.extend(Failure(case, form, *why) for form in forms if form.name == TIMM)
        forms = [form for form in forms if form.name != TIMM]
    elif TIMM in names:
        _require_equal(case.backbone, problem, config)
    if not quiet:
        say(f"{case}: 1 + {config.rounds} rounds of {len(forms)} forms, then memory")
    torch.compiler.reset()  # what was compiled before would be looked through at every call
    tasks = {form: Task(problem, form, config) for form in forms}
    seconds, failed = in_turn(tasks, config.rounds, f"time of {case}", quiet)
    report.failed.extend(Failure(case, form, *why) for form, why in failed.items())
    for form in track(seconds, f"memory of {case}", len(seconds), quiet=quiet):
        try:
            memory = in_own_process(_peak, problem, form, config)
        except (*NOT_COMPILED, BrokenProcessPool) as error:
            report.failed.append(
                Failure(case, form, "its memory could not be measured", reason(error))
            )
            continue
        report.measured.append(Measured(case, form, config.batch, seconds[form], memory))


def _require_equal(name: str, problem: Problem, config: BenchForwardConfig) -> None:
    device, side = device_named(config.device), problem.config.image_size
    ours, twin = (problem.build(Form(who, "fp32"), device) for who in (OURS, TIMM))
    require_equal(name, ours, twin, _noise(2, 3, side, side).to(device))


def _peak(problem: Problem, form: Form, config: BenchForwardConfig) -> int:
    """Return the bytes that a step takes beyond network and images."""
    assert config.threads != "auto"
    torch.set_num_threads(config.threads)
    task = Task(problem, form, config)
    with compiling():
        task.step()  # compilers and libraries have their own beginnings
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept for later, would not count
        return extra_bytes(task.step, task.device)


def _grow(report: ForwardReport, name: str, backbone: BackboneConfig, quiet: bool) -> None:
    """Measure ours, forward and backward, with one thing growing after the other."""
    config, form = report.config, Form(OURS, report.config.precisions[0])
    batch, side = config.batch, backbone.image_size
    problems = {("batch", n): Problem(backbone, ((n, side),), True) for n in GROWING["batch"]}
    if hasattr(backbone, "window"):
        for window in GROWING["window"]:
            wide = replace(backbone, window=window)  # type: ignore[call-arg]
            problems["window", window] = Problem(wide, ((batch, side),), True)
    for pixels in GROWING["image"]:
        problems["image", pixels] = Problem(backbone, ((batch, pixels),), True)
    if not quiet:
        say(f"{name}: growth, 1 + {config.rounds} rounds of {len(problems)}, then memory")
    tasks = {key: Task(problem, form, config) for key, problem in problems.items()}
    seconds, failed = in_turn(tasks, config.rounds, f"growth of {name}", quiet)
    for (what, value), why in failed.items():
        report.failed.append(Failure(Case(name, f"{what} {value}", True), form, *why))
    for (what, value), found in seconds.items():
        ((images, _),) = problems[what, value].sizes
        memory = in_own_process(_peak, problems[what, value], form, config)
        report.grown.append(Grown(name, what, value, images, found, memory))


def _throughput(report: ForwardReport, quiet: bool) -> None:
    """Measure images a second as the EsViT paper counts them, in each precision."""
    config = report.config
    names = dict.fromkeys([BASE, *config.backbones])
    for precision in config.precisions:
        if not quiet:
            say(
                f"throughput {precision}: 1 + {config.rounds} rounds of {len(names)} backbones "
                f"with {config.throughput_batch} images of {SIDE} pixels"
            )
        form, sizes = Form(OURS, precision), ((config.throughput_batch, SIDE),)
        tasks = {name: Task(Problem(_sizes_of(name), sizes), form, config) for name in names}
        seconds, failed = in_turn(tasks, config.rounds, f"throughput {precision}", quiet)
        for name, why in failed.items():
            report.failed.append(Failure(Case(name, "throughput", False), form, *why))
        report.throughput.extend(
            Throughput(name, precision, config.throughput_batch, found)
            for name, found in seconds.items()
        )
