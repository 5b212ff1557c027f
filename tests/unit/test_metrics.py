"""The rows of a run, on a disk that refuses them for a while or for ever."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leanvit.core.errors import CheckpointError
from leanvit.train import metrics
from leanvit.train.metrics import JsonLines, TensorBoard
from tests.disk import room

Says = pytest.CaptureFixture[str]


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_wait_for_room(tmp_path: Path, capsys: Says) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path)
    rows.on_row({"step": 0})
    with room(20):  # the second row fits half
        for step in (1, 2, 3):
            rows.on_row({"step": step})
    said = capsys.readouterr().err
    assert said.count("leanvit: Could not write") == 1 and "Its rows wait for room." in said
    assert path.stat().st_size == 20
    rows.on_row({"step": 4})
    rows.on_end()
    assert steps(path) == [0, 1, 2, 3, 4]


def test_rows_are_on_disk_or_there_is_an_error(tmp_path: Path, capsys: Says) -> None:
    """What a save asks for first: a checkpoint has all the rows up to it."""
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path)
    with room(20):
        for step in (1, 2, 3):
            rows.on_row({"step": step})
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
                rows.sync()
    rows.sync()
    assert steps(path) == [1, 2, 3]
    path.unlink()
    rows.on_row({"step": 4})
    assert steps(path) == [4], "it is made again where somebody removed it"
    assert capsys.readouterr().err.count("Its rows wait for room.") == 1


def test_half_a_row_and_rows_to_come_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st\xff')
    JsonLines(path, after=2).on_end()
    assert steps(path) == [1, 2] and list(tmp_path.iterdir()) == [path]


def test_rows_are_never_fewer_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends while it removes rows has removed none."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def full(beside: Path, data: bytes) -> None:
        assert steps(path) == [1, 2]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics, "write_synced", full)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: No space left"):
        JsonLines(path, after=1)
    assert steps(path) == [1, 2] and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_ends_the_curves_alone(tmp_path: Path, capsys: Says) -> None:
    curves = TensorBoard(tmp_path / "tensorboard")
    curves.on_row({"step": 1, "loss": 1.0})
    with room(1):
        for step in range(2, 300):  # until its thread has met the disk
            curves.on_row({"step": step, "loss": 1.0})
        curves.on_end()
    curves.on_end()
    said = capsys.readouterr().err
    assert said.count("The curves end here.") == 1 and said.count("\n") == 1


def test_curves_that_cannot_begin_are_left_out(tmp_path: Path, capsys: Says) -> None:
    (tmp_path / "file").write_text("")
    curves = TensorBoard(tmp_path / "file" / "tensorboard")
    curves.on_row({"step": 1, "loss": 1.0})
    curves.on_end()
    assert capsys.readouterr().err.count("The curves end here.") == 1


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    """As its own reader sees them: rows of a run that was cut off are hidden."""
    first = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        first.on_row({"step": step, "loss": float(step), "lr": 0.5})
    first.on_end()
    second = TensorBoard(tmp_path, after=2)
    second.on_row({"step": 3, "loss": 30.0, "lr": 0.5})
    second.on_end()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in found.Scalars("loss")] == [1.0, 2.0, 30.0]
    assert set(found.Tags()["scalars"]) == {"loss", "lr"}
