"""CvT against a plain form of the published forward, and what its batch norm remembers."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.backbones.base import Ask
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BACKBONES, CvTConfig
from leanvit.core.precision import autocast
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.weights.shapes import cvt_config
from leanvit.weights.whole import from_official, strip, to_official
from tests.tiny import CVT, build, dino, noise, view_batch


def test_cvt_tiny_has_the_published_size() -> None:
    with torch.device("meta"):
        backbone = build_backbone(BACKBONES["cvt_tiny"])
    assert sum(p.numel() for p in backbone.parameters()) == 29_303_616
    assert backbone.stride == 32


class Plain:
    """The published forward on maps [B, C, h, w], with loops over windows."""

    def __init__(self, config: CvTConfig, values: Mapping[str, Tensor], training: bool) -> None:
        self.config, self.values, self.training = config, values, training

    def named(self, place: str, *names: str) -> list[Tensor]:
        return [self.values[f"{place}.{name}"] for name in names]

    def norm(self, place: str, x: Tensor) -> Tensor:
        weight, bias = self.named(place, "weight", "bias")
        return functional.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias).movedim(-1, 1)

    def conv(self, place: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = self.named(place, "weight", "bias")
        return functional.conv2d(x, weight, bias, stride, padding)

    def attention(self, place: str, x: Tensor, heads: int) -> Tensor:
        _, c, h, w = x.shape
        side = min(self.config.window, h, w)
        x = functional.pad(x, (0, -w % side, 0, -h % side))
        x = functional.conv2d(x, self.values[f"{place}.conv.weight"], padding=1, groups=c)
        mean, var = self.named(f"{place}.norm", "running_mean", "running_var")
        weight, bias = self.named(f"{place}.norm", "weight", "bias")
        x = functional.batch_norm(x, mean, var, weight, bias, self.training)
        qkv, out = self.conv(f"{place}.qkv", x), torch.zeros_like(x)
        for top in range(0, x.shape[2], side):
            for left in range(0, x.shape[3], side):
                box = (..., slice(top, top + side), slice(left, left + side))
                q, k, v = qkv[box].flatten(2).unflatten(1, (3, heads, c // heads)).unbind(1)
                logits = q.mT @ k * c**-0.5 + self.bias(place, side)
                out[box] = (v @ logits.softmax(-1).mT).reshape(x[box].shape)
        return self.conv(f"{place}.proj", out)[..., :h, :w]

    def bias(self, place: str, side: int) -> Tensor | float:
        if not self.config.position_bias:
            return 0.0
        table, reach = self.values[f"{place}.relative_position_bias_table"], self.config.window - 1
        places = [(row, column) for row in range(side) for column in range(side)]
        pairs = [[(r - s + reach, c - d + reach) for s, d in places] for r, c in places]
        index = torch.tensor([[y * (2 * reach + 1) + x for y, x in row] for row in pairs])
        return table[index].movedim(-1, 0)

    def __call__(self, image: Tensor) -> Tensor:
        x = image
        for stage, (depth, heads) in enumerate(
            zip(self.config.depths, self.config.heads, strict=True)
        ):
            stride, place = 2 if stage else self.config.patch, f"stages.{stage}"
            x = self.conv(f"{place}.embed.proj", x, stride, stride // 2)
            x = self.norm(f"{place}.embed.norm", x)
            for block in (f"{place}.blocks.{index}" for index in range(depth)):
                x = x + self.attention(f"{block}.attn", self.norm(f"{block}.norm1", x), heads)
                hidden = self.conv(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x))
                x = x + self.conv(f"{block}.mlp.fc2", hidden / (1 + torch.exp(-1.702 * hidden)))
        return self.norm("norm", x).movedim(1, -1)


SIZES = [[(32, 32), (16, 16)], [(9, 31)], [(34, 18), (2, 6), (12, 12)], [(33, 7), (70, 22)]]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("position_bias", [False, True], ids=["plain", "with bias"])
@pytest.mark.parametrize("logits", [(), (0, 1, 2)], ids=["fused", "with logits"])
def test_cvt_equals_the_plain_forward(
    sizes: list[tuple[int, int]], training: bool, position_bias: bool, logits: tuple[int, ...]
) -> None:
    """Values, gradients and running statistics, which move once for every size."""
    config = replace(CVT, position_bias=position_bias)
    cvt = build(config, torch.float64).train(training)
    values = {name: value.clone() for name, value in cvt.named_buffers()}
    plain = Plain(config, values | dict(cvt.named_parameters()), training)
    views = [noise(2, 3, *size, dtype=torch.float64).requires_grad_() for size in sizes]
    found = [features.grid for features in cvt(views, Ask(logits=logits))]
    expected = [plain(view) for view in views]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = [noise(*each.shape, dtype=torch.float64) for each in expected]
    inputs = [*views, *cvt.parameters()]
    ours, theirs = (torch.autograd.grad(each, inputs, weights) for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    statistics = {n: v for n, v in cvt.named_buffers() if "running" in n}
    assert len(statistics) == 2 * cvt.depth
    for name, value in statistics.items():
        torch.testing.assert_close(value, values[name], rtol=1e-12, atol=1e-12)
    for block in cvt.blocks():
        assert block.attn.norm.num_batches_tracked == len(sizes) * training  # type: ignore[union-attr]


def test_a_small_map_is_one_window() -> None:
    (found,) = build(CVT).eval()([noise(2, 3, 12, 12)], Ask(logits=(0, -1)))
    first, last = found.logits
    assert first.values.shape == (2, 4, 1, 16, 16), "6 x 6 tokens in windows of 4 x 4"
    assert last.values.shape == (2, 1, 2, 9, 9), "3 x 3 tokens, without padding"
    assert last.where.tolist() == [[list(range(9))]]


def test_hidden_tokens_are_not_seen() -> None:
    cvt, image, token = build(CVT), noise(2, 3, 16, 24), noise(8, seed=2)
    mask = torch.ones(2, 8, 12, dtype=torch.bool)
    seen, other = (cvt([x], Ask(fill=(mask, token)))[0].grid for x in (image, image + 1))
    assert seen.equal(other)
    mask[:, 0, 0] = False
    assert not cvt([image], Ask(fill=(mask, token)))[0].grid.equal(seen)


def test_the_teacher_keeps_its_own_statistics() -> None:
    """It sees the global views in training mode; its statistics are no average of the student's."""
    method = build_method(dino(), CVT, seed=0)
    assert isinstance(method, DINO)
    teacher, batch = copy.deepcopy(method.teacher.backbone), view_batch()
    at = Moment(step=0, run=10, epoch=0, seed=0)
    method(batch, at)
    method.after_step(at, torch.ones(()))
    teacher([batch.groups[0].flatten(0, 1)])
    ours, replayed, student = (
        {n: v for n, v in network.named_buffers() if "norm." in n}
        for network in (method.teacher.backbone, teacher, method.student.backbone)
    )
    assert all(ours[name].equal(value) for name, value in replayed.items())
    assert not any(ours[name].equal(value) for name, value in student.items())


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_blocks_compile_whole_while_they_train() -> None:
    plain, views = build(CVT), [noise(2, 3, 32, 32), noise(1, 3, 16, 24)]
    compiled = copy.deepcopy(plain)
    for block in compiled.blocks():
        block.compile(backend="eager", fullgraph=True)
    for one, other in zip(plain(views), compiled(views), strict=True):
        torch.testing.assert_close(one.grid, other.grid)
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(plain.named_buffers()))


def test_bf16_stays_near_fp32_while_it_trains() -> None:
    """Batch statistics are those of rounded maps; the running ones stay fp32."""
    cvt, views = build(CVT), [noise(4, 3, 32, 32), noise(4, 3, 16, 16)]
    exact = [features.grid for features in cvt(views)]
    with autocast("bf16", "cpu"):
        rough = [features.grid for features in cvt(views)]
    for one, other in zip(exact, rough, strict=True):
        assert (one - other).norm() < 0.03 * one.norm()
    assert all(v.dtype == torch.float32 for n, v in cvt.named_buffers() if "running" in n)


def test_official_names_go_both_ways() -> None:
    """Files of before torch counted batches load too."""
    cvt = build(CVT).eval()
    official = to_official(
        {f"backbone.{name}": value for name, value in cvt.state_dict().items()}, "cvt"
    )
    assert {"stage1.1.layers.1.0.fn.qkv.bn.running_var", "norm.weight"} <= official.keys()
    assert not any(name.startswith("stages.") for name in official)
    old = {n: v for n, v in official.items() if not n.endswith("num_batches_tracked")}
    for state in (official, old):
        loaded = build_backbone(CVT).eval()
        loaded.load_state_dict(strip(from_official(state), "backbone."), strict=True)
        image = noise(1, 3, 32, 32)
        assert loaded.features(image).grid.equal(cvt.features(image).grid)


def test_sizes_are_read_off_the_weights() -> None:
    def shapes(config: CvTConfig) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            return {n: tuple(v.shape) for n, v in build_backbone(config).state_dict().items()}

    for name in ("cvt_tiny", "cvt_small"):
        config = BACKBONES[name]
        assert isinstance(config, CvTConfig)
        assert cvt_config(shapes(config)) == replace(config, drop_path=0.0)
    biased = replace(CVT, image_size=224, position_bias=True)
    assert cvt_config(shapes(biased), heads=CVT.heads) == biased
    with pytest.raises(ValueError, match=r"no named one has the widths \(8, 12\); give the heads"):
        cvt_config(shapes(CVT))
    with pytest.raises(ValueError, match="not the parameters of a CvT"):
        cvt_config({"conv1.weight": (64, 3, 7, 7)})
