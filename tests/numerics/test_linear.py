"""The linear layer against torch's, by either library."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.kernels import linear as ours
from tests.tiny import noise

SHAPES = [(1, 1, 1), (5, 3, 7), (49, 96, 288), (700, 384, 96), (2, 640, 2048)]


def results(layer: Any, given: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Return outputs and gradients of what the layer takes."""
    given = [x.detach().requires_grad_() for x in given]
    out = layer(*given)
    return [out.detach(), *torch.autograd.grad(out, given, gradient.to(out.dtype))]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "torch"])
@pytest.mark.parametrize(("n", "c", "d"), SHAPES)
def test_it_is_exact(
    n: int, c: int, d: int, onednn: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operand is rounded: fp32 results lie within fp32's own error of fp64's."""
    monkeypatch.setattr(ours, "_onednn", lambda: onednn)
    given = [noise(n, c), noise(d, c, seed=1), noise(d, seed=2)][: 3 if bias else 2]
    gradient = noise(n, d, seed=3)
    found = results(ours.linear, given, gradient)
    wanted = results(functional.linear, [x.double() for x in given], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == right.shape
        assert (mine - right).norm() <= 1e-6 * right.norm()


@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "torch"])
def test_autocast_rounds_operands_and_keeps_gradients_wide(
    onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "_onednn", lambda: onednn)
    given = [noise(40, 24), noise(16, 24, seed=1), noise(16, seed=2)]
    gradient = noise(40, 16, seed=3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(ours.linear, given, gradient)
        wanted = results(functional.linear, given, gradient)
    assert found[0].dtype == torch.bfloat16
    for mine, right in zip(found, wanted, strict=True):
        assert mine.dtype == right.dtype
        assert (mine - right).float().norm() <= 1e-2 * right.float().norm()


def test_other_shapes_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_onednn", lambda: True)
    layer = ours.Linear(6, 4)
    rows = noise(2, 3, 5, 6)
    torch.testing.assert_close(layer(rows), functional.linear(rows, layer.weight, layer.bias))
    assert layer(noise(0, 6)).shape == (0, 4)
    assert layer.double()(rows.double()).dtype == torch.float64
    frozen = layer.float().requires_grad_(False)
    (gradient,) = torch.autograd.grad(frozen(rows.requires_grad_()).sum(), rows)
    torch.testing.assert_close(gradient, frozen.weight.sum(0).expand_as(rows))


def test_a_second_derivative_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_onednn", lambda: True)
    x = noise(3, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(ours.Linear(6, 8)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(gradient.sum(), x)


def test_wide_numbers_stay_wide_and_mixed_ones_are_refused() -> None:
    layer = ours.Linear(6, 4).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(noise(2, 6).double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="dtype"):
        layer(noise(2, 6))
