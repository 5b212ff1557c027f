"""The plain ViT against timm, the official MAE code's figures and a plain form of the forward."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models.beit import Beit
from torch import Tensor, nn

from leanvit.backbones.base import Ask, Features
from leanvit.backbones.catalogue import build_backbone
from leanvit.backbones.vit import ViT, ViTBlock
from leanvit.config import BACKBONES, ViTConfig
from leanvit.core.random import seeded
from leanvit.kernels.relative_position import pairs_of, relative_bias, table_rows
from leanvit.train.optim import parameter_groups
from tests.golden.fill import fill
from tests.golden.test_golden import FOLDER
from tests.tiny import VIT, VIT_FULL, build, noise

NORM = partial(nn.LayerNorm, eps=1e-6)
BIASED = replace(VIT_FULL, image_size=32, registers=0, positions="learned")


def vit_of(config: ViTConfig, dtype: torch.dtype = torch.float32) -> ViT:
    """Return a network in evaluation mode whose every parameter is random."""
    vit = build(config, dtype).eval()
    assert isinstance(vit, ViT)
    return vit


def same(found: Features, tokens: Tensor) -> None:
    """Compare with final tokens [B, P + h * w, D] of another library."""
    assert found.prefix is not None
    ours = torch.cat([found.prefix, found.grid.flatten(1, 2)], 1)
    torch.testing.assert_close(ours, tokens, rtol=1e-4, atol=1e-5)


# Other libraries


def named_as_timm(vit: ViT) -> dict[str, Tensor]:
    """Return the state under timm's names."""
    return {name.replace("layers.", "blocks."): v for name, v in vit.state_dict().items()}


def timms(name: str, state: Mapping[str, Tensor], **options: Any) -> Any:
    """Return timm's network of our small sizes, with these weights, in evaluation mode."""
    network = timm.create_model(
        name,
        img_size=VIT.image_size,
        patch_size=VIT.patch,
        embed_dim=VIT.dim,
        depth=VIT.depth,
        num_heads=VIT.heads,
        **options,
    )
    network.load_state_dict(state, strict=True)
    return network.eval()


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_vit_equals_timm(pool: Literal["class", "mean"]) -> None:
    ours = vit_of(replace(VIT, pool=pool))
    theirs = timms("vit_tiny_patch16_224", named_as_timm(ours), num_classes=0, norm_layer=NORM)
    image = noise(2, 3, 32, 32)
    with torch.no_grad():
        (found,) = ours([image])
        tokens = theirs.forward_features(image)
    same(found, tokens)
    expected = tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(1)
    torch.testing.assert_close(found.pooled, expected, rtol=1e-4, atol=1e-5)


def test_a_norm_after_the_mean_equals_timm() -> None:
    ours = vit_of(replace(VIT, pool="mean_norm", norm_eps=1e-3))
    norm = partial(nn.LayerNorm, eps=1e-3)
    theirs = timms(
        "vit_tiny_patch16_224",
        named_as_timm(ours),
        num_classes=0,
        norm_layer=norm,
        global_pool="avg",
    )
    image = noise(2, 3, 32, 32)
    with torch.no_grad():
        (found,) = ours([image])
        tokens = theirs.forward_features(image)
        pooled = theirs(image)
    same(found, tokens)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-5)
    assert [n for n, depth in ours.param_layers() if depth > VIT.depth] == [
        "fc_norm.weight",
        "fc_norm.bias",
    ]


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_registers_and_layer_scale_equal_timm(pool: Literal["class", "mean"]) -> None:
    """timm's networks with registers keep the class token's position within the class token."""
    ours = vit_of(replace(VIT, pool=pool, registers=3, layer_scale=0.5))
    state = named_as_timm(ours)
    first, rest = state["pos_embed"].split([1, 64], 1)
    state |= {"cls_token": state["cls_token"] + first, "pos_embed": rest}
    theirs = timms(
        "vit_small_patch14_reg4_dinov2",
        state,
        reg_tokens=3,
        global_pool="token" if pool == "class" else "avg",
        fc_norm=False,
    )
    image = noise(2, 3, 32, 32)
    with torch.no_grad():
        (found,) = ours([image])
        tokens = theirs.forward_features(image)
        pooled = theirs(image)
    assert found.prefix is not None and found.prefix.shape == (2, 1 + 3, VIT.dim)
    same(found, tokens)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-5)


def to_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state under timm's names for BEiT, which has no bias on keys."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("layers.", "blocks.")
        name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        if name.endswith("qkv.bias"):
            query, _, value = value.chunk(3)
            renamed[name.replace("qkv.bias", "q_bias")] = query
            name = name.replace("qkv.bias", "v_bias")
        renamed[name] = value
    return renamed


def test_position_bias_equals_beit() -> None:
    ours = vit_of(BIASED)
    for block in ours.blocks():
        block.attn.qkv.bias.data[VIT.dim : 2 * VIT.dim] = 0
    theirs = Beit(
        img_size=32,
        patch_size=4,
        embed_dim=VIT.dim,
        depth=VIT.depth,
        num_heads=VIT.heads,
        num_classes=0,
        global_pool="token",
        norm_layer=NORM,  # type: ignore[arg-type]
        init_values=0.1,
        use_abs_pos_emb=True,
        use_rel_pos_bias=True,
    ).eval()
    theirs.load_state_dict(to_beit(ours.state_dict()), strict=True)
    image = noise(2, 3, 32, 32)
    with torch.no_grad():
        same(ours.features(image), theirs.forward_features(image))


def test_masked_autoencoders_encode_as_the_official_code() -> None:
    golden = json.loads((FOLDER / "mae.json").read_text())
    figures = {key: torch.from_numpy(v) for key, v in np.load(FOLDER / "mae.npz").items()}
    sizes, seed, shapes = golden["student"], golden["seed"], golden["parameters"]
    patch = shapes["student.patch_embed.proj.weight"][-1]
    side = round((figures["pos_embed"].shape[1] - 1) ** 0.5)
    config = ViTConfig(
        image_size=side * patch,
        patch=patch,
        dim=sizes["dim"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        positions="sincos",
    )
    with seeded(0, "test"):
        vit = build_backbone(config).eval()
    state = vit.state_dict()
    torch.testing.assert_close(state["pos_embed"], figures["pos_embed"])
    for name in set(state) - {"pos_embed"}:
        official = "student." + name.replace("layers.", "blocks.")
        state[name] = fill(official, *shapes[official], seed=seed)
    vit.load_state_dict(state)
    images = fill("input.images", golden["batch"], 3, side * patch, side * patch, seed=seed)
    with torch.no_grad():
        same(vit.features(images), figures["encoder_all_tokens"])


# Named sizes

TIMM = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_small_p8": "vit_small_patch8_224",
    "vit_base_p8": "vit_base_patch8_224",
    "vit_small_p14": "vit_small_patch14_dinov2",
    "vit_base_p14": "vit_base_patch14_dinov2",
    "vit_large_p14": "vit_large_patch14_dinov2",
}
"""DINOv2's networks have LayerScale, which is an option here."""

HEAD = 1000 * 192 + 1000
KEY_BIASES = 12 * 192
PUBLISHED: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "vit_tiny_h12": (5_717_416 - HEAD, {}),
    "vit_small_h12": (22_050_664 - 1000 * 384 - 1000, {}),
    "vit_base": (85_798_656, {}),
    "vit_tiny_h12_rpe": (5_820_520 - HEAD + KEY_BIASES, {}),
    "vit_tiny_h12_rpe, 2023": (5_825_128 - HEAD + KEY_BIASES, {"layer_scale": 0.1}),
}
"""The lightweight paper's networks without their head; its position bias came without key biases,
and in its first edition with LayerScale."""


def parameters(config: ViTConfig) -> int:
    """Return the number of parameters of a configuration."""
    with torch.device("meta"):
        return sum(p.numel() for p in ViT(config).parameters())


@pytest.mark.parametrize("name", TIMM)
def test_named_sizes_are_those_of_timm(name: str) -> None:
    config, dinov2 = BACKBONES[name], "dinov2" in TIMM[name]
    assert isinstance(config, ViTConfig)
    with torch.device("meta"):
        theirs = timm.create_model(TIMM[name], img_size=config.image_size, num_classes=0)
    ours = replace(config, layer_scale=1e-5 if dinov2 else 0.0)
    assert parameters(ours) == sum(p.numel() for p in theirs.parameters())
    attention = theirs.blocks[0].attn  # type: ignore[index, union-attr]
    assert config.heads == attention.num_heads


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_sizes_are_those_of_the_lightweight_paper(name: str) -> None:
    count, options = PUBLISHED[name]
    config = BACKBONES[name.partition(",")[0]]
    assert isinstance(config, ViTConfig)
    assert parameters(replace(config, **options)) == count
    if config.dim == 192:
        assert parameters(replace(config, position_bias=False)) == 5_524_416
        assert config.heads == 12


# Positions


def test_positions_follow_the_image() -> None:
    vit = vit_of(VIT)
    (small,) = vit([noise(1, 3, 16, 48)])
    assert small.grid.shape == (1, 4, 12, 16)
    square = vit.positions(8, 8)
    assert square.flatten(1, 2).equal(vit.pos_embed[:, 1:])


@pytest.mark.parametrize("grid", [(4, 12), (3, 3), (11, 5)])
def test_positions_are_resized_without_antialiasing(grid: tuple[int, int]) -> None:
    """timm's default is antialiased, which also takes another cubic; DINO's is plain."""
    vit = vit_of(VIT)
    ours = vit.positions(*grid).flatten(1, 2)
    plain, smooth = (
        resample_abs_pos_embed(vit.pos_embed, grid, num_prefix_tokens=1, antialias=antialias)[:, 1:]
        for antialias in (False, True)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert (ours - smooth).abs().max() > 0.05


def test_fixed_positions_are_sines_and_cosines_of_column_and_row() -> None:
    vit = vit_of(VIT_FULL)
    assert not vit.pos_embed.requires_grad and "pos_embed" not in dict(vit.named_parameters())
    assert vit.pos_embed[0, 0].equal(torch.zeros(16))
    for row, column in product(range(6), repeat=2):
        found = vit.positions(6, 6)[0, row, column]
        expected = [
            wave(place / 10_000 ** (number / 4))
            for place in (column, row)
            for wave in (np.sin, np.cos)
            for number in range(4)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_fixed_positions_are_learned_from_then_on() -> None:
    """What was pre-trained with fixed positions is fine-tuned with these as parameters."""
    fixed, learned = vit_of(VIT_FULL), vit_of(replace(VIT_FULL, positions="learned"))
    learned.load_state_dict(fixed.state_dict(), strict=True)
    image = noise(2, 3, 28, 32)
    assert learned.features(image).grid.equal(fixed.features(image).grid)
    learned.features(image).pooled.sum().backward()
    assert learned.pos_embed.grad is not None and learned.pos_embed.grad.abs().sum() > 0
    fixed.load_state_dict(learned.state_dict(), strict=True)


# Position bias


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (11, 4), (1, 9), (8, 3)])
def test_tables_are_resized_as_pictures(grid: tuple[int, int]) -> None:
    """Plain bicubic, as timm's simple form; the three entries without a distance stay."""
    table = noise(table_rows(8), 2)
    rows, columns = grid
    bias = relative_bias(table, pairs_of(rows, columns, 2, table.device))[0]
    ways = (2 * rows - 1) * (2 * columns - 1)
    resized = resize_rel_pos_bias_table_simple(table, grid, (ways + 3, 2))
    resized = resized[:ways].view(2 * rows - 1, 2 * columns - 1, 2)
    for query, key in product(range(rows * columns), repeat=2):
        down, right = query // columns - key // columns, query % columns - key % columns
        expected = resized[down + rows - 1, right + columns - 1]
        torch.testing.assert_close(bias[:, query + 2, key + 2], expected)
    special = {"prefix to patch": (1, 2), "patch to prefix": (2, 1), "prefix to prefix": (0, 1)}
    for entry, (query, key) in zip(table[-3:], special.values(), strict=True):
        assert bias[:, query, key].equal(entry)


def plain_forward(vit: ViT, image: Tensor, keep: Tensor) -> Tensor:
    """Final tokens [1 + R + n, D] of one image [3, height, width] and its kept patches [n]."""
    x = vit.patch_embed.proj(image[None])[0].permute(1, 2, 0)
    rows, columns, dim = x.shape
    x = (x + vit.positions(rows, columns)[0]).reshape(-1, dim)[keep]
    assert vit.reg_token is not None
    x = torch.cat([vit.cls_token[0] + vit.pos_embed[0, :1], vit.reg_token[0], x])
    prefix = len(x) - len(keep)
    for block in vit.blocks():
        x = x + block.ls1(plain_attention(block, block.norm1(x), prefix, keep, (rows, columns)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    normed: Tensor = vit.norm(x)
    return normed


def plain_attention(
    block: ViTBlock, x: Tensor, prefix: int, keep: Tensor, grid: tuple[int, int]
) -> Tensor:
    """One pair of tokens [T, D] after the other."""
    table = block.attn.relative_position_bias_table
    assert table is not None
    rows, columns = grid
    ways = (2 * rows - 1) * (2 * columns - 1)
    heads = block.attn.heads
    resized = resize_rel_pos_bias_table_simple(table, grid, (ways + 3, heads))
    resized = resized[:ways].view(2 * rows - 1, 2 * columns - 1, heads)
    q, k, v = block.attn.qkv(x).view(len(x), 3, heads, -1).unbind(1)
    logits = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
    bias = torch.empty_like(logits)
    for i, j in product(range(len(x)), repeat=2):
        if i < prefix or j < prefix:
            bias[:, i, j] = table[-1 if i < prefix and j < prefix else -3 if i < prefix else -2]
        else:
            one, other = (divmod(int(keep[t - prefix]), columns) for t in (i, j))
            bias[:, i, j] = resized[one[0] - other[0] + rows - 1, one[1] - other[1] + columns - 1]
    attended = torch.einsum("hij,jhd->ihd", (logits + bias).softmax(-1), v)
    out: Tensor = block.attn.proj(attended.reshape(len(x), -1))
    return out


@pytest.mark.parametrize("logits", [(), (0, 1, 2)], ids=["fused", "with logits"])
@pytest.mark.parametrize("size", [(24, 24), (12, 20)])
def test_kept_patches_take_their_bias_along(size: tuple[int, int], logits: tuple[int, ...]) -> None:
    """Against the plain form in fp64, values and gradients; other patches for every image."""
    vit = vit_of(VIT_FULL, torch.float64)
    images = noise(2, 3, *size, dtype=torch.float64)
    patches = size[0] * size[1] // 16
    keep = noise(2, patches, seed=1).argsort(1)[:, :7]
    (found,) = vit([images], Ask(keep=keep, logits=logits))
    assert found.prefix is not None and found.grid.shape == (2, 1, 7, 16)
    ours = torch.cat([found.prefix, found.grid[:, 0]], 1)
    pairs = zip(images, keep, strict=True)
    theirs = torch.stack([plain_forward(vit, image, kept) for image, kept in pairs])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weight = noise(*ours.shape, dtype=torch.float64)
    mine, others = (
        torch.autograd.grad(tokens, list(vit.parameters()), weight) for tokens in (ours, theirs)
    )
    for one, other in zip(mine, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for entry in found.logits:
        assert entry.where.equal(torch.cat([torch.arange(3).expand(2, -1), keep + 3], 1)[:, None])


def test_all_patches_may_come_in_any_order() -> None:
    vit = vit_of(VIT_FULL, torch.float64)
    images = noise(2, 3, 28, 20, dtype=torch.float64)
    order = noise(2, 35, seed=1).argsort(1)
    (whole,) = vit([images])
    (mixed,) = vit([images], Ask(keep=order))
    expected = whole.grid.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(mixed.grid[:, 0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed.prefix, whole.prefix, rtol=1e-12, atol=1e-12)


def test_pairs_are_made_once_for_a_size() -> None:
    vit, image = vit_of(VIT_FULL), noise(1, 3, 24, 32)
    first, second = (vit.embed([image], Ask()).plan.pairs[0].entries for _ in range(2))
    assert first is second


def test_new_parts_begin_by_changing_nothing() -> None:
    """A fresh table is zero, so what was trained without a bias is the same network with one."""
    config = replace(VIT, position_bias=True)
    with seeded(0, "test"):
        plain, biased = build_backbone(VIT), build_backbone(config)
    missing, unexpected = biased.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_bias_table") for name in missing)
    image = noise(2, 3, 32, 24)
    torch.testing.assert_close(biased.features(image).grid, plain.features(image).grid)


def test_where_things_lie_is_not_decayed() -> None:
    vit = vit_of(replace(VIT_FULL, positions="learned"))
    _, spared = parameter_groups(vit, decay_all_matrices=False)
    for name in ("cls_token", "reg_token", "pos_embed", "layers.0.ls1.gamma"):
        assert name in spared["names"]
    assert "layers.2.attn.relative_position_bias_table" in spared["names"]
