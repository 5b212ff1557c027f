"""SimMIM: a step written out plainly, what is hidden and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from leanvit.backbones.base import Ask
from leanvit.config import BackboneConfig, CropConfig
from leanvit.losses.masked import hidden_pixel_loss
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.simmim import SimMIM
from tests.tiny import CVT, SWIN, TIMM, VIL, VIT, noise, random_method, simmim, view_batch

AT = Moment(step=0, run=10, epoch=0, seed=0)


def method(backbone: BackboneConfig = SWIN, **changes: object) -> SimMIM:
    """Return the method with random weights, in fp64."""
    return random_method(SimMIM, simmim(**changes), backbone)


def hidden_by(found: SimMIM, batch: int = 4, at: Moment = AT, first: int = 0) -> Tensor:
    """Return the squares [B, u, u] that a step hides."""
    seen: list[Tensor] = []
    reconstruction = found.reconstruction

    def note(images: Tensor, hidden: Tensor, drawn: Ask) -> object:
        seen.append(hidden)
        return reconstruction(images, hidden, drawn)

    found.reconstruction = note  # type: ignore[assignment, method-assign]
    views = view_batch(batch, dtype=torch.float64)
    found(replace(views, index=views.index + first), at)
    found.reconstruction = reconstruction  # type: ignore[method-assign]
    return seen[0]


def plain(found: SimMIM, images: Tensor, hidden: Tensor, squared: bool) -> Tensor:
    """Predict each region's pixels by the linear layer and compare them one by one."""
    square, stride = found.config.mask_patch, found.backbone.stride
    token = found.backbone.stage_strides[0]
    pixels = hidden.double().kron(torch.ones(1, square, square)) > 0
    mask = pixels[:, ::token, ::token]
    grid = found.backbone([images], Ask(fill=(mask, found.fill_token)))[0].grid
    weight = found.decoder.weight[:, :, 0, 0]
    values = grid @ weight.T + found.decoder.bias  # channel, row and column of a region's pixel
    predicted = torch.zeros_like(images)
    for row in range(stride):
        for column in range(stride):
            for channel in range(3):
                number = (channel * stride + row) * stride + column
                predicted[:, channel, row::stride, column::stride] = values[..., number]
    error = (predicted - images).abs()
    error = error**2 if squared else error
    return error.permute(0, 2, 3, 1)[pixels].sum() / (pixels.sum() * 3)


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("backbone", [VIT, SWIN, CVT, VIL], ids=lambda b: b.kind)
def test_a_step_is_that_of_the_paper(backbone: BackboneConfig, loss: str) -> None:
    found, images = method(backbone, loss=loss), noise(3, 3, 32, 32, dtype=torch.float64)
    hidden = noise(3, 4, 4, seed=1) > 0
    out = found.reconstruction(images, hidden)
    expected = plain(found, images, hidden, loss == "l2")
    torch.testing.assert_close(out.total, expected, rtol=1e-10, atol=1e-10)
    trained = dict(found.named_parameters())
    ours = torch.autograd.grad(out.total, list(trained.values()))
    theirs = torch.autograd.grad(expected, list(trained.values()))
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)


def test_squares_may_be_smaller_than_regions() -> None:
    """Of Swin's last stage: what is compared are pixels. The paper tries 4 to 64."""
    found = method(SWIN, mask_patch=2)
    assert found.backbone.stride == 4 and found.rows == 16
    hidden = hidden_by(found)
    images = noise(4, 3, 32, 32, dtype=torch.float64)
    out = found.reconstruction(images, hidden)
    torch.testing.assert_close(out.total, plain(found, images, hidden, squared=False))


@pytest.mark.parametrize(("ratio", "hidden"), [(0.6, 10), (0.5, 8), (0.3, 5), (0.9, 15), (0.05, 1)])
def test_the_share_is_rounded_up_in_every_image(ratio: float, hidden: int) -> None:
    assert hidden_by(method(mask_ratio=ratio)).sum((1, 2)).tolist() == [hidden] * 4


def test_draws_belong_to_images() -> None:
    found = method()
    whole = hidden_by(found, 4)
    assert hidden_by(found, 2, first=2).equal(whole[2:]), "whatever the batch or the process is"
    assert not whole[0].equal(whole[1])
    assert hidden_by(found, 4, replace(AT, step=1)).equal(whole)
    assert not hidden_by(found, 4, replace(AT, epoch=1)).equal(whole)
    assert not hidden_by(found, 4, replace(AT, seed=1)).equal(whole)


def test_what_is_hidden_does_not_reach_the_prediction() -> None:
    found, hidden = method(VIT), torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[0, 1, 2] = True
    grids = []
    found.backbone.register_forward_hook(lambda _, __, out: grids.append(out[0].grid))
    images = noise(1, 3, 32, 32, dtype=torch.float64)
    found.reconstruction(images, hidden)
    images[:, :, 8:16, 16:24] += 1
    found.reconstruction(images, hidden)
    assert grids[0].equal(grids[1])
    images[:, :, 8:16, 24:32] += 1
    found.reconstruction(images, hidden)
    assert not grids[2].equal(grids[1])


def test_the_loss_in_bf16_and_at_the_edge() -> None:
    predicted, images = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    exact = hidden_pixel_loss(predicted, images, mask)
    rough = hidden_pixel_loss(predicted.bfloat16(), images, mask)
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=1e-2)
    far = torch.where(mask[:, None], images, 1e30)
    assert hidden_pixel_loss(images, far, mask, squared=True) == 0, "visible pixels do not count"
    huge = hidden_pixel_loss(1e18 * predicted, images, mask)
    assert huge.isfinite() and huge > 1e17


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        (SWIN, {"mask_ratio": 1.0}, "none is left to see"),
        (SWIN, {"mask_ratio": 0.0}, "none is hidden"),
        (SWIN, {"mask_patch": 32}, "none is left to see"),
        (
            SWIN,
            {"mask_patch": 3, "views": CropConfig(size=36)},
            "not made of whole tokens of 2; choose a multiple of 2",
        ),
        (VIT, {"mask_patch": 6, "views": CropConfig(size=36)}, "not made of whole tokens of 4"),
        (SWIN, {"mask_patch": 12}, r"\(method.mask_patch\) of 12; the nearest sizes are 24 and 36"),
        (
            SWIN,
            {"mask_patch": 2, "views": CropConfig(size=30)},
            "whole regions of 4; the nearest sizes are 28 and 32",
        ),
        (TIMM, {}, "cannot; take a ViT, Swin"),
    ],
)
def test_what_does_not_fit_is_refused(
    backbone: BackboneConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(simmim(**changes), backbone, 0)
