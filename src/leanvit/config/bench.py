"""The options of what is measured (torch-free)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from leanvit.config.checks import AT_LEAST_ONE, require
from leanvit.config.names import unknown_name
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


PASSES = ("image", "views")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchForwardConfig:
    """Time and memory of backbones, forward and backward, beside timm's same networks."""

    backbones: tuple[str, ...] = ("swin_tiny", "vit_small")
    """Names as in `leanvit backbones`, or files of weights; without timm's same network, alone."""
    batch: int = 4
    """Images at a time."""
    passes: tuple[str, ...] = PASSES
    """What is measured: image, at the backbone's own size, and views, the ten of multi-crop."""
    global_size: int = 224
    """Side in pixels of the two large views of an image."""
    local_size: int = 96
    """Side in pixels of the eight small views."""
    precisions: tuple[str, ...] = PRECISIONS
    """Any of fp32 and bf16, which is autocast."""
    compiled: bool = False
    """Also both by torch.compile."""
    rounds: int = 5
    """How often everything is measured in turn, after a first time that does not count."""
    threads: int | Auto = "auto"
    """Threads on the CPU; auto: torch's own, a core each or OMP_NUM_THREADS."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is measured."""
    growth: bool = False
    """Instead ours alone in the first precision, as the batch, the window and the image grow."""
    throughput: bool = False
    """Instead images a second as the EsViT paper counts them, beside its figures."""
    throughput_batch: int = 128
    """Images at a time for that."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "batch", "global_size", "local_size", "rounds", "threads")
        require(self, AT_LEAST_ONE, "throughput_batch")
        for other in ("growth", "throughput"):
            if getattr(self, other) and self.compiled:
                raise ValueError(f"{other} is measured without compilation; leave compiled out.")
            if getattr(self, other) and self.passes != PASSES:
                raise ValueError(f"{other} has passes of its own; leave passes out.")
        if self.growth and self.precisions != PRECISIONS and len(self.precisions) > 1:
            raise ValueError("growth is measured in one precision; name one.")
        for name, such in (("backbones", "swin_tiny"), ("passes", "image"), ("precisions", "fp32")):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name one at least, such as {such}.")
        for what, given, known in (
            ("pass", self.passes, PASSES),
            ("precision", self.precisions, PRECISIONS),
        ):
            for word in given:
                if word not in known:
                    raise unknown_name(what, word, known)


OPPONENTS = ("auto", "plain", "lightly")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchStepConfig:
    """Whole training steps beside the published one and the lightly package's, in one run."""

    recipe: str = "esvit"
    """Recipe whose step is measured; its views and sizes are the others' too."""
    backbone: str = ""
    """Name as in `leanvit backbones`; the recipe's where it is left out."""
    against: tuple[str, ...] = ("auto",)
    """plain: esvit, dino on Swin; lightly: dino, mae on a ViT; auto: both; no word: ours alone."""
    batch: int = 4
    """Images at a time."""
    prototypes: int = 65_536
    """Number of prototypes K, where the method has them."""
    precisions: tuple[str, ...] = PRECISIONS
    """Any of fp32 and bf16, which is autocast."""
    rounds: int = 5
    """How often everything is measured in turn, after a first time that does not count."""
    threads: int | Auto = "auto"
    """Threads on the CPU; auto: torch's own, a core each or OMP_NUM_THREADS."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is measured."""
    growth: bool = False
    """Instead ours alone in the first precision, as batch, crops, prototypes and image grow."""
    source: str = ""
    """Images: ours is then timed on views of them too, step after step, with waiting for them."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "batch", "prototypes", "rounds", "threads")
        if self.growth and self.source:
            raise ValueError("growth is measured on noise: leave out either growth or source.")
        if not self.precisions:
            raise ValueError("precisions is empty; name one at least, such as fp32.")
        if self.growth and self.precisions != PRECISIONS and len(self.precisions) > 1:
            raise ValueError("growth is measured in one precision; name one.")
        for what, given, known in (
            ("opponent", self.against, OPPONENTS),
            ("precision", self.precisions, PRECISIONS),
        ):
            for word in given:
                if word not in known:
                    raise unknown_name(what, word, known)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchAllConfig:
    """The loss, the backbones, and the steps of EsViT, DINO and MAE, one after another."""

    batch: int = 4
    """Images at a time; MAE takes four times as many."""
    rounds: int = 3
    """How often everything is measured in turn, after a first time that does not count."""
    threads: int | Auto = "auto"
    """Threads on the CPU; auto: torch's own, a core each or OMP_NUM_THREADS."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is measured."""
    lightly: bool = True
    """Also the steps built from the lightly package, where it is installed."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "batch", "rounds", "threads")


BenchConfig = (
    BenchLossConfig | BenchDataConfig | BenchForwardConfig | BenchStepConfig | BenchAllConfig
)

BENCH_CONFIGS: Mapping[str, type[BenchConfig]] = MappingProxyType(
    {
        "loss": BenchLossConfig,
        "data": BenchDataConfig,
        "forward": BenchForwardConfig,
        "step": BenchStepConfig,
        "all": BenchAllConfig,
    }
)
"""Benches by name."""
