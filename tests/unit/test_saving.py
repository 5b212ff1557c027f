"""Saving beside the training: one copy, then a thread; a refusal ends nothing but the last save."""

import os
import sys
import threading
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from leanvit.core.errors import CheckpointError
from leanvit.train.checkpoint import retained
from leanvit.train.saving import Parts, Saver
from tests.tiny import noise


class Disk:
    """Takes its time, or refuses."""

    def __init__(self) -> None:
        self.written: dict[int, dict[str, dict[str, Tensor]]] = {}
        self.go = threading.Event()
        self.go.set()
        self.full = False

    def write(self, step: int, parts: Parts) -> None:
        assert self.go.wait(10)
        if self.full:
            raise CheckpointError(f"no room for {step}.")
        self.written[step] = {
            file: {name: value.clone() for name, value in tensors.items()}
            for file, tensors in parts.items()
        }


def state() -> Mapping[str, Mapping[str, Tensor]]:
    weight = noise(3, 4)
    return {"all": {"a": weight, "b": noise(5, seed=1)}, "part": {"again": weight}}


def test_a_step_after_the_copy_changes_nothing_of_what_is_written() -> None:
    disk, parts = Disk(), state()
    saver = Saver(disk.write, pytest.fail)
    expected = {name: value.clone() for name, value in parts["all"].items()}
    disk.go.clear()
    saver.save(1, parts)
    parts["all"]["a"].add_(1)
    assert saver.saved == 0 and not disk.written, "the step goes on while the disk is busy"
    disk.go.set()
    saver.finish()
    assert saver.saved == 1
    assert all(disk.written[1]["all"][name].equal(expected[name]) for name in expected)
    assert disk.written[1]["part"]["again"].equal(expected["a"])


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_thread_that_writes_lets_the_steps_go_first() -> None:
    found: list[int] = []

    def write(*_: object) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    saver, before = Saver(write, pytest.fail), os.getpriority(os.PRIO_PROCESS, 0)
    saver.save(1, state())
    saver.finish()
    assert found[0] > before == os.getpriority(os.PRIO_PROCESS, 0)


def test_a_tensor_is_copied_once_and_its_memory_used_again() -> None:
    seen: list[tuple[int, int]] = []

    def write(_: int, parts: Parts) -> None:
        seen.append((parts["all"]["a"].data_ptr(), parts["part"]["again"].data_ptr()))

    parts, saver = state(), Saver(write, pytest.fail)
    for step in (1, 2):
        saver.save(step, parts)
    saver.finish()
    assert len(set(seen[0] + seen[1])) == 1
    assert seen[0][0] != parts["all"]["a"].data_ptr()


def test_the_next_save_waits_for_the_last() -> None:
    disk = Disk()
    saver = Saver(disk.write, pytest.fail)
    disk.go.clear()
    saver.save(1, state())
    threading.Timer(0.1, disk.go.set).start()
    saver.save(2, state())
    assert 1 in disk.written
    saver.finish()
    assert saver.saved == 2 and not [t for t in threading.enumerate() if "leanvit" in t.name]


def test_a_refusal_is_said_and_the_next_save_tries_again() -> None:
    disk = Disk()
    said: list[str] = []
    saver = Saver(disk.write, said.append)
    disk.full = True
    saver.save(1, state())
    saver.save(2, state())
    assert said == ["no room for 1. Training goes on, and the next save tries again."]
    with pytest.raises(CheckpointError, match="no room for 2"):
        saver.finish()
    disk.full = False
    saver.save(3, state())
    saver.finish()
    assert saver.saved == 3 and list(disk.written) == [3] and len(said) == 1


def test_other_errors_are_not_taken_for_a_full_disk() -> None:
    def write(step: int, parts: Parts) -> None:
        raise KeyError("a mistake")

    saver = Saver(write, pytest.fail)
    saver.save(1, state())
    with pytest.raises(KeyError):
        saver.save(2, state())


def test_scalars_and_empty_tensors_are_copied() -> None:
    disk = Disk()
    saver = Saver(disk.write, pytest.fail)
    saver.save(1, {"all": {"one": torch.tensor(1), "two": torch.tensor(2), "none": noise(0, 3)}})
    saver.finish()
    found = disk.written[1]["all"]
    assert found["one"] == 1 and found["two"] == 2 and found["none"].shape == (0, 3)


@pytest.mark.parametrize(
    ("steps", "newest", "keep", "every", "stay"),
    [
        ([5], 5, 1, 0, {5}),
        ([5, 10, 15], 15, 2, 0, {10, 15}),
        ([5, 10, 15], 15, 9, 0, {5, 10, 15}),
        ([5, 10, 15, 20], 15, 2, 0, {10, 15}),
        ([100, 200, 300], 300, 1, 100, {100, 200, 300}),
        ([30, 60, 90, 120], 120, 1, 100, {120}),
        ([90, 120, 150], 150, 1, 100, {120, 150}),
        ([120, 150, 180], 180, 1, 100, {120, 180}),
        ([120, 180, 350], 350, 1, 100, {120, 350}),
        ([120, 350, 380], 380, 1, 100, {120, 350, 380}),
        ([99, 350, 360], 350, 1, 100, {350}),
        ([0, 50], 50, 1, 100, {50}),
    ],
)
def test_which_checkpoints_stay(
    steps: list[int], newest: int, keep: int, every: int, stay: set[int]
) -> None:
    assert retained(steps, newest, keep, every) == stay


def test_the_first_of_every_hundred_steps_stays_over_a_whole_run() -> None:
    there: set[int] = set()
    for step in range(30, 1000, 30):
        there = retained([*there, step], step, 2, 100)
        assert step in there
    assert there == {120, 210, 300, 420, 510, 600, 720, 810, 900, 960, 990}
