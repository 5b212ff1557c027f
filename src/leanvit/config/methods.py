"""The methods' options (torch-free)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from leanvit.config.checks import (
    AT_LEAST_ONE,
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    require,
    require_schedule,
)
from leanvit.config.duration import Duration, Schedule
from leanvit.config.views import (
    CropConfig,
    FineTuneViewsConfig,
    MultiCropConfig,
    TwoViewsConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Projection head: MLP, unit bottleneck, weight-normalised prototypes."""

    prototypes: int = 65_536
    """Number of prototypes K."""
    hidden: int = 2048
    """Width of the two hidden layers."""
    bottleneck: int = 256
    """Width D of the unit rows that meet the prototypes."""
    batch_norm: bool = False
    """Batch normalisation after the hidden layers."""
    train_gain: bool = True
    """Train the prototypes' lengths (the official Swin runs do); otherwise they stay at one."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "prototypes", "hidden", "bottleneck")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """Mixup and CutMix of the student's views; the targets of both losses are mixed alike."""

    views: int = 0
    """How many of the student's views are mixed, counted from the first; 0 switches mixing off."""
    mixup: float = 0.8
    """Alpha of mixup's Beta distribution; 0 leaves CutMix alone."""
    cutmix: float = 1.0
    """Alpha of CutMix's Beta distribution; 0 leaves mixup alone."""
    switch: float = 0.5
    """Probability of CutMix where both are on."""

    def __post_init__(self) -> None:
        require(self, NOT_NEGATIVE, "views", "mixup", "cutmix")
        require(self, SHARE, "switch")
        if self.views and not (self.mixup or self.cutmix):
            raise ValueError("mix.views asks for mixed views, but mix.mixup and mix.cutmix are 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """What every method has."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DinoConfig(MethodConfig):
    """Self-distillation of view features (DINO, arXiv 2104.14294; EsViT's L_V)."""

    kind: ClassVar[str] = "dino"

    views: MultiCropConfig = field(default_factory=MultiCropConfig)
    """Crops and augmentations."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Projection head or heads."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Mixup and CutMix."""
    student_temp: float = 0.1
    """Temperature of the student's distribution."""
    teacher_temp: Schedule = field(
        default_factory=lambda: Schedule(
            start=0.04, peak=0.07, end=0.07, warmup=Duration(10, "%"), shape="linear"
        )
    )
    """Temperature of the teacher's distribution."""
    teacher_momentum: Schedule = field(
        default_factory=lambda: Schedule(start=0.996, peak=0.996, end=1.0)
    )
    """Momentum of the teacher's moving average."""
    targets: Literal["center", "sinkhorn"] = "center"
    """What keeps the teacher from always saying the same: a moving center, or Sinkhorn-Knopp."""
    center_momentum: float = 0.9
    """Momentum of the moving mean of the teacher's logits, the center."""
    sinkhorn_iterations: int = 3
    """Rounds of Sinkhorn-Knopp."""
    koleo: float = 0.0
    """Weight of KoLeo, which spreads features of global crops; harmful where images are alike."""
    token_dropout: float = 0.0
    """Share of the patches of global crops that the student does not see; of plain ViTs alone."""
    freeze_prototypes: Duration = Duration(1, "%")
    """How long the student's prototypes get no update at the start of the run."""
    attention: Literal["auto", "residuals", "chunks", "flash", "by_rows", "triton"] = "auto"
    """How prototype attention is computed: docs/loss.md; chunks run everywhere."""

    def __post_init__(self) -> None:
        require(self, POSITIVE, "student_temp")
        require(self, AT_LEAST_ONE, "sinkhorn_iterations")
        require(self, SHARE, "center_momentum")
        require(self, BELOW_ONE, "token_dropout")
        require(self, NOT_NEGATIVE, "koleo")
        require_schedule(self, POSITIVE, "teacher_temp")
        require_schedule(self, SHARE, "teacher_momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class EsViTConfig(DinoConfig):
    """View and region self-distillation (EsViT, arXiv 2106.09785)."""

    kind: ClassVar[str] = "esvit"

    region_weight: float = 0.5
    """Weight of the region loss; the view loss has the rest."""
    region_start: Duration = Duration(0, "%")
    """When the region loss begins; before that the view loss has the whole weight."""
    matching: Literal["argmax", "transport"] = "argmax"
    """A student region's match: the most similar region, or that of an optimal transport plan."""
    region_loss: Literal["prototypes", "mse"] = "prototypes"
    """What matched regions are compared by: distributions over prototypes, or squared distance."""

    def __post_init__(self) -> None:
        DinoConfig.__post_init__(self)
        if not 0 < self.region_weight < 1:
            raise ValueError(
                f"region_weight lies between 0 and 1, not {self.region_weight}; without a region "
                f"loss the method is called dino."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The light transformer that predicts hidden patches."""

    dim: int = 96
    """Channels; the lightweight paper has half of the encoder's."""
    depth: int = 1
    """Blocks; the first MAE had 8 of 512 channels."""
    heads: int = 3
    """Attention heads."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "dim", "depth", "heads")
        if self.dim % 4 or self.dim % self.heads:
            raise ValueError(
                f"decoder.dim {self.dim} is to be divided by 4 (sine and cosine of row and column) "
                f"and by its {self.heads} heads."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaeConfig(MethodConfig):
    """Masked autoencoder (MAE, arXiv 2111.06377; light decoder of arXiv 2205.14443)."""

    kind: ClassVar[str] = "mae"

    views: CropConfig = field(default_factory=CropConfig)
    """The crop."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """What predicts the hidden patches."""
    normalize: bool = True
    """Predict pixels with mean 0 and deviation 1 in every patch rather than as they are."""

    def __post_init__(self) -> None:
        require(self, SHARE, "mask_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class DmaeConfig(MaeConfig):
    """MAE that also imitates the attention of a teacher (D-MAE, arXiv 2205.14443)."""

    kind: ClassVar[str] = "dmae"

    teacher: str = ""
    """Whose attention is imitated: run, backbone file or official checkpoint; it stays as it is."""
    attention_layers: tuple[int, ...] = (-1,)
    """Blocks of the student, from 0, whose attention logits are compared; -1 is the last."""
    teacher_attention_layers: tuple[int, ...] = ()
    """The teacher's blocks they are compared with; (): the same numbers."""
    attention_weight: float = 1.0
    """Weight of the attention's distance."""
    adapt_heads: bool = True
    """Learn how the teacher's heads are made of the student's; needed if their numbers differ."""
    hidden_layers: tuple[int, ...] = ()
    """Blocks of the student, from 0, whose normed outputs are compared too; -1 is the last."""
    teacher_hidden_layers: tuple[int, ...] = ()
    """The teacher's blocks they are compared with; (): the same numbers."""
    hidden_weight: float = 1.0
    """Weight of the outputs' distance."""

    def __post_init__(self) -> None:
        MaeConfig.__post_init__(self)
        require(self, NOT_NEGATIVE, "attention_weight", "hidden_weight")
        for name in ("attention_layers", "hidden_layers"):
            ours, theirs = getattr(self, name), getattr(self, f"teacher_{name}")
            if theirs and len(ours) != len(theirs):
                raise ValueError(
                    f"{name} {ours} and teacher_{name} {theirs} differ in length; name a block of "
                    f"the teacher for each of the student."
                )
        if not (self.attention_layers or self.hidden_layers):
            raise ValueError("Nothing is distilled: name attention_layers or hidden_layers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class D2maeConfig(DmaeConfig):
    """D-MAE whose reconstruction trains the lower blocks alone (D2-MAE, arXiv 2404.12210)."""

    kind: ClassVar[str] = "d2mae"

    decode_from: int = 8
    """Blocks, from the first, whose output the decoder reads."""

    def __post_init__(self) -> None:
        DmaeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "decode_from")


@dataclass(frozen=True, slots=True, kw_only=True)
class MocoV3Config(MethodConfig):
    """Contrast of two views with a momentum encoder (MoCo-v3, arXiv 2104.02057)."""

    kind: ClassVar[str] = "mocov3"

    views: TwoViewsConfig = field(default_factory=TwoViewsConfig)
    """The two crops and their augmentations."""
    hidden: int = 4096
    """Width of the hidden layers of projector and predictor."""
    output: int = 256
    """Width of queries and keys."""
    temperature: float = 0.2
    """What cosines are divided by."""
    momentum: Schedule = field(default_factory=lambda: Schedule(start=0.99, peak=0.99, end=1.0))
    """Momentum of the moving average that makes the keys."""
    freeze_patch_embed: bool = True
    """Leave the patch embedding as it was drawn, which steadies long runs."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "hidden", "output")
        require(self, POSITIVE, "temperature")
        require_schedule(self, SHARE, "momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimMIMConfig(MethodConfig):
    """Masked image modelling of raw pixels (SimMIM, arXiv 2111.09886)."""

    kind: ClassVar[str] = "simmim"

    views: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.67, 1.0)))
    """The crop."""
    mask_patch: int = 32
    """Side of a hidden square in pixels."""
    mask_ratio: float = 0.6
    """Share of the squares that is hidden."""
    loss: Literal["l1", "l2"] = "l1"
    """Error of hidden pixels: absolute, or squared."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "mask_patch")
        require(self, SHARE, "mask_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedConfig(MethodConfig):
    """Training with classes (DeiT, arXiv 2012.12877)."""

    kind: ClassVar[str] = "supervised"

    views: FineTuneViewsConfig = field(default_factory=FineTuneViewsConfig)
    """The crop and its augmentations."""
    classes: int | Literal["auto"] = "auto"
    """Number of classes; auto: those of the images."""
    mix: MixConfig = field(default_factory=lambda: MixConfig(views=1))
    """Mixup and CutMix; mix.views 0 for neither."""
    smoothing: float = 0.1
    """Label smoothing: share of the target that is spread over all classes."""
    average: float = 0.0
    """Momentum of a moving average of the weights, which is then the result; 0 for none."""
    teacher: str = ""
    """Who is imitated besides: a folder of evaluate finetune, or timm:NAME.TAG; empty: nobody."""
    distillation: Literal["hard", "soft"] = "hard"
    """What of the teacher is imitated: the class that it tells, or its whole distribution."""
    distillation_weight: float = 0.5
    """Weight of the imitation; the classes have the rest."""
    distillation_temperature: float = 1.0
    """Temperature of both distributions where the whole is imitated."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "classes")
        require(self, SHARE, "distillation_weight")
        require(self, POSITIVE, "distillation_temperature")
        require(self, BELOW_ONE, "smoothing", "average")
