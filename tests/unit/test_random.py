"""Draws depend on their key alone, are spread evenly, and leave global generators as they were."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leanvit.core.random import generator, permutation, seeded, units

Key = tuple[int, str, tuple[int, ...]]

BASE: Key = (1, "views", (2, 3))
OTHERS: dict[str, Key] = {
    "seed": (0, "views", (2, 3)),
    "purpose": (1, "order", (2, 3)),
    "epoch": (1, "views", (0, 3)),
    "image": (1, "views", (2, 4)),
    "parts swapped": (1, "views", (3, 2)),
    "seed and epoch swapped": (2, "views", (1, 3)),
    "a part missing": (1, "views", (2,)),
    "a part more": (1, "views", (2, 3, 4)),
    "a zero more": (1, "views", (2, 3, 0)),
    "seed beyond 32 bits": (1 + 2**32, "views", (2, 3)),
    "seed beyond 64 bits": (1 + 2**64, "views", (2, 3)),
}


def distance_to_uniform(numbers: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance to the uniform distribution over [0, 1), times sqrt(n)."""
    count = len(numbers)
    steps = np.arange(count + 1) / count
    ordered = np.sort(numbers)
    gap = max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())
    return float(gap * np.sqrt(count))


def test_same_key_same_numbers() -> None:
    seed, purpose, key = BASE
    first = units(seed, purpose, *key, count=100)
    np.random.default_rng(0).random(10)  # draws elsewhere change nothing
    np.testing.assert_array_equal(units(seed, purpose, *key, count=100), first)


def test_same_key_same_generator() -> None:
    first = generator(3, "mix", 4).random(5)
    np.testing.assert_array_equal(generator(3, "mix", 4).random(5), first)
    assert not np.isin(generator(3, "mix", 5).random(5), first).any()


@pytest.mark.parametrize("part", OTHERS)
def test_another_key_other_numbers(part: str) -> None:
    seed, purpose, key = BASE
    other_seed, other_purpose, other_key = OTHERS[part]
    numbers = units(seed, purpose, *key, count=8)
    others = units(other_seed, other_purpose, *other_key, count=8)
    assert not np.isin(others, numbers).any()


def test_a_short_key_is_not_one_with_zeros() -> None:
    numbers = [units(1, "test", *(0,) * parts, count=1).item() for parts in range(4)]
    assert len(set(numbers)) == 4


def test_no_two_small_keys_share_a_number() -> None:
    keys = product(range(6), ("views", "order", "replacement"), range(6), range(6))
    numbers = [units(seed, purpose, epoch, image, count=2) for seed, purpose, epoch, image in keys]
    assert len(np.unique(numbers)) == 2 * 6 * 3 * 6 * 6


def test_numbers_are_pinned() -> None:
    """Golden: changed numbers change every run ever started."""
    expected = [
        0.11429006336033731,
        0.5506591072693242,
        0.7448071011637732,
        0.9607072846383656,
    ]
    assert units(0, "views", 0, 0, count=4).tolist() == expected


def test_permutation_is_pinned() -> None:
    assert permutation(7, "order", 3, count=8).tolist() == [6, 5, 7, 4, 0, 1, 3, 2]


def test_numbers_lie_in_the_unit_interval() -> None:
    numbers = units(0, "test", count=100_000)
    assert numbers.dtype == np.float64
    assert numbers.shape == (100_000,)
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_numbers_of_one_key_are_uniform() -> None:
    assert distance_to_uniform(units(0, "test", count=100_000)) < 1.95


def test_first_numbers_of_many_keys_are_uniform() -> None:
    """The use that matters: few numbers from each of many neighbouring keys."""
    numbers = np.concatenate([units(0, "test", 0, image, count=1) for image in range(20_000)])
    assert distance_to_uniform(numbers) < 1.95


def test_numbers_of_neighbouring_keys_are_independent() -> None:
    rows = np.stack([units(0, "test", 0, image, count=20) for image in range(20_000)])
    pairs = np.corrcoef(np.concatenate([rows[:-1], rows[1:]], axis=1).T)
    np.fill_diagonal(pairs, 0)
    assert np.abs(pairs).max() < 5 / np.sqrt(len(rows))


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_permutation_holds_every_number_once(count: int) -> None:
    assert sorted(permutation(0, "order", 0, count=count)) == list(range(count))


def test_permutation_depends_on_its_key() -> None:
    order = permutation(0, "order", 1, count=100)
    np.testing.assert_array_equal(permutation(0, "order", 1, count=100), order)
    assert (permutation(0, "order", 2, count=100) != order).any()
    assert (permutation(1, "order", 1, count=100) != order).any()
    assert (permutation(0, "other", 1, count=100) != order).any()


def test_all_permutations_are_equally_frequent() -> None:
    drawn = [tuple(permutation(0, "order", epoch, count=3).tolist()) for epoch in range(6000)]
    for order in permutations(range(3)):
        assert drawn.count(order) == pytest.approx(1000, abs=5 * np.sqrt(1000 * 5 / 6))


def weights(seed: int, purpose: str = "weights") -> Tensor:
    with seeded(seed, purpose):
        return nn.Linear(16, 16).weight.detach()


def test_seeded_layers_have_the_same_weights() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = weights(5)
        torch.manual_seed(2)
        torch.testing.assert_close(weights(5), first, rtol=0, atol=0)


def test_another_seed_or_purpose_gives_other_weights() -> None:
    first = weights(5)
    assert not torch.isin(weights(6), first).any()
    assert not torch.isin(weights(5, "head"), first).any()


def test_seeded_leaves_the_global_generator_untouched() -> None:
    before = torch.get_rng_state()
    with seeded(5, "weights"):
        torch.rand(100)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_leaves_the_global_generator_untouched_by_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(5, "weights"):
        torch.rand(100)
        raise KeyError("within")
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_nests() -> None:
    with seeded(1, "outer"):
        torch.rand(3)
        expected = torch.rand(3)
    with seeded(1, "outer"):
        torch.rand(3)
        with seeded(2, "inner"):
            torch.rand(3)
        assert torch.equal(torch.rand(3), expected)
