"""What must hold after a fault. Every function raises AssertionError with what does not."""

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from leanvit.folder import LOCK
from leanvit.train.checkpoint import CHECKPOINTS, newest_checkpoint
from leanvit.weights.file import FILE, STUDENT, read_header
from tests.faults.case import ALONE, EVERY, Case, Env, entries
from tests.faults.server import Command, Plant, nothing

NETWORKS = (FILE, STUDENT)
WRITTEN = re.compile(r"tensorboard/|checkpoints/step-\d{8}(/state\.(json|safetensors))?$")
"""What a run writes under names that its steps and times make up."""
TIMINGS = ("images_per_s", "data_wait")


@dataclass(frozen=True)
class Outcome:
    """What became of an injection."""

    what: str
    """In a few words, which the table counts."""
    lost: int = 0
    """Steps that were trained and had to be trained again."""


def readable(out: Path) -> int:
    """Check that a folder is whole as a killed process left it; return its newest checkpoint."""
    damaged: list[str] = []
    found = newest_checkpoint(out / CHECKPOINTS, damaged.append)
    assert not damaged, f"a half checkpoint under its real name: {damaged}"
    for name in NETWORKS:
        if found is not None or (out / name).exists():
            load_file(out / name), read_header(out / name)
    for name in ("config.json", "resolved.json", "summary.json"):
        if (out / name).exists():
            json.loads((out / name).read_text())
    for path in out.glob("*.png"):
        assert path.read_bytes()[-8:-4] == b"IEND", f"half of {path.name} under its real name"
    return found.step if found else 0


def spoken(command: Command) -> str:
    """Check that what a command said is sentences and no traceback; return it."""
    said = command.said()
    assert "Traceback" not in said, said
    return said


def refused(command: Command, code: int, text: str) -> None:
    """Check that a command ended with a code and one last line that says a text."""
    found, said = command.wait(), spoken(command)
    assert found == code, f"exit code {found}, expected {code}: {said}"
    last = said.splitlines()[-1]
    assert last.startswith("leanvit: ") and re.search(text, last), said


def rows_of(out: Path) -> list[str]:
    """Return the rows of a run without the times in them."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]
    return [json.dumps({k: v for k, v in row.items() if k not in TIMINGS}) for row in rows]


def equal(out: Path, reference: Path) -> None:
    """Check that a run ended bit for bit as another one: weights, state, every row."""
    assert rows_of(out) == rows_of(reference), "the rows differ"
    last = sorted((reference / CHECKPOINTS).glob("step-*"))[-1].name
    for name in (*NETWORKS, f"{CHECKPOINTS}/{last}/state.safetensors"):
        same = (out / name).read_bytes() == (reference / name).read_bytes()
        assert same, f"{name} differs from that of a run that nothing befell"


def close(out: Path, reference: Path, tolerance: float = 1e-5) -> None:
    """Check that a run saw the same images and ended with nearly the same weights."""
    steps = [[json.loads(row)["step"] for row in rows_of(place)] for place in (out, reference)]
    assert steps[0] == steps[1], "the rows differ"
    for name in NETWORKS:
        ours, theirs = load_file(out / name), load_file(reference / name)
        worst = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
        assert worst < tolerance, f"{name} differs by {worst:g}"


def whole(out: Path, last: int) -> None:
    """Check that a run which cannot equal another came to its end with sound numbers."""
    assert readable(out) == last
    assert [json.loads(row)["step"] for row in rows_of(out)] == list(range(last + 1))
    for name in NETWORKS:
        assert all(bool(torch.isfinite(value).all()) for value in load_file(out / name).values())


def nothing_left(case: Case, extra: tuple[str, ...] = ()) -> None:
    """Check that no process, no shared memory and no temporary file is left of any command."""
    for command in case.commands:
        left = command.left()
        assert not left, f"left behind: {left}"
        if command.wait() != -signal.SIGKILL and not command.struck:  # who was can clean nothing up
            files = entries(command.place / "tmp")
            assert not files, f"left in /tmp: {files}"
    half = [name for name in entries(case.out) if ".tmp" in name and name not in extra]
    assert not half, f"left in the folder: {half}"
    known = {*entries(case.bench.reference()), *extra}
    if any("is finished" in command.said() for command in case.commands):
        known.add(LOCK)  # of a run killed at its very end, where nothing is written any more
    strange = [name for name in entries(case.out) if name not in known and not WRITTEN.match(name)]
    assert not strange, f"strange files: {strange}"


def again(
    case: Case, *options: str, plant: Plant = nothing, worlds: tuple[Env, ...] = ALONE
) -> tuple[int, str]:
    """Let a run go on to its end, as a job script does; return its first step, and what it said."""
    commands = [case.start("--autoresume", *options, plant=plant, env=env) for env in worlds]
    codes = [command.wait() for command in commands]
    said = spoken(commands[0])
    assert not any(codes), f"exit codes {codes}: {said}"
    if "is finished" in said:  # what was to end it came too late
        return case.reached(), said
    found = re.search(r"Continuing at step (\d+)", said)
    return int(found[1]) if found else 0, said


def resumed(
    case: Case,
    *options: str,
    reference: Path | None = None,
    worlds: tuple[Env, ...] = ALONE,
    extra: tuple[str, ...] = (),
    most: int = 2 * EVERY,
) -> Outcome:
    """Check that a run as it stands goes on from its newest save and ends as it should."""
    newest, reached = readable(case.out), case.reached()
    began, _ = again(case, *options, worlds=worlds)
    assert began == newest, f"it went on from step {began}, though {newest} was saved"
    equal(case.out, reference or case.bench.reference())
    readable(case.out)
    nothing_left(case, extra)
    lost = reached - newest
    assert 0 <= lost <= most, f"{lost} steps lost, though every {EVERY}th is saved"
    return Outcome("went on, equal", lost)
