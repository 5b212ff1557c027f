"""KoLeo: a plain form with its gradients, bf16, and inputs at the edge."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.losses.koleo import koleo
from tests.tiny import noise


def plain(rows: Tensor) -> Tensor:
    """-log of the distance to the nearest other row, row by row."""
    unit = [row / row.norm() for row in rows]
    total = rows.new_zeros(())
    for i, row in enumerate(unit):
        others = torch.stack([(row - other).norm() for j, other in enumerate(unit) if j != i])
        total = total - (others.min() + 1e-8).log()
    return total / len(rows)


@pytest.mark.parametrize("count", [2, 3, 17])
def test_values_and_gradients_are_those_of_the_plain_form(count: int) -> None:
    ours, other = (noise(count, 6, dtype=torch.float64).requires_grad_() for _ in range(2))
    loss, expected = koleo(ours), plain(other)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_opposite_rows_are_two_apart() -> None:
    row = noise(1, 5, dtype=torch.float64)
    assert float(koleo(torch.cat([row, -3 * row]))) == pytest.approx(-math.log(2), abs=1e-7)


def test_a_step_down_spreads_the_rows() -> None:
    rows = functional.normalize(1 + 0.3 * noise(32, 8, dtype=torch.float64), dim=1).requires_grad_()
    before = koleo(rows)
    (gradient,) = torch.autograd.grad(before, rows)
    assert koleo(rows - 0.01 * gradient) < before


def test_the_nearest_row_is_found_in_full_precision() -> None:
    """Rows of bf16 that lie close together, also where the network around them runs in bf16."""
    rows = (1 + 0.05 * noise(64, 32)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo(rows)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(plain(rows.double())), rel=1e-4)


def test_equal_rows_change_nothing_and_break_nothing() -> None:
    rows = torch.ones(4, 3, requires_grad=True)
    koleo(rows).backward()
    assert rows.grad is not None and not rows.grad.any()
    assert torch.isfinite(koleo(torch.zeros(4, 3)))


def test_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="KoLeo compares images, and there is one"):
        koleo(torch.ones(1, 3))
