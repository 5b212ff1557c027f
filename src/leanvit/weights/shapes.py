"""Configurations read off the shapes of parameters, under our names.

What leaves no trace in shapes (heads of a plain ViT, say) is given by who knows it.
"""

import math
from collections.abc import Mapping, Sequence

from leanvit.config import BACKBONES, CvTConfig, HeadConfig, SwinConfig, ViLConfig, ViTConfig
from leanvit.weights.names import BLOCKS

Shapes = Mapping[str, Sequence[int]]


def _blocks(shapes: Shapes, of: str) -> int:
    """Return how many blocks there are: the largest number after a prefix, and one."""
    place = of.count(".")
    numbers = [int(name.split(".")[place]) for name in shapes if name.startswith(of)]
    if not numbers:
        raise KeyError(of + "0")
    if max(numbers) >= BLOCKS:  # else a few bytes of a name would have us build them all
        raise IndexError(f"{of}{max(numbers)} is one of more than {BLOCKS} blocks")
    return 1 + max(numbers)


def _ratio(shapes: Shapes, fc1: str) -> float:
    """Return an MLP's hidden width over its input width, so that the product is never less."""
    hidden, width = shapes[fc1][:2]  # a convolution of 1 x 1 has two more
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _window(shapes: Shapes, table: str) -> int:
    """Return the side of a window from the rows of its table of relative positions."""
    return (math.isqrt(shapes[table][0]) + 1) // 2


def vit_config(shapes: Shapes, heads: int, norm_eps: float = 1e-6) -> ViTConfig:
    """Read a plain ViT's sizes; positions count as learned.

    Raises ValueError where the shapes are not a plain ViT's.
    """
    try:
        dim, _, patch, _ = shapes["patch_embed.proj.weight"]
        side = math.isqrt(shapes["pos_embed"][1] - 1)
        depth = _blocks(shapes, "layers.")
        ratio = _ratio(shapes, "layers.0.mlp.fc1.weight")
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"These are not the parameters of a plain ViT: {error}.") from error
    if side**2 + 1 != shapes["pos_embed"][1]:
        raise ValueError(
            f"pos_embed holds {shapes['pos_embed'][1]} positions; expected a class token's and "
            f"those of a square of patches."
        )
    return ViTConfig(
        image_size=side * patch,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=ratio,
        pool="mean_norm" if "fc_norm.weight" in shapes else "class",
        registers=shapes.get("reg_token", (1, 0))[1],
        layer_scale=1.0 if "layers.0.ls1.gamma" in shapes else 0.0,
        position_bias="layers.0.attn.relative_position_bias_table" in shapes,
        norm_eps=norm_eps,
        drop_path=0.0,
    )


def swin_config(shapes: Shapes, image_size: int = 0, norm_eps: float = 1e-6) -> SwinConfig:
    """Read a Swin's sizes.

    The window is that of the first stage. image_size: side of the image that windows are clamped
    to; 0: the last stage's map is one of its windows, as in every published Swin.
    Raises ValueError where the shapes are not a Swin's.
    """
    try:
        dim, _, patch, _ = shapes["patch_embed.proj.weight"]
        stages = _blocks(shapes, "layers.")
        of = "layers.{}.blocks.0.attn.relative_position_bias_table"
        depths = [_blocks(shapes, f"layers.{stage}.blocks.") for stage in range(stages)]
        heads = [shapes[of.format(stage)][1] for stage in range(stages)]
        window = _window(shapes, of.format(0))
        last = _window(shapes, of.format(stages - 1))
        ratio = _ratio(shapes, "layers.0.blocks.0.mlp.fc1.weight")
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"These are not the parameters of a Swin transformer: {error}.") from error
    return SwinConfig(
        image_size=image_size or last * patch * 2 ** (stages - 1),
        patch=patch,
        dim=dim,
        depths=tuple(depths),
        heads=tuple(heads),
        window=window,
        mlp_ratio=ratio,
        norm_eps=norm_eps,
        drop_path=0.0,
    )


def cvt_config(shapes: Shapes, heads: Sequence[int] = ()) -> CvTConfig:
    """Read a CvT's sizes.

    heads: of every stage. They leave no trace in the weights, so without them they are those of
    the named CvT that has these widths. Nor does the window without a position bias: it is 7.
    Raises ValueError where the shapes are not a CvT's, or no named one has these widths.
    """
    try:
        stages = _blocks(shapes, "stages.")
        dims = tuple(shapes[f"stages.{stage}.embed.proj.weight"][0] for stage in range(stages))
        depths = tuple(_blocks(shapes, f"stages.{stage}.blocks.") for stage in range(stages))
        kernel = shapes["stages.0.embed.proj.weight"][2]
        ratio = _ratio(shapes, "stages.0.blocks.0.mlp.fc1.weight")
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"These are not the parameters of a CvT: {error}.") from error
    named = [each for each in BACKBONES.values() if isinstance(each, CvTConfig)]
    heads = heads or next((each.heads for each in named if each.dims == dims), ())
    if not heads:
        raise ValueError(
            f"Heads leave no trace in a CvT's weights, and no named one has the widths {dims}; "
            f"give the heads of every stage (heads)."
        )
    table = "stages.0.blocks.0.attn.relative_position_bias_table"
    return CvTConfig(
        patch=(kernel + 1) // 2,
        dims=dims,
        depths=depths,
        heads=tuple(heads),
        window=_window(shapes, table) if table in shapes else 7,
        mlp_ratio=ratio,
        position_bias=table in shapes,
        drop_path=0.0,
    )


def vil_config(shapes: Shapes, image_size: int = 224) -> ViLConfig:
    """Read a Vision Longformer's sizes.

    Raises ValueError where the shapes are not a Vision Longformer's.
    """
    try:
        stages = _blocks(shapes, "stages.")
        firsts = [f"stages.{stage}.blocks.0" for stage in range(stages)]
        embeds = [shapes[f"stages.{stage}.embed.proj.weight"] for stage in range(stages)]
        tables = [shapes[f"{n}.attn.local_relative_position_bias_table"] for n in firsts]
        depths = [_blocks(shapes, f"stages.{stage}.blocks.") for stage in range(stages)]
        tokens = [shapes.get(f"stages.{s}.embed.cls_token", (1, 0)) for s in range(stages)]
        sparse = [f"{name}.attn.query.weight" in shapes for name in firsts]
        ratio = _ratio(shapes, "stages.0.blocks.0.mlp.fc1.weight")
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
        mlp_ratio=ratio,
        drop_path=0.0,
    )


def head_config(shapes: Shapes, train_gain: bool = True) -> HeadConfig:
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
