"""Effective rank against plain forms."""

import math

import pytest
import torch

from leanvit.analysis.rank import effective_rank


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8)
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert math.isfinite(effective_rank(torch.zeros(5, 5)))
