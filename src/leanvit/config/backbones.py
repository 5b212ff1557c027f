"""The backbones' options and their catalogue of named sizes (torch-free)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from leanvit.config.checks import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, POSITIVE, require
from leanvit.config.names import unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """What every backbone has; a family adds its own options."""

    kind: ClassVar[str]
    batch_norm: ClassVar[bool] = False
    """Whether the images of a batch share statistics, so that a step cannot be split."""

    image_size: int = 224
    """Side of the image, in pixels, that sizes what depends on a nominal input."""
    patch: int = 16
    """Side of a patch in pixels."""
    drop_path: float = 0.1
    """Stochastic depth of the last block of the student; grows linearly from 0 over the blocks."""

    @property
    def width(self) -> int:
        """Channels of the features; 0 where only the network knows."""
        return 0

    def __post_init__(self) -> None:
        require(self, AT_LEAST_ONE, "patch")
        require(self, BELOW_ONE, "drop_path")
        if self.image_size < self.patch:
            raise ValueError(
                f"image_size {self.image_size} is smaller than one patch of {self.patch} pixels."
            )


def _require_heads(dims: Sequence[int], heads: Sequence[int]) -> None:
    """Check that the heads of every stage divide its channels."""
    for stage, (dim, count) in enumerate(zip(dims, heads, strict=True), start=1):
        if dim % count:
            raise ValueError(
                f"Stage {stage} has {dim} channels, which {count} heads do not divide."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinConfig(BackboneConfig):
    """Swin transformer as in EsViT: pads, then rolls; mean of the final tokens as view feature."""

    kind: ClassVar[str] = "swin"

    patch: int = 4
    """Side of a patch in pixels."""
    dim: int = 96
    """Channels of the first stage; every later stage doubles them."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks per stage."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads per stage."""
    window: int = 7
    """Side of an attention window in tokens; clamped to the stage's map at `image_size`."""
    skip_padding: bool = False
    """Tokens do not see the padding of their windows: another function than EsViT's."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over its input width."""
    norm_eps: float = 1e-6
    """What norms add to the variance: 1e-6 in EsViT, 1e-5 in other libraries' Swins."""

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.dim * 2 ** (len(self.depths) - 1)

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "dim", "depths", "heads", "window")
        require(self, POSITIVE, "mlp_ratio", "norm_eps")
        if not self.depths:
            raise ValueError("depths is (); expected the number of blocks of at least one stage.")
        if len(self.depths) != len(self.heads):
            raise ValueError(f"depths {self.depths} and heads {self.heads} differ in length.")
        _require_heads([self.dim * 2**stage for stage in range(len(self.heads))], self.heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class CvTConfig(BackboneConfig):
    """CvT as in EsViT: convolutional embeddings and projections, attention within windows."""

    kind: ClassVar[str] = "cvt"
    batch_norm: ClassVar[bool] = True

    patch: int = 4
    """Stride of the first embedding in pixels; it sees 2 * patch - 1 of them a side."""
    dims: tuple[int, ...] = (64, 192, 384, 768)
    """Channels per stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks per stage."""
    heads: tuple[int, ...] = (1, 3, 6, 12)
    """Attention heads per stage."""
    window: int = 7
    """Side of an attention window in tokens; a smaller map is one window."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over its input width."""
    position_bias: bool = False
    """Add a learned bias for every relative position in a window, as in Swin."""

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.dims[-1]

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "dims", "depths", "heads", "window")
        require(self, POSITIVE, "mlp_ratio")
        if not self.depths:
            raise ValueError("depths is (); expected the number of blocks of at least one stage.")
        if not len(self.dims) == len(self.depths) == len(self.heads):
            raise ValueError(
                f"dims {self.dims}, depths {self.depths} and heads {self.heads} differ in length."
            )
        _require_heads(self.dims, self.heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig(BackboneConfig):
    """Plain vision transformer with a class token."""

    kind: ClassVar[str] = "vit"

    dim: int = 384
    """Channels."""
    depth: int = 12
    """Blocks."""
    heads: int = 6
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over its input width."""
    pool: Literal["class", "mean", "mean_norm"] = "class"
    """View feature: class token, mean of the normed patches, or norm of the mean (fine-tuned)."""
    registers: int = 0
    """Further tokens after the class token that lie nowhere, for what belongs to no patch."""
    layer_scale: float = 0.0
    """First value of a trained factor for every channel of both branches; 0: no factors."""
    positions: Literal["learned", "sincos"] = "learned"
    """What is added to tokens for where they lie: trained, or sines and cosines that stay."""
    position_bias: bool = False
    """Whether every block adds a trained bias to attention for each relative position."""
    norm_eps: float = 1e-6
    """What norms add to the variance."""

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.dim

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "dim", "depth", "heads")
        require(self, POSITIVE, "mlp_ratio", "norm_eps")
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {self.dim} channels.")
        require(self, NOT_NEGATIVE, "registers", "layer_scale")
        if self.positions == "sincos" and self.dim % 4:
            raise ValueError(
                f"positions sincos needs channels in fours (sine and cosine of row and column), "
                f"not {self.dim}; change dim, or take learned positions."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViLConfig(BackboneConfig):
    """Vision Longformer as in EsViT: sliding chunks in early stages, full attention in later ones.

    Of the named sizes only vil_2262 was published.
    """

    kind: ClassVar[str] = "vil"

    patch: int = 4
    """Side of a patch of the first stage in pixels; later stages embed 2 x 2 tokens."""
    dims: tuple[int, ...] = (96, 192, 384, 768)
    """Channels per stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks per stage."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads per stage."""
    global_tokens: tuple[int, ...] = (1, 1, 1, 0)
    """Global tokens per stage; a sparse stage needs at least one."""
    sparse_stages: int = 2
    """Stages, from the first, that attend sparsely; the others attend to all tokens."""
    window: int = 7
    """Side in tokens of the chunks of sparse stages."""
    neighbors: Literal["all", "one"] = "all"
    """Which neighbours a chunk sees in training: all eight, or one that every step draws anew."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over its input width."""

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.dims[-1]

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        require(self, AT_LEAST_ONE, "dims", "depths", "heads", "window")
        require(self, NOT_NEGATIVE, "global_tokens", "sparse_stages")
        require(self, POSITIVE, "mlp_ratio")
        stages = len(self.dims)
        if not stages:
            raise ValueError("dims is (); expected the channels of at least one stage.")
        for name in ("depths", "heads", "global_tokens"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"dims {self.dims} and {name} {getattr(self, name)} differ in length."
                )
        if self.sparse_stages > stages:
            raise ValueError(f"sparse_stages is {self.sparse_stages}; there are {stages} stages.")
        _require_heads(self.dims, self.heads)
        if 0 in self.global_tokens[: self.sparse_stages]:
            raise ValueError(
                f"global_tokens {self.global_tokens} leaves a sparse stage without one; expected "
                f"at least 1 in each of the first {self.sparse_stages}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmConfig(BackboneConfig):
    """Any image network of timm."""

    kind: ClassVar[str] = "timm"
    patch: ClassVar[int] = 1  # type: ignore[misc]  # it is in the name, so it is no option here

    name: str
    """Name of the network in timm."""
    drop_path: float = 0.0
    """Stochastic depth of the student, for networks that have it; grows as in timm."""

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        if not self.name:
            raise ValueError("name is empty; expected a network of timm, such as convnext_atto.")


_DEEP = (2, 2, 18, 2)
_SWIN_TINY = SwinConfig()
_SWIN_SMALL = SwinConfig(depths=_DEEP, drop_path=0.2)
_SWIN_BASE = SwinConfig(dim=128, depths=_DEEP, heads=(4, 8, 16, 32), drop_path=0.2)
_SWIN_LARGE = SwinConfig(dim=192, depths=_DEEP, heads=(6, 12, 24, 48), drop_path=0.2)


def _window14(config: SwinConfig) -> SwinConfig:
    return SwinConfig(
        dim=config.dim,
        depths=config.depths,
        heads=config.heads,
        drop_path=config.drop_path,
        window=14,
    )


BACKBONES: Mapping[str, BackboneConfig] = MappingProxyType(
    {
        "resnet50": TimmConfig(name="resnet50"),
        "swin_nano": SwinConfig(
            image_size=96, patch=6, dim=32, depths=(2, 2, 2), heads=(2, 4, 8), window=4
        ),
        "swin_tiny": _SWIN_TINY,
        "swin_small": _SWIN_SMALL,
        "swin_base": _SWIN_BASE,
        "swin_large": _SWIN_LARGE,
        "swin_tiny_w14": _window14(_SWIN_TINY),
        "swin_small_w14": _window14(_SWIN_SMALL),
        "swin_base_w14": _window14(_SWIN_BASE),
        "swin_large_w14": _window14(_SWIN_LARGE),
        "cvt_tiny": CvTConfig(),
        "cvt_small": CvTConfig(
            dims=(64, 128, 256, 512), depths=(2, 2, 10, 4), heads=(2, 4, 8, 16), drop_path=0.2
        ),
        "vil_1281": ViLConfig(depths=(1, 2, 8, 1)),
        "vil_2262": ViLConfig(),
        "vil_14121": ViLConfig(depths=(1, 4, 12, 1)),
        "vit_tiny": ViTConfig(dim=192, heads=3),
        "vit_small": ViTConfig(),
        "vit_base": ViTConfig(dim=768, heads=12),
        "vit_large": ViTConfig(dim=1024, depth=24, heads=16),
        "vit_small_p8": ViTConfig(patch=8),
        "vit_base_p8": ViTConfig(patch=8, dim=768, heads=12),
        "vit_small_p14": ViTConfig(patch=14),
        "vit_base_p14": ViTConfig(patch=14, dim=768, heads=12),
        "vit_large_p14": ViTConfig(patch=14, dim=1024, depth=24, heads=16),
        "vit_tiny_h12": ViTConfig(dim=192, heads=12),
        "vit_tiny_h12_rpe": ViTConfig(dim=192, heads=12, position_bias=True),
        "vit_small_h12": ViTConfig(heads=12),
    }
)

TIMM = "timm:"
"""What stands before the name of a network of timm."""


def named_backbone(name: str, what: str = "backbone") -> BackboneConfig:
    """Return the configuration of a backbone's name, or of `timm:NAME`.

    Whether timm has that network shows when it is built. Raises ValueError for an unknown name,
    which is called an unknown `what`.
    """
    if name.startswith(TIMM):
        return TimmConfig(name=name.removeprefix(TIMM))
    if name not in BACKBONES:
        raise unknown_name(what, name, [*BACKBONES, f"{TIMM}NAME"])
    return BACKBONES[name]
