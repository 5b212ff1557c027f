"""Faster and Mask R-CNN on every family, and the method that trains them."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from leanvit.config import BackboneConfig
from leanvit.config.dense import DetectorConfig
from leanvit.data.batch import ObjectBatch, Objects
from leanvit.methods.base import Moment
from leanvit.methods.detector import NAMES, Detector, Sampler, build_detector
from tests.tiny import CVT, FAMILIES, SWIN, VIT, noise

AT = Moment(0, 10, 0, 0)
CONFIG = DetectorConfig(classes=3, channels=8, hidden=16)


def detector(backbone: BackboneConfig = SWIN, **changes: object) -> Detector:
    return build_detector(replace(CONFIG, **changes), backbone, 0)  # type: ignore[arg-type]


def objects(*boxes: tuple[int, ...], side: int = 64, crowd: bool = False) -> Objects:
    masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    count = len(boxes)
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(count) % 3,
        torch.tensor([crowd] * count, dtype=torch.bool),
        masks,
    )


def batch() -> ObjectBatch:
    found = (
        objects((4, 4, 30, 40), (30, 20, 60, 60)),
        objects(),
        objects((10, 10, 50, 30)),
        objects((0, 0, 64, 64), crowd=True),
    )
    return ObjectBatch(noise(4, 3, 64, 64), found, torch.arange(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_have_strides_that_torchvision_understands(family: str) -> None:
    maps = detector(FAMILIES[family]).network.maps
    found = maps(noise(1, 3, 2 * maps.multiple, 3 * maps.multiple))
    assert list(found) == [*map(str, range(len(maps.strides))), "pool"]
    for stride, one in zip(maps.strides, found.values(), strict=False):
        assert stride & (stride - 1) == 0
        assert one.shape == (1, 8, 2 * maps.multiple // stride, 3 * maps.multiple // stride)


@pytest.mark.parametrize("side", [33, 64, 70])
@pytest.mark.parametrize("family", ["swin", "vit_full"])
def test_boxes_are_read_at_the_strides_of_their_maps(family: str, side: int) -> None:
    """Whatever the padding: torchvision would guess the strides from the first image."""
    network = detector(FAMILIES[family], masks=True).eval().network
    network.find(noise(1, 3, side, side))
    for pool in (network.telling.box_roi_pool, network.telling.mask_roi_pool):
        assert pool.scales == [1 / stride for stride in network.maps.strides]
        assert pool.map_levels.k_min == math.log2(network.maps.strides[0])
        assert pool.map_levels.k_max == math.log2(network.maps.strides[-1])


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("backbone", [SWIN, VIT], ids=["swin", "vit"])
def test_a_step(backbone: BackboneConfig, masks: bool) -> None:
    method = detector(backbone, masks=masks)
    out = method(batch(), AT)
    expected = set(NAMES.values()) - (set() if masks else {"mask"})
    assert set(out.terms) == expected and out.total.isfinite()
    assert out.total.item() == pytest.approx(sum(loss.item() for loss in out.terms.values()))
    out.total.backward()
    without = {n for n, p in method.named_parameters() if p.grad is None}
    assert not {n for n in without if "fpn" in n or "proposing" in n or "telling" in n}
    again = detector(backbone, masks=masks)(batch(), AT)
    assert again.total.equal(out.total), "proposals are drawn by the step, not by chance"
    before = torch.random.get_rng_state()
    method(batch(), AT)
    assert torch.random.get_rng_state().equal(before)


def test_losses_are_those_of_torchvision() -> None:
    """The same parts, called as torchvision's own model calls them."""
    method = detector()
    found = batch()
    whole = method(found, AT)
    torch.manual_seed(0)
    targets = [
        {"boxes": o.boxes[~o.crowd], "labels": o.labels[~o.crowd] + 1} for o in found.objects
    ]
    network = method.network
    maps = network.maps(found.images)
    listed = ImageList(found.images, [(64, 64)] * 4)
    _, first = network.proposing(listed, maps, targets)
    # which anchors are drawn is chance, what a loss is worth with all of them is not
    network.proposing.fg_bg_sampler = Sampler(10**6, 0.5)
    with torch.random.fork_rng():
        _, all_ = network.proposing(listed, maps, targets)
    ours = method(found, AT)
    assert ours.terms["objectness"].item() == pytest.approx(
        all_["loss_objectness"].item(), rel=1e-5
    )
    assert whole.terms["objectness"].item() == pytest.approx(
        first["loss_objectness"].item(), rel=0.2
    )


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (33, 20)])
@pytest.mark.parametrize("masks", [False, True])
def test_what_is_found_lies_in_the_image(masks: bool, size: tuple[int, int]) -> None:
    method = detector(masks=masks).eval()
    method.network.telling.score_thresh = 0.0
    for found in method.tested.find(noise(2, 3, *size)):
        assert 0 < len(found.boxes) <= 100
        assert found.boxes.min() >= 0
        assert (found.boxes[:, 0::2] <= size[1]).all() and (found.boxes[:, 1::2] <= size[0]).all()
        assert found.labels.min() >= 0 and found.labels.max() < 3
        assert (found.scores.diff() <= 0).all()
        assert (found.masks is not None) == masks
        if found.masks is not None:
            assert found.masks.shape == (len(found.boxes), 1, 28, 28)


def test_a_frozen_backbone_gets_no_gradient() -> None:
    method = detector(frozen=True)
    method(batch(), AT).total.backward()
    backbone = dict(method.network.backbone.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone.values())


def test_batch_norm_couples_no_images_where_it_is_frozen() -> None:
    assert detector(CVT).coupled() and not detector(CVT, frozen=True, average=0.5).coupled()
    network = detector(CVT, frozen=True).network.train()
    found = noise(4, 3, 64, 64)
    whole, first = network.maps(found), network.maps(found[:1])
    assert all((whole[name][:1] - first[name]).abs().max() < 1e-5 for name in whole)


def test_images_without_objects_teach_what_is_none() -> None:
    empty = ObjectBatch(noise(2, 3, 64, 64), (objects(), objects()), torch.arange(2))
    out = detector(masks=True)(empty, AT)
    assert out.total.isfinite() and out.terms["objectness"] > 0
    assert out.terms["box"] == 0 == out.terms["proposal"]
    out.total.backward()


def test_half_precision_leaves_boxes_in_full() -> None:
    method = detector(masks=True)
    exact = method(batch(), AT)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method(batch(), AT)
    assert rounded.total.dtype == torch.float32
    for name, loss in exact.terms.items():
        assert rounded.terms[name].item() == pytest.approx(loss.item(), rel=0.1, abs=0.05), name


@pytest.mark.long
def test_it_learns_to_find_a_rectangle() -> None:
    images = 0.1 * noise(4, 3, 64, 64)
    found = []
    for number in range(4):
        left, top = 8 + 8 * number, 30 - 6 * number
        images[number, :, top : top + 24, left : left + 24] += 3
        found.append(objects((left, top, left + 24, top + 24)))
    taught = ObjectBatch(images, tuple(found), torch.arange(4))
    method = detector(channels=16, hidden=32)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        method(taught, Moment(step, 40, 0, 0)).total.backward()
        optimizer.step()
    told = method.eval().tested.find(images)
    for one, there in zip(told, found, strict=True):
        best = one.boxes[0]
        assert one.scores[0] > 0.4 and (best - there.boxes[0]).abs().max() < 8
