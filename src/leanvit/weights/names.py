"""How other codes name the parameters of our families: one map each, used both ways.

A map lists prefixes, theirs -> ours; a prefix is a whole number of parts of a dotted name, and the
longest that is known counts. Where several of their tensors are one of ours, joined along the
first axis as query, key and value are, ours carries `#0`, `#1`, ... Where two of theirs are one of
ours, the second is what we write.

Placeholders of templates: {s} a stage from 0, {i} a block from 0; {n} s + 1, {odd} 2 i + 1,
{even} 2 i + 2, {f} 2 s + 1, {m} 2 s + 2.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

STAGES, BLOCKS = 4, 64
"""More stages and blocks than any network has, which templates are spelled out for."""


def _spelled(templates: Mapping[str, str]) -> dict[str, str]:
    """Return templates for all stages and blocks."""
    found = {}
    for theirs, ours in templates.items():
        both = theirs + ours
        for s in range(STAGES if "{s}" in both or "{n}" in both else 1):
            for i in range(BLOCKS if "{i}" in both else 1):
                count = {"s": s, "n": s + 1, "i": i, "odd": 2 * i + 1, "even": 2 * i + 2}
                count |= {"f": 2 * s + 1, "m": 2 * s + 2}
                found[theirs.format(**count)] = ours.format(**count)
    return found


@dataclass(frozen=True, slots=True)
class Naming:
    """How a code names the parameters of a family of ours."""

    kind: str
    """Our family: `BackboneConfig.kind`."""
    markers: tuple[str, ...]
    """Their names that, together, only this naming has."""
    prefixes: Mapping[str, str]
    """Theirs -> ours."""
    rest: str = ""
    """What stands before the names of ours that no prefix lists."""
    shared: tuple[str, ...] = ()
    """Projections that sparse attention also lists with `_global`: one tensor (ViL)."""

    def found_under(self, names: Iterable[str]) -> list[str]:
        """Return what stands before the markers in names, each once, in their order."""
        names = dict.fromkeys(names)
        first = self.markers[0]
        places = [name.removesuffix(first) for name in names if f".{name}".endswith(f".{first}")]
        return [
            place for place in places if all(f"{place}{marker}" in names for marker in self.markers)
        ]

    def ours(self, name: str) -> str:
        """Return our name of a parameter of theirs."""
        if self.shared:
            name = name.replace("_global.", ".")  # the second name, loaded last, decides
        return _renamed(name, self.prefixes, self.rest)

    def theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of ours under their names."""
        back = {ours: theirs for theirs, ours in self.prefixes.items()}
        found = {}
        for name, value in state.items():
            owner, dot, leaf = name.rpartition(".")
            pieces = [p for p in ("#0", "#1", "#2") if f"{owner}{p}" in back]
            if not pieces:
                found[_renamed(name, back).removeprefix(self.rest)] = value
                continue
            for piece, part in zip(pieces, value.chunk(len(pieces)), strict=True):
                found[f"{back[owner + piece]}{dot}{leaf}"] = part.contiguous()
        return found | self._twice(found)

    def _twice(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the second names of what sparse attention shares."""
        found = {}
        for name, value in state.items():
            block, _, leaf = name.partition(".attn.")
            part, _, rest = leaf.partition(".")
            if part in self.shared and f"{block}.attn.query.weight" in state:
                found[f"{block}.attn.{part}_global.{rest}"] = value
        return found


def _renamed(name: str, prefixes: Mapping[str, str], rest: str = "") -> str:
    """Replace the longest prefix that is known."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        found = prefixes.get(".".join(parts[:end]))
        if found is not None:
            return ".".join([found, *parts[end:]])
    return rest + name


def join_pieces(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put pieces (`attn.qkv#1.weight`) together along their first axis, in the order of numbers."""
    whole: dict[str, Tensor] = {}
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        owner, mark, rest = name.partition("#")
        if mark:
            number, _, leaf = rest.partition(".")
            pieces.setdefault(f"{owner}.{leaf}", {})[number] = value
        else:
            whole[name] = value
    for name, parts in pieces.items():
        whole[name] = torch.cat([parts[number] for number in sorted(parts)])
    return whole


_VIT = {"blocks": "layers"}
_VIT_TORCHVISION = {
    "class_token": "cls_token",
    "conv_proj": "patch_embed.proj",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_{i}.ln_1": "layers.{i}.norm1",
    "encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight": "layers.{i}.attn.qkv.weight",
    "encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias": "layers.{i}.attn.qkv.bias",
    "encoder.layers.encoder_layer_{i}.self_attention.out_proj": "layers.{i}.attn.proj",
    "encoder.layers.encoder_layer_{i}.ln_2": "layers.{i}.norm2",
    "encoder.layers.encoder_layer_{i}.mlp.0": "layers.{i}.mlp.fc1",
    "encoder.layers.encoder_layer_{i}.mlp.3": "layers.{i}.mlp.fc2",
    "encoder.ln": "norm",
}
_HUGGINGFACE_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_TRANSFORMERS_ATTENTION = {
    "attention.q_proj": "attn.qkv#0",
    "attention.k_proj": "attn.qkv#1",
    "attention.v_proj": "attn.qkv#2",
    "attention.o_proj": "attn.proj",
}
"""Names within a block in the memory of transformers 5; its files have the older ones."""


def _within(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return names of a part under the names of the whole."""
    return {f"{theirs}.{name}": f"{ours}.{part}" for name, part in names.items()}


_HUGGINGFACE_ATTENTION = {
    "encoder.layer.{i}.attention.attention.query": "layers.{i}.attn.qkv#0",
    "encoder.layer.{i}.attention.attention.key": "layers.{i}.attn.qkv#1",
    "encoder.layer.{i}.attention.attention.value": "layers.{i}.attn.qkv#2",
    "encoder.layer.{i}.attention.output.dense": "layers.{i}.attn.proj",
}
_VIT_TRANSFORMERS = {
    **_HUGGINGFACE_EMBEDDINGS,
    **_within("layers.{i}", "layers.{i}", _TRANSFORMERS_ATTENTION),
    "layers.{i}.layernorm_before": "layers.{i}.norm1",
    "layers.{i}.layernorm_after": "layers.{i}.norm2",
    "layers.{i}.mlp": "layers.{i}.mlp",
}
_VIT_HUGGINGFACE = {
    **_HUGGINGFACE_EMBEDDINGS,
    **_HUGGINGFACE_ATTENTION,
    "encoder.layer.{i}.layernorm_before": "layers.{i}.norm1",
    "encoder.layer.{i}.layernorm_after": "layers.{i}.norm2",
    "encoder.layer.{i}.intermediate.dense": "layers.{i}.mlp.fc1",
    "encoder.layer.{i}.output.dense": "layers.{i}.mlp.fc2",
}
_DINOV2_HUGGINGFACE = {
    **_HUGGINGFACE_EMBEDDINGS,
    **_within("encoder.layer.{i}", "layers.{i}", _TRANSFORMERS_ATTENTION),
    **_HUGGINGFACE_ATTENTION,
    "encoder.layer.{i}.norm1": "layers.{i}.norm1",
    "encoder.layer.{i}.norm2": "layers.{i}.norm2",
    "encoder.layer.{i}.mlp": "layers.{i}.mlp",
    "encoder.layer.{i}.layer_scale1.lambda1": "layers.{i}.ls1.gamma",
    "encoder.layer.{i}.layer_scale2.lambda1": "layers.{i}.ls2.gamma",
}
_SWIN_TIMM = {"layers.{n}.downsample": "layers.{s}.downsample"}
_SWIN_TORCHVISION = {
    "features.0.0": "patch_embed.proj",
    "features.0.2": "patch_embed.norm",
    "features.{f}.{i}": "layers.{s}.blocks.{i}",
    "features.{f}.{i}.mlp.0": "layers.{s}.blocks.{i}.mlp.fc1",
    "features.{f}.{i}.mlp.3": "layers.{s}.blocks.{i}.mlp.fc2",
    "features.{m}": "layers.{s}.downsample",
}
_SWIN_BLOCK = "encoder.layers.{s}.blocks.{i}"
_SWIN_HUGGINGFACE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    **_within(_SWIN_BLOCK, _SWIN_BLOCK.removeprefix("encoder."), _TRANSFORMERS_ATTENTION),
    f"{_SWIN_BLOCK}.attention.relative_position_bias": "layers.{s}.blocks.{i}.attn",
    f"{_SWIN_BLOCK}.mlp": "layers.{s}.blocks.{i}.mlp",
    "encoder.layers.{s}.blocks.{i}.layernorm_before": "layers.{s}.blocks.{i}.norm1",
    "encoder.layers.{s}.blocks.{i}.attention.self": "layers.{s}.blocks.{i}.attn",
    "encoder.layers.{s}.blocks.{i}.attention.self.query": "layers.{s}.blocks.{i}.attn.qkv#0",
    "encoder.layers.{s}.blocks.{i}.attention.self.key": "layers.{s}.blocks.{i}.attn.qkv#1",
    "encoder.layers.{s}.blocks.{i}.attention.self.value": "layers.{s}.blocks.{i}.attn.qkv#2",
    "encoder.layers.{s}.blocks.{i}.attention.output.dense": "layers.{s}.blocks.{i}.attn.proj",
    "encoder.layers.{s}.blocks.{i}.layernorm_after": "layers.{s}.blocks.{i}.norm2",
    "encoder.layers.{s}.blocks.{i}.intermediate.dense": "layers.{s}.blocks.{i}.mlp.fc1",
    "encoder.layers.{s}.blocks.{i}.output.dense": "layers.{s}.blocks.{i}.mlp.fc2",
    "encoder.layers.{s}.downsample": "layers.{s}.downsample",
    "layernorm": "norm",
}
_CVT = {
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
_VIL = {
    "layer{n}.0": "stages.{s}.embed",
    "layer{n}.0.norm_embed": "stages.{s}.embed.norm",
    "layer{n}.{odd}.norm": "stages.{s}.blocks.{i}.norm1",
    "layer{n}.{odd}.attn": "stages.{s}.blocks.{i}.attn",
    "layer{n}.{even}.norm": "stages.{s}.blocks.{i}.norm2",
    "layer{n}.{even}.mlp": "stages.{s}.blocks.{i}.mlp",
}
_MODEL = "network.model."
_RESNET_HUGGINGFACE = {
    "embedder.embedder.convolution": _MODEL + "conv1",
    "embedder.embedder.normalization": _MODEL + "bn1",
    "encoder.stages.{s}.layers.{i}.shortcut.convolution": _MODEL + "layer{n}.{i}.downsample.0",
    "encoder.stages.{s}.layers.{i}.shortcut.normalization": _MODEL + "layer{n}.{i}.downsample.1",
    **{
        f"encoder.stages.{{s}}.layers.{{i}}.layer.{place}.{theirs}": _MODEL
        + f"layer{{n}}.{{i}}.{ours}{place + 1}"
        for place in range(3)
        for theirs, ours in (("convolution", "conv"), ("normalization", "bn"))
    },
}
_EMBED = "patch_embed.proj.weight"
_STAGED = "layers.0.blocks.0.attn.qkv.weight"

NAMINGS: Mapping[str, Naming] = MappingProxyType(
    {
        "vit": Naming("vit", ("blocks.0.attn.qkv.weight", _EMBED), _VIT),
        "vit chunked": Naming(
            "vit",
            ("blocks.0.0.attn.qkv.weight", _EMBED),
            _spelled({"blocks.{s}.{i}": "layers.{i}"}),
        ),
        "vit torchvision": Naming(
            "vit",
            ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "conv_proj.weight"),
            _spelled(_VIT_TORCHVISION),
        ),
        "vit huggingface": Naming(
            "vit",
            (
                "encoder.layer.0.layernorm_before.weight",
                "embeddings.patch_embeddings.projection.weight",
            ),
            _spelled(_VIT_HUGGINGFACE),
        ),
        "vit transformers": Naming(
            "vit",
            ("layers.0.layernorm_before.weight", "embeddings.patch_embeddings.projection.weight"),
            _spelled(_VIT_TRANSFORMERS),
        ),
        "dinov2 huggingface": Naming(
            "vit",
            (
                "encoder.layer.0.layer_scale1.lambda1",
                "embeddings.patch_embeddings.projection.weight",
            ),
            _spelled(_DINOV2_HUGGINGFACE),
        ),
        # timm merges where the next stage begins, so its first stage has no downsample
        "swin": Naming("swin", (_STAGED, _EMBED, "layers.0.downsample.norm.weight"), {}),
        "swin timm": Naming("swin", (_STAGED, _EMBED), _spelled(_SWIN_TIMM)),
        "swin torchvision": Naming(
            "swin",
            ("features.1.0.attn.qkv.weight", "features.0.0.weight"),
            _spelled(_SWIN_TORCHVISION),
        ),
        "swin huggingface": Naming(
            "swin",
            (
                "encoder.layers.0.blocks.0.layernorm_before.weight",
                "embeddings.patch_embeddings.projection.weight",
            ),
            _spelled(_SWIN_HUGGINGFACE),
        ),
        "cvt": Naming(
            "cvt", ("stage0.1.layers.0.0.fn.qkv.dw.weight", "stage0.0.proj.weight"), _spelled(_CVT)
        ),
        "vil": Naming(
            "vil",
            ("layer1.1.attn.proj.weight", "layer1.0.proj.weight"),
            _spelled(_VIL),
            shared=("query", "kv", "proj"),
        ),
        # torchvision and timm name a ResNet alike
        "resnet": Naming(
            "timm", ("layer1.0.conv3.weight", "layer4.2.conv3.weight", "conv1.weight"), {}, _MODEL
        ),
        "resnet huggingface": Naming(
            "timm",
            (
                "encoder.stages.0.layers.0.layer.2.convolution.weight",
                "embedder.embedder.convolution.weight",
            ),
            _spelled(_RESNET_HUGGINGFACE),
            _MODEL,
        ),
        "timm": Naming("timm", (), {}, _MODEL),
    }
)
"""By family and code; a family alone is its authors' naming. The first whose markers are found
counts; `timm` has none: it needs the network's name."""
