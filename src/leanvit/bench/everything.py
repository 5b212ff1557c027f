"""`leanvit bench all`: every bench of speed, one after another."""

from dataclasses import dataclass
from typing import Any, Protocol

from leanvit.bench.forward import bench_forward
from leanvit.bench.loss import bench_loss
from leanvit.bench.step import bench_step
from leanvit.config.bench import (
    BenchAllConfig,
    BenchForwardConfig,
    BenchLossConfig,
    BenchStepConfig,
)


class Report(Protocol):
    """What a bench found; its text is made of tables."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was measured."""


@dataclass(frozen=True, slots=True)
class Everything:
    """What all benches found."""

    parts: dict[str, Report]

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was measured, by the name of the bench."""
        return {name: part.to_dict() for name, part in self.parts.items()}

    def __str__(self) -> str:
        return "\n\n".join(f"## {name}\n\n{part}" for name, part in self.parts.items())


def bench_all(config: BenchAllConfig, *, quiet: bool = False) -> Everything:
    """Measure the loss, the backbones and the steps."""
    shared: dict[str, Any] = {
        "rounds": config.rounds,
        "threads": config.threads,
        "device": config.device,
    }
    others = ("auto",) if config.lightly else ()
    batch, many = config.batch, 4 * config.batch
    steps = {
        "EsViT step": BenchStepConfig(batch=batch, **shared),
        "DINO step": BenchStepConfig(
            recipe="dino", backbone="vit_tiny", against=others, batch=batch, **shared
        ),
        "MAE step": BenchStepConfig(
            recipe="mae", backbone="vit_tiny", against=others, batch=many, **shared
        ),
    }
    parts: dict[str, Report] = {
        "Region loss": bench_loss(BenchLossConfig(batches=(batch,), **shared), quiet=quiet),
        "Backbones": bench_forward(BenchForwardConfig(batch=batch, **shared), quiet=quiet),
    }
    parts |= {name: bench_step(each, quiet=quiet) for name, each in steps.items()}
    return Everything(parts)
