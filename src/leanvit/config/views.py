"""Options of views: what is cut from an image and what is done to it (torch-free)."""

from dataclasses import dataclass
from typing import Any, Literal

from leanvit.config.checks import AT_LEAST_ONE, NOT_NEGATIVE, SHARE, Rule, require

MAGNITUDE: Rule = ("within [0, 10]", lambda value: 0 <= value <= 10)


def _require_scale(config: Any, *names: str) -> None:
    """Check ranges of shares of an image's area."""
    for name in names:
        low, high = getattr(config, name)
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name} is a range within (0, 1], not ({low}, {high}).")


def _require_strength(config: Any) -> None:
    """Check the strengths of color jitter."""
    require(config, NOT_NEGATIVE, "jitter_strength")
    if config.jitter_strength[3] > 0.5:
        raise ValueError(
            f"The hue's strength, the last of jitter_strength, is at most 0.5 (half a turn "
            f"each way), not {config.jitter_strength[3]}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiCropConfig:
    """Multi-crop views with the DINO augmentations; the defaults are the published ones."""

    global_size: int = 224
    """Side of the two global crops in pixels."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the image's area that a global crop covers."""
    local_sizes: tuple[int, ...] = (96,)
    """Sides of the local crops in pixels, one for each group; empty for no local crops."""
    local_counts: tuple[int, ...] = (8,)
    """Number of local crops of each size."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the image's area that a local crop covers."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of color jitter."""
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Range of brightness, contrast, saturation (as 1 +- x) and hue (as +- x turns)."""
    gray: float = 0.2
    """Probability of a grayscale image."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur in the first global, second global and the local crops."""
    solarize: float = 0.2
    """Probability of solarization in the second global crop."""

    @property
    def sides(self) -> tuple[int, ...]:
        """The side of each group of views that there is, in pixels, global crops first."""
        local = zip(self.local_sizes, self.local_counts, strict=True)
        return (self.global_size, *(side for side, count in local if count))

    def __post_init__(self) -> None:
        if len(self.local_sizes) != len(self.local_counts):
            raise ValueError(
                f"local_sizes {self.local_sizes} and local_counts {self.local_counts} differ in "
                f"length; give a number of local crops for each size."
            )
        require(self, AT_LEAST_ONE, "global_size", "local_sizes")
        require(self, NOT_NEGATIVE, "local_counts")
        require(self, SHARE, "flip", "jitter", "gray", "blur", "solarize")
        _require_strength(self)
        _require_scale(self, "global_scale", "local_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class CropConfig:
    """One random crop, perhaps mirrored, and nothing else: the views of MAE.

    The scale is that of the lightweight MAE (arXiv 2205.14443), whose code also draws the
    interpolation (`random`); the first MAE (arXiv 2111.06377) crops 0.2 to 1.
    """

    size: int = 224
    """Side of the view in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that the crop covers."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """How the crop is resized; random: either of the two, drawn for each view."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "size")
        require(self, SHARE, "flip")
        _require_scale(self, "scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoViewsConfig(CropConfig):
    """The two views of MoCo-v3 (arXiv 2104.02057), which differ in blur and solarization.

    The scale is that of its vision transformers; its ResNet crops 0.2 to 1.
    """

    interpolation: Literal["bicubic", "bilinear", "random"] = "bilinear"
    """How the crop is resized; random: either of the two, drawn for each view."""
    jitter: float = 0.8
    """Probability of color jitter."""
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Range of brightness, contrast, saturation (as 1 +- x) and hue (as +- x turns)."""
    gray: float = 0.2
    """Probability of a grayscale image."""
    blur: tuple[float, float] = (1.0, 0.1)
    """Probability of Gaussian blur in the first and in the second view."""
    solarize: float = 0.2
    """Probability of solarization in the second view."""

    def __post_init__(self) -> None:
        CropConfig.__post_init__(self)
        require(self, SHARE, "jitter", "gray", "blur", "solarize")
        _require_strength(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneViewsConfig(CropConfig):
    """The view of supervised training and fine-tuning (DeiT, arXiv 2012.12877).

    RandAugment is timm's `rand-m9-mstd0.5-inc1`: two operations, each done with probability 0.5.
    The lightweight paper's improved recipe has magnitude 10 and erases nothing; its transfer to
    small data sets has neither (both 0).
    """

    randaugment: float = 9.0
    """Magnitude of RandAugment's operations, 0 to 10; 0 for no RandAugment."""
    randaugment_std: float = 0.5
    """Standard deviation of the magnitude, which each operation draws anew."""
    jitter: float = 0.0
    """Probability of color jitter; timm has 0 beside RandAugment and 1 without it."""
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)
    """Range of brightness, contrast, saturation (as 1 +- x) and hue (as +- x turns)."""
    erase: float = 0.25
    """Probability that a box of the normalised view becomes noise (random erasing)."""
    repeats: int = 1
    """Places of a batch that an image takes, each with its own view (repeated augmentation)."""

    def __post_init__(self) -> None:
        CropConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "repeats")
        require(self, MAGNITUDE, "randaugment", "randaugment_std")
        require(self, SHARE, "jitter", "erase")
        _require_strength(self)
