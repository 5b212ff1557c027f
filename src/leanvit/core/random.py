"""Every draw has a key: (seed, purpose, ...). Nothing reads a global generator.

A draw depends on its key alone, never on the process, the worker or what was drawn before, so a
run gives the same numbers with any number of workers and ranks, and after a resume.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray


def _stream(seed: int, purpose: str, *key: int) -> np.random.Philox:
    """The key's length is part of it, since numpy takes (1, 2) and (1, 2, 0) for the same seed."""
    words = (seed, zlib.crc32(purpose.encode()), len(key), *key)
    return np.random.Philox(np.random.SeedSequence(words))


def generator(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a fresh generator for this key (Philox, seeded through numpy's SeedSequence)."""
    return np.random.Generator(_stream(seed, purpose, *key))


def units(seed: int, purpose: str, *key: int, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), uniform, made from the raw stream of this key.

    The raw stream is the one part of numpy's random numbers that is fixed over its versions.
    """
    raw = _stream(seed, purpose, *key).random_raw(count)
    return (raw >> 11).astype(np.float64) * 2.0**-53


def units_of_each(
    seed: int, purpose: str, *key: int, each: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), uniform, for each of several images [B, count].

    each: their numbers [B]. A row depends on the key and its image alone. All are made at once, by
    SplitMix64 (Steele, Lea and Flood 2014) from a start that hashes the image: a generator for
    each image, as in `units`, would keep a step of many images waiting.
    """
    first, second = _stream(seed, purpose, *key).random_raw(2)
    with np.errstate(over="ignore"):  # products modulo 2^64 are meant
        starts = _mixed(each.astype(np.uint64) * _GAMMA + first) ^ second
        raw = _mixed(starts[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GAMMA, _FIRST, _SECOND = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the numbers as SplitMix64 mixes its states: one to one, and no trace of an order."""
    x = x ^ (x >> np.uint64(30))
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return x


def permutation(seed: int, purpose: str, *key: int, count: int) -> NDArray[np.int64]:
    """Return a permutation of range(count) that depends on the key alone."""
    return np.argsort(units(seed, purpose, *key, count=count), kind="stable")


@contextmanager
def seeded(seed: int, purpose: str, *key: int) -> Iterator[None]:
    """Run library code that draws from torch's global generator, such as a layer's constructor.

    Inside, the CPU generator is seeded by this key; afterwards it is as it was before.
    """
    with torch.random.fork_rng(devices=[]):
        # the CPU's generator alone: torch.manual_seed would move every device's
        torch.default_generator.manual_seed(int(_stream(seed, purpose, *key).random_raw()) >> 1)
        yield


@contextmanager
def numpy_seeded(seed: int, purpose: str, *key: int) -> Iterator[int]:
    """Run library code that draws from numpy's global generator, such as a corruption of an image.

    Inside, that generator is seeded by this key; afterwards it is as it was before. Yields a
    number of 32 bits, by the same key, for what takes a seed of its own.
    """
    before = np.random.get_state()
    first, second = (int(word) >> 32 for word in _stream(seed, purpose, *key).random_raw(2))
    np.random.seed(first)
    try:
        yield second
    finally:
        np.random.set_state(before)
