"""What `leanvit bench forward` found, as tables and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any

import timm

from leanvit.bench.machine import machine
from leanvit.bench.tables import DISTURBED, Form, differ, markdown
from leanvit.config.bench import BenchForwardConfig

OURS, TIMM = "ours", "timm"
BASE = "vit_small"
"""The backbone that throughput is a ratio to."""
SKIPPING = "ours, padding skipped"
"""Swin where tokens do not see padding: another function, which stands beside for its speed."""
PAPER: Mapping[str, int] = MappingProxyType(
    {
        "vit_small": 1007,
        "vit_base": 312,
        "vit_small_p8": 180,
        "vit_base_p8": 63,
        "swin_tiny": 808,
        "swin_small": 467,
        "swin_base": 297,
        "swin_small_w14": 383,
        "swin_base_w14": 254,
        "cvt_tiny": 848,
        "vil_2262": 386,
        "resnet50": 1237,
    }
)
"""Images a second on one V100, 128 at a time (EsViT, arXiv 2106.09785, tables 1 and 4)."""
NOTES = (
    "Weights are equal, and so are features at the nominal size. At other sizes timm's Swin is "
    "another function: it rolls before it pads, and makes its masks anew in every forward; timm's "
    "ViT resizes its positions smoothed.",
    "Ours takes all sizes in one forward, timm one forward a size. Compiled: ours block by block, "
    "timm as a whole.",
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured."""

    backbone: str
    what: str
    """The sides of the images in pixels."""
    training: bool

    @property
    def steps(self) -> str:
        """Forward alone, or backward too."""
        return "forward + backward" if self.training else "forward"

    def __str__(self) -> str:
        return f"{self.backbone}, {self.what}, {self.steps}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Time and memory of one form."""

    case: Case
    form: Form
    images: int
    seconds: list[float]
    """Of every round."""
    extra_bytes: int
    """Beyond network and images, at their most."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A form that could not be measured."""

    case: Case
    form: Form
    said: str
    reason: str


@dataclass(frozen=True, slots=True)
class Grown:
    """Ours, forward and backward, at one point of growth."""

    backbone: str
    what: str
    """What grows: batch, window or image."""
    value: int
    images: int
    seconds: list[float]
    extra_bytes: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Ours in inference."""

    backbone: str
    precision: str
    images: int
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class ForwardReport:
    """What was measured; prints as tables that Markdown takes."""

    config: BenchForwardConfig
    """Its device and threads are no longer auto."""
    measured: list[Measured] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    grown: list[Grown] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    """Backbones that timm does not have too."""

    def against_timm(self, found: Measured) -> dict[str, float]:
        """Return how many times faster ours is, and its share of timm's extra memory.

        Beside the same case, precision and compilation; empty for timm's own figures and where
        there is no such.
        """
        for other in self.measured if found.form.name == OURS else ():
            like = Form(TIMM, found.form.precision, found.form.compiled)
            if (other.case, other.form) == (found.case, like):
                return {
                    "speedup": median(other.seconds) / median(found.seconds),
                    "memory_ratio": found.extra_bytes / other.extra_bytes,
                }
        return {}

    def times_base(self, found: Throughput) -> float:
        """Return the throughput as a ratio to that of `BASE` in its precision, NaN without it."""
        for base in self.throughput:
            if (base.backbone, base.precision) == (BASE, found.precision):
                break
        else:
            return float("nan")
        return (median(base.seconds) / base.images) / (median(found.seconds) / found.images)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was measured, and what could not be."""
        return {
            "machine": self.machine(),
            "cases": [
                {
                    **_spelled(found.case, found.form),
                    **_timed(found),
                    "images": found.images,
                    "extra_bytes": found.extra_bytes,
                    **self.against_timm(found),
                }
                for found in self.measured
            ],
            "failed": [
                {**_spelled(fail.case, fail.form), "said": fail.said, "reason": fail.reason}
                for fail in self.failed
            ],
            "without_opponent": self.alone,
            "growth": [asdict(found) | _timed(found) for found in self.grown],
            "throughput": [
                {
                    **asdict(found),
                    **_timed(found),
                    "images_per_second": found.images / median(found.seconds),
                    "ratio": self.times_base(found),
                    "paper_images_per_second": PAPER.get(found.backbone),
                }
                for found in self.throughput
            ],
            "notes": self.notes(),
        }

    def machine(self) -> dict[str, Any]:
        """Return what the figures depend on."""
        config = self.config
        return {
            **machine(config.device),
            "timm": timm.__version__,
            "threads": config.threads,
            "batch": config.batch,
            "rounds": config.rounds,
        }

    def notes(self) -> list[str]:
        """Return what a reader must know of the opponent."""
        notes = list(NOTES) if any(m.form.name == TIMM for m in self.measured) else []
        if self.alone:
            notes.append(
                f"Measured alone, without the same network of timm: {', '.join(self.alone)}."
            )
        every = [
            found.seconds
            for group in (self.measured, self.grown, self.throughput)
            for found in group
        ]
        if differ(every):
            notes.append(DISTURBED)
        return notes

    def __str__(self) -> str:
        parts = [["  ".join(f"{name} {value}" for name, value in self.machine().items())]]
        parts += [self._cases(), self._growth(), self._throughputs(), self.notes()]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def _cases(self) -> list[str]:
        head = "backbone,pixels,step,form,s,rounds,ms an image,extra MiB,times faster,of the memory"
        rows = [
            [
                *(found.case.backbone, found.case.what, found.case.steps, str(found.form)),
                *_figures(found),
                *(f"{ratio:.2f}" for ratio in self.against_timm(found).values()),
            ]
            for found in self.measured
        ]
        rows += [
            [fail.case.backbone, fail.case.what, fail.case.steps, str(fail.form), fail.said]
            for fail in self.failed
        ]
        return list(markdown(head.split(","), rows))

    def _growth(self) -> list[str]:
        head = "backbone,grows,to,s,rounds,ms an image,extra MiB,images/s"
        rows = [
            [
                *(found.backbone, found.what, str(found.value), *_figures(found)),
                f"{found.images / median(found.seconds):.1f}",
            ]
            for found in self.grown
        ]
        return list(markdown(head.split(","), rows))

    def _throughputs(self) -> list[str]:
        head = "backbone,precision,images/s,ratio,paper's images/s on a V100,paper's ratio"
        rows = []
        for found in self.throughput:
            rate = f"{found.images / median(found.seconds):.1f}"
            row = [found.backbone, found.precision, rate, f"{self.times_base(found):.2f}"]
            if found.backbone in PAPER:
                paper = PAPER[found.backbone]
                row += [str(paper), f"{paper / PAPER['vit_small']:.2f}"]
            rows.append(row)
        return list(markdown(head.split(","), rows))


def _spelled(case: Case, form: Form) -> dict[str, Any]:
    return {
        "backbone": case.backbone,
        "pixels": case.what,
        "step": case.steps,
        "form": form.name,
        "precision": form.precision,
        "compiled": form.compiled,
    }


def _timed(found: Measured | Grown | Throughput) -> dict[str, Any]:
    return {"seconds": median(found.seconds), "rounds": found.seconds}


def _figures(found: Measured | Grown) -> list[str]:
    middle = median(found.seconds)
    return [
        f"{middle:.3f}",
        f"{min(found.seconds):.3f} to {max(found.seconds):.3f}",
        f"{1e3 * middle / found.images:.1f}",
        f"{found.extra_bytes / 2**20:.0f}",
    ]
