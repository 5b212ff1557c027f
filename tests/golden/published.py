"""The configurations that golden files mean, by name and by the shapes of the weights."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from leanvit.config import BACKBONES, BackboneConfig, CvTConfig, SwinConfig, ViLConfig
from leanvit.weights.shapes import cvt_config, swin_config, vil_config
from leanvit.weights.whole import from_official, strip

Golden = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Family:
    """How a family is read from a golden file."""

    published: Callable[[Golden], BackboneConfig]
    """From the name of a YAML file and its overrides."""
    sizes: Callable[..., BackboneConfig]
    """From the shapes of the parameters under our names, and from what is untraced."""
    untraced: tuple[str, ...] = ()
    """Options that leave no trace in the weights."""


SWIN_OPTIONS = {
    "MODEL.SPEC.DIM_EMBED": "dim",
    "MODEL.SPEC.DEPTHS": "depths",
    "MODEL.SPEC.NUM_HEADS": "heads",
    "MODEL.SPEC.WINDOW_SIZE": "window",
    "MODEL.SPEC.PATCH_SIZE": "patch",
    "MODEL.SPEC.MLP_RATIO": "mlp_ratio",
    "MODEL.SPEC.DROP_PATH_RATE": "drop_path",
}


def options(golden: Golden, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the overrides under our names; lists become tuples."""
    words = golden["options"]
    changes: dict[str, Any] = {}
    for key, value in zip(words[::2], words[1::2], strict=True):
        value = json.loads(value)
        changes[names[key]] = tuple(value) if isinstance(value, list) else value
    return changes


def published_swin(golden: Golden) -> SwinConfig:
    """Return the Swin that a YAML name and its overrides mean."""
    found = re.search(r"swin_(\w+?)_patch4_window(\d+)_224", golden["yaml"])
    assert found, golden["yaml"]
    base = BACKBONES[f"swin_{found[1]}" + ("_w14" if found[2] == "14" else "")]
    assert isinstance(base, SwinConfig)
    return replace(base, **options(golden, SWIN_OPTIONS))


CVT_NAMES = {"s1": "cvt_tiny", "s3": "cvt_small"}
CVT_OPTIONS = {
    "MODEL.SPEC.DIM_EMBED": "dims",
    "MODEL.SPEC.DEPTH": "depths",
    "MODEL.SPEC.NUM_HEADS": "heads",
    "MODEL.SPEC.DROP_PATH_RATE": "drop_path",
}


def published_cvt(golden: Golden) -> CvTConfig:
    """Return the CvT that a YAML name and its overrides mean."""
    found = re.search(r"cvt_v4/(\w+)\.yaml", golden["yaml"])
    assert found, golden["yaml"]
    base = BACKBONES[CVT_NAMES[found[1]]]
    assert isinstance(base, CvTConfig)
    return replace(base, **options(golden, CVT_OPTIONS))


VIL_STAGE = re.compile(
    r"l(?P<stage>\d+),h(?P<heads>\d+),d(?P<dims>\d+),n(?P<depths>\d+),s(?P<sparse>[01]),"
    r"g(?P<global_tokens>\d+),p(?P<patch>\d+),f(?P<window>\d+),a0"
)
"""A stage of the official ARCH string; a0: relative positions."""


def published_vil(golden: Golden) -> ViLConfig:
    """Return the Vision Longformer that a YAML name and its overrides mean."""
    assert golden["yaml"].endswith("vil_small/base.yaml"), golden["yaml"]
    words = dict(zip(golden["options"][::2], golden["options"][1::2], strict=True))
    base = BACKBONES["vil_2262"]
    assert isinstance(base, ViLConfig)
    arch = words.pop("MODEL.SPEC.MSVIT.ARCH", None)
    if arch is not None:
        found = [VIL_STAGE.fullmatch(stage) for stage in arch.split("_")]
        stages = [{k: int(v) for k, v in stage.groupdict().items()} for stage in found if stage]
        assert len(stages) == len(found), arch
        assert all(stage["patch"] == 2 for stage in stages[1:]), arch
        lists = ("heads", "dims", "depths", "global_tokens")
        changes: dict[str, Any] = {
            **{name: tuple(stage[name] for stage in stages) for name in lists},
            "sparse_stages": sum(stage["sparse"] for stage in stages),
            "patch": stages[0]["patch"],
            "window": stages[0]["window"],
        }
        base = replace(base, **changes)
    one = words.pop("MODEL.SPEC.MSVIT.MODE", "0") == "1"
    drop_path = json.loads(words.pop("MODEL.SPEC.DROP_PATH", str(base.drop_path)))
    assert not words, words
    return replace(base, neighbors="one" if one else "all", drop_path=drop_path)


PUBLISHED: Mapping[str, Family] = {
    "cvt": Family(published_cvt, cvt_config, untraced=("heads",)),
    "swin": Family(published_swin, swin_config),
    "vil": Family(published_vil, vil_config),
}
"""By the first word of `arch`."""


def published(golden: Golden) -> BackboneConfig:
    """Return the configuration that the file names."""
    return PUBLISHED[golden["arch"].split("_")[0]].published(golden)


def sizes_of(golden: Golden) -> BackboneConfig:
    """Return the configuration that the file's shapes imply."""
    family = PUBLISHED[golden["arch"].split("_")[0]]
    known = {name: getattr(published(golden), name) for name in family.untraced}
    return family.sizes(strip(from_official(shapes_of(golden)), "backbone."), **known)


def shapes_of(golden: Golden) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters under their official names."""
    return {name: tuple(shape) for name, shape in golden["parameters"].items()}
