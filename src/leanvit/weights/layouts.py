"""Where the codes that people use keep a network in their checkpoints, and what is beside it.

A name here is flat: keys of nested dictionaries joined with dots, without the wrappers of parallel
training. A *place* is what stands before the network's own names, such as `teacher.`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from leanvit.weights.names import NAMINGS


@dataclass(frozen=True, slots=True)
class Sign:
    """What tells a layout from others."""

    namings: str
    """Pattern of the keys of `NAMINGS`."""
    place: str = ".*"
    """Pattern of the place."""
    names: tuple[str, ...] = ()
    """Patterns; for each of them the file has a name that ends so."""


_AS_TIMM = MappingProxyType({192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24})
_TWELVE = MappingProxyType({192: 12, 384: 12, 768: 12, 1024: 16, 1280: 16})


@dataclass(frozen=True, slots=True)
class Layout:
    """How one code lays out its checkpoints."""

    what: str
    """In a few words."""
    signs: tuple[Sign, ...]
    """Any of them is enough."""
    heads: Mapping[int, int] = field(default_factory=lambda: _AS_TIMM)
    """Channels of a plain ViT -> its heads, which leave no trace in weights."""
    norm_eps: Mapping[str, float] = field(default_factory=dict)
    """Our family, or a naming -> what norms add to the variance, where it is not 1e-6."""
    writes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Our family -> the naming and the place of a file that we write, with its wrappers."""


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "swin": Layout(
            "supervised Swin of its authors",
            (Sign("swin", names=("attn_mask",)), Sign("swin", r"model\.")),
            norm_eps={"swin": 1e-5},
            writes={"swin": ("swin", "model.")},
        ),
        "esvit": Layout(
            "EsViT: Swin, CvT, Vision Longformer, ViT, ResNet-50",
            (
                Sign("swin|vit", r"(teacher|student)\."),
                Sign("resnet", r"(teacher|student)\.backbone\.backbone\."),
                Sign("cvt|vil|swin"),
            ),
            writes={
                "swin": ("swin", "teacher."),
                "cvt": ("cvt", "teacher.module."),
                "vil": ("vil", "teacher."),
                "vit": ("vit", "teacher."),
                "timm": ("resnet", "teacher.module.backbone.backbone."),
            },
        ),
        "dinov2": Layout(
            "DINOv2, with and without registers",
            (Sign("vit|vit chunked", names=("mask_token", r"ls1\.gamma")),),
            writes={"vit": ("vit", "")},
        ),
        "dino": Layout(
            "DINO: ViT, ResNet-50",
            (Sign("vit|resnet", r"(teacher|student)\.backbone\."),),
            writes={"vit": ("vit", "teacher.backbone."), "timm": ("resnet", "teacher.backbone.")},
        ),
        "mae_lite": Layout(
            "MAE-Lite: MAE, D-MAE, D2-MAE, MoCo-v3 and fine-tuned networks of 12 heads",
            (
                Sign("vit", r"(.*\.)?model\.model\."),
                Sign("vit", r"(.*\.)?tch_model\."),
                Sign("vit", r"model\.(base|momentum)_encoder\."),
            ),
            heads=_TWELVE,
            writes={"vit": ("vit", "model.module.model.")},
        ),
        "moco_v3": Layout(
            "MoCo-v3: ViT of 12 heads, ResNet-50",
            (Sign("vit|resnet", r"(.*\.)?(base|momentum)_encoder\."),),
            heads=_TWELVE,
            writes={
                "vit": ("vit", "state_dict.module.base_encoder."),
                "timm": ("resnet", "state_dict.module.base_encoder."),
            },
        ),
        "mae": Layout(
            "MAE, with its decoder",
            (Sign("vit", names=(r"decoder_embed\.weight",)),),
            heads={768: 12, 1024: 16, 1280: 16},  # lighter ones have 12 here and 3 or 6 there
            writes={"vit": ("vit", "model.")},
        ),
        "deit": Layout(
            "DeiT, distilled or not, and fine-tuned MAE",
            (Sign("vit", r"model\."), Sign("vit", names=("dist_token",))),
            writes={"vit": ("vit", "model.")},
        ),
        "timm": Layout(
            "timm: ViT, Swin, ResNet; any of its networks where its name is known",
            (Sign("vit|swin timm|resnet"),),
            norm_eps={"swin": 1e-5},
            writes={"vit": ("vit", ""), "swin": ("swin timm", ""), "timm": ("timm", "")},
        ),
        "torchvision": Layout(
            "torchvision: ViT, Swin, ResNet-50",
            (Sign("vit torchvision|swin torchvision|resnet"),),
            norm_eps={"swin": 1e-5},
            writes={
                "vit": ("vit torchvision", ""),
                "swin": ("swin torchvision", ""),
                "timm": ("resnet", ""),
            },
        ),
        "huggingface": Layout(
            "Hugging Face: ViT, ViT-MAE, DeiT, DINOv2, Swin, ResNet-50",
            (Sign(".* (huggingface|transformers)"),),
            norm_eps={"swin": 1e-5, "vit": 1e-12, "dinov2 huggingface": 1e-6},
            writes={
                "vit": ("dinov2 huggingface", ""),
                "swin": ("swin huggingface", ""),
                "timm": ("resnet huggingface", ""),
            },
        ),
    }
)
"""In the order in which they are looked for: what is more particular comes first."""

AFTER = ("student", "state_dict", "model", "momentum_encoder", "tch_model")
"""Words of places, from the better to the worse; without any of them a place is best."""

DROPPED = (
    (r"(relative_position_index|attn_mask)", "follows from the configuration"),
    (r"(embeddings\.)?mask_token", "token of hidden patches"),
    (r"decoder\w*(\..*)?", "decoder"),
    (r"head_dense\..*", "region head"),
    (r"(dino_|ibot_|projection_)?head\..*", "head"),
    (r"(heads|head_dist|dist_norm|fc|classifier|pooler|predictor)\..*", "head"),
    (r"\w*_classifier\..*", "head"),
)
"""Patterns of names within a network's place, after any dot, and what they are."""


@dataclass(frozen=True, slots=True)
class Part:
    """A network in a file."""

    place: str
    naming: str
    """Key of `NAMINGS`."""

    @property
    def rank(self) -> int:
        """How late it comes among others of the same file."""
        return max((AFTER.index(w) + 1 for w in self.place.split(".") if w in AFTER), default=0)


def parts_of(names: Iterable[str]) -> list[Part]:
    """Return the networks that a file holds, the usual one first."""
    names, found = list(names), dict[str, Part]()
    for naming, how in NAMINGS.items():
        for place in how.found_under(names) if how.markers else ():
            found.setdefault(place, Part(place, naming))
    return sorted(found.values(), key=lambda part: part.rank)


def layouts_of(part: Part, names: Sequence[str]) -> list[str]:
    """Return the layouts that a part of a file fits, the likeliest first."""

    def fits(sign: Sign) -> bool:
        return (
            re.fullmatch(sign.namings, part.naming) is not None
            and re.fullmatch(sign.place, part.place) is not None
            and all(any(re.search(rf"(^|\.){p}$", name) for name in names) for p in sign.names)
        )

    return [name for name, layout in LAYOUTS.items() if any(map(fits, layout.signs))]


def reason_to_drop(name: str) -> str:
    """Return what a name within a network's place is, if it is no part of a backbone."""
    for pattern, reason in DROPPED:
        if re.fullmatch(rf"(.*\.)?{pattern}" if "index" in pattern else pattern, name):
            return reason
    return ""
