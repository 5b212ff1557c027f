"""The options of `leanvit analyze`: what networks learned, in figures and pictures (torch-free)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from leanvit.config.checks import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, require
from leanvit.config.duration import Duration
from leanvit.config.evaluation import ImagesConfig
from leanvit.config.run import Auto


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisConfig(ImagesConfig):
    """What all analyses have in common."""

    images: int = 1024
    """How many images are looked at, drawn once and for all; all of them if there are fewer."""
    untrained: bool = False
    """Also the networks as they were before training."""

    def __post_init__(self) -> None:
        ImagesConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "images")

    @property
    def drawn(self) -> int:
        """How many images are drawn from all."""
        return self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig(AnalysisConfig):
    """Distance, entropy and mutual information of every head's attention, and maps of it."""

    distance: Literal["pixels", "paper"] = "pixels"
    """Pixels between patches, or 14 for a step of any grid, as published (arXiv 2205.14443)."""
    maps: int = 4
    """Images whose attention is drawn; 0 for no picture."""
    block: int = -1
    """The block that is drawn, from 0; -1 is the last."""
    query: tuple[float, float] = (0.5, 0.5)
    """Where the region lies whose attention is drawn: shares of the height and of the width."""

    def __post_init__(self) -> None:
        AnalysisConfig.__post_init__(self)
        require(self, NOT_NEGATIVE, "maps")
        if len(self.query) != 2 or not all(0 <= share <= 1 for share in self.query):
            raise ValueError(
                f"query is {self.query}; expected two shares from 0 to 1, such as 0.5 0.5: how far "
                f"down and how far to the right."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CkaConfig(AnalysisConfig):
    """Similarity of what blocks of two networks say: mini-batch CKA with unbiased HSIC."""

    def __post_init__(self) -> None:
        AnalysisConfig.__post_init__(self)
        if self.batch < 4:
            raise ValueError(
                f"batch is {self.batch}; the unbiased estimator needs at least 4 images at a time."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig(AnalysisConfig):
    """How many dimensions features use, how they are spread, and which prototypes are taken."""

    seed: int = 0
    """Seed of the two views by which alignment is measured."""

    def __post_init__(self) -> None:
        AnalysisConfig.__post_init__(self)
        require(self, NOT_NEGATIVE, "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PcaConfig(AnalysisConfig):
    """The first three components of region features as colors, the same over all images."""

    images: int = 16
    """How many images are shown, drawn once and for all."""
    foreground: bool | Auto = "auto"
    """Leave out the background, by the first component; auto: of 7 x 7 regions or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrespondencePicturesConfig(AnalysisConfig):
    """Pictures of matched regions of two views or of two images, with who is matched back."""

    images: int = 4
    """How many images are shown, or pairs of them, drawn once and for all."""
    pairs: int = 10
    """How many of the most similar pairs of regions are drawn."""
    between: Literal["views", "images"] = "views"
    """Two random views of an image, whose true places are known, or an image and the next one."""

    def __post_init__(self) -> None:
        AnalysisConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "pairs")

    @property
    def drawn(self) -> int:
        """How many images are drawn from all: one of a pair, or two."""
        return self.images if self.between == "views" else 2 * self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalConfig(AnalysisConfig):
    """Nearest neighbours of chosen images."""

    queries: int = 8
    """How many of those images neighbours are looked for."""
    names: tuple[str, ...] = ()
    """Images to ask for by name instead: the end of a name, such as cat/0012.png."""
    neighbors: int = 6
    """How many neighbours are drawn beside each."""

    def __post_init__(self) -> None:
        AnalysisConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "queries", "neighbors")


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthConfig(ImagesConfig):
    """Which blocks matter: a probe of every block, or fine-tunings that keep the first few."""

    study: Literal["probe", "reinit", "both"] = "probe"
    """A probe of each block, fine-tunings whose later blocks begin anew, or both."""
    probe: Literal["linear", "knn"] = "knn"
    """A linear layer on the view feature of each block, or nearest neighbours."""
    untrained: bool = False
    """Also the networks as they were before training."""
    val: str = ""
    """Images to evaluate on; otherwise what lies beside `train`, or a fifth that is held out."""
    keep: tuple[int, ...] = ()
    """How many first blocks keep their trained weights; none: five numbers from none to all."""
    recipe: str = "improved"
    """Settings of the fine-tunings (docs/finetune.md)."""
    duration: Duration | Auto = "auto"
    """Length of a fine-tuning; auto: the recipe's."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the fine-tunings."""

    def __post_init__(self) -> None:
        ImagesConfig.__post_init__(self)
        require(self, NOT_NEGATIVE, "keep", "seeds")
        if not self.seeds:
            raise ValueError("seeds is (); expected at least one seed.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig(AnalysisConfig):
    """One page that opens from disk: curves, tables, galleries, and matches to explore."""

    images: int = 256
    """How many images the figures are of, drawn once and for all."""
    untrained: bool = True
    """Also the networks as they were before training."""
    gallery: int = 8
    """How many images are shown."""
    pairs: int = 4
    """How many pairs of images can be explored."""
    megabytes: float = 12.0
    """The page leaves attention out of what can be explored rather than be larger than this."""

    def __post_init__(self) -> None:
        AnalysisConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "gallery", "pairs")
        require(self, POSITIVE, "megabytes")


AnyAnalysis = AnalysisConfig | DepthConfig

ANALYSIS_CONFIGS: Mapping[str, type[AnyAnalysis]] = MappingProxyType(
    {
        "attention": AttentionConfig,
        "cka": CkaConfig,
        "layers": DepthConfig,
        "rank": RankConfig,
        "pca": PcaConfig,
        "correspondence": CorrespondencePicturesConfig,
        "retrieval": RetrievalConfig,
        "report": ReportConfig,
    }
)
"""Every analysis and its options."""
