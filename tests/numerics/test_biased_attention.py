"""Attention with a trained bias in chunks, against torch's operators."""

import pytest
import torch
from torch import Tensor

from leanvit.kernels import chunk_products
from leanvit.kernels.attention import _fused, attend
from tests.tiny import noise

BATCH, HEADS, QUERIES, KEYS, WIDTH = 6, 2, 5, 9, 4


def inputs(biases: int) -> list[Tensor]:
    """Return q, k, v, bias and the gradient of outputs in fp64; some keys are hidden."""
    sizes = ((BATCH, HEADS, n, WIDTH) for n in (QUERIES, KEYS, KEYS))
    q, k, v = (noise(*size, seed=n).double() for n, size in enumerate(sizes))
    bias = noise(biases, HEADS, QUERIES, KEYS, seed=3).double()
    bias[:, :, :, 4] = -torch.inf
    return [q, k, v, bias, noise(BATCH, HEADS, QUERIES, WIDTH, seed=4).double()]


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return the definition."""
    near = bias.repeat(len(q) // len(bias), 1, 1, 1)
    return (q @ k.mT * scale + near).softmax(-1) @ v


def results(given: list[Tensor], definition: bool) -> list[Tensor]:
    """Return outputs and the gradients of q, k, v and bias."""
    tensors = [x.detach().requires_grad_() for x in given[:4]]
    q, k, v, bias = tensors
    out = plain(q, k, v, bias, 0.3) if definition else attend(q, k, v, bias, scale=0.3)[0]
    return [out.detach(), *torch.autograd.grad(out, tensors, given[4])]


@pytest.mark.parametrize("chunk", [1, 2**18], ids=["an item at a time", "all at once"])
@pytest.mark.parametrize("biases", [1, 2, 3, BATCH])
def test_it_is_the_definition(biases: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_products, "_LOGITS", chunk)
    given = inputs(biases)
    torch.testing.assert_close(results(given, False), results(given, True))
    rounded = [x.bfloat16() for x in given]
    rounded[3] = given[3].float()
    found, wanted = results(rounded, False), results([x.double() for x in rounded], True)
    assert [x.dtype for x in found] == [torch.bfloat16] * 4 + [torch.float32]
    for mine, right in zip(found, wanted, strict=True):
        assert (mine - right).norm() <= 1e-2 * right.norm()


def test_other_layouts_in_memory_and_autocast_change_nothing() -> None:
    given = [x.float() for x in inputs(2)]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(turned, False)
    for one, other in zip(found, results(given, False), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("biases", [1, 3, BATCH])
def test_torchs_own_attention_gives_the_same(biases: int) -> None:
    q, k, v, bias, _ = (x.float() for x in inputs(biases))
    trained = attend(q, k, v, bias.requires_grad_())[0].detach()
    torch.testing.assert_close(attend(q, k, v, bias.detach())[0], trained)
    torch.testing.assert_close(_fused(q, k, v, bias.detach(), WIDTH**-0.5), trained)


def test_huge_logits_choose_one_key() -> None:
    given = inputs(1)
    given[0] *= 1e15
    found = results(given, False)
    assert all(x.isfinite().all() for x in (*found[:4], found[4].nan_to_num(0)))
    torch.testing.assert_close(found, results(given, True))
