"""Pyramids of every family, heads on them, and the method that trains both."""

import math
from dataclasses import replace

import pytest
import torch

from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BACKBONES, BackboneConfig, TimmConfig
from leanvit.config.dense import SegmenterConfig
from leanvit.data.batch import MapBatch
from leanvit.data.masks import IGNORED
from leanvit.evaluation.segment import by_windows
from leanvit.methods.base import Moment
from leanvit.methods.map_heads import HEADS
from leanvit.methods.pyramid import Pyramid, look, region_side
from leanvit.methods.segmenter import Segmenter, build_segmenter
from tests.tiny import CVT, FAMILIES, SWIN, VIT, build, noise

AT = Moment(0, 10, 0, 0)
CONFIG = SegmenterConfig(classes=5, head="fpn", channels=8)


def segmenter(backbone: BackboneConfig = SWIN, **changes: object) -> Segmenter:
    return build_segmenter(replace(CONFIG, **changes), backbone, 0)  # type: ignore[arg-type]


def batch(size: int = 24, images: int = 4, seed: int = 0) -> MapBatch:
    maps = torch.randint(0, 5, (images, size, size), generator=torch.Generator().manual_seed(seed))
    maps[:, :2] = IGNORED
    return MapBatch(noise(images, 3, size, size, seed=seed), maps.byte(), torch.arange(images))


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pyramid_of_every_family(family: str, spread: bool) -> None:
    backbone = build(FAMILIES[family])
    pyramid = Pyramid(backbone, spread=spread)
    side = region_side(backbone)
    maps = pyramid(*look(backbone, noise(2, 3, 5 * side, 3 * side), pyramid.blocks, frozen=False))
    assert len(maps) == len(pyramid.dims) == len(pyramid.strides)
    assert list(pyramid.strides) == sorted(pyramid.strides)
    for found, dim, stride in zip(maps, pyramid.dims, pyramid.strides, strict=True):
        assert found.shape[:2] == (2, dim) and found.isfinite().all()
        for have, pixels in zip(found.shape[2:], (5 * side, 3 * side), strict=True):
            assert abs(have - pixels / stride) <= 1


@pytest.mark.parametrize(
    ("name", "strides", "dims"),
    [
        ("vit_tiny", (4, 8, 16, 32), (48, 96, 192, 192)),
        ("vit_small_p8", (4, 8, 16, 32), (192, 384, 384, 384)),
        ("vit_small_p14", (3.5, 7, 14, 28), (96, 192, 384, 384)),
        ("swin_tiny", (4, 8, 16, 32), (96, 192, 384, 768)),
    ],
)
def test_strides_of_published_networks(
    name: str, strides: tuple[float, ...], dims: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        pyramid = Pyramid(build_backbone(BACKBONES[name]), spread=True)
    assert pyramid.strides == strides and pyramid.dims == dims
    assert pyramid.blocks == ((1, 3, 9) if name == "swin_tiny" else (3, 5, 7))


def test_a_network_whose_last_features_are_wider_than_its_last_stage() -> None:
    config = TimmConfig(image_size=64, name="efficientnet_b0", drop_path=0.0)
    network = segmenter(config).network
    assert network(noise(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_a_shallow_network_has_no_pyramid_of_blocks() -> None:
    with pytest.raises(ValueError, match="2 blocks is too shallow"):
        Pyramid(build(replace(VIT, depth=2)), spread=True)


@pytest.mark.parametrize("size", [(24, 24), (21, 33), (9, 50)])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", [SWIN, VIT], ids=["swin", "vit"])
def test_scores_are_as_large_as_the_image(
    backbone: BackboneConfig, head: str, size: tuple[int, int]
) -> None:
    network = segmenter(backbone, head=head).network
    found = network(noise(2, 3, *size))
    assert found.shape == (2, 5, *size) and found.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", [SWIN, VIT], ids=["swin", "vit"])
def test_every_parameter_of_a_head_gets_a_gradient(backbone: BackboneConfig, head: str) -> None:
    method = segmenter(backbone, head=head)
    method(batch(), AT).total.backward()
    without = {n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {name for name in without if ".head." in name}
    assert not [name for name in without if "blocks" in name or "layers" in name]


def test_a_frozen_backbone_gets_none_and_counts_in_no_group() -> None:
    method = segmenter(frozen=True)
    method(batch(), AT).total.backward()
    backbone = dict(method.network.backbone.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone.values())
    assert all(p.grad is not None for p in method.network.head.parameters())
    scores = method.network(batch().images)
    assert scores.equal(method.eval().network(batch().images)), "it sees as in use"


def test_padding_is_cut_off_again() -> None:
    network = segmenter(head="linear").eval().network
    side = region_side(network.backbone)
    image = noise(1, 3, 2 * side, 3 * side)
    cut = network(image)[..., :-3, :-2]
    zeroed = image.clone()
    zeroed[..., -3:, :], zeroed[..., -2:] = 0, 0
    assert (network(zeroed)[..., :-3, :-2] - network(image[..., :-3, :-2])).abs().max() < 1e-5
    assert (cut - network(zeroed)[..., :-3, :-2]).abs().max() > 1e-4


def test_micro_batches_are_exact() -> None:
    """Without stochastic depth's draws differing: those are keyed by the image."""
    whole, parts = segmenter(), segmenter()
    found = batch()
    found.maps[:] = found.maps.clamp(max=4)  # as many pixels in each part
    whole(found, AT).total.backward()
    for part in found.split(2):
        (parts(part, AT).total / 2).backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None and (one.grad - other.grad).abs().max() < 1e-5


@pytest.mark.parametrize("backbone", [CVT, TimmConfig(image_size=64, name="test_resnet")])
def test_batch_norm_couples_no_images_where_it_is_frozen(backbone: BackboneConfig) -> None:
    """Batches of any size give the same gradients, bit for bit but for the order of sums."""
    whole, parts = (segmenter(backbone, frozen=True, average=0.5, head="fpn") for _ in range(2))
    assert not whole.coupled() and segmenter(backbone).coupled() and not segmenter(SWIN).coupled()
    before = {name: value.clone() for name, value in parts.network.backbone.named_buffers()}
    found = batch(64)
    found.maps[:] = found.maps.clamp(max=4)
    whole(found, AT).total.backward()
    for part in found.split(2):
        (parts(part, AT).total / 2).backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None and (one.grad - other.grad).abs().max() < 1e-5
    parts.after_step(AT, torch.tensor(1.0))
    for network in (parts.network, parts.average):
        assert network is not None
        assert all(before[n].equal(v) for n, v in network.backbone.named_buffers())


def test_the_average_follows_the_network() -> None:
    method = segmenter(average=0.9)
    assert method.tested is method.average and method.encoder() is not method.learner()
    name = "head.score.weight"
    before = method.tested.get_parameter(name).clone()
    with torch.no_grad():
        method.network.get_parameter(name).add_(1)
    method.after_step(AT, torch.tensor(0.0))
    assert method.tested.get_parameter(name).equal(before)
    method.after_step(AT, torch.tensor(1.0))
    assert (method.tested.get_parameter(name) - before - 0.1).abs().max() < 1e-6
    assert segmenter().learner() is None
    assert method.part("network.head.score.weight") == "head"


def test_windows_are_averaged() -> None:
    network = segmenter().eval().network
    with torch.no_grad():
        small = noise(1, 3, 20, 16)
        assert (by_windows(network, small, 32) - network(small)).abs().max() < 1e-6
        image = noise(1, 3, 40, 24)
        total, count = torch.zeros(1, 5, 40, 24), torch.zeros(40, 24)
        for top in (0, 16):  # two thirds of 24, and what ends where the image does
            total[..., top : top + 24, :] += network(image[..., top : top + 24, :])
            count[top : top + 24] += 1
        assert count.min() == 1 and count.max() == 2
        assert (by_windows(network, image, 24) - total / count).abs().max() < 1e-5


def test_a_head_learns_what_is_there() -> None:
    method = segmenter(head="linear")
    found = batch(16, 2)
    found.images[:, 0] = 3 * (found.maps > 2).float()
    target = MapBatch(found.images, (found.maps > 2).byte(), found.index)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        out = method(target, AT)
        losses.append(out.total.item())
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(5), abs=0.7) and losses[-1] < 0.7 * losses[0]
