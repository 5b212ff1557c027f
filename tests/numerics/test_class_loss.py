"""The loss of classes: soft targets written out, bf16, and inputs at the edge."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor

from leanvit.losses.classes import class_loss
from leanvit.losses.view import Mixing
from tests.tiny import noise

IMAGES, CLASSES = 6, 5
TARGET = torch.tensor([0, 4, 2, 2, 1, 3])
PARTNER = torch.arange(IMAGES) ^ 1


def mixing(share: float) -> Mixing:
    return Mixing(PARTNER, torch.tensor([share], dtype=torch.float64), 1)


def soft(share: float, smoothing: float) -> Tensor:
    """Return the target distributions [B, C]."""

    def one(classes: Tensor) -> Tensor:
        spread = torch.full((IMAGES, CLASSES), smoothing / CLASSES, dtype=torch.float64)
        return spread + (1 - smoothing) * torch.eye(CLASSES, dtype=torch.float64)[classes]

    return share * one(TARGET) + (1 - share) * one(TARGET[PARTNER])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_values_and_gradients_are_those_of_soft_targets(share: float, smoothing: float) -> None:
    logits = noise(IMAGES, CLASSES, dtype=torch.float64).requires_grad_()
    mixed = None if share == 1 else mixing(share)
    loss, _ = class_loss(logits, TARGET, mixed, smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    target = soft(share, smoothing)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, (logits.softmax(1) - target) / IMAGES)


def test_it_is_timms_loss() -> None:
    """Whose partner is the mirrored place in the batch."""
    logits = noise(IMAGES, CLASSES)
    mirrored = Mixing(torch.arange(IMAGES).flip(0), torch.tensor([0.7], dtype=torch.float64), 1)
    target = mixup_target(TARGET, CLASSES, lam=0.7, smoothing=0.1)
    loss, _ = class_loss(logits, TARGET, mirrored, smoothing=0.1)
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits, target))


def test_what_is_told_counts_both_classes_of_a_mixed_image() -> None:
    right = 9 * torch.eye(CLASSES)[TARGET]
    assert class_loss(right, TARGET, None, smoothing=0.1)[1] == 1
    told = class_loss(right, TARGET, mixing(0.75), smoothing=0.1)[1]
    assert float(told) == pytest.approx(0.75 + 0.25 * 2 / 6)  # images 2 and 3 are of one class


def test_bf16_logits_lose_no_more_than_their_own_rounding() -> None:
    logits = noise(IMAGES, CLASSES)
    rough = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = class_loss(rough, TARGET, mixing(0.4), smoothing=0.1)
    assert loss.dtype == torch.float32
    exact, _ = class_loss(rough.double(), TARGET, mixing(0.4), smoothing=0.1)
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)
    whole, _ = class_loss(logits, TARGET, mixing(0.4), smoothing=0.1)
    assert float(loss) == pytest.approx(float(whole), rel=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30], ids=["zero", "large", "huge"])
def test_extreme_logits_stay_finite(scale: float) -> None:
    logits = (scale * noise(IMAGES, CLASSES)).requires_grad_()
    loss, _ = class_loss(logits, TARGET, mixing(0.5), smoothing=0.1)
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite() and logits.grad.isfinite().all()
