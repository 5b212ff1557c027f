"""The options of dense tasks: a class for every pixel, a box for every object (torch-free)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from leanvit.config.checks import (
    AT_LEAST_ONE,
    BELOW_ONE,
    NOT_NEGATIVE,
    PERCENT,
    POSITIVE,
    SHARE,
    Rule,
    require,
)
from leanvit.config.duration import Duration
from leanvit.config.methods import MethodConfig
from leanvit.config.run import Auto

MASK_VALUE: Rule = ("0 to 65535", lambda value: 0 <= value < 2**16)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """What the training of dense tasks has in common; auto leaves a value to the recipe."""

    data: str = ""
    """Folder in one of the layouts of docs/segment.md and docs/detect.md."""
    train_split: str = "train"
    """Images to learn from, as the layout calls them."""
    val_split: str = "val"
    """Images by which the best look is chosen."""
    test_split: str = "auto"
    """Images that the best look is tested on once; auto: test, where the layout has it, or none."""
    recipe: str = "small"
    """Settings by name."""
    duration: Duration | Auto = "auto"
    """Length of the training."""
    train_batch: int | Auto = "auto"
    """Images in a step, at most an eighth of them all unless it is given."""
    accumulate: int = 1
    """Micro-batches that a step is split into, to save memory."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network while it trains."""
    lr: float | Auto = "auto"
    """Highest learning rate, for the batch as it is."""
    warmup: Duration | Auto = "auto"
    """Length of the warm-up."""
    decay: Literal["auto", "linear", "steps"] = "auto"
    """Way of the learning rate after the warm-up: a line to 0, or two falls to a tenth."""
    layer_decay: float | Auto = "auto"
    """Factor of the learning rate from each block of the backbone to the one before it."""
    weight_decay: float | Auto = "auto"
    """Weight decay of matrices."""
    clip: float | Auto = "auto"
    """Largest norm of all gradients together, 0 for any."""
    drop_path: float | Auto = "auto"
    """Stochastic depth of the last block."""
    average: float | Auto = "auto"
    """Momentum of a moving average of the weights, which is what is tested; 0 for none."""
    frozen: bool = False
    """Leave the backbone as it is and train the rest alone."""
    untrained: bool = False
    """Also train the same network with a backbone from scratch."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of fresh weights, order and views; every one is a training of its own."""
    every: Duration = Duration(10, "%")
    """How often the images of val_split are looked at."""
    pictures: int = 4
    """Images of val_split that are drawn with what is found in them, where there is a folder."""
    workers: int | Auto = "auto"
    """Processes that read images; auto: one less than there are cores, 16 at most."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    max_unreadable: float = 1.0
    """Percent of the images that may be unreadable before the command stops."""
    out: str = ""
    """Folder for the best network, its head, the curve, pictures and checkpoints; or none."""
    resume: bool = False
    """Continue what was cut off in `out`."""
    results: str = ""
    """File that the result is added to, a line of JSON; results.jsonl in the folder of a run."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "train_batch", "accumulate")
        require(self, NOT_NEGATIVE, "seeds", "workers", "pictures")
        require(self, PERCENT, "max_unreadable")
        require(self, NOT_NEGATIVE, "clip", "weight_decay")
        require(self, POSITIVE, "lr", "layer_decay")
        require(self, SHARE, "layer_decay")
        require(self, BELOW_ONE, "average", "drop_path")
        if not self.seeds:
            raise ValueError("seeds is (); expected at least one seed.")
        if self.out and (self.untrained or len(self.seeds) > 1):
            raise ValueError(
                "out holds one training: leave untrained out and name one seed, or write several "
                "folders by several commands."
            )
        if self.resume and not self.out:
            raise ValueError("resume continues a training in a folder; name it: --out FOLDER.")
        if self.test_split in (self.train_split, self.val_split):
            raise ValueError(
                f"test_split is {self.test_split!r}, which is learned from or chosen by already."
            )
        if self.frozen and self.layer_decay not in ("auto", 1.0):
            raise ValueError("layer_decay scales the backbone's learning rate, and it is frozen.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledCropConfig:
    """The view of dense training: the image resized at random, a crop of it, flipped, recolored."""

    size: int = 512
    """Side of the square crop in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the factor by which the image is resized before it is cropped."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    distort: float = 0.5
    """Probability that brightness, contrast, saturation and hue are changed."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "size")
        require(self, POSITIVE, "scale")
        require(self, SHARE, "flip", "distort")
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale goes from small to large, not {self.scale}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterConfig(MethodConfig):
    """Semantic segmentation: a class for every pixel."""

    kind: ClassVar[str] = "segmenter"

    classes: int
    """Number of classes C."""
    head: Literal["linear", "fpn", "upernet"] = "fpn"
    """A linear layer on the last regions, Semantic FPN (1901.02446), or UPerNet (1807.10221)."""
    channels: int = 128
    """Width of the head, where it is not linear."""
    frozen: bool = False
    """Leave the backbone as it is."""
    average: float = 0.0
    """Momentum of the moving average of all weights; 0 for none."""
    views: ScaledCropConfig = field(default_factory=ScaledCropConfig)
    """The crop and its augmentations."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "classes", "channels")
        require(self, BELOW_ONE, "average")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig(DenseConfig):
    """Semantic segmentation with a head on the backbone's stages; mean IoU."""

    head: Literal["auto", "linear", "fpn", "upernet"] = "auto"
    """Linear layer on the last regions, Semantic FPN, or UPerNet."""
    channels: int | Auto = "auto"
    """Width of the head, where it is not linear."""
    crop: int | Auto = "auto"
    """Side of the crops that are trained on, in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the factor by which an image is resized before it is cropped."""
    distort: float = 0.5
    """Probability that brightness, contrast, saturation and hue are changed."""
    short_side: int | Auto = "auto"
    """Pixels that the shorter side is resized to before anything else; 0 leaves images alone."""
    slide: bool | Auto = "auto"
    """Test by windows of the crop's size, two thirds of it apart, instead of whole images."""
    ignore: tuple[int, ...] = ()
    """Values of a mask that are not learned and not counted, besides 255."""

    def __post_init__(self) -> None:
        DenseConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "channels", "crop")
        require(self, NOT_NEGATIVE, "short_side")
        require(self, MASK_VALUE, "ignore")
        ScaledCropConfig(scale=self.scale, distort=self.distort)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCropConfig(ScaledCropConfig):
    """The view of detection: the same of an image that the square just holds, by its factor."""

    size: int = 640
    """Side of the square crop in pixels."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Range of the factor of an image's size; at 1 the square just holds it."""
    distort: float = 0.0
    """Probability that brightness, contrast, saturation and hue are changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig(MethodConfig):
    """Detection: a box, and a mask, for every object (Faster and Mask R-CNN)."""

    kind: ClassVar[str] = "detector"

    classes: int
    """Number of classes C."""
    masks: bool = False
    """Also tell which pixels of a box are the object (Mask R-CNN)."""
    channels: int = 256
    """Width of the feature pyramid."""
    hidden: int = 1024
    """Width of the layers that tell the class of a box."""
    frozen: bool = False
    """Leave the backbone as it is."""
    average: float = 0.0
    """Momentum of the moving average of all weights; 0 for none."""
    views: ObjectCropConfig = field(default_factory=ObjectCropConfig)
    """The crop and its augmentations."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "classes", "channels", "hidden")
        require(self, BELOW_ONE, "average")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectConfig(DenseConfig):
    """Detection by Faster or Mask R-CNN on the backbone's stages; COCO's average precision."""

    masks: bool | Auto = "auto"
    """Also learn masks (Mask R-CNN); auto: where every object has an outline."""
    channels: int | Auto = "auto"
    """Width of the feature pyramid."""
    hidden: int | Auto = "auto"
    """Width of the layers that tell the class of a box."""
    crop: int | Auto = "auto"
    """Side of the square that images are trained and tested in, in pixels."""
    min_scale: float | Auto = "auto"
    """Smallest factor of an image's size; at 1 the square just holds it."""
    max_scale: float | Auto = "auto"
    """Largest factor."""
    distort: float | Auto = "auto"
    """Probability that brightness, contrast, saturation and hue are changed."""

    def __post_init__(self) -> None:
        DenseConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "channels", "hidden", "crop")
        require(self, SHARE, "distort")
        require(self, POSITIVE, "min_scale", "max_scale")
