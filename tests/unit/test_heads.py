"""Heads and centers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from leanvit.core.random import seeded
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.methods.heads import Center, Head, Prototypes
from leanvit.weights.shapes import head_config
from tests.tiny import HEAD, noise


def test_prototypes_are_torch_weight_norm() -> None:
    ours = Prototypes(24, 8, train_gain=True)
    ours.weight_g.data = noise(24, 1).abs() + 0.1
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(8, 24, bias=False))
    linear.parametrizations.weight.original0.data = ours.weight_g.data.clone()
    linear.parametrizations.weight.original1.data = ours.weight_v.data.clone()
    weight = noise(24, 8, seed=1)
    torch.testing.assert_close(ours(), linear.weight)
    mine = torch.autograd.grad(ours(), [ours.weight_g, ours.weight_v], weight)
    both = linear.parametrizations.weight
    theirs = torch.autograd.grad(linear.weight, [both.original0, both.original1], weight)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_head_names_are_the_official_ones(batch_norm: bool) -> None:
    head = Head(10, replace(HEAD, batch_norm=batch_norm))
    linear = {0, 3, 6} if batch_norm else {0, 2, 4}
    names = head.state_dict().keys()
    assert {f"mlp.{place}.weight" for place in linear} <= names
    assert {"last_layer.weight_g", "last_layer.weight_v"} <= names
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert head_config(shapes) == replace(HEAD, batch_norm=batch_norm)


def test_rows_are_unit_and_full_precision() -> None:
    head = Head(10, HEAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projection = head(noise(6, 10))
    assert projection.rows.dtype == projection.prototypes.dtype == torch.float32
    torch.testing.assert_close(projection.rows.norm(dim=1), torch.ones(6))


def test_a_frozen_gain_is_not_trained() -> None:
    assert not Prototypes(4, 2, train_gain=False).weight_g.requires_grad
    assert Prototypes(4, 2, train_gain=True).weight_g.requires_grad


def test_the_center_is_the_moving_mean_of_the_logits() -> None:
    center, prototypes = Center(HEAD).double(), Prototypes(24, 8, train_gain=True).double()
    nn.init.uniform_(prototypes.weight_g, 0.5, 2.0, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(24, dtype=torch.float64)
    for step in range(3):
        rows = noise(10, 8, seed=step, dtype=torch.float64)
        center.collect(rows[:4])
        center.collect(rows[4:])
        assert center.value.equal(center.key_bias(1.0).neg()), "micro-batches see one center"
        center.update(prototypes, 0.9)
        expected = 0.9 * expected + 0.1 * (rows @ prototypes().T).mean(0)
        torch.testing.assert_close(center.value, expected, rtol=1e-12, atol=1e-12)


def test_a_center_without_rows_stays() -> None:
    center = Center(HEAD)
    center.value.copy_(noise(24))
    before = center.value.clone()
    center.update(Prototypes(24, 8, train_gain=True), 0.9)
    assert center.value.equal(before)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (7, 5, 3, 2)])
def test_batch_norm_is_torchs_in_one_process(shape: tuple[int, ...]) -> None:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    ours, theirs = SyncBatchNorm(5), kinds[len(shape)](5)
    x = noise(*shape)
    assert ours(x).equal(theirs(x)) and ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert ours.state_dict()[name].equal(value)
    assert ours.eval()(x + 1).equal(theirs.eval()(x + 1))
    with pytest.raises(ValueError, match=r"takes \[N, C, ...\], not \[7\]"):
        ours(x.flatten()[:7])


def test_the_seed_decides_the_weights() -> None:
    with seeded(3, "weights"):
        first = Head(10, HEAD)
    with seeded(3, "weights"):
        second = Head(10, HEAD)
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_batch_norm_of_a_single_value_says_what_to_do() -> None:
    norm = SyncBatchNorm(4)
    with pytest.raises(ValueError, match="the size or number of views"):
        norm(torch.ones(1, 4, 1, 1))
    assert norm.eval()(torch.ones(1, 4, 1, 1)).shape == (1, 4, 1, 1)
