"""Key maps of foreign weight layouts, each used both ways.

The official EsViT code keeps the backbone at the top level beside `head` and `head_dense`, and
under `module.` in the student; our networks keep it under `backbone`, with `region_head`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from leanvit.config import BACKBONES, CvTConfig, HeadConfig, SwinConfig, ViLConfig

V = TypeVar("V")

ESVIT_HEADS = {"head.": "head.", "head_dense.": "region_head."}
"""Official prefix -> ours; everything else belongs to the backbone."""

ESVIT_DERIVED = ("relative_position_index", "attn_mask")
"""Official buffers that follow from the configuration and are not stored here."""


STAGES, BLOCKS = 4, 64
"""Stages of the official CvT and ViL, and more blocks than a stage has."""


def _prefixes(templates: Mapping[str, str]) -> dict[str, str]:
    """Spell out templates: {s} is a stage from 0, {i} a block; {n}, {odd} and {even} follow."""
    counts = [
        {"s": s, "n": s + 1, "i": i, "odd": 2 * i + 1, "even": 2 * i + 2}
        for s in range(STAGES)
        for i in range(BLOCKS)
    ]
    return {
        theirs.format(**count): ours.format(**count)
        for count in counts
        for theirs, ours in templates.items()
    }


@dataclass(frozen=True, slots=True)
class NameMap:
    """How the official code names a family's parameters, and how we do."""

    theirs: str
    """A parameter that only this family has."""
    ours: str
    """The same under our name."""
    prefixes: Mapping[str, str]
    """Official prefix -> ours; a prefix ends where a part of the name does."""


ESVIT_FAMILIES = (
    NameMap(
        "stage0.1.layers.0.0.fn.qkv.dw.weight",
        "stages.0.blocks.0.attn.conv.weight",
        _prefixes(
            {
                "stage{s}.0": "stages.{s}.embed",
                "stage{s}.1.layers.{i}.0.norm": "stages.{s}.blocks.{i}.norm1",
                "stage{s}.1.layers.{i}.0.fn.qkv.dw": "stages.{s}.blocks.{i}.attn.conv",
                "stage{s}.1.layers.{i}.0.fn.qkv.bn": "stages.{s}.blocks.{i}.attn.norm",
                "stage{s}.1.layers.{i}.0.fn.qkv.pw": "stages.{s}.blocks.{i}.attn.qkv",
                "stage{s}.1.layers.{i}.0.fn.proj_out": "stages.{s}.blocks.{i}.attn.proj",
                "stage{s}.1.layers.{i}.1.norm": "stages.{s}.blocks.{i}.norm2",
                "stage{s}.1.layers.{i}.1.fn.net.0": "stages.{s}.blocks.{i}.mlp.fc1",
                "stage{s}.1.layers.{i}.1.fn.net.2": "stages.{s}.blocks.{i}.mlp.fc2",
            }
        ),
    ),
    NameMap(
        "layer1.1.attn.proj.weight",
        "stages.0.blocks.0.attn.proj.weight",
        _prefixes(
            {
                "layer{n}.0": "stages.{s}.embed",
                "layer{n}.0.norm_embed": "stages.{s}.embed.norm",
                "layer{n}.{odd}.norm": "stages.{s}.blocks.{i}.norm1",
                "layer{n}.{odd}.attn": "stages.{s}.blocks.{i}.attn",
                "layer{n}.{even}.norm": "stages.{s}.blocks.{i}.norm2",
                "layer{n}.{even}.mlp": "stages.{s}.blocks.{i}.mlp",
            }
        ),
    ),
)
"""CvT and Vision Longformer, in this order: the second's marker is a part of the first too."""


SHARED = ("query", "kv", "proj")
"""Projections that sparse attention of the official ViL also lists with `_global`: one tensor."""


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """Replace the longest prefix that is known; other names stay."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found = prefixes.get(".".join(parts[:end]))
        if found is not None:
            return ".".join([found, *parts[end:]])
    return name


def from_esvit(state: Mapping[str, V]) -> dict[str, V]:
    """Return an official EsViT state under our names (`backbone.`, `head.`, `region_head.`)."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    prefixes = next((f.prefixes for f in ESVIT_FAMILIES if f.theirs in state), {})
    renamed = {}
    for name, value in state.items():
        if name.endswith(ESVIT_DERIVED):
            continue
        for theirs, ours in ESVIT_HEADS.items():
            if name.startswith(theirs):
                renamed[ours + name.removeprefix(theirs)] = value
                break
        else:
            # the second name of a shared projection, which is loaded last, decides
            renamed["backbone." + _renamed(name.replace("_global.", "."), prefixes)] = value
    return renamed


def to_esvit(state: Mapping[str, V]) -> dict[str, V]:
    """Return a state of ours under the official EsViT names."""
    family = next((f for f in ESVIT_FAMILIES if f"backbone.{f.ours}" in state), None)
    prefixes = {ours: theirs for theirs, ours in family.prefixes.items()} if family else {}
    renamed = {}
    for name, value in state.items():
        for theirs, ours in ESVIT_HEADS.items():
            if name.startswith(ours):
                renamed[theirs + name.removeprefix(ours)] = value
                break
        else:
            renamed[_renamed(name.removeprefix("backbone."), prefixes)] = value
    for name, value in list(renamed.items()):
        block, _, leaf = name.partition(".attn.")
        part, _, rest = leaf.partition(".")
        if part in SHARED and f"{block}.attn.query.weight" in renamed:
            renamed[f"{block}.attn.{part}_global.{rest}"] = value
    return renamed


def swin_config(shapes: Mapping[str, tuple[int, ...]], image_size: int = 224) -> SwinConfig:
    """Read a Swin's sizes off the shapes of its parameters (our names, without `backbone.`).

    The window is that of the first stage; later ones are clamped by `image_size`.
    Raises ValueError where the shapes are not a Swin's.
    """
    try:
        dim, _, patch, _ = shapes["patch_embed.proj.weight"]
        stages = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        depths, heads = [], []
        for stage in range(stages):
            blocks = {
                name.split(".")[3] for name in shapes if name.startswith(f"layers.{stage}.blocks.")
            }
            table = shapes[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"]
            depths.append(len(blocks))
            heads.append(table[1])
        places = shapes["layers.0.blocks.0.attn.relative_position_bias_table"][0]
        hidden = shapes["layers.0.blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"These are not the parameters of a Swin transformer: {error}.") from error
    return SwinConfig(
        image_size=image_size,
        patch=patch,
        dim=dim,
        depths=tuple(depths),
        heads=tuple(heads),
        window=(math.isqrt(places) + 1) // 2,
        mlp_ratio=hidden / dim,
        drop_path=0.0,
    )


def cvt_config(
    shapes: Mapping[str, tuple[int, ...]], heads: tuple[int, ...] | None = None
) -> CvTConfig:
    """Read a CvT's sizes off the shapes of its parameters (our names, without `backbone.`).

    heads: of every stage. They leave no trace in the weights, so without them they are those of
    the named CvT that has these widths. Nor does the window without a position bias: it is 7.
    Raises ValueError where the shapes are not a CvT's, or no named one has these widths.
    """
    try:
        stages = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("stages."))
        dims = tuple(shapes[f"stages.{stage}.embed.proj.weight"][0] for stage in range(stages))
        depths = tuple(
            len({n.split(".")[3] for n in shapes if n.startswith(f"stages.{stage}.blocks.")})
            for stage in range(stages)
        )
        kernel = shapes["stages.0.embed.proj.weight"][2]
        hidden = shapes["stages.0.blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"These are not the parameters of a CvT: {error}.") from error
    if heads is None:
        named = [each for each in BACKBONES.values() if isinstance(each, CvTConfig)]
        heads = next((each.heads for each in named if each.dims == dims), None)
    if heads is None:
        raise ValueError(f"No named CvT has the widths {dims}; give the heads of every stage.")
    places = shapes.get("stages.0.blocks.0.attn.relative_position_bias_table", (0,))[0]
    return CvTConfig(
        patch=(kernel + 1) // 2,
        dims=dims,
        depths=depths,
        heads=heads,
        window=(math.isqrt(places) + 1) // 2 if places else 7,
        mlp_ratio=hidden / dims[0],
        position_bias=bool(places),
        drop_path=0.0,
    )


def vil_config(shapes: Mapping[str, tuple[int, ...]], image_size: int = 224) -> ViLConfig:
    """Read a Vision Longformer's sizes off the shapes of its parameters (our names).

    Raises ValueError where the shapes are not a Vision Longformer's.
    """
    try:
        stages = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("stages."))
        firsts = [f"stages.{stage}.blocks.0" for stage in range(stages)]
        embeds = [shapes[f"stages.{stage}.embed.proj.weight"] for stage in range(stages)]
        tables = [shapes[f"{n}.attn.local_relative_position_bias_table"] for n in firsts]
        blocks = {tuple(n.split(".")[1:4]) for n in shapes if ".blocks." in n}
        depths = [sum(stage == str(number) for stage, _, _ in blocks) for number in range(stages)]
        tokens = [shapes.get(f"stages.{s}.embed.cls_token", (1, 0)) for s in range(stages)]
        sparse = [f"{name}.attn.query.weight" in shapes for name in firsts]
        ratio = shapes["stages.0.blocks.0.mlp.fc1.weight"]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"These are not the parameters of a Vision Longformer: {error}."
        ) from error
    return ViLConfig(
        image_size=image_size,
        patch=embeds[0][2],
        dims=tuple(shape[0] for shape in embeds),
        depths=tuple(depths),
        heads=tuple(shape[1] for shape in tables),
        global_tokens=tuple(shape[1] for shape in tokens),
        sparse_stages=sum(sparse),
        window=(math.isqrt(tables[0][0]) + 1) // 4,
        mlp_ratio=ratio[0] / ratio[1],
        drop_path=0.0,
    )


def head_config(shapes: Mapping[str, tuple[int, ...]], train_gain: bool = True) -> HeadConfig:
    """Read a head's sizes off the shapes of its parameters (names without the head's prefix)."""
    linear = sorted(
        (int(name.split(".")[1]), shape)
        for name, shape in shapes.items()
        if name.startswith("mlp.") and len(shape) == 2
    )
    return HeadConfig(
        prototypes=shapes["last_layer.weight_v"][0],
        hidden=linear[0][1][0],
        bottleneck=linear[-1][1][0],
        batch_norm=linear[-1][0] > 4,
        train_gain=train_gain,
    )


def strip(state: Mapping[str, V], prefix: str) -> dict[str, V]:
    """Return the entries under a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
