"""A whole run as one value: method, backbone, data, optimiser, training."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from leanvit.config.backbones import BackboneConfig
from leanvit.config.checks import (
    AT_LEAST_ONE,
    BELOW_ONE,
    NOT_NEGATIVE,
    PERCENT,
    POSITIVE,
    SHARE,
    require,
    require_schedule,
)
from leanvit.config.duration import Duration, Schedule
from leanvit.config.methods import MethodConfig

Auto = Literal["auto"]


def settled(value: int | Auto) -> int:
    """Return the number that an option of a resolved configuration has."""
    assert value != "auto", "only what is resolved can run"
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they reach the step."""

    source: str = ""
    """Folder of images of any depth, list file, archive (docs/data.md has all kinds), or sample."""
    fraction: float = 1.0
    """Share of the images that is used, of each class alike; train.seed draws them."""
    imbalance: float = 1.0
    """How many times fewer images the last class keeps than the first: a long tail of classes."""
    workers: int | Auto = "auto"
    """Processes that render, or threads that decode; 0 processes render between the steps."""
    rendering: Literal["auto", "host", "device"] = "auto"
    """Who makes the pixels of views: the workers, or the device that trains."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue channel, pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels."""
    max_unreadable: float = 1.0
    """Percent of the images that may be unreadable before the run stops."""

    def __post_init__(self) -> None:
        require(self, NOT_NEGATIVE, "workers")
        require(self, PERCENT, "max_unreadable")
        require(self, POSITIVE, "std", "fraction")
        require(self, SHARE, "fraction")
        require(self, AT_LEAST_ONE, "imbalance")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """What every optimiser has; a kind adds its own options."""

    kind: ClassVar[str]

    lr: Schedule = field(
        default_factory=lambda: Schedule(peak=5e-4, end=1e-6, warmup=Duration(3.3, "%"))
    )
    """Learning rate; the peak holds for 256 images and follows `lr_rule`."""
    lr_rule: Literal["linear", "sqrt", "none"] = "linear"
    """How the peak learning rate follows the batch: times batch / 256, its root, or not at all."""
    weight_decay: Schedule = field(default_factory=lambda: Schedule(start=0.04, peak=0.04, end=0.4))
    """Weight decay."""
    decay_all_matrices: bool = False
    """Decay position tables, class tokens and prototype gains too, as the official code does."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block of the backbone to the one before it."""
    clip: float = 3.0
    """Largest gradient norm; 0 leaves gradients alone."""
    clip_by: Literal["tensor", "module", "global"] = "tensor"
    """Whose norm is limited: every tensor's, every module's (backbone, head), or the whole."""

    def __post_init__(self) -> None:
        require(self, POSITIVE, "layer_decay")
        require(self, SHARE, "layer_decay")
        require(self, NOT_NEGATIVE, "clip")
        require_schedule(self, NOT_NEGATIVE, "lr", "weight_decay")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWConfig(OptimConfig):
    """AdamW."""

    kind: ClassVar[str] = "adamw"

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and mean square of the gradient."""

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)
        require(self, BELOW_ONE, "betas")


@dataclass(frozen=True, slots=True, kw_only=True)
class MuonConfig(AdamWConfig):
    """Muon for the matrices of the backbone's blocks, AdamW for all else (arXiv 2502.16982)."""

    kind: ClassVar[str] = "muon"

    momentum: float = 0.95
    """Momentum of the matrices."""

    def __post_init__(self) -> None:
        AdamWConfig.__post_init__(self)
        require(self, BELOW_ONE, "momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class SGDConfig(OptimConfig):
    """SGD with momentum."""

    kind: ClassVar[str] = "sgd"

    momentum: float = 0.9
    """Momentum."""
    nesterov: bool = False
    """Look ahead along the momentum (Nesterov); it takes a momentum above 0."""

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)
        require(self, BELOW_ONE, "momentum")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0; raise momentum.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LARSConfig(OptimConfig):
    """LARS: SGD with momentum and a trust ratio for every matrix (arXiv 1708.03888)."""

    kind: ClassVar[str] = "lars"

    momentum: float = 0.9
    """Momentum."""
    trust: float = 1e-3
    """Trust coefficient eta."""

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)
        require(self, BELOW_ONE, "momentum")
        require(self, POSITIVE, "trust")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The loop."""

    duration: Duration = Duration(100, "ep")
    """Length of the run."""
    batch: int | Auto = 16
    """Images in a step, over all processes; auto for the most that fits and learns well."""
    accumulate: int | Auto = 1
    """Micro-batches that a step is split into, to save memory; auto for the fewest that fit."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; losses, norms and averages are fp32 in both."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the training runs."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again, to save memory: nothing, MLPs, or whole blocks."""
    compile: Literal["none", "blocks"] = "none"
    """What torch compiles before the first step: nothing, or each kind of block of the backbone."""
    seed: int = 0
    """Seed of weights, order, views and every other draw."""
    log_every: Duration = Duration(10, "st")
    """How often a row of metrics is written."""
    save_every: Duration = Duration(5, "%")
    """How often a checkpoint is written."""
    save_minutes: float = 30.0
    """Minutes after which a checkpoint is written, whatever `save_every` says; 0 for never."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    keep_every: Duration = Duration(0, "st")
    """How often a checkpoint stays for ever, such as 100ep; 0st for none."""
    progressive: float = 0.0
    """Share of the steps, from the first, whose views are smaller; 0 for none."""
    progressive_scale: float = 0.5
    """Side of those views over that of the later ones, in whole patches."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "batch", "accumulate", "keep")
        require(self, NOT_NEGATIVE, "seed", "save_minutes")
        require(self, SHARE, "progressive", "progressive_scale")
        require(self, POSITIVE, "progressive_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """What a run does when it goes wrong: stop, leave a step out, or go back to a checkpoint."""

    bad_number: Literal["stop", "skip", "rollback"] = "stop"
    """After a loss or gradient that is not finite, which never reaches the weights."""
    spike: Literal["warn", "stop", "skip", "rollback"] = "warn"
    """After a loss far above its level."""
    collapse: Literal["warn", "stop", "rollback"] = "warn"
    """After features, teacher or matches that say nothing any more."""
    spike_deviations: float = 10.0
    """Standard deviations above the level of the last fifty steps that make a spike."""
    most: int = 5
    """How many steps may be left out, and how often a run may go back, before it stops."""
    lr_factor: float = 0.5
    """What the learning rate is multiplied by whenever a run goes back."""

    def __post_init__(self) -> None:
        require(self, POSITIVE, "spike_deviations", "lr_factor")
        require(self, SHARE, "lr_factor")
        require(self, NOT_NEGATIVE, "most")


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """How a run shows whether it learns: k-NN where images have classes, effective rank always."""

    every: Duration = Duration(10, "%")
    """How often the features are looked at, besides before the first step."""
    images: int = 1000
    """Images whose features are compared, and at most as many to test on; 0 never looks."""
    val: str = ""
    """Images to test k-NN on; otherwise what lies beside `train`, or a fifth that is held out."""
    k: int = 20
    """Number of neighbours."""

    def __post_init__(self) -> None:
        require(self, NOT_NEGATIVE, "images")
        require(self, AT_LEAST_ONE, "k")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that decides what a pre-training run does."""

    recipe: str
    """Name of the recipe that this configuration started from."""
    method: MethodConfig
    """The method and its options."""
    backbone: BackboneConfig
    """The backbone and its sizes."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    optim: OptimConfig = field(default_factory=AdamWConfig)
    """The optimiser."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """What shows whether the run learns."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What it does when it goes wrong."""
    fit: tuple[str, ...] = ()
    """Options that follow from the images where they are not given: docs/defaults.md."""
    init: str = ""
    """Weights that the run starts from: a run, any code's checkpoint, or timm:NAME.TAG."""
    init_from: Literal["backbone", "method"] = "backbone"
    """What starts from them: the backbones, or student, teacher, heads and centers, each apart."""

    def __post_init__(self) -> None:
        if self.init_from == "method" and not self.init:
            raise ValueError(
                "init_from is method, but no weights are named; name a run or a checkpoint of "
                "EsViT or DINO: --init FOLDER-OR-FILE."
            )
