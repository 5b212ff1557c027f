"""The order of images is a pure function of (seed, step), for any number of processes."""

from collections import Counter
from itertools import chain, pairwise, product

import pytest

from leanvit.data.sampler import Key, Order, replacement

IMAGES, BATCH, SEED = 23, 4, 3
EPOCH_STEPS = 5


def epoch_keys(epoch: int, *, images: int = IMAGES, seed: int = SEED) -> list[Key]:
    order = Order(images, BATCH, seed)
    first = epoch * order.epoch_steps
    return list(chain.from_iterable(order.steps(first, first + order.epoch_steps)))


def test_an_epoch_has_whole_batches_only() -> None:
    assert Order(IMAGES, BATCH, SEED).epoch_steps == EPOCH_STEPS
    assert Order(24, 4, SEED).epoch_steps == 6
    assert Order(4, 4, SEED).epoch_steps == 1


@pytest.mark.parametrize("epoch", range(10))
def test_an_epoch_sees_an_image_at_most_once(epoch: int) -> None:
    seen = [key.index for key in epoch_keys(epoch)]
    assert len(seen) == BATCH * EPOCH_STEPS
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(IMAGES))


def test_an_epoch_of_whole_batches_sees_every_image() -> None:
    assert sorted(key.index for key in epoch_keys(2, images=24)) == list(range(24))


def test_every_image_has_its_turn() -> None:
    seen = {key.index for epoch in range(10) for key in epoch_keys(epoch)}
    assert seen == set(range(IMAGES))


def test_keys_tell_epoch_and_position() -> None:
    keys = epoch_keys(3)
    assert {key.epoch for key in keys} == {3}
    assert [key.position for key in keys] == list(range(BATCH * EPOCH_STEPS))


def test_epochs_differ() -> None:
    orders = {tuple(key.index for key in epoch_keys(epoch)) for epoch in range(20)}
    assert len(orders) == 20


def test_seeds_differ() -> None:
    orders = {tuple(key.index for key in epoch_keys(0, seed=seed)) for seed in range(20)}
    assert len(orders) == 20


def test_order_is_repeatable() -> None:
    first = [Order(IMAGES, BATCH, SEED).keys(step) for step in range(30)]
    backwards = Order(IMAGES, BATCH, SEED)
    assert [backwards.keys(step) for step in reversed(range(30))][::-1] == first


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_join_to_the_batch_of_one(world: int) -> None:
    alone = Order(50, 8, SEED)
    ranks = [Order(50, 8, SEED, rank, world) for rank in range(world)]
    for step in range(100):
        shares = [order.keys(step) for order in ranks]
        assert {len(share) for share in shares} == {8 // world}
        assert list(chain.from_iterable(shares)) == alone.keys(step)


@pytest.mark.parametrize("start", [1, 3, EPOCH_STEPS, EPOCH_STEPS + 2, 17])
def test_a_stream_from_the_middle_is_the_tail(start: int) -> None:
    whole = list(Order(IMAGES, BATCH, SEED).steps(0, 20))
    assert list(Order(IMAGES, BATCH, SEED).steps(start, 20)) == whole[start:]


def test_an_empty_stretch_has_no_steps() -> None:
    assert list(Order(IMAGES, BATCH, SEED).steps(7, 7)) == []


# Repeats

REPEATS = 3


def repeated(batch: int, rank: int = 0, world: int = 1, images: int = 50) -> Order:
    return Order(images, batch, SEED, rank, world, REPEATS)


def test_an_epoch_with_repeats_keeps_its_length_and_sees_a_part_of_the_images() -> None:
    order, plain = repeated(6), Order(50, 6, SEED)
    assert order.epoch_steps == plain.epoch_steps == 8
    keys = list(chain.from_iterable(order.steps(0, 8)))
    seen = Counter(key.index for key in keys)
    alone = list(chain.from_iterable(plain.steps(0, 8)))
    assert list(seen) == [key.index for key in alone][:16], "the first of the same permutation"
    assert set(seen.values()) == {REPEATS}
    assert {(key.index, key.copy) for key in keys} == {(i, c) for i in seen for c in range(3)}
    assert sorted(key.position for key in keys) == list(range(48))
    assert {key.index for key in chain.from_iterable(order.steps(0, 160))} == set(range(50))


@pytest.mark.parametrize("batch", [6, 8, 10, 16, 22])
def test_neighbours_are_different_images(batch: int) -> None:
    """Mixing pairs them: place 0 with 1, 2 with 3."""
    order = repeated(batch)
    for step in range(4 * order.epoch_steps):
        keys = order.keys(step)
        assert all(a.index != b.index for a, b in pairwise(keys))


def test_the_places_of_an_image_are_in_one_batch_unless_it_ends() -> None:
    """As in DeiT: the list with every image three times is cut into batches as it stands."""
    order, plain = repeated(8), Order(50, 48, SEED)
    listed = [(key.index, copy) for key in plain.keys(0) for copy in range(REPEATS)]
    for step in range(order.epoch_steps):
        found = sorted(order.keys(step), key=lambda key: key.position)
        assert [(key.index, key.copy) for key in found] == listed[8 * step : 8 * step + 8]


@pytest.mark.parametrize("world", [2, 4])
def test_repeats_are_shared_by_ranks_and_resumed_anywhere(world: int) -> None:
    alone = list(repeated(8).steps(0, 20))
    for start in (0, 1, 7, 13):
        shares = [repeated(8, rank, world).steps(start, 20) for rank in range(world)]
        joined = [list(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]
        assert joined == alone[start:]


def test_with_enough_processes_each_has_an_image_once() -> None:
    for step, rank in product(range(16), range(3)):
        indices = [key.index for key in repeated(12, rank, 3).keys(step)]
        assert len(set(indices)) == len(indices) == 4


def test_replacement_is_repeatable() -> None:
    key = Key(epoch=2, position=5, index=11)
    drawn = [replacement(SEED, key, attempt, 1000) for attempt in range(20)]
    assert [replacement(SEED, key, attempt, 1000) for attempt in range(20)] == drawn


@pytest.mark.parametrize("images", [1, 2, 7, 1000])
def test_replacement_is_an_image_of_the_source(images: int) -> None:
    drawn = {
        replacement(SEED, Key(epoch, position, 0), 0, images)
        for epoch in range(5)
        for position in range(100)
    }
    assert drawn <= set(range(images))
    assert len(drawn) >= min(images, 300)


def test_replacement_depends_on_seed_place_and_attempt() -> None:
    key = Key(epoch=2, position=5, index=11)
    drawn = [
        replacement(SEED, key, 0, 10**9),
        replacement(SEED + 1, key, 0, 10**9),
        replacement(SEED, Key(3, 5, 11), 0, 10**9),
        replacement(SEED, Key(2, 6, 11), 0, 10**9),
        replacement(SEED, key, 1, 10**9),
    ]
    assert len(set(drawn)) == len(drawn)
