"""Two faults of every kind, where `make faults` injects a hundred; and that the judge is strict."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.faults.case import Bench, Case
from tests.faults.judge import equal, nothing_left, readable
from tests.faults.kinds import KINDS
from tests.faults.kinds.disk import may_mount
from tests.faults.many import inject


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_survives(kind: str, seed: int, bench: Bench) -> None:
    if kind == "small_disk_full" and not may_mount():
        pytest.skip("nobody but root mounts a small disk; disk_full_a_while needs no right")
    inject(bench, kind, seed)


def checkpoint(out: Path) -> Path:
    return max(out.glob("checkpoints/step-*")) / "state.safetensors"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forget(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


Damage = Callable[[Path], object]
FOUND: dict[str, tuple[str, Damage]] = {
    "half a checkpoint": ("a half checkpoint", lambda out: cut(checkpoint(out))),
    "half a backbone": ("incomplete", lambda out: cut(out / "backbone.safetensors")),
    "half a picture": ("half of views.png", lambda out: cut(out / "views.png")),
    "other weights": ("differs from", lambda out: change(out / "student.safetensors")),
    "fewer rows": ("rows differ", lambda out: forget(out / "metrics.jsonl")),
    "half a file": ("left in the folder", lambda out: (out / ".x.1.tmp").write_text("")),
    "another file": ("strange files", lambda out: (out / "core").write_text("")),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_judge_finds(name: str, bench: Bench, tmp_path: Path) -> None:
    text, damage = FOUND[name]
    case = Case(bench, "judged", 0)
    case.out = Path(shutil.copytree(bench.reference(), tmp_path / "run"))

    def judge() -> None:
        readable(case.out)
        equal(case.out, bench.reference())
        nothing_left(case)

    judge()
    damage(case.out)
    with pytest.raises((AssertionError, SafetensorError), match=text):
        judge()


def test_the_judge_finds_a_process_that_stays(bench: Bench) -> None:
    case = Case(bench, "stays", 0)
    command = case.start("--data.workers", "1")
    case.reach(command, 1)
    assert command.left(seconds=0.1)
    command.kill()
    assert not command.left()
    case.clear()
