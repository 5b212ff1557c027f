"""The options of reading and writing weights (torch-free)."""

from dataclasses import dataclass

from leanvit.config.checks import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, require


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
    image_size: int = 0
    """Side of the images that windows were laid out for, in pixels; 0: as shown or published."""
    mean: tuple[float, ...] = ()
    """Mean of the channels that the network was trained with; (): the file's, or ImageNet's."""
    std: tuple[float, ...] = ()
    """Standard deviation of the channels."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "heads")
        require(self, NOT_NEGATIVE, "image_size")
        require(self, POSITIVE, "std")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value and len(value) != 3:
                raise ValueError(f"{name} is {value}; expected one value a channel: 3.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig(WeightsConfig):
    """A backbone in another format, compared with what was read before it is kept."""

    to: str = "leanvit"
    """Format: leanvit, timm, torchvision, huggingface, onnx, export, or an official layout."""
    graph_size: int = 0
    """Side of the images that an onnx or export graph takes; 0: what the network was built for."""

    def __post_init__(self) -> None:
        WeightsConfig.__post_init__(self)
        require(self, NOT_NEGATIVE, "graph_size")
