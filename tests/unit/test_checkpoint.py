"""A checkpoint is whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leanvit.core.errors import CheckpointError
from leanvit.train.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from tests.disk import room
from tests.tiny import noise


def tensors(step: int) -> dict[str, Tensor]:
    return {"weight": noise(100, 100, seed=step), "count": torch.tensor(step)}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, tensors(step), {"train": {"seed": 1}}, keep)


def newest(folder: Path) -> Checkpoint:
    found = newest_checkpoint(folder)
    assert found is not None
    return found


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    checkpoint = newest(tmp_path)
    assert checkpoint.step == 7 and checkpoint.record["config"] == {"train": {"seed": 1}}
    loaded, expected = checkpoint.tensors(), tensors(7)
    assert loaded.keys() == expected.keys()
    assert all(loaded[name].equal(expected[name]) for name in expected)


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 50, 99, 500, 1000):
        save(tmp_path, step, keep=3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-00000099",
        "step-00000500",
        "step-00001000",
    ]


def test_a_damaged_later_one_never_outlives_a_new_one(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (save(tmp_path, 20) / "state.json").unlink()
    save(tmp_path, 15, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015"]


def test_a_full_disk_leaves_the_previous_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with room(), pytest.raises(CheckpointError, match="What was saved before is untouched"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest(tmp_path).step == 1


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Could not write .*step-00000001"):
        save(tmp_path / "file" / "checkpoints", 1)


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "no record", "no tensors", "not json"])
def test_a_damaged_one_is_passed_over_aloud(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    data, record = path / "state.safetensors", path / "state.json"
    content = bytearray(data.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(content[:-1])
    elif damage == "no record":
        record.unlink()
    elif damage == "no tensors":
        data.unlink()
    else:
        record.write_text(record.read_text()[:-5])
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None and found.step == 1
    assert len(said) == 1 and "step-00000002 is damaged" in said[0]


def test_any_flipped_bit_of_the_record_is_found(tmp_path: Path) -> None:
    save(tmp_path, 1)
    record = save(tmp_path, 2) / "state.json"
    content = record.read_bytes()
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        record.write_bytes(damaged)
        said: list[str] = []
        found = newest_checkpoint(tmp_path, said.append)
        assert found is not None and found.step == 1 and len(said) == 1, damaged


def test_copies_beside_are_left_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    copies = [tmp_path / name for name in ("step-00000002.bak", "step-9 (copy)", "step-00009")]
    for copy in copies:
        shutil.copytree(path, copy)
    assert newest(tmp_path).path == path
    save(tmp_path, 4, keep=1)
    assert sorted(tmp_path.iterdir()) == sorted([*copies, tmp_path / "step-00000004"])


def test_another_format_is_not_guessed_at(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | {"format": 99}))
    said: list[str] = []
    with pytest.raises(ValueError, match=r"No checkpoint in .* is whole"):
        newest_checkpoint(tmp_path, said.append)
    assert "its format is 99" in said[0]


def test_an_empty_or_missing_folder_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 3)
    path = save_checkpoint(tmp_path, 3, {"weight": torch.zeros(2)}, {}, 2)
    assert newest(tmp_path).tensors()["weight"].equal(torch.zeros(2))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000003.tmp").mkdir()
    (tmp_path / ".step-00000003.tmp" / "state.safetensors").write_text("half")
    save(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


KILLED = """
import itertools, sys
from pathlib import Path
from tests.unit.test_checkpoint import save
for step in itertools.count(1):
    save(Path(sys.argv[1]), step)
    print(step, flush=True)
"""


def test_kill_at_any_time_leaves_a_whole_one(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    last = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        time.sleep(0.05 * float(torch.rand((), generator=draw)))
        os.kill(process.pid, signal.SIGKILL)
        told = process.communicate()[0].split()
        last = int(told[-1]) if told else 1
        assert newest(tmp_path).step >= last
        for path in tmp_path.glob("step-*"):
            for entry in path.iterdir():
                entry.unlink()
            path.rmdir()
