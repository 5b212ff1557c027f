"""The order of images is a pure function of (seed, step), for any number of processes."""

from itertools import chain

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
