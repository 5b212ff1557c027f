"""The options of everything that is done with a finished backbone (torch-free)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from leanvit.config.checks import (
    AT_LEAST_ONE,
    BELOW_ONE,
    NOT_NEGATIVE,
    PERCENT,
    POSITIVE,
    require,
)
from leanvit.config.dense import DenseConfig, DetectConfig, SegmentConfig
from leanvit.config.duration import Duration
from leanvit.config.names import unknown_name
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
        require(self, NOT_NEGATIVE, "workers")
        require(self, PERCENT, "max_unreadable")
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
class EvaluationConfig(ImagesConfig):
    """What all evaluations have in common."""

    results: str = ""
    """File that the result is added to, a line of JSON; results.jsonl in the folder of a run."""
    keep_features: bool = True
    """Keep frozen features in the user's cache, and use those that are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesConfig(EvaluationConfig):
    """What evaluations on classes have in common."""

    val: str = ""
    """Images to evaluate on; otherwise what lies beside `train`, or a fifth that is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig(ClassesConfig):
    """What evaluations of frozen features have in common."""

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
    leave_one_out: bool = False
    """Test every image of `data` on all the others, instead of on images set aside."""

    def __post_init__(self) -> None:
        ProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "k")
        require(self, POSITIVE, "temperature")
        if not self.k:
            raise ValueError("k is (); expected at least one number of neighbours.")
        if self.leave_one_out and self.val:
            raise ValueError(
                "leave_one_out tests the images of data on each other, so val has no part in it; "
                "leave one of the two out."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProbeConfig(ProbeConfig):
    """How a linear layer is trained on frozen features."""

    rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Learning rates for 256 images, all tried in one pass."""
    epochs: int = 100
    """Passes over the training images."""
    probe_batch: int = 1024
    """Images in a step of the probe, at most a quarter of them all."""
    held_out: float = 0.1
    """Share of the training images that chooses, such as the learning rate."""
    seed: int = 0
    """Seed of the probe's weights, of the order and of the crops."""
    baselines: bool = False
    """Also what needs no training: raw pixels, a color histogram, the network as it began."""

    def __post_init__(self) -> None:
        ProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "epochs", "probe_batch")
        require(self, POSITIVE, "rates", "held_out")
        require(self, NOT_NEGATIVE, "seed")
        if not self.rates:
            raise ValueError("rates is (); expected at least one learning rate.")
        if self.held_out >= 1:
            raise ValueError(f"held_out is a share below 1, not {self.held_out}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig(LinearProbeConfig):
    """Linear probe of frozen features."""

    solver: Literal["sgd", "lbfgs"] = "sgd"
    """SGD at all learning rates, or regularised logistic regression (L-BFGS), as for CLIP."""
    blocks: tuple[int, ...] = (4,)
    """How many of the last blocks give features side by side; of several numbers, the best."""
    pooling: tuple[Literal["view", "mean", "both"], ...] = ("view",)
    """A block's view feature, the mean of its regions, or both; of several, the best."""
    augment: bool = False
    """Random crops and flips in every epoch, as in the papers; otherwise features are kept."""

    def __post_init__(self) -> None:
        LinearProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "blocks")
        if not self.blocks or not self.pooling:
            empty = "pooling" if self.blocks else "blocks"
            raise ValueError(f"{empty} is (); expected at least one.")
        if self.augment and self.solver == "lbfgs":
            raise ValueError(
                "solver lbfgs needs all features at once, and augment makes others in every epoch; "
                "leave one of the two out."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersConfig(LinearProbeConfig):
    """A probe of every block by itself: which layers know the classes."""

    probe: Literal["linear", "knn"] = "linear"
    """A linear layer on the view feature of each block, or nearest neighbours."""
    k: int = 20
    """Number of neighbours."""

    def __post_init__(self) -> None:
        LinearProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "k")


SHOTS = re.compile(r"[1-9]\d*|(\d+(\.\d+)?|\.\d+)%")
"""Images of each class, such as 5, or a share of them, such as 1%."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowshotConfig(LinearProbeConfig):
    """Classification that learns from few images: several draws, mean and deviation."""

    shots: tuple[str, ...] = ("1%", "10%")
    """How many images of each class are learned from: a share, such as 1%, or a number."""
    repeats: int = 5
    """Draws of such images; each is a result of its own."""
    probe: Literal["knn", "linear", "lbfgs", "finetune"] = "lbfgs"
    """What learns: neighbours, SGD, regularised logistic regression, or all weights."""
    blocks: int = 1
    """How many of the last blocks give their view features side by side."""
    held_out: float = 0.2
    """Share of the drawn images that chooses rate or strength; all are learned from after that."""
    k: tuple[int, ...] = (1, 5, 20, 100)
    """Numbers of neighbours, of which leave-one-out chooses."""
    temperature: float = 0.07
    """A neighbour's vote is exp(cosine similarity / temperature)."""
    recipe: str = "improved"
    """Settings of fine-tuning (docs/finetune.md)."""
    duration: Duration | Auto = "auto"
    """Length of a fine-tuning; auto: the recipe's."""

    def __post_init__(self) -> None:
        LinearProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "repeats", "blocks", "k")
        require(self, POSITIVE, "temperature")
        if not self.k:
            raise ValueError("k is (); expected at least one number of neighbours.")
        if not self.shots:
            raise ValueError("shots is (); expected at least one, such as 5 or 1%.")
        for word in self.shots:
            share = float(word[:-1]) if SHOTS.fullmatch(word) and word[-1] == "%" else 1
            if not SHOTS.fullmatch(word) or not 0 < share <= 100:
                raise ValueError(
                    f"shots {word!r}: write the images of each class, such as 5, or a share of "
                    f"them above 0 and up to 100, such as 1%."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig(ClassesConfig):
    """Fine-tuning of all weights; the last epoch is what counts (arXiv 2205.14443)."""

    recipe: str = "improved"
    """Settings: improved, deit, transfer, or a published training by name (docs/finetune.md)."""
    duration: Duration | Auto = "auto"
    """Length of the training; auto: the recipe's."""
    train_batch: int | Auto = "auto"
    """Images in a step; auto: the recipe's, but at most an eighth of them all."""
    accumulate: int = 1
    """Micro-batches that a step is split into, to save memory."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network while it trains."""
    optimizer: Literal["auto", "adamw", "sgd"] = "auto"
    """AdamW, or SGD with Nesterov momentum; auto: the recipe's."""
    lr: float | Auto = "auto"
    """Highest learning rate, for 256 images in a step; auto: the recipe's."""
    warmup: Duration | Auto = "auto"
    """Length of the warm-up; auto: the recipe's share of the training."""
    layer_decay: float | Auto = "auto"
    """Factor of the learning rate from each block to the one before it; auto: the recipe's."""
    weight_decay: float | Auto = "auto"
    """Weight decay of matrices; auto: the recipe's."""
    clip: float | Auto = "auto"
    """Largest norm of all gradients together, 0 for any; auto: the recipe's."""
    randaugment: float | Auto = "auto"
    """Magnitude of RandAugment, 0 to 10; auto: the recipe's."""
    erase: float | Auto = "auto"
    """Probability that a box of the image becomes noise; auto: the recipe's."""
    mixup: float | Auto = "auto"
    """Alpha of mixup's Beta distribution, 0 for none; auto: the recipe's."""
    cutmix: float | Auto = "auto"
    """Alpha of CutMix's Beta distribution, 0 for none; auto: the recipe's."""
    smoothing: float | Auto = "auto"
    """Share of the target that is spread over all classes; auto: the recipe's."""
    drop_path: float | Auto = "auto"
    """Stochastic depth of the last block; auto: the recipe's."""
    repeats: int = 1
    """Places of a step that an image takes, each with its own view (repeated augmentation)."""
    average: float = 0.0
    """Momentum of a moving average of the weights, which gets a row of its own; 0 for none."""
    teacher: str = ""
    """Who is imitated besides: a folder of evaluate finetune, or timm:NAME.TAG; empty: nobody."""
    distillation: Literal["hard", "soft"] = "hard"
    """What of the teacher is imitated: the class that it tells, or its whole distribution."""
    distillation_weight: float = 0.5
    """Weight of the imitation; the classes have the rest."""
    distillation_temperature: float = 1.0
    """Temperature of both distributions where the whole is imitated."""
    position_bias: bool | Auto = "auto"
    """Add a relative position bias to a plain ViT, zeros at first; auto: as the recipe does."""
    keep_blocks: int | Auto = "auto"
    """Begin with so many trained blocks, from the first, and draw the later anew; auto: all."""
    untrained: bool = False
    """Also train the same network from scratch."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of head, order, views and mixing; every one is a training of its own."""
    every: Duration = Duration(10, "%")
    """How often the images to evaluate on are looked at, for the curve."""
    out: str = ""
    """Folder for the trained network, its head, the curve and checkpoints; empty for none."""
    resume: bool = False
    """Continue what was cut off in `out`."""

    def __post_init__(self) -> None:
        ImagesConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "train_batch", "accumulate", "repeats")
        require(self, NOT_NEGATIVE, "keep_blocks", "seeds")
        require(self, POSITIVE, "lr")
        require(self, BELOW_ONE, "average")
        if not self.seeds:
            raise ValueError("seeds is (); expected at least one seed.")
        if self.out and (self.untrained or len(self.seeds) > 1):
            raise ValueError(
                "out holds one training: leave untrained out and name one seed, or write several "
                "folders by several commands."
            )
        if self.resume and not self.out:
            raise ValueError("resume continues a training in a folder; name it: --out FOLDER.")


STEREO = "stereo"
"""The name of the two pictures with a disparity map that come with the extra `sample`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrespondenceConfig(EvaluationConfig):
    """Regions of an image found again in another view of it (EsViT), or in a stereo pair."""

    pairs: int = 10
    """How many of the most similar pairs count."""
    baselines: bool = True
    """Also what chance finds and the network before training."""
    seed: int = 0
    """Seed of the second view's colors."""

    def __post_init__(self) -> None:
        EvaluationConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "pairs")
        require(self, NOT_NEGATIVE, "seed")


COMMON_CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""What the mean corruption accuracy is a mean over: noise, blur, weather, digital."""
CORRUPTIONS = (*COMMON_CORRUPTIONS, "speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Those, and the four that the authors set aside to choose hyper-parameters on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustConfig(LinearProbeConfig):
    """Accuracy under the common corruptions of what learned from clean images (ImageNet-C)."""

    probe: Literal["knn", "linear"] = "knn"
    """Nearest neighbours, or a linear layer on the view feature."""
    k: int = 20
    """Number of neighbours."""
    corruptions: tuple[str, ...] = COMMON_CORRUPTIONS
    """What is done to the images to test on: the common fifteen, or others by name."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """How badly, from 1 to 5."""
    corruption_seed: int = 0
    """Seed of the corruptions' noise."""
    baselines: bool = True
    """Also the network before training."""

    def __post_init__(self) -> None:
        LinearProbeConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "k")
        require(self, NOT_NEGATIVE, "corruption_seed")
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise unknown_name("corruption", name, CORRUPTIONS)
        if not self.corruptions or len({*self.corruptions}) < len(self.corruptions):
            raise ValueError("corruptions names at least one corruption, and each once.")
        if not self.severities or not {*self.severities} <= {1, 2, 3, 4, 5}:
            raise ValueError(f"severities is {self.severities}; expected some of 1, 2, 3, 4, 5.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig(EvaluationConfig):
    """Transfer to 24 data sets, each by its own metric, beside the figures of EsViT's paper."""

    sets: tuple[str, ...] = ()
    """Data sets by name (docs/transfer.md); none for all that lie below the folder `data`."""
    probe: Literal["logistic", "elevater", "finetune"] = "logistic"
    """CLIP's logistic regression, ELEVATER's linear layer, or training of all weights."""
    rates: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """Learning rates that elevater tries, each with its own search for the weight decay."""
    trial_epochs: int = 10
    """Passes of elevater over the images to learn from, for each choice that is tried."""
    epochs: int = 50
    """Passes of elevater over all images to learn from, with what was chosen."""
    duration: Duration | Auto = "auto"
    """Length of a fine-tuning; auto: the recipe's."""
    lr: tuple[float, ...] = ()
    """Learning rates that finetune chooses from, for 256 images in a step; none: the recipe's."""
    seed: int = 0
    """Seed of the order, of a new layer's weights and of fine-tuning's crops."""

    def __post_init__(self) -> None:
        EvaluationConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "trial_epochs", "epochs")
        require(self, POSITIVE, "rates", "lr")
        require(self, NOT_NEGATIVE, "seed")
        if not self.rates:
            raise ValueError("rates is (); expected at least one learning rate.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What was found of several backbones, side by side, with their size and their speed."""

    batch: int = 16
    """Images at a time while the speed is measured."""
    rounds: int = 5
    """How often every backbone is timed, in turns; 0 for no speed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the speed is measured."""

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "batch")
        require(self, NOT_NEGATIVE, "rounds")


EVALUATION_CONFIGS: Mapping[str, type[EvaluationConfig | DenseConfig]] = MappingProxyType(
    {
        "correspondence": CorrespondenceConfig,
        "detect": DetectConfig,
        "finetune": FinetuneConfig,
        "knn": KnnConfig,
        "layers": LayersConfig,
        "linear": LinearConfig,
        "lowshot": LowshotConfig,
        "robust": RobustConfig,
        "segment": SegmentConfig,
        "transfer": TransferConfig,
    }
)
"""Every evaluation and its options."""
