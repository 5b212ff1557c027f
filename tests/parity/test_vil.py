"""Vision Longformer against a plain form that loops over chunks."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.backbones.base import Ask
from leanvit.backbones.catalogue import build_backbone
from leanvit.backbones.layers import PreNormBlock
from leanvit.backbones.vil import ChunkAttention, FullAttention, ViL, resize_matrix
from leanvit.config import BACKBONES
from leanvit.kernels.chunk_attention import chunk_attention, chunk_layout
from leanvit.methods.base import Moment, neighbor_draw
from leanvit.methods.catalogue import build_method
from leanvit.train.optim import parameter_groups
from leanvit.weights.shapes import vil_config
from leanvit.weights.whole import from_official, to_official
from tests.tiny import SWIN, VIL, build, esvit, noise, view_batch

Place = tuple[int, int]
AROUND = [(y, x) for y, x in product((-1, 0, 1), (-1, 0, 1)) if (y, x) != (0, 0)]
"""The neighbours 0..7 of a chunk, by rows."""


def test_the_published_network_has_the_published_size() -> None:
    with torch.device("meta"):
        backbone = build_backbone(BACKBONES["vil_2262"])
    assert sum(p.numel() for p in backbone.parameters()) == 27_569_352
    assert backbone.stride == 32


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, H, T, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attend with projections [B, T, C] and a bias [H, queries, keys]."""
    q, k, v = (heads_of(x, heads) for x in (q, k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5 + bias
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def plain_chunks(
    attn: ChunkAttention, first: Tensor, grid: Tensor, window: int, steps: list[Place]
) -> tuple[Tensor, Tensor]:
    """Sparse attention of one image size: global tokens [B, g, C] and a grid [B, h, w, C]."""
    _, h, w, _ = grid.shape
    g, heads, reach = first.shape[1], attn.heads, 2 * window - 1
    table = attn.local_relative_position_bias_table.view(2 * reach + 1, 2 * reach + 1, heads)
    to_global, of_global = attn.g2l_relative_position_bias[1], attn.g2l_relative_position_bias[0]
    q, kv = attn.query(grid), attn.kv(grid).chunk(2, -1)
    first_kv = attn.kv(first).chunk(2, -1)
    out = torch.zeros_like(grid)
    for top, left in product(range(0, h, window), range(0, w, window)):
        own = [
            (y, x)
            for y, x in product(
                range(top, min(top + window, h)), range(left, min(left + window, w))
            )
        ]
        seen = [
            (y, x)
            for y, x in product(range(h), range(w))
            if (y // window - top // window, x // window - left // window) in steps
        ]
        bias = torch.stack(
            [torch.stack([table[y - v + reach, x - u + reach] for v, u in seen]) for y, x in own]
        ).permute(2, 0, 1)
        bias = torch.cat([to_global[:, None].expand(-1, len(own), -1), bias], 2)
        k, v = (
            torch.cat([new, torch.stack([old[:, y, x] for y, x in seen], 1)], 1)
            for new, old in zip(first_kv, kv, strict=True)
        )
        queries = torch.stack([q[:, y, x] for y, x in own], 1)
        attended = attn.proj(softmax_attention(queries, k, v, bias, heads))
        for number, (y, x) in enumerate(own):
            out[:, y, x] = attended[:, number]
    k, v = (torch.cat([new, old.flatten(1, 2)], 1) for new, old in zip(first_kv, kv, strict=True))
    bias = torch.cat(
        [attn.g2g_relative_position_bias, of_global[..., None].expand(-1, -1, h * w)], 2
    )
    assert bias.shape == (heads, g, g + h * w)
    return attn.proj(softmax_attention(attn.query(first), k, v, bias, heads)), out


def plain_full_bias(attn: FullAttention, side: int, h: int, w: int) -> Tensor:
    """Bias [H, h * w, h * w]: the nominal matrix resized as an image to the longer side."""
    places = list(product(range(side), range(side)))
    table = attn.local_relative_position_bias_table.view(2 * side - 1, 2 * side - 1, -1)
    rows = [
        torch.stack([table[y - v + side - 1, x - u + side - 1] for v, u in places])
        for y, x in places
    ]
    matrix = torch.stack(rows).permute(2, 0, 1)
    longer = max(h, w)
    if longer != side:
        matrix = functional.interpolate(matrix[None], (longer**2,) * 2, mode="bicubic")[0]
    kept = torch.tensor([y * longer + x for y, x in product(range(h), range(w))])
    return matrix[:, kept][:, :, kept]


def plain_full(attn: FullAttention, first: Tensor | None, grid: Tensor, side: int) -> Tensor:
    """Full attention: returns [B, g + h * w, C]."""
    _, h, w, _ = grid.shape
    bias, x = plain_full_bias(attn, side, h, w), grid.flatten(1, 2)
    if first is not None:
        x = torch.cat([first, x], 1)
        others, own = attn.g2l_relative_position_bias
        bias = torch.cat([own[:, None].expand(-1, h * w, -1), bias], 2)
        top = [attn.g2g_relative_position_bias, others[..., None].expand(-1, -1, h * w)]
        bias = torch.cat([torch.cat(top, 2), bias], 1)
    q, k, v = attn.qkv(x).chunk(3, -1)
    attended: Tensor = attn.proj(softmax_attention(q, k, v, bias, attn.heads))
    return attended


def plain_block(
    block: PreNormBlock,
    first: Tensor | None,
    grid: Tensor,
    vil: ViL,
    stage: int,
    steps: list[Place],
) -> tuple[Tensor | None, Tensor]:
    """One block with loops."""
    normed = None if first is None else block.norm1(first)
    if isinstance(block.attn, ChunkAttention):
        assert first is not None and normed is not None
        window = vil.config.window
        of_first, of_grid = plain_chunks(block.attn, normed, block.norm1(grid), window, steps)
        first = first + of_first
    else:
        assert isinstance(block.attn, FullAttention)
        side = vil.config.image_size // vil.stage_strides[stage]
        attended = plain_full(block.attn, normed, block.norm1(grid), side)
        g = 0 if first is None else first.shape[1]
        first = None if first is None else first + attended[:, :g]
        of_grid = attended[:, g:].unflatten(1, grid.shape[1:3])
    grid = grid + of_grid
    first = None if first is None else first + block.mlp(block.norm2(first))
    return first, grid + block.mlp(block.norm2(grid))


def plain_forward(vil: ViL, image: Tensor, neighbors: list[int] | None = None) -> Tensor:
    """Final tokens [B, h, w, D]."""
    x, index = image, 0
    for number, stage in enumerate(vil.stages):
        if number:
            x = functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        grid = stage.embed.norm(stage.embed.proj(x).permute(0, 2, 3, 1))  # type: ignore[union-attr, operator]
        first = getattr(stage.embed, "cls_token", None)
        first = None if first is None else first.expand(len(image), -1, -1)
        for block in stage.blocks:  # type: ignore[union-attr]
            around = AROUND if neighbors is None else [AROUND[neighbors[index]]]
            first, grid = plain_block(block, first, grid, vil, number, [(0, 0), *around])
            index += 1
        x = grid.permute(0, 3, 1, 2)
    normed: Tensor = vil.norm(grid)
    return normed


def check_equal(vil: ViL, image: Tensor, ask: Ask, neighbors: list[int] | None = None) -> None:
    """Compare values and gradients with the plain form, in float64."""
    (found,) = vil([image], ask)
    expected = plain_forward(vil, image, neighbors)
    torch.testing.assert_close(found.grid, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.pooled, expected.mean((1, 2)), rtol=1e-10, atol=1e-10)
    weight = noise(*expected.shape, dtype=torch.float64)
    inputs = [image, *vil.parameters()]
    ours = torch.autograd.grad(found.grid, inputs, weight)
    theirs = torch.autograd.grad(expected, inputs, weight, materialize_grads=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def tiny(**changes: object) -> ViL:
    """Return the tiny network in float64."""
    vil = build(replace(VIL, **changes), torch.float64)  # type: ignore[arg-type]
    assert isinstance(vil, ViL)
    return vil


SIZES = [(32, 32), (16, 16), (2, 2), (9, 31), (22, 14), (6, 40), (40, 12)]
"""The nominal size, one chunk or less, odd sides, strips, and a longer side than the nominal."""


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("logits", [(), (0, 1, 2, 3)], ids=["fused", "with logits"])
def test_vil_equals_the_plain_forward(height: int, width: int, logits: tuple[int, ...]) -> None:
    image = noise(2, 3, height, width, dtype=torch.float64).requires_grad_()
    check_equal(tiny(), image, Ask(logits=logits))


@pytest.mark.parametrize("neighbor", range(8))
def test_a_chunk_sees_itself_and_the_one_neighbor_that_was_drawn(neighbor: int) -> None:
    neighbors = [neighbor, (neighbor + 3) % 8, 0, 0]
    vil, image = tiny(neighbors="one"), noise(1, 3, 20, 30, dtype=torch.float64).requires_grad_()
    check_equal(vil, image, Ask(neighbors=torch.tensor(neighbors)), neighbors)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_chunks_may_have_any_side_and_several_stages(window: int) -> None:
    image = noise(1, 3, 18, 26, dtype=torch.float64).requires_grad_()
    check_equal(tiny(window=window, sparse_stages=2), image, Ask())


def test_drawn_neighbors_in_several_sizes_at_once() -> None:
    vil = tiny()
    views = [noise(2, 3, 32, 32, dtype=torch.float64), noise(3, 3, 10, 24, dtype=torch.float64)]
    ask = Ask(neighbors=torch.tensor([5, 2, 7, 0]), logits=(0,))

    def outputs(found: list[Tensor]) -> list[Tensor]:
        weights = [noise(*out.shape, dtype=torch.float64) for out in found]
        return [*found, *torch.autograd.grad(found, list(vil.parameters()), weights)]

    together, alone = vil(views, ask), [vil([view], ask)[0] for view in views]
    torch.testing.assert_close(
        outputs([f.grid for f in together]), outputs([f.grid for f in alone]), rtol=1e-9, atol=1e-9
    )
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.logits[0].values, other.logits[0].values)


def test_logits_say_who_sees_whom() -> None:
    (found,) = tiny()([noise(1, 3, 24, 24, dtype=torch.float64)], Ask(logits=(0,)))
    seen = found.logits[0].values[0, 0, 0] > -torch.inf
    assert seen.shape == (145, 145) and seen[0].all() and seen[:, 0].all()
    corner = seen[1, 1:].view(12, 12)
    assert corner[:6, :6].all() and corner.sum() == 36
    inner = seen[1 + 4 * 12 + 4, 1:].view(12, 12)
    assert inner[:9, :9].all() and inner.sum() == 81


def test_gradients_in_bf16_stay_near_fp32() -> None:
    layout = chunk_layout(((2, 9, 14), (3, 4, 5)), 2, 4, torch.device("cpu"))
    tokens, weight = len(layout.slots), noise(len(layout.slots), 16, seed=3)
    given = [noise(tokens, 16), noise(tokens, 32, seed=1), noise(2, 16, 9 * 16 + 2, seed=2)]
    weight[layout.prefixes] = 0

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        q, kv, bias = (x.clone().requires_grad_() for x in given)
        out, _ = chunk_attention(q.to(dtype), kv.to(dtype), bias, layout)
        return torch.autograd.grad(out, (q, kv, bias), weight.to(dtype))

    for rough, exact in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        assert rough.dtype == torch.float32 and (rough - exact).norm() < 0.02 * exact.norm()


def test_the_bias_of_other_grids() -> None:
    """Square: the published rule. Other grids: a part of the square of the longer side."""
    device = torch.device("cpu")
    matrix = noise(16, 16, dtype=torch.float64)
    assert resize_matrix(4, 4, 4, device, matrix.dtype) is None
    square, wide, part = (
        resize_matrix(4, *grid, device, matrix.dtype) for grid in ((6, 6), (3, 6), (2, 4))
    )
    assert square is not None and wide is not None and part is not None
    resized = functional.interpolate(matrix[None, None], (36, 36), mode="bicubic")[0, 0]
    torch.testing.assert_close(square @ matrix @ square.mT, resized)
    torch.testing.assert_close(wide @ matrix @ wide.mT, resized[:18, :18])
    assert part.equal(torch.eye(16, dtype=torch.float64)[:8])


def test_official_names_go_both_ways() -> None:
    ours = {f"backbone.{k}": v for k, v in build(VIL).state_dict().items()}
    official = to_official(ours, "vil")
    assert {"layer1.0.cls_token", "layer1.0.norm_embed.bias", "layer1.4.mlp.fc1.bias"} <= set(
        official
    )
    assert {"layer2.1.attn.qkv.bias", "layer3.2.norm.weight", "norm.weight"} <= official.keys()
    for name in ("query", "kv", "proj"):
        shared = official[f"layer1.3.attn.{name}_global.weight"]
        assert shared is official[f"layer1.3.attn.{name}.weight"]
    assert "layer2.1.attn.proj_global.weight" not in official, "full attention has one name"
    back = from_official({f"module.{name}": value for name, value in official.items()})
    assert back.keys() == ours.keys() and all(back[name] is ours[name] for name in ours)


def test_sizes_are_read_off_the_weights() -> None:
    for name in ("vil_2262", "vil_14121"):
        with torch.device("meta"):
            backbone = build_backbone(BACKBONES[name])
        shapes = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
        assert vil_config(shapes) == replace(BACKBONES[name], drop_path=0.0)
    with pytest.raises(ValueError, match="not the parameters of a Vision Longformer"):
        vil_config({"conv1.weight": (64, 3, 7, 7)})


def test_hidden_patches_are_not_seen() -> None:
    vil, image, token = build(VIL), noise(2, 3, 12, 20), noise(8)
    mask = noise(2, 6, 10, seed=1) > 0
    changed = torch.where(mask.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None], 9, image)
    first, second = (vil([view], Ask(fill=(mask, token)))[0] for view in (image, changed))
    assert first.grid.equal(second.grid)
    assert not first.grid.equal(vil.features(image).grid)


def test_what_says_where_things_lie_does_not_decay() -> None:
    for group in parameter_groups(build(VIL), decay_all_matrices=False):
        spared = [n for n in group["names"] if "cls_token" in n or "position_bias" in n]
        assert group["decayed"] != bool(spared)


def moment(step: int, seed: int = 0) -> Moment:
    return Moment(step=step, run=100, epoch=0, seed=seed)


def test_neighbors_are_drawn_for_a_learner_that_wants_them() -> None:
    one, every = build(replace(VIL, neighbors="one")), build(VIL)
    assert neighbor_draw(every, moment(0)) is None and neighbor_draw(build(SWIN), moment(0)) is None
    draws = [neighbor_draw(one, moment(step)) for step in range(100)]
    drawn = torch.stack([draw for draw in draws if draw is not None])
    assert drawn.shape == (100, 4) and drawn.dtype == torch.int64
    assert all((drawn == neighbor).any(0).all() for neighbor in range(8))
    assert drawn.max() == 7 and drawn.min() == 0
    again, other = neighbor_draw(one, moment(3)), neighbor_draw(one, moment(3, seed=1))
    assert again is not None and again.equal(drawn[3])
    assert other is not None and not other.equal(drawn[3])


def test_the_student_sees_what_was_drawn_and_the_teacher_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = build_method(esvit(), replace(VIL, neighbors="one"), seed=0)
    asked: dict[bool, list[Ask]] = {True: [], False: []}
    forward = ViL.forward

    def note(self: ViL, views: list[Tensor], *ask: Ask) -> object:
        asked[self is method.learner()] += ask or [Ask()]
        return forward(self, views, *ask)

    monkeypatch.setattr(ViL, "forward", note)
    for step in range(2):
        method(view_batch(), moment(step))
    expected = [neighbor_draw(build(replace(VIL, neighbors="one")), moment(n)) for n in range(2)]
    for ask, draw in zip(asked[True], expected, strict=True):
        assert ask.neighbors is not None and draw is not None and ask.neighbors.equal(draw)
    assert [ask.neighbors for ask in asked[False]] == [None, None]


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_one_graph_serves_every_drawn_neighbor() -> None:
    backbone, view = build(VIL).eval(), noise(1, 3, 16, 24)
    asks = [Ask(neighbors=torch.tensor(draw)) for draw in ([1, 5, 0, 0], [6, 2, 7, 3])]
    with torch.no_grad():
        expected = [backbone([view], ask)[0].grid for ask in asks]
        assert not expected[0].equal(expected[1])
        for block in backbone.blocks():
            block.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(backbone([view], asks[0])[0].grid, expected[0])
        with torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(backbone([view], asks[1])[0].grid, expected[1])
