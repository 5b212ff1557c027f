"""Damage to the folder of a run while nothing runs there."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.case import Case, entries
from tests.faults.judge import Outcome, again, equal, nothing_left, readable, refused, resumed


def damaged(case: Case, damage: Callable[[Case, Path], None], count: int = 1) -> Outcome:
    """Damage the newest checkpoints of a stopped run; check that the one before is used, aloud."""
    case.stopped(count + 1)
    reached, found = case.reached(), case.checkpoints()
    for path in found[:count]:
        damage(case, path)
    began, said = again(case)
    assert began == int(found[count].name[5:]), f"it went on from {began}: {said}"
    assert said.count("is damaged") == count, said
    equal(case.out, case.bench.reference())
    readable(case.out)
    nothing_left(case)
    return Outcome("said, the one before used, equal", reached - began)


def truncated(case: Case, path: Path) -> None:
    state = path / case.draw.choice(["state.safetensors", "state.json"])
    os.truncate(state, case.draw.randrange(state.stat().st_size))


def flipped(case: Case, path: Path, name: str) -> None:
    data = bytearray((path / name).read_bytes())
    data[case.draw.randrange(len(data))] ^= 1 << case.draw.randrange(8)
    (path / name).write_bytes(data)


def checkpoint_truncated(case: Case) -> Outcome:
    """the newest checkpoint is cut at a random byte"""
    return damaged(case, truncated)


def bit_in_tensors(case: Case) -> Outcome:
    """a random bit of the newest checkpoint's tensors is flipped"""
    return damaged(case, partial(flipped, name="state.safetensors"))


def bit_in_record(case: Case) -> Outcome:
    """a random bit of the newest checkpoint's record is flipped"""
    return damaged(case, partial(flipped, name="state.json"))


def record_missing(case: Case) -> Outcome:
    """the newest checkpoint has no record, or no tensors"""

    def remove(case: Case, path: Path) -> None:
        (path / case.draw.choice(["state.safetensors", "state.json"])).unlink()

    return damaged(case, remove)


def two_damaged(case: Case) -> Outcome:
    """the newest two checkpoints are cut"""
    return damaged(case, truncated, 2)


def all_damaged(case: Case) -> Outcome:
    """every checkpoint is cut: a clear refusal, and nothing touched"""
    case.stopped()
    for path in case.checkpoints():
        truncated(case, path)
    before = sorted(path.name for path in case.checkpoints())
    refused(case.start("--autoresume"), 2, r"No checkpoint in .* is whole")
    assert sorted(path.name for path in case.checkpoints()) == before
    nothing_left(case)
    return Outcome("refused in one line")


def copy_beside(case: Case) -> Outcome:
    """somebody keeps a copy of a checkpoint beside it"""
    case.stopped()
    path = case.draw.choice(case.checkpoints())
    name = f"{path.name}{case.draw.choice(['.bak', '-good', ' (copy)'])}"
    copied = Path(shutil.copytree(path, path.with_name(name)))
    reached = case.reached()
    began, _ = again(case)
    equal(case.out, case.bench.reference())
    assert copied.exists(), "it was removed"
    nothing_left(case, extra=tuple(f"checkpoints/{name}{f}" for f in ("", *_files(copied))))
    return Outcome("left alone, equal", reached - began)


def _files(folder: Path) -> list[str]:
    return [f"/{path.name}" for path in folder.iterdir()]


def backbone_deleted(case: Case) -> Outcome:
    """the backbone's file is deleted or cut"""
    case.stopped()
    path = case.out / case.draw.choice(["backbone.safetensors", "student.safetensors"])
    reached, saved = case.reached(), case.checkpoints()[0].name
    if case.draw.random() < 0.5:
        path.unlink()
    else:
        os.truncate(path, case.draw.randrange(path.stat().st_size))
    began, _ = again(case)
    assert began == int(saved[5:])
    equal(case.out, case.bench.reference())
    nothing_left(case)
    return Outcome("written anew, equal", reached - began)


def half_a_line(case: Case) -> Outcome:
    """the list of metrics ends in the middle of a row, the last one, which was not saved"""
    case.stopped(after_save=True)
    path = case.out / "metrics.jsonl"
    data = path.read_bytes()
    kept = data[: data.rindex(b"\n", 0, len(data) - 1) + 1]
    path.write_bytes(data[: case.draw.randrange(len(kept) + 1, len(data))])
    return resumed(case)


def records_emptied(case: Case) -> Outcome:
    """resolved.json is empty or cut: a clear refusal, and nothing touched"""
    case.stopped()
    path = case.out / "resolved.json"
    os.truncate(path, case.draw.choice([0, case.draw.randrange(path.stat().st_size - 2)]))
    names = entries(case.out)
    before = {name: name.read_bytes() for name in case.out.rglob("*") if name.is_file()}
    refused(case.start("--autoresume"), 2, r"resolved\.json")
    assert all(name.read_bytes() == data for name, data in before.items())
    nothing_left(case, extra=tuple(names))  # what the killed run left stays too
    return Outcome("refused in one line")
