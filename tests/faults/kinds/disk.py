"""A disk that is full, ill, read-only or gone, and whoever else is there."""

import errno
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults.case import EVERY, STEPS, Case, MissedError, worlds
from tests.faults.judge import (
    Outcome,
    again,
    close,
    equal,
    nothing_left,
    readable,
    refused,
    resumed,
    spoken,
)
from tests.faults.plants import as_anybody, clock_jumps, full_disk, refuse

SAVES = STEPS // EVERY
NEED = 1_500_000
"""Bytes that a whole run takes on a disk, and a little more."""
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ESTALE)


def disk_full_a_while(case: Case) -> Outcome:
    """no file grows beyond a random byte, for a few saves"""
    first = case.draw.randint(1, SAVES - 1)
    last = case.draw.randint(first, SAVES - 1)
    byte = case.draw.randrange(1, case.bench.size())
    run = case.start(plant=partial(full_disk, first, last, byte))
    assert run.wait() == 0, f"exit code {run.wait()}: {run.said()}"
    assert "Training goes on, and the next save tries again" in spoken(run), run.said()
    readable(case.out)
    equal(case.out, case.bench.reference())
    nothing_left(case)
    return Outcome("said, went on, equal")


def disk_full_to_the_end(case: Case) -> Outcome:
    """no file grows beyond a random byte, from a random save on"""
    first = case.draw.randint(1, SAVES)
    byte = case.draw.randrange(1, case.bench.size())
    run = case.start(plant=partial(full_disk, first, SAVES + 1, byte))
    refused(run, 1, "Could not write")
    return resumed(case, most=STEPS)


def may_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "leanvit-fault", place]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            return False
        subprocess.run(["umount", place], check=True)
        return True


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many bytes."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "leanvit-fault", str(place)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def small_disk_full(case: Case) -> Outcome:
    """a real file system that is full at some time; then there is room"""
    with small_disk(case.out.parent / "disk", case.draw.randrange(4096, NEED)):
        case.out = case.out.parent / "disk" / "run"
        run = case.start()
        code = run.wait()
        if code == 0:
            raise MissedError
        refused(run, code, "Could not write|Cannot write|No space left")
        assert code in (1, 2), run.said()
        room = ["mount", "-o", f"remount,size={4 * NEED}", str(case.out.parent)]
        subprocess.run(room, check=True)
        return resumed(case, most=STEPS)


def disk_ill(case: Case) -> Outcome:
    """fsync, mkdir or replace fails some times while a save is written: EIO, EROFS and others"""
    name = case.draw.choice(["fsync", "fsync", "mkdir", "replace"])
    number, times = case.draw.randint(1, SAVES), case.draw.randint(1, 4)
    after = case.draw.randint(0, 5)
    plant = partial(refuse, name, case.draw.choice(ERRORS), number, times, after)
    run = case.start(plant=plant)
    code = run.wait()
    if code == 0 and "Could not write" not in run.said():
        raise MissedError
    if code == 0:
        spoken(run)
        readable(case.out)
        equal(case.out, case.bench.reference())
        nothing_left(case)
        return Outcome("said, went on, equal")
    refused(run, 1, "Could not write")
    return resumed(case, most=STEPS)


def read_only(case: Case) -> Outcome:
    """the folder becomes read-only in the middle of the run"""
    run = case.start(plant=as_anybody)
    case.moment(run, first=0)
    folders = [path for path in (case.out, case.out / "checkpoints") if path.exists()]
    for folder in folders:
        folder.chmod(0o555)
    code = run.wait()
    for folder in folders:
        folder.chmod(0o755)
    if code == 0:
        raise MissedError
    refused(run, 1, "Could not write")
    return resumed(case, most=STEPS)


def folder_removed(case: Case) -> Outcome:
    """somebody removes the folder of a run that goes on"""
    run = case.start()
    case.moment(run, first=0)
    while case.out.exists():
        shutil.rmtree(case.out, ignore_errors=True)
    if (code := run.wait()) == 0:
        raise MissedError
    refused(run, code, "Could not write|Cannot")
    shutil.rmtree(case.out, ignore_errors=True)
    again(case)
    equal(case.out, case.bench.reference())
    nothing_left(case)
    return Outcome("said; begun anew, equal")


def clock_set(case: Case) -> Outcome:
    """the time of day jumps by up to a year, either way"""
    seconds = case.draw.uniform(-3e7, 3e7)
    run = case.start(plant=partial(clock_jumps, case.draw.randrange(20), seconds))
    assert run.wait() == 0, f"exit code {run.wait()}: {run.said()}"
    spoken(run)
    equal(case.out, case.bench.reference())
    nothing_left(case)
    return Outcome("went on, equal")


def two_runs(case: Case) -> Outcome:
    """a second run is started on the folder of one that goes on"""
    run = case.start()
    case.moment(run, first=0, last=STEPS - 3)
    other = case.start(case.draw.choice(["--autoresume", "--resume", "--overwrite"]))
    if other.wait() == 0:
        assert "is finished" in other.said(), other.said()
        raise MissedError
    refused(other, 2, "trains in")
    assert run.wait() == 0, f"exit code {run.wait()}: {run.said()}"
    equal(case.out, case.bench.reference())
    nothing_left(case)
    return Outcome("the second refused, equal")


# Several processes


def rank_killed(case: Case) -> Outcome:
    """kill -9 of one of two processes that train together"""
    runs = [case.start(env=env) for env in worlds(2)]
    victim, other = case.draw.sample(runs, 2)
    case.moment(victim)
    victim.kill()
    began = time.monotonic()
    if other.wait(60) == 0:
        raise MissedError
    assert time.monotonic() - began < 45, "the other one waited"
    refused(other, 1, "is gone|is not here|did not come|absent|not there|was lost")
    reference = case.bench.reference(world=2)
    return resumed(case, worlds=worlds(2), reference=reference)


def ranks_stopped(case: Case) -> Outcome:
    """SIGTERM to one of two processes that train together, or to both at different times"""
    runs = [case.start(env=env) for env in worlds(2)]
    told = case.draw.sample(runs, case.draw.randint(1, 2))
    case.moment(runs[0], first=0, last=STEPS - 2)
    for run in told:
        run.send(signal.SIGTERM)
        time.sleep(case.draw.uniform(0.0, 0.1))
    codes = [run.wait() for run in runs]
    if codes == [0, 0]:
        raise MissedError
    # one that is told as it ends, having stopped for the other, ends as any process does
    late = {143, -signal.SIGTERM} if len(told) == 2 else {143}
    over = {0, -signal.SIGTERM} if case.reached() == STEPS else set()
    assert {*codes} <= late | over, f"{codes}: {[run.said() for run in runs]}"
    for run, code in zip(runs, codes, strict=True):
        if code == 143:
            refused(run, 143, "stopped at step")
    assert readable(case.out) == case.reached(), "they did not save the step that they ended"
    return resumed(case, worlds=worlds(2), reference=case.bench.reference(world=2))


def world_grows(case: Case) -> Outcome:
    """kill -9 of a run on one process, which then goes on as two"""
    run = case.start()
    case.moment(run)
    run.kill()
    newest, reached = readable(case.out), case.reached()
    began, _ = again(case, worlds=worlds(2))
    assert began == newest
    close(case.out, case.bench.reference())
    nothing_left(case)
    return Outcome("went on, same images, 1e-5", reached - newest)
