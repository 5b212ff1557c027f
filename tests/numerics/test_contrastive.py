"""The contrastive loss: a plain form with its gradients, bf16, and inputs at the edge."""

import pytest
import torch
from torch import Tensor

from leanvit.losses.contrastive import info_nce
from tests.tiny import noise

IMAGES, WIDTH = 7, 12


def rows(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return noise(IMAGES, WIDTH, seed=seed, dtype=dtype)


def plain(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """2 T times the mean of -log(exp(cos_ii / T) / sum_j exp(cos_ij / T)), row by row."""
    total = queries.new_zeros(())
    for i, query in enumerate(queries):
        cosines = [query @ key / (query.norm() * key.norm()) for key in keys]
        shares = torch.stack([(cosine / temperature).exp() for cosine in cosines])
        total = total - (shares[i] / shares.sum()).log()
    return 2 * temperature * total / len(queries)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_values_and_gradients_are_those_of_the_plain_form(temperature: float) -> None:
    queries, keys = rows(0).requires_grad_(), rows(1).requires_grad_()
    loss, _ = info_nce(queries, keys, temperature)
    (gradient,) = torch.autograd.grad(loss, queries, retain_graph=True)
    expected = plain(queries, keys.detach(), temperature)
    (other,) = torch.autograd.grad(expected, queries)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)
    loss.backward()
    assert queries.grad is not None and keys.grad is None


def test_hits_count_the_queries_whose_own_key_is_nearest() -> None:
    keys = torch.eye(4)
    queries = keys[[0, 1, 3, 2]] + 0.1
    assert info_nce(queries, keys, 0.2)[1] == 0.5
    assert info_nce(keys, keys, 0.2)[1] == 1


def test_bf16_rows_lose_no_more_than_their_own_rounding() -> None:
    queries, keys = rows(0, torch.float32), rows(1, torch.float32)
    rough = queries.bfloat16(), keys.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = info_nce(*rough, 0.2)
    assert loss.dtype == torch.float32
    exact, _ = info_nce(rough[0].double(), rough[1].double(), 0.2)
    assert float(loss) == pytest.approx(float(exact), rel=1e-6), "logits were rounded"
    assert float(loss) == pytest.approx(float(info_nce(queries, keys, 0.2)[0]), rel=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15], ids=["zero", "tiny", "huge"])
@pytest.mark.parametrize("temperature", [1e-3, 0.2])
def test_extreme_rows_stay_finite(scale: float, temperature: float) -> None:
    queries = (scale * rows(0, torch.float32)).requires_grad_()
    loss, _ = info_nce(queries, rows(1, torch.float32), temperature)
    loss.backward()
    assert queries.grad is not None
    assert loss.isfinite() and queries.grad.isfinite().all()


def test_a_single_image_teaches_nothing() -> None:
    """Which is why a run with a batch of 1 is refused."""
    query = rows(0)[:1].requires_grad_()
    loss, _ = info_nce(query, rows(1)[:1], 0.2)
    loss.backward()
    assert loss == 0 and query.grad is not None and not query.grad.any()
