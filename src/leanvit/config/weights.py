"""The options of reading and writing weights (torch-free)."""

from dataclasses import dataclass

from leanvit.config.checks import AT_LEAST_ONE, POSITIVE, require


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    """How a file of weights is to be understood; what is auto is read off the file."""

    layout: str = "auto"
    """Whose layout the file has: esvit, dino, mae, mae_lite, timm, ... (docs/weights.md)."""
    part: str = "auto"
    """Which network of the file: what stands before its names, such as teacher or student."""
    network: str = ""
    """Name of the backbone, where the weights do not say: timm:NAME, or one of the named."""
    heads: tuple[int, ...] = ()
    """Attention heads, of every stage in CvT, which leave no trace in weights; (): as published."""
    mean: tuple[float, ...] = ()
    """Mean of the channels that the network was trained with; (): the file's, or ImageNet's."""
    std: tuple[float, ...] = ()
    """Standard deviation of the channels."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "heads")
        require(self, POSITIVE, "std")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value and len(value) != 3:
                raise ValueError(f"{name} is {value}; expected one value a channel: 3.")
