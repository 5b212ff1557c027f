"""Draws depend on their key alone, are spread evenly, and leave global generators as they were."""

from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leanvit.core.random import (
    _stream,
    generator,
    permutation,
    seeded,
    units,
    units_of_each,
)

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


def of_each(each: Sequence[int], count: int, key: Key = BASE) -> NDArray[np.float64]:
    seed, purpose, parts = key
    return units_of_each(seed, purpose, *parts, each=np.array(each), count=count)


def test_a_row_belongs_to_its_image() -> None:
    """Whatever the others are, and whatever its place among them is."""
    rows = of_each([3, 0, 2**40, 1], 5)
    assert rows.shape == (4, 5) and rows.dtype == np.float64
    np.testing.assert_array_equal(of_each([1, 3], 5), rows[[3, 0]])
    np.testing.assert_array_equal(of_each([3], 2), rows[:1, :2])
    assert len(np.unique(rows)) == 20


@pytest.mark.parametrize("part", OTHERS)
def test_another_key_other_rows(part: str) -> None:
    assert not np.isin(of_each(range(4), 8, OTHERS[part]), of_each(range(4), 8)).any()


def test_rows_are_those_of_splitmix() -> None:
    """Written plainly in Python's whole numbers; its first two from 1234567 are well known."""
    assert [splitmix(1234567, n) for n in (1, 2)] == [6457827717110365317, 3203168211198807973]
    seed, purpose, parts = BASE
    first, second = (int(n) for n in _stream(seed, purpose, *parts).random_raw(2))
    for image, row in zip((0, 7, 2**40), of_each((0, 7, 2**40), 3), strict=True):
        start = splitmix(first, image) ^ second
        assert [(splitmix(start, n) >> 11) * 2.0**-53 for n in (1, 2, 3)] == row.tolist()


def splitmix(start: int, number: int) -> int:
    """Return what the generator gives at a call."""
    whole = 2**64 - 1
    x = (start + number * 0x9E3779B97F4A7C15) & whole
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
    return x ^ (x >> 31)


def test_rows_are_pinned() -> None:
    """Golden: changed numbers change every run ever started."""
    assert units_of_each(0, "mask noise", 0, each=np.arange(2), count=2).tolist() == [
        [0.9881264284144535, 0.7977476696115238],
        [0.4793269375798217, 0.396786481510891],
    ]


def test_rows_are_uniform_and_independent() -> None:
    """Within an image, and at one place over neighbouring images."""
    rows = of_each(range(20_000), 20)
    assert rows.min() >= 0 and rows.max() < 1
    assert distance_to_uniform(rows[:, 0]) < 1.95 and distance_to_uniform(rows.flatten()) < 1.95
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
