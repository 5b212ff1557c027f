"""Networks of timm behind the contract against timm itself, and ResNet-50 against torchvision."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor, nn

from leanvit.backbones.base import Ask, Tokens
from leanvit.backbones.catalogue import build_backbone
from leanvit.backbones.timm_adapter import DropPath, TimmNetwork
from leanvit.config import BACKBONES, MultiCropConfig, TimmConfig
from leanvit.core.random import seeded
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from tests.tiny import TIMM, TIMM_CONVOLUTIONS, build, esvit, noise, view_batch

DYNAMIC = {"dynamic_img_size": True, "dynamic_img_pad": True}
STAGES = {
    "resnet50": ((64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)),
    "pvt_v2_b0": ((32, 64, 160, 256), (4, 8, 16, 32)),
    "focalnet_tiny_srf": ((96, 192, 384, 768), (4, 8, 16, 32)),
    "hiera_tiny_224": ((96, 192, 384, 768), (4, 8, 16, 32)),
    "convnext_atto": ((40, 80, 160, 320), (4, 8, 16, 32)),
    "mobilenetv3_small_100": ((16, 16, 24, 48, 576), (2, 4, 8, 16, 32)),
    "efficientvit_b0": ((16, 32, 64, 128), (4, 8, 16, 32)),
    "efficientvit_m0": ((64, 128, 192), (16, 32, 64)),
    "vit_tiny_patch16_224": ((192,), (16,)),
    "swin_tiny_patch4_window7_224": ((96, 192, 384, 768), (4, 8, 16, 32)),
}
"""Channels and strides of the stages."""
OPTIONS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": DYNAMIC,
    "swin_tiny_patch4_window7_224": {"strict_img_size": False},
}
"""What timm itself must be told to take several sizes."""
WIDE_HEADS = ("mobilenetv3_small_100", "efficientvit_b0")
"""Their heads make the features wider before the classifier."""
ONE_SIZE = ("hiera_tiny_224",)
REFUSED = {
    "hiera_tiny_224": ((96, 96), (100, 140), (97, 139)),
    "swin_tiny_patch4_window7_224": ((97, 139),),
}
"""Sizes that a network cannot take, because timm wants its own size or whole patches."""
WITHOUT_DEPTH = ("efficientvit_b0", "efficientvit_m0")
"""They have no stochastic depth."""


@dataclass
class Pair:
    """A network of timm, here and there, with the same weights and buffers."""

    name: str
    ours: TimmNetwork
    theirs: Any


def shake(module: nn.Module) -> None:
    """Move every weight and running statistic, so that none hides behind a zero or a one."""
    draw = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.mul_(0.5 + torch.rand(value.shape, generator=draw))
        elif value.is_floating_point():
            value.add_(0.02 * torch.randn(value.shape, generator=draw))


@pytest.fixture(scope="module", params=STAGES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    name = request.param
    with seeded(0, "test"):
        ours = build_backbone(TimmConfig(name=name)).eval()
    assert isinstance(ours, TimmNetwork)
    shake(ours)
    theirs = timm.create_model(name, num_classes=0, **OPTIONS.get(name, {})).eval()
    missing, unknown = theirs.load_state_dict(ours.network.model.state_dict(), strict=False)
    assert not unknown and bool(missing) == (name in WIDE_HEADS)
    yield Pair(name, ours, theirs)


def equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def sequence(final: Tensor, theirs: Any) -> Tensor:
    """Return timm's final features as tokens [B, T, D]."""
    if final.ndim == 4:
        last = getattr(theirs, "output_fmt", "") == "NHWC"
        return final.flatten(1, 2) if last else final.flatten(2).mT
    return final


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (100, 140), (97, 139)])
@torch.no_grad()
def test_features_are_those_of_timm(pair: Pair, size: tuple[int, int]) -> None:
    image = noise(2, 3, *size)
    if size in REFUSED.get(pair.name, ()):
        with pytest.raises(ValueError, match=f"{pair.name}, .* cannot take {size[0]} x {size[1]}"):
            pair.ours.features(image)
        return
    (found,) = pair.ours([image], Ask(hidden=(-1,)))
    final = pair.theirs.forward_features(image)
    assert (found.prefix is not None) == pair.name.startswith("vit")
    equal(Tokens(found.grid, found.prefix).sequence(), sequence(final, pair.theirs))
    pooled = pair.theirs.forward_head(final, pre_logits=True)
    if pair.name in WIDE_HEADS:
        assert pooled.shape[1] > pair.ours.feature_dim
        pooled = final.mean((2, 3))
    equal(found.pooled, pooled)
    equal(found.hidden[0].grid, found.grid)
    equal(pair.ours.pool(found.hidden[0]), found.pooled)


@torch.no_grad()
def test_stages_are_those_that_timm_lists(pair: Pair) -> None:
    dims, strides = STAGES[pair.name]
    ours = pair.ours
    assert (ours.stage_dims, ours.stage_strides) == (dims, strides)
    assert ours.feature_dim == dims[-1] and ours.depth == len(pair.theirs.feature_info)
    (found,) = ours([noise(1, 3, 224, 224)], Ask(hidden=ours.stage_ends))
    maps = pair.theirs.forward_intermediates(noise(1, 3, 224, 224), intermediates_only=True)
    for end, tokens, dim, stride in zip(ours.stage_ends, found.hidden, dims, strides, strict=True):
        side = -(-224 // stride)
        assert tokens.grid.shape == (1, side, side, dim)
        if end < ours.depth - 1:  # the last one has passed the final norm
            equal(tokens.grid.permute(0, 3, 1, 2), maps[end])


def test_depths_of_parameters_follow_the_stages(pair: Pair) -> None:
    layers = dict(pair.ours.param_layers())
    names = [name for name, _ in pair.ours.named_parameters()]
    assert list(layers) == names and layers[names[0]] == 0
    for number, info in enumerate(pair.theirs.feature_info):
        inside = [n for n in names if n.startswith(f"network.model.{info['module']}.")]
        assert {layers[name] for name in inside} <= {number + 1}
    last = f"network.model.{pair.theirs.feature_info[-1]['module']}."
    behind = names[max(place for place, name in enumerate(names) if name.startswith(last)) + 1 :]
    assert {layers[name] for name in behind} <= {pair.ours.depth + 1}


@pytest.mark.parametrize("name", STAGES)
def test_the_region_task_trains_a_step(name: str) -> None:
    """And reaches every parameter, without reading a global generator."""
    fixed = name in ONE_SIZE
    views = MultiCropConfig(
        global_size=64, local_sizes=() if fixed else (32,), local_counts=() if fixed else (2,)
    )
    config = TimmConfig(name=name, image_size=64, drop_path=0 if name in WITHOUT_DEPTH else 0.2)
    method = build_method(esvit(views=views), config, seed=0)
    before = torch.get_rng_state()
    output = method(view_batch(2, views), Moment(step=0, run=10, epoch=0, seed=0))
    output.total.backward()
    assert torch.get_rng_state().equal(before)
    assert output.total.isfinite() and output.terms["region"].isfinite()
    learner = method.learner()
    assert learner is not None
    assert not [n for n, p in learner.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


@pytest.mark.parametrize("training", [False, True])
def test_resnet_is_torchvisions(training: bool) -> None:
    """Values, gradients and running statistics, with the same weights."""
    assert isinstance(BACKBONES["resnet50"], TimmConfig)
    with seeded(0, "test"):
        ours = build_backbone(BACKBONES["resnet50"]).train(training)
        theirs = torchvision.models.resnet50().train(training)
    theirs.fc = nn.Identity()
    shake(theirs)
    assert sum(p.numel() for p in ours.parameters()) == 23_508_032
    assert isinstance(ours, TimmNetwork)
    ours.network.model.load_state_dict(theirs.state_dict(), strict=True)
    image, weight = noise(4, 3, 64, 96), noise(4, 2048)
    (found,) = ours([image])
    expected = theirs(image)
    assert found.grid.shape == (4, 2, 3, 2048)
    equal(found.pooled, expected)
    equal(found.grid.mean((1, 2)), expected)
    ((found.pooled * weight).sum()).backward()
    ((expected * weight).sum()).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-6
    for name, buffer in theirs.named_buffers():
        equal(ours.network.model.get_buffer(name), buffer)


@pytest.mark.parametrize(
    "config",
    [TIMM, TIMM_CONVOLUTIONS, replace(TIMM, name="test_resnet", image_size=64)],
    ids=lambda config: config.name,
)
def test_stochastic_depth_is_that_of_timm(config: TimmConfig) -> None:
    """With the masks that timm drew, in training."""
    ours = build(replace(config, drop_path=0.6)).train()
    assert isinstance(ours, TimmNetwork)
    options: dict[str, Any] = {"img_size": 32} if "vit" in config.name else {}
    theirs: Any = timm.create_model(
        config.name, num_classes=0, drop_path_rate=0.6, **options
    ).train()
    theirs.load_state_dict(ours.network.model.state_dict(), strict=False)
    image = noise(8, 3, config.image_size, config.image_size)
    drawn: dict[str, Tensor] = {}
    for name, module in theirs.named_modules():
        if isinstance(module, TimmDropPath):
            module.register_forward_hook(
                lambda _, given, out, name=name: drawn.update({name: out.flatten(1).any(1)})
            )
    with seeded(3, "test"):
        final = theirs.forward_features(image)
    drop = torch.ones(len(ours.drop_rates()), 2, 8, dtype=torch.bool)
    rates = {}
    for name, module in ours.network.model.named_modules():
        if isinstance(module, DropPath):
            drop[module.row, module.branch] = drawn[name]
            rates[name] = theirs.get_submodule(name).drop_prob
            assert ours.drop_rates()[module.row] == pytest.approx(rates[name])
    assert rates.keys() == drawn.keys() and max(ours.drop_rates()) == pytest.approx(0.6)
    assert not drop.all() and drop.any()
    (found,) = ours([image], Ask(drop=drop))
    equal(Tokens(found.grid, found.prefix).sequence(), sequence(final, theirs))
