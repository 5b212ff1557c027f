"""The options of what is measured (torch-free)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from leanvit.config.checks import AT_LEAST_ONE, require
from leanvit.config.run import Auto


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLossConfig:
    """Time and memory of the region loss, from bottleneck rows to gradients, in its forms."""

    batches: tuple[int, ...] = (4, 16)
    """Images at a time; the published views, of 2 x 49 and 8 x 9 regions each."""
    prototypes: int = 65_536
    """Number of prototypes K."""
    bottleneck: int = 256
    """Width D of the rows that meet them."""
    rounds: int = 5
    """How often everything is measured in turn, after a first time that does not count."""
    threads: int | Auto = "auto"
    """Threads on the CPU; auto: torch's own, a core each or OMP_NUM_THREADS."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is measured."""
    growth: bool = False
    """Also how time grows with rows, and memory with the number of prototypes."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "batches", "prototypes", "bottleneck", "rounds", "threads")
        if not self.batches:
            raise ValueError("batches is empty; name one batch at least, such as 4 16.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchDataConfig:
    """Decoding and ten published views an image: ours, and the same through Pillow."""

    source: str = ""
    """Photographs: a folder, an archive, or what else docs/data.md has, with encoded images."""
    images: int = 64
    """How many of them, drawn once."""
    batch: int = 16
    """Images that are joined and rendered at a time."""
    rounds: int = 5
    """How often everything is measured in turn, after a first time that does not count."""
    workers: int = 2
    """Threads that decode and processes that render, beside one of each."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the device's part is measured; on the CPU it is left out."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "images", "batch", "rounds", "workers")
        if self.batch > self.images:
            raise ValueError(f"A batch of {self.batch} needs as many images, not {self.images}.")


BenchConfig = BenchLossConfig | BenchDataConfig

BENCH_CONFIGS: Mapping[str, type[BenchConfig]] = MappingProxyType(
    {"loss": BenchLossConfig, "data": BenchDataConfig}
)
"""Benches by name."""
