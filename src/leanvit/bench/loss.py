"""`leanvit bench loss`: prototype attention beside the forms with logits, in one run.

Letters: B images, N student regions, M teacher regions, K prototypes, D bottleneck width.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.bench.baselines import materialized, official
from leanvit.bench.machine import in_own_process, machine, on_this_machine
from leanvit.config import replace_options
from leanvit.config.bench import BenchLossConfig
from leanvit.core import random
from leanvit.core.console import say, track, warn
from leanvit.core.distributed import require_alone
from leanvit.core.memory import extra_bytes
from leanvit.core.precision import operands
from leanvit.kernels.prototype_attention import FORMS, best_form
from leanvit.kernels.prototypes import Pairs, Projection
from leanvit.losses.region import region_loss, region_pairs

VIEWS = ((2, 49), (8, 9))
"""Views of each size and regions of such a view, as published: 2 x 224 and 8 x 96 pixels."""
RATE_ROWS = 512
"""Rows of the products that show what a machine can do."""
CHANNELS = 768
"""Width of the features that regions are matched by: Swin-T's."""
TEMPERATURES: Mapping[str, Any] = MappingProxyType({"student_temp": 0.1, "teacher_temp": 0.04})
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Problem:
    """Random unit rows, prototypes and features of B images; what a step brings to the loss."""

    def __init__(self, batch: int, config: BenchLossConfig) -> None:
        self.batch, self.device = batch, config.device
        draw = random.generator(0, "bench loss", batch)

        def gaussian(*shape: int) -> Tensor:
            return torch.from_numpy(draw.standard_normal(shape, dtype=np.float32)).to(self.device)

        def unit(*shape: int) -> Tensor:
            rows = gaussian(*shape)
            return functional.normalize(rows, dim=-1, out=rows)

        rows = [sum(count * batch * regions for count, regions in VIEWS), 2 * batch * VIEWS[0][1]]
        sides = [
            Projection(unit(count, config.bottleneck), unit(config.prototypes, config.bottleneck))
            for count in rows
        ]
        self.student, self.teacher = sides
        for tensor in (self.student.rows, self.student.prototypes):
            tensor.requires_grad_()
        self.center = 0.1 * gaussian(config.prototypes)
        self.bias = -self.center / TEMPERATURES["teacher_temp"]
        self.features = [unit(count, batch, regions, CHANNELS) for count, regions in VIEWS]
        self.seen = unit(2, batch, VIEWS[0][1], CHANNELS)

    @cached_property
    def matching(self) -> dict[str, Any]:
        """Return what the losses match regions by."""
        return {"student_features": self.features, "teacher_features": self.seen, **TEMPERATURES}

    def pairs(self) -> Pairs:
        """Match the regions."""
        return region_pairs(self.features, self.seen)

    def step(self, loss: Callable[["Problem"], Tensor], dtype: torch.dtype) -> float:
        """Compute the loss and its gradients; return the seconds that took."""
        self.student.rows.grad = self.student.prototypes.grad = None
        self.wait()
        start = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(self)
        value.backward()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def _official(problem: Problem) -> Tensor:
    return official(problem.student, problem.teacher, problem.center, **problem.matching)


def _best(problem: Problem) -> Tensor:
    sides = problem.student, problem.teacher
    return materialized(*sides, problem.bias, problem.pairs(), **TEMPERATURES)


def _ours(problem: Problem, form: str) -> Tensor:
    sides = problem.student, problem.teacher
    return region_loss(*sides, problem.bias, **problem.matching, form=form)[0]


BEST = "best with logits"
OPPONENTS: Mapping[str, Callable[[Problem], Tensor]] = MappingProxyType(
    {"official": _official, BEST: _best}
)
"""`bench.baselines`: the official sequence of operations, and the best form that holds logits."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to compute the loss, in a precision."""

    name: str
    precision: str

    @property
    def loss(self) -> Callable[[Problem], Tensor]:
        """Return what computes it."""
        return OPPONENTS.get(self.name) or partial(_ours, form=self.name)

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


def contenders(device: str) -> list[Contender]:
    """Return all that run on a device; the best form with logits has fp32 sparse products alone."""
    forms = [name for name, form in FORMS.items() if device in form.devices]
    pairs = [("official", "fp32"), ("official", "bf16"), (BEST, "fp32")]
    pairs += [(form, precision) for form in forms for precision in DTYPES]
    return [Contender(*pair) for pair in pairs]


def bench_loss(config: BenchLossConfig, *, quiet: bool = False) -> "LossReport":
    """Measure times in turn, and the extra memory of each in a process of its own."""
    require_alone("bench")
    config = on_this_machine(config)
    report = LossReport(config, _rates(config), {}, {}, {}, {})
    every = contenders(config.device)
    for batch in config.batches:
        if not quiet:
            say(f"batch {batch}: {config.rounds + 1} rounds of {len(every)} forms, then memory")
        found = report.seconds[batch] = _in_turn(batch, every, config, quiet)
        for contender in track(found, f"memory at batch {batch}", len(found), quiet=quiet):
            report.memory[batch, contender] = _extra_memory(batch, contender, config)
    if config.growth:
        _measure_growth(report, quiet)
    return report


def _rates(config: BenchLossConfig) -> dict[str, float]:
    """Return how many billion operations a second products of these shapes reach.

    torch_fp32: as torch does them; fp32: as `chunks` does them; torch_bf16: of bf16 tensors.
    """
    plain = nullcontext()
    return {
        "torch_fp32": _rate(torch.float32, plain, config),
        "fp32": _rate(torch.float32, operands(torch.float32), config),
        "torch_bf16": _rate(torch.bfloat16, plain, config),
    }


def _rate(dtype: torch.dtype, how: AbstractContextManager[None], config: BenchLossConfig) -> float:
    kind = {"dtype": dtype, "device": config.device}
    prototypes = torch.ones(config.prototypes, config.bottleneck, **kind)  # type: ignore[call-overload]
    rows = torch.ones(config.bottleneck, RATE_ROWS, **kind)  # type: ignore[call-overload]
    out = prototypes.new_empty(len(prototypes), RATE_ROWS)
    seconds = []
    with how:
        for _ in range(config.rounds + 1):
            start = time.perf_counter()
            torch.mm(prototypes, rows, out=out)
            if config.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return float(2e-9 * out.numel() * config.bottleneck / statistics.median(seconds[1:]))


def _in_turn(
    batch: int, every: list[Contender], config: BenchLossConfig, quiet: bool
) -> dict[Contender, list[float]]:
    """Return the seconds of each contender in every round; the first round does not count.

    Who finds too little memory on a GPU is left out.
    """
    problem = Problem(batch, config)
    seconds: dict[Contender, list[float]] = {contender: [] for contender in every}
    turns = [contender for _ in range(config.rounds + 1) for contender in every]
    for contender in track(turns, f"time at batch {batch}", len(turns), quiet=quiet):
        if contender not in seconds:
            continue
        try:
            seconds[contender].append(problem.step(contender.loss, DTYPES[contender.precision]))
        except torch.OutOfMemoryError:
            warn(f"{contender} finds too little memory at batch {batch}.")
            del seconds[contender]
    return {contender: found[1:] for contender, found in seconds.items()}


GROWING_BATCHES = (2, 4, 8, 16, 32)
GROWING_PROTOTYPES = (1024, 4096, 16_384, 65_536, 262_144)


def _measure_growth(report: "LossReport", quiet: bool) -> None:
    """Time over rows, and memory over the number of prototypes at the first batch."""
    config, ours = report.config, report.ours("fp32")
    for batch in track(GROWING_BATCHES, "growth of time", len(GROWING_BATCHES), quiet=quiet):
        (report.by_rows[batch],) = _in_turn(batch, [ours], config, True).values()
    for count in track(
        GROWING_PROTOTYPES, "growth of memory", len(GROWING_PROTOTYPES), quiet=quiet
    ):
        wide = replace_options(config, {"prototypes": count})
        report.by_prototypes[count] = _extra_memory(config.batches[0], ours, wide)


def _extra_memory(batch: int, contender: Contender, config: BenchLossConfig) -> int:
    """Return the bytes that a process of its own takes for the loss beyond what it is given."""
    return in_own_process(_peak, batch, contender, config)


def _peak(batch: int, contender: Contender, config: BenchLossConfig) -> int:
    assert config.threads != "auto"
    torch.set_num_threads(config.threads)
    small = replace_options(config, {"prototypes": 64})
    dtype = DTYPES[contender.precision]
    Problem(1, small).step(contender.loss, dtype)  # libraries have their own beginnings
    problem = Problem(batch, config)
    return extra_bytes(lambda: problem.step(contender.loss, dtype), config.device)


RATIOS = {
    "speedup_official_fp32": "times faster than official, both fp32",
    "speedup_official_bf16": "times faster, ours under bf16, official fp32",
    "speedup_official_both_bf16": "times faster, both under bf16",
    "speedup_best_fp32": "times faster than best with logits, both fp32",
    "memory_ratio_official": "of the extra memory of official, both fp32",
    "memory_ratio_best": "of the extra memory of best with logits, both fp32",
}
"""What the ratios are; ours is the form that `auto` takes."""


@dataclass(frozen=True, slots=True)
class LossReport:
    """What was measured: seconds of every round, and bytes beyond the inputs at their most."""

    config: BenchLossConfig
    """Its device and threads are no longer auto."""
    rates: dict[str, float]
    """Billion operations a second of plain products of such shapes; see `_rates`."""
    seconds: dict[int, dict[Contender, list[float]]]
    """By batch."""
    memory: dict[tuple[int, Contender], int]
    """By batch."""
    by_rows: dict[int, list[float]]
    """Ours in fp32, by batch."""
    by_prototypes: dict[int, int]
    """Bytes of ours in fp32 at the first batch, by the number of prototypes."""

    def ours(self, precision: str) -> Contender:
        """Return the form that a run would take."""
        return Contender(best_form(self.config.device, DTYPES[precision]), precision)

    def ratios(self, batch: int) -> dict[str, float]:
        """Return how many times faster ours is, and its share of the others' extra memory.

        speedup_official_bf16 is ours in bf16 beside the official sequence in fp32, and
        speedup_official_both_bf16 beside it under bf16 autocast.
        """
        time = {c: statistics.median(found) for c, found in self.seconds[batch].items()}
        official, narrow = Contender("official", "fp32"), Contender("official", "bf16")
        best, ours, half = Contender(BEST, "fp32"), *map(self.ours, ("fp32", "bf16"))
        faster = {
            "speedup_official_fp32": (official, ours),
            "speedup_official_bf16": (official, half),
            "speedup_official_both_bf16": (narrow, half),
            "speedup_best_fp32": (best, ours),
        }
        smaller = {"memory_ratio_official": official, "memory_ratio_best": best}
        found = {
            name: time[a] / time[b] for name, (a, b) in faster.items() if {a, b} <= time.keys()
        }
        for name, other in smaller.items():
            if {ours, other} <= time.keys():
                found[name] = self.memory[batch, ours] / self.memory[batch, other]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the ratios at the last batch, and everything that was measured."""
        last = self.config.batches[-1]
        return {
            **self.ratios(last),
            "batch": last,
            "machine": self.machine(),
            "batches": {
                str(batch): {
                    **self.ratios(batch),
                    "seconds": {str(c): statistics.median(s) for c, s in found.items()},
                    "rounds": {str(c): s for c, s in found.items()},
                    "extra_bytes": {str(c): self.memory[batch, c] for c in found},
                }
                for batch, found in self.seconds.items()
            },
            "seconds_by_batch": {str(b): statistics.median(s) for b, s in self.by_rows.items()},
            "extra_bytes_by_prototypes": {str(k): m for k, m in self.by_prototypes.items()},
        }

    def machine(self) -> dict[str, Any]:
        """Return what the figures depend on."""
        config = self.config
        return {
            **machine(config.device),
            "threads": config.threads,
            "prototypes": config.prototypes,
            "bottleneck": config.bottleneck,
            "rounds": config.rounds,
            **{f"gflops_{name}": round(rate, 1) for name, rate in self.rates.items()},
        }

    def __str__(self) -> str:
        lines = ["  ".join(f"{name} {value}" for name, value in self.machine().items()), ""]
        for batch, found in self.seconds.items():
            lines.append(f"batch {batch:<16} seconds  rounds            ms an image  extra MiB")
            for contender, seconds in found.items():
                middle, memory = statistics.median(seconds), self.memory[batch, contender]
                lines.append(
                    f"  {contender!s:<21} {middle:7.3f}  {min(seconds):7.3f} to {max(seconds):7.3f}"
                    f"{1e3 * middle / batch:12.2f}  {memory / 2**20:9.0f}"
                    f"{'  <- auto' if contender in self._chosen() else ''}"
                )
            if any(max(seconds) > 2 * min(seconds) for seconds in found.values()):
                lines.append("  Rounds differ by more than twice: something else used the machine.")
            ratios = self.ratios(batch)
            lines += [f"  {ratios[name]:7.3f}  {RATIOS[name]}" for name in ratios]
            lines.append("")
        for batch, seconds in self.by_rows.items():
            middle = statistics.median(seconds)
            lines.append(
                f"batch {batch:<6} {middle:8.3f} s  {1e3 * middle / batch:8.2f} ms an image"
            )
        for count, memory in self.by_prototypes.items():
            lines.append(f"prototypes {count:<8} {memory / 2**20:8.0f} MiB extra")
        return "\n".join(lines).rstrip()

    def _chosen(self) -> list[Contender]:
        return [self.ours(precision) for precision in DTYPES]
