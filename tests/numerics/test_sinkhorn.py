"""Sinkhorn-Knopp targets: against the textbook form on logits, at extremes, over two processes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.distributed import rank, world_size
from leanvit.kernels import prototype_sweeps
from leanvit.kernels.prototype_sweeps import log_sum_exp
from leanvit.kernels.prototypes import Projection
from leanvit.losses.sinkhorn import sinkhorn_bias
from tests.distributed.launch import in_processes
from tests.tiny import noise

ROWS, K, D = 30, 50, 8


def teacher(gain: float = 1.0, dtype: torch.dtype = torch.float64) -> Projection:
    rows = functional.normalize(noise(ROWS, D, dtype=torch.float64), dim=1)
    return Projection(rows.to(dtype), (gain * noise(K, D, seed=1, dtype=torch.float64)).to(dtype))


def textbook(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp as published: a matrix whose rows and columns are normalised in turn."""
    matrix = (scores.double() / temperature).exp().T  # prototypes x rows
    matrix = matrix / matrix.sum()
    for _ in range(iterations):
        matrix = matrix / matrix.sum(1, keepdim=True) / K
        matrix = matrix / matrix.sum(0, keepdim=True) / ROWS
    return (matrix * ROWS).T


def targets(side: Projection, temperature: float, iterations: int) -> Tensor:
    bias = sinkhorn_bias(side, temperature, iterations)
    return (side.rows @ side.prototypes.T / temperature + bias).softmax(1)


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize("chunk", [2**24, 70])
def test_targets_are_the_textbooks(
    iterations: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototype_sweeps, "CHUNK", chunk)
    side = teacher()
    expected = textbook(side.rows @ side.prototypes.T, 0.1, iterations)
    found = targets(side, 0.1, iterations)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)
    rough = targets(teacher(dtype=torch.float32), 0.1, iterations)
    torch.testing.assert_close(rough.double(), expected, rtol=1e-4, atol=1e-7)


def test_prototypes_get_equal_shares() -> None:
    side = teacher()
    shares = targets(side, 0.1, 200).sum(0)
    torch.testing.assert_close(shares, torch.full_like(shares, ROWS / K), rtol=1e-3, atol=1e-4)
    plain = (side.rows @ side.prototypes.T / 0.1).softmax(1).sum(0)
    assert float(plain.max() / plain.min()) > 10, "without it they get what they like"


@pytest.mark.parametrize("gain", [10.0, 100.0, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_distributions(gain: float, dtype: torch.dtype) -> None:
    """Logits of tens of thousands, where exp(logits / temperature) is infinite from 90 on."""
    side = teacher(gain, dtype)
    bias = sinkhorn_bias(side, 0.04, 3)
    assert bias.dtype == torch.float32 and bias.isfinite().all()
    found = (side.rows.float() @ side.prototypes.float().T / 0.04 + bias).softmax(1)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(ROWS))


def test_log_sum_exp_is_torchs() -> None:
    side, bias = teacher(), noise(K, seed=3, dtype=torch.float64)
    expected = (2.5 * side.rows @ side.prototypes.T + bias).logsumexp(1)
    torch.testing.assert_close(log_sum_exp(side.rows, side.prototypes, 2.5, bias), expected)


def shared() -> Tensor:
    """The key bias with this process's part of the rows: uneven on purpose."""
    side = teacher()
    if world_size() > 1:
        side = Projection(side.rows[:9] if rank() == 0 else side.rows[9:], side.prototypes)
    return sinkhorn_bias(side, 0.05, 3)


def test_two_processes_share_one_batch() -> None:
    one = shared()
    for found in in_processes(2, shared):
        torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-12)
