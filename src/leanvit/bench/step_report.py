"""What `leanvit bench step` found, as tables and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any

from leanvit.bench.machine import machine
from leanvit.bench.tables import DISTURBED, Form, differ, markdown
from leanvit.config import RunConfig
from leanvit.config.bench import BenchStepConfig


@dataclass(frozen=True, slots=True)
class Alone:
    """What a form takes in a process of its own."""

    peak_bytes: int
    """Of the whole process, or of its memory on the device."""
    first_seconds: float
    """From nothing to the end of the first step; importing is left out."""
    operations: int
    """That a step asks of torch; views and allocations are left out."""
    reads: int
    """How often the host reads a number that it has to wait for."""


@dataclass(frozen=True, slots=True)
class Grown:
    """Ours at one point of growth."""

    what: str
    """What grows: batch, crops, prototypes or image."""
    value: int
    images: int
    seconds: list[float]
    peak_bytes: int


POWERS: Mapping[str, int] = MappingProxyType({"image": 2})
"""By which power of what grows a step is expected to take longer, above a fixed part; else 1."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What was measured; prints as a table that Markdown takes."""

    config: BenchStepConfig
    """Its device and threads are no longer auto."""
    run: RunConfig
    """What is trained."""
    views: str
    """On which views of every image."""
    flops: int
    """Floating-point operations of the products that our step needs for an image."""
    rates: dict[str, float] = field(default_factory=dict)
    """Operations a second of a large matrix product, by precision."""
    seconds: dict[Form, list[float]] = field(default_factory=dict)
    """Of every round."""
    alone: dict[Form, Alone] = field(default_factory=dict)
    grown: list[Grown] = field(default_factory=list)
    failed: dict[Form, str] = field(default_factory=dict)
    """What could not be measured, and why."""

    def ratios(self, form: Form) -> dict[str, float]:
        """Return how many times faster ours is than each opponent, and its share of their memory.

        By the opponent's name, in ours' precision; with " fp32" behind it, in fp32 where ours is
        narrower. Empty for the opponents' own lines.
        """
        found: dict[str, float] = {}
        for other, seconds in self.seconds.items() if form.name == "ours" else ():
            if other.name != "ours" and other.precision in (form.precision, "fp32"):
                name = other.name if other.precision == form.precision else str(other)
                found[f"{name} speed"] = median(seconds) / median(self.seconds[form])
                memory = self.alone[form].peak_bytes / self.alone[other].peak_bytes
                found[f"{name} memory"] = memory
        return found

    def share(self, form: Form) -> float:
        """Return which share of the products' speed a form reaches at the work that ours needs."""
        rate = self.config.batch * self.flops / median(self.seconds[form])
        return rate / self.rates[form.precision]

    def machine(self) -> dict[str, Any]:
        """Return what the figures depend on."""
        config = self.config
        return {
            **machine(config.device),
            "threads": config.threads,
            "rounds": config.rounds,
            **{f"gflops_{name}": round(rate / 1e9, 1) for name, rate in self.rates.items()},
        }

    def what(self) -> dict[str, Any]:
        """Return what was trained."""
        head = getattr(self.run.method, "head", None)
        return {
            "recipe": self.config.recipe,
            "backbone": self.config.backbone or self.run.backbone.kind,
            "views": self.views,
            **({"prototypes": head.prototypes} if head is not None else {}),
            "batch": self.config.batch,
            "gflop an image": round(self.flops / 1e9, 1),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was measured."""
        return {
            "machine": self.machine(),
            "step": self.what(),
            "forms": [
                {
                    "form": form.name,
                    "precision": form.precision,
                    "seconds": median(seconds),
                    "rounds": seconds,
                    "images_per_second": self.config.batch / median(seconds),
                    "share_of_roofline": self.share(form),
                    **asdict(self.alone[form]),
                    **self.ratios(form),
                }
                for form, seconds in self.seconds.items()
            ],
            "growth": [
                asdict(found) | {"median": median(found.seconds), "expected": self.expected(found)}
                for found in self.grown
            ],
            "failed": {str(form): why for form, why in self.failed.items()},
            "notes": self.notes(),
        }

    def expected(self, found: Grown) -> float:
        """Return the seconds by the law that joins the ends of what grew."""
        ends = [each for each in self.grown if each.what == found.what]
        ends = [min(ends, key=lambda each: each.value), max(ends, key=lambda each: each.value)]
        power = POWERS.get(found.what, 1)
        low, high = (each.value**power for each in ends)
        start, end = (median(each.seconds) for each in ends)
        share = (found.value**power - low) / max(high - low, 1)
        return start + share * (end - start)

    def notes(self) -> list[str]:
        """Return what a reader must know."""
        every = [*self.seconds.values(), *(found.seconds for found in self.grown)]
        failed = [f"{form}: {why}." for form, why in self.failed.items()]
        return [*failed, *([DISTURBED] if differ(every) else [])]

    def __str__(self) -> str:
        heads = [
            "  ".join(f"{k} {v}" for k, v in each.items()) for each in (self.machine(), self.what())
        ]
        parts = [heads, self._forms(), self._ratios(), self._growth(), self.notes()]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def _forms(self) -> list[str]:
        head = "form,s,rounds,images/s,of the roofline,peak GiB,operations,reads,first step s"
        rows = []
        for form, seconds in self.seconds.items():
            alone, middle = self.alone[form], median(seconds)
            rows.append(
                [
                    *(str(form), f"{middle:.3f}", f"{min(seconds):.3f} to {max(seconds):.3f}"),
                    *(f"{self.config.batch / middle:.2f}", f"{self.share(form):.2f}"),
                    *(f"{alone.peak_bytes / 2**30:.2f}", str(alone.operations)),
                    *(str(alone.reads), f"{alone.first_seconds:.1f}"),
                ]
            )
        return list(markdown(head.split(","), rows))

    def _ratios(self) -> list[str]:
        rows = []
        for form in self.seconds:
            found = self.ratios(form)
            for name in (key.removesuffix(" speed") for key in found if key.endswith(" speed")):
                row = [str(form), name if name[-2:] == "32" else f"{name} {form.precision}"]
                rows.append(
                    [*row, f"{found[f'{name} speed']:.2f}", f"{found[f'{name} memory']:.2f}"]
                )
        return list(markdown(["ours", "beside", "times faster", "of the peak memory"], rows))

    def _growth(self) -> list[str]:
        rows = []
        for found in self.grown:
            middle = median(found.seconds)
            spread = f"{min(found.seconds):.3f} to {max(found.seconds):.3f}"
            rows.append(
                [
                    *(found.what, str(found.value), f"{middle:.3f}", spread),
                    f"{self.expected(found):.3f}",
                    *(f"{1e3 * middle / found.images:.0f}", f"{found.peak_bytes / 2**30:.2f}"),
                ]
            )
        head = "grows,to,s,rounds,by the law,ms an image,peak GiB"
        return list(markdown(head.split(","), rows))
