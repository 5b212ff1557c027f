"""The options of everything that is done with a finished backbone (torch-free)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from leanvit.config.checks import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, require
from leanvit.config.run import Auto


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesConfig:
    """Which images a backbone sees, and how."""

    data: str = ""
    """Folder of images, list file, archive (docs/data.md has all kinds), or sample."""
    image_size: int | Auto = "auto"
    """Side of the network's input in pixels; auto: what it was built for."""
    crop: float | Auto = "auto"
    """Share of the shorter side that is seen; auto: 0.875 as in the papers, 1 for small images."""
    batch: int = 64
    """Images that the network sees at a time."""
    workers: int | Auto = "auto"
    """Processes that read images; auto: one less than there are cores, 16 at most."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    max_unreadable: float = 1.0
    """Percent of the images that may be unreadable before the command stops."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "image_size", "batch")
        require(self, NOT_NEGATIVE, "workers", "max_unreadable")
        require(self, POSITIVE, "crop")
        if self.crop != "auto" and self.crop > 1:
            raise ValueError(f"crop is a share of the image, at most 1, not {self.crop}.")


FEATURE_FILES = (".npz", ".parquet", ".safetensors", ".csv")
"""Endings of the files that features are written to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig(ImagesConfig):
    """Features of images, written to a file."""

    features: Literal["pooled", "last4", "grid"] = "pooled"
    """The view feature, those of the last four blocks side by side, or the region features."""
    dtype: Literal["float32", "float16"] = "float32"
    """Numbers that the features are written as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig(ImagesConfig):
    """What evaluations on classes have in common."""

    val: str = ""
    """Images to evaluate on; otherwise what lies beside `train`, or a fifth that is held out."""
    protocol: Literal["auto", "color", "grey", "both"] = "auto"
    """Images as they are, grey and standardised, or both; auto: both for sample, else color."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnConfig(ProbeConfig):
    """Weighted k-nearest-neighbour classification of frozen features."""

    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours."""
    temperature: float = 0.07
    """A neighbour's vote is exp(cosine similarity / temperature)."""
    baselines: bool = True
    """Also raw pixels, a color histogram and the network before training."""

    def __post_init__(self) -> None:
        ProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "k")
        require(self, POSITIVE, "temperature")
        if not self.k:
            raise ValueError("k is (); expected at least one number of neighbours.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig(ProbeConfig):
    """Linear probe of frozen features."""

    blocks: int = 4
    """How many of the last blocks give their view features."""
    rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Learning rates for 256 images, all tried in one pass."""
    epochs: int = 100
    """Passes over the training images."""
    probe_batch: int = 1024
    """Images in a step of the probe, at most a quarter of them all."""
    augment: bool = False
    """Random crops and flips in every epoch, as in the papers; otherwise features are kept."""
    held_out: float = 0.1
    """Share of the training images that chooses the learning rate and trains nothing."""
    seed: int = 0
    """Seed of the probe's weights, of the order and of the crops."""

    def __post_init__(self) -> None:
        ProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "blocks", "epochs", "probe_batch")
        require(self, POSITIVE, "rates", "held_out")
        require(self, NOT_NEGATIVE, "seed")
        if not self.rates:
            raise ValueError("rates is (); expected at least one learning rate.")
        if self.held_out >= 1:
            raise ValueError(f"held_out is a share below 1, not {self.held_out}.")


EVALUATION_CONFIGS: Mapping[str, type[ProbeConfig]] = MappingProxyType(
    {"knn": KnnConfig, "linear": LinearConfig}
)
"""Every evaluation and its options."""
