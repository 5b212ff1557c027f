"""Swin against timm and against a plain form of the published forward."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Ask
from leanvit.backbones.catalogue import build_backbone
from leanvit.backbones.swin import Swin, SwinBlock
from leanvit.config import BACKBONES, SwinConfig
from leanvit.weights.shapes import swin_config
from leanvit.weights.whole import from_official, to_official
from tests.tiny import SWIN, SWIN_SKIP, build, noise

PUBLISHED_PARAMETERS = {
    "swin_tiny": 27_519_354,
    "swin_small": 48_837_258,
    "swin_base": 86_743_224,
    "swin_large": 194_995_476,
    "swin_tiny_w14": 27_569_754,
    "swin_small_w14": 48_968_298,
    "swin_base_w14": 86_917_944,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED_PARAMETERS.items())
def test_named_swins_have_the_published_size(name: str, count: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(BACKBONES[name])
    assert sum(p.numel() for p in backbone.parameters()) == count
    assert backbone.stride == 32


@pytest.mark.parametrize("window", [7, 14])
def test_swin_equals_timm_at_224(window: int) -> None:
    """timm rolls before it pads, so the two agree where every map is a multiple of the window."""
    config = SwinConfig(dim=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=window)
    ours = build(replace(config, drop_path=0.0)).eval()
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=config.dim,
        depths=config.depths,
        num_heads=config.heads,
        window_size=window,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    renamed = {}
    for name, value in ours.state_dict().items():
        stage, _, rest = name.removeprefix("layers.").partition(".downsample.")
        renamed[f"layers.{int(stage) + 1}.downsample.{rest}" if rest else name] = value
    theirs.load_state_dict(renamed, strict=True)
    image = noise(2, 3, 224, 224)
    with torch.no_grad():
        (found,) = ours([image])
        expected = theirs.forward_features(image)  # type: ignore[operator]
    torch.testing.assert_close(found.grid, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooled, expected.mean((1, 2)), rtol=1e-4, atol=1e-5)


def plain_window_attention(block: SwinBlock, x: Tensor, skip_padding: bool) -> Tensor:
    """The published order of operations for one image grid [B, h, w, C] after the first norm."""
    window, shift = block.attn.window, block.attn.shift
    _, h, w, c = x.shape
    real = functional.pad(torch.ones(h, w), (0, -w % window, 0, -h % window))
    x = functional.pad(x, (0, 0, 0, -w % window, 0, -h % window))
    _, rows, columns, _ = x.shape
    x = torch.roll(x, (-shift, -shift), (1, 2))
    real = torch.roll(real, (-shift, -shift), (0, 1))
    region = torch.zeros(rows, columns)
    if shift:
        cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for number, (down, right) in enumerate((a, b) for a in cuts for b in cuts):
            region[down, right] = number
    out = torch.zeros_like(x)
    heads = block.attn.relative_position_bias_table.shape[1]
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            box = (slice(top, top + window), slice(left, left + window))
            part = region[box].flatten()
            mask = torch.where(part[:, None] != part[None, :], -100.0, 0.0).to(x.dtype)
            if skip_padding:
                mask = mask.masked_fill(real[box].flatten() == 0, -torch.inf)
            tokens = x[:, box[0], box[1]].flatten(1, 2)
            qkv = block.attn.qkv(tokens).unflatten(-1, (3, heads, c // heads))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            logits = q * (c // heads) ** -0.5 @ k.mT + block.attn.bias() + mask
            attended = block.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
            out[:, box[0], box[1]] = attended.unflatten(1, (window, window))
    return torch.roll(out, (shift, shift), (1, 2))[:, :h, :w]


def plain_forward(swin: Swin, image: Tensor) -> Tensor:
    """Final tokens [B, h, w, D] with loops over windows."""
    x = swin.patch_embed.norm(swin.patch_embed.proj(image).permute(0, 2, 3, 1))
    for index, block in enumerate(swin.blocks()):
        x = x + plain_window_attention(block, block.norm1(x), swin.config.skip_padding)
        x = x + block.mlp(block.norm2(x))
        if index in swin.stage_ends[:-1]:
            merge = swin.layers[swin.stage_ends.index(index)].downsample
            x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = merge.reduction(merge.norm(torch.cat(corners, -1)))  # type: ignore[union-attr, operator, arg-type]
    normed: Tensor = swin.norm(x)
    return normed


SIZES = [(32, 32), (16, 16), (2, 2), (9, 31), (34, 18), (70, 22), (33, 7)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("logits", [(), (0, 1, 2, 3)], ids=["fused", "with logits"])
@pytest.mark.parametrize("config", [SWIN, SWIN_SKIP], ids=["padded", "padding skipped"])
def test_swin_equals_the_plain_forward(
    config: SwinConfig, height: int, width: int, logits: tuple[int, ...]
) -> None:
    swin = build(config, torch.float64)
    assert isinstance(swin, Swin)
    image = noise(2, 3, height, width, dtype=torch.float64).requires_grad_()
    (found,) = swin([image], Ask(logits=logits))
    expected = plain_forward(swin, image)
    torch.testing.assert_close(found.grid, expected, rtol=1e-10, atol=1e-10)
    weight = noise(*expected.shape, dtype=torch.float64)
    inputs = [image, *swin.parameters()]
    ours = torch.autograd.grad(found.grid, inputs, weight)
    theirs = torch.autograd.grad(expected, inputs, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_official_names_go_both_ways() -> None:
    backbone = build(SWIN)
    ours = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    ours |= {"head.mlp.0.weight": noise(3, 3), "region_head.mlp.0.weight": noise(2, 2)}
    official = to_official(ours, "swin")
    assert {"head.mlp.0.weight", "head_dense.mlp.0.weight", "norm.weight"} <= official.keys()
    student = {f"module.{name}": value for name, value in official.items()}
    student["module.layers.0.blocks.0.attn.relative_position_index"] = noise(1)
    student["module.layers.0.blocks.1.attn_mask"] = noise(1)
    back = from_official(student)
    assert back.keys() == ours.keys()
    assert all(back[name] is ours[name] for name in ours)


def test_sizes_are_read_off_the_weights() -> None:
    for name in ("swin_tiny", "swin_base_w14"):
        with torch.device("meta"):
            backbone = build_backbone(BACKBONES[name])
        shapes = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
        assert swin_config(shapes) == replace(BACKBONES[name], drop_path=0.0)
    with pytest.raises(ValueError, match="not the parameters of a Swin"):
        swin_config({"conv1.weight": (64, 3, 7, 7)})


def test_stochastic_depth_grows_over_the_blocks() -> None:
    backbone = build(replace(SWIN, drop_path=0.3))
    assert backbone.drop_rates() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    drop = torch.zeros(4, 2, 1, dtype=torch.bool)
    (found,) = backbone([noise(1, 3, 32, 32)], Ask(drop=drop, hidden=(1, 2, 3)))
    second, third = found.hidden[1:]
    assert third.grid.equal(second.grid), "dropped branches leave the tokens as they are"


def test_a_window_covers_a_map_that_fits_into_it() -> None:
    swin = build(SwinConfig(image_size=144, dim=8, depths=(1,) * 4, heads=(1,) * 4, window=5))
    last = list(swin.blocks())[-1]
    assert isinstance(last, SwinBlock) and (last.attn.window, last.attn.shift) == (5, 0)
