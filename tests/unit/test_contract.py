"""The backbone contract serves what will be built on it: one short step of each kind."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from leanvit.backbones.base import Ask, Backbone
from leanvit.config import BackboneConfig
from tests.tiny import FAMILIES, SWIN, VIL, VIT, build, noise


def has_gradient(module: nn.Module, *unreached: str) -> bool:
    """Whether exactly the parameters that are not named were reached."""
    return all(
        (p.grad is not None and bool(p.grad.abs().sum() > 0)) != (name in unreached)
        for name, p in module.named_parameters()
    )


def test_a_distilled_masked_autoencoder_step() -> None:
    """D-MAE: pixels of hidden patches, and a wider teacher's attention logits, in one pass."""
    student, teacher = build(VIT), build(replace(VIT, dim=24, heads=4, depth=2)).eval()
    images, patches = noise(2, 3, 32, 32), 64
    order = noise(2, patches, seed=1).argsort(1)
    keep, hidden = order[:, :16], order[:, 16:]
    mixer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    decoder = nn.Sequential(mixer, nn.Linear(16, 4 * 4 * 3))
    mask_token = nn.Parameter(torch.zeros(16))
    adapter = nn.Conv2d(2, 4, 1, bias=False)

    (found,) = student([images], Ask(keep=keep, logits=(-1,)))
    with torch.no_grad():
        (seen,) = teacher([images], Ask(keep=keep, logits=(-1,)))
    assert found.grid.shape == (2, 1, 16, 16)
    assert found.prefix is not None and found.prefix.shape == (2, 1, 16)
    expected = functional.pad(keep + 1, (1, 0))
    assert found.logits[0].where[:, 0].equal(expected)
    assert seen.logits[0].where.equal(found.logits[0].where)

    index = keep[..., None].expand(-1, -1, 16)
    tokens = mask_token.expand(2, patches, 16).scatter(1, index, found.grid[:, 0])
    target = functional.unfold(images, 4, stride=4).mT
    predicted = decoder(torch.cat([found.prefix, tokens], 1))[:, 1:]
    error = (predicted - target).square().mean(-1).gather(1, hidden).mean()
    matched = adapter(found.logits[0].values[:, 0])
    distilled = (matched - seen.logits[0].values[:, 0]).square().mean()
    (error + distilled).backward()
    assert has_gradient(student) and has_gradient(adapter) and has_gradient(decoder)


def test_a_simmim_step_on_swin() -> None:
    """SimMIM: hidden patches are replaced after embedding, a linear layer predicts the pixels."""
    swin, images = build(SWIN), noise(2, 3, 32, 48)
    mask = noise(2, 16, 24, seed=1) > 0
    token = nn.Parameter(noise(8, seed=2))
    decoder = nn.Linear(swin.feature_dim, 3 * swin.stride**2)
    (found,) = swin([images], Ask(fill=(mask, token)))
    pixels = functional.pixel_shuffle(decoder(found.grid).permute(0, 3, 1, 2), swin.stride)
    hidden = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(images)
    (pixels - images)[hidden].abs().mean().backward()
    assert has_gradient(swin) and token.grad is not None and token.grad.abs().sum() > 0
    everything = torch.ones(2, 16, 24, dtype=torch.bool)
    (blind,) = swin([images], Ask(fill=(everything, token)))
    (other,) = swin([images + 1], Ask(fill=(everything, token)))
    assert blind.grid.equal(other.grid), "hidden pixels must not be seen"


class Pyramid(nn.Module):
    """Stage features of a backbone as torchvision's detectors want them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, 16
        widths = [SWIN.dim * 2**stage for stage in range(len(SWIN.depths))]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.pyramid = FeaturePyramidNetwork(widths, self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        (found,) = self.backbone([images], Ask(hidden=self.backbone.stage_ends))
        maps = [
            norm(tokens.grid).permute(0, 3, 1, 2)
            for norm, tokens in zip(self.norms, found.hidden, strict=True)
        ]
        pyramid: dict[str, Tensor] = self.pyramid(OrderedDict(enumerate(maps)))
        return pyramid


def test_a_faster_rcnn_step() -> None:
    """Detection: torchvision's Faster R-CNN on stage features of images of odd sizes."""
    swin = build(SWIN)
    anchors = AnchorGenerator(sizes=((8,), (16,)), aspect_ratios=((1.0,),) * 2)
    detector = FasterRCNN(
        Pyramid(swin),
        num_classes=3,
        rpn_anchor_generator=anchors,
        box_roi_pool=None,
        min_size=50,
        max_size=90,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    detector.roi_heads.box_roi_pool.featmap_names = [0, 1]
    boxes = torch.tensor([[4.0, 4.0, 30.0, 28.0], [20.0, 10.0, 60.0, 44.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])}] * 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = detector([noise(3, 50, 81).sigmoid(), noise(3, 64, 70, seed=1).sigmoid()], targets)
    sum(losses.values()).backward()
    assert len(losses) == 4 and all(loss.isfinite() for loss in losses.values())
    assert has_gradient(swin, "norm.weight", "norm.bias")  # no detector reads the final norm


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_packed_step_with_stochastic_depth(config: object) -> None:
    """Views of several sizes in one pass equal one pass each, values and gradients, in fp64."""
    config = replace(config, drop_path=0.5)  # type: ignore[type-var]
    backbone = build(config, torch.float64)  # type: ignore[arg-type]
    sizes = [(3, 32, 32), (2, 16, 16), (1, 20, 44)]
    views = [noise(b, 3, h, w, seed=n, dtype=torch.float64) for n, (b, h, w) in enumerate(sizes)]
    keep = noise(len(backbone.drop_rates()), 2, 6, seed=9) > 0

    def gradients(outputs: list[Tensor]) -> list[Tensor]:
        weights = [noise(*out.shape, dtype=torch.float64) for out in outputs]
        return list(torch.autograd.grad(outputs, list(backbone.parameters()), weights))

    packed = backbone(views, Ask(drop=keep, hidden=(0, -1)))
    alone = [
        backbone([view], Ask(drop=part, hidden=(0, -1)))[0]
        for view, part in zip(views, keep.split([3, 2, 1], dim=2), strict=True)
    ]
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one.pooled, other.pooled, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.grid, other.grid, rtol=1e-12, atol=1e-12)
        for mine, theirs in zip(one.hidden, other.hidden, strict=True):
            torch.testing.assert_close(mine.grid, theirs.grid, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients([f.grid for f in packed]),
        gradients([f.grid for f in alone]),
        rtol=1e-10,
        atol=1e-10,
    )
    all_kept = torch.ones_like(keep)
    assert not backbone(views, Ask(drop=all_kept))[0].grid.equal(packed[0].grid)


def test_what_a_backbone_cannot_give_is_an_error() -> None:
    swin, vit, vil, image = build(SWIN), build(VIT), build(VIL), noise(1, 3, 32, 32)
    keep = torch.zeros(1, 4, dtype=torch.long)
    hidden = torch.zeros(1, 8, 16, dtype=torch.bool)
    for ask, backbone, views, message in [
        (Ask(keep=keep), swin, [image], "cannot serve 'keep'"),
        (Ask(fill=(hidden, noise(16))), vit, [image, image], "belongs to one view; 2"),
        (Ask(hidden=(7,)), swin, [image], "has 4 blocks; there is no block 7"),
        (Ask(logits=(-4,)), vit, [image], "has 3 blocks; there is no block -4"),
        (Ask(drop=torch.ones(4, 2, 2)), swin, [image], r"expected \(4, 2, 1\)"),
        (Ask(neighbors=torch.zeros(4)), swin, [image], "cannot serve 'neighbors'"),
        (Ask(neighbors=torch.zeros(3)), vil, [image], r"expected \(4,\): one for each block"),
        (Ask(), vit, [noise(1, 3, 3, 32)], "smaller than one patch of 4"),
        (Ask(), vit, [], "There is no view"),
        (Ask(), swin, [noise(0, 3, 32, 32)], "has no images"),
        (Ask(keep=keep.repeat(2, 1)), vit, [image], r"keep has shape \(2, 4\); expected \[1, n\]"),
        (Ask(fill=(hidden, noise(8))), swin, [image], r"is \(1, 8, 16\); expected \(1, 16, 16\)"),
        (Ask(fill=(hidden, noise(16))), vit, [image], r"is \(1, 8, 16\); expected \(1, 8, 8\)"),
        (Ask(), vit, [noise(3, 32, 32)], "floating-point tensor .B, 3, height, width."),
        (Ask(), swin, [noise(1, 1, 32, 32)], "floating-point tensor"),
        (Ask(), swin, [image.byte()], "not torch.uint8"),
    ]:
        with pytest.raises(ValueError, match=message):
            backbone(views, ask)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_features_of_stages(config: BackboneConfig) -> None:
    backbone = build(config).eval()
    side = config.image_size
    found = backbone.features(noise(2, 3, side, side), stages=True)
    assert [tokens.grid.shape[-1] for tokens in found.hidden] == list(backbone.stage_dims)
    for tokens, stride in zip(found.hidden, backbone.stage_strides, strict=True):
        assert tokens.grid.shape[1] == -(-side // stride)
    assert backbone.features(noise(2, 3, side, side)).hidden == ()
