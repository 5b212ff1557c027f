"""Ends: killed at any moment, or told to stop."""

import signal
import time
from functools import partial

from leanvit.folder import SUMMARY
from tests.faults.case import EVERY, READERS, STEPS, Case, MissedError
from tests.faults.judge import Outcome, equal, nothing_left, readable, refused, resumed, spoken
from tests.faults.plants import kill_at_byte, kill_at_line, kill_in_save

SAVES = STEPS // EVERY
SAVING = ("train/checkpoint.py", "train/saving.py", "core/files.py")
STARTING = ("leanvit/folder.py", "core/files.py", "train/metrics.py")


def kill(case: Case) -> Outcome:
    """kill -9 at a random time"""
    run = case.start()
    case.moment(run)
    run.kill()
    return resumed(case)


def kill_with_workers(case: Case) -> Outcome:
    """kill -9 at a random time, with processes that read images"""
    run = case.start(*READERS)
    case.moment(run)
    run.kill()
    return resumed(case, *READERS)


def kill_at_a_line(case: Case, *files: str) -> Outcome:
    line = case.draw.randint(1, case.bench.lines(*files))
    run = case.start(plant=partial(kill_at_line, files, line))
    if run.wait() == 0:
        raise MissedError
    assert run.wait() == -signal.SIGKILL, run.said()
    return resumed(case)


def kill_in_saving(case: Case) -> Outcome:
    """kill -9 before a random line of the code that saves"""
    return kill_at_a_line(case, *SAVING)


def kill_in_starting(case: Case) -> Outcome:
    """kill -9 before a random line of the code that makes the folder and its lists"""
    return kill_at_a_line(case, "leanvit/folder.py", "core/files.py", "train/metrics.py")


def kill_during_save(case: Case) -> Outcome:
    """the process ends a random time after a save began, also inside compiled code"""
    seconds = case.draw.uniform(1e-6, 0.03)
    run = case.start(plant=partial(kill_in_save, case.draw.randint(1, SAVES), seconds))
    if run.wait() == 0:
        raise MissedError
    assert run.wait() == -signal.SIGALRM, run.said()
    return resumed(case)


def kill_at_a_byte(case: Case) -> Outcome:
    """the process ends at a random byte of a file that a save writes"""
    byte = case.draw.randrange(1, (case.bench.size()))
    run = case.start(plant=partial(kill_at_byte, case.draw.randint(1, SAVES), byte))
    assert run.wait() == -signal.SIGXFSZ, run.said()
    return resumed(case)


def kill_twice(case: Case) -> Outcome:
    """kill -9 at a random time, and again while the run goes on"""
    run = case.start()
    case.moment(run, last=STEPS - 1)
    run.kill()
    lost = case.reached() - readable(case.out)
    run = case.start("--autoresume")
    time.sleep(case.draw.uniform(0.0, 0.5))
    run.kill()
    outcome = resumed(case)
    return Outcome(outcome.what, max(outcome.lost, lost))


def kill_in_resuming(case: Case) -> Outcome:
    """kill -9 before a random line of the code that takes up the folder of a stopped run"""
    case.stopped()
    reached = case.reached()
    files = ("leanvit/folder.py", "core/files.py", "train/metrics.py", "train/checkpoint.py")
    line = case.draw.randint(1, 400)
    run = case.start("--autoresume", plant=partial(kill_at_line, files, line))
    if run.wait() == 0:
        raise MissedError
    lost = reached - readable(case.out)
    return Outcome(resumed(case).what, lost)


# Signals


def stopped_by(case: Case, number: int, *, group: bool = False) -> None:
    """Stop a run by a signal; check its exit code and that it saved the step that it ended."""
    run = case.start()
    case.moment(run, first=0)
    run.send(number, group=group)
    if (code := run.wait()) == 0:
        raise MissedError
    if case.reached() == STEPS:  # it was done training, and ends as anything that nobody listens in
        spoken(run)
        assert code in (128 + number, -number), f"exit code {code}: {run.said()}"
        return
    assert code == 128 + number, f"exit code {code}: {run.said()}"
    refused(run, code, f"stopped at step {case.reached()}; --resume continues from step")
    assert readable(case.out) == case.reached(), "it did not save the step that it ended"


def sigterm(case: Case) -> Outcome:
    """SIGTERM at a random time: the step is finished and saved, exit code 143"""
    stopped_by(case, signal.SIGTERM)
    return resumed(case)


def sigint(case: Case) -> Outcome:
    """Ctrl-C at a random time: the step is finished and saved, exit code 130"""
    stopped_by(case, signal.SIGINT, group=True)
    return resumed(case)


def sigint_twice(case: Case) -> Outcome:
    """Ctrl-C, and again a moment later: it stops at once"""
    run = case.start(*READERS)
    case.moment(run, first=0)
    run.send(signal.SIGINT, group=True)
    time.sleep(case.draw.uniform(0.0, 0.02))
    run.send(signal.SIGINT, group=True)
    code = run.wait()
    if code == 0:
        raise MissedError
    spoken(run)
    assert code in (130, -signal.SIGINT), f"exit code {code}: {run.said()}"
    return resumed(case, *READERS)


def sigterm_in_starting(case: Case) -> Outcome:
    """SIGTERM before the first step"""
    run = case.start()
    time.sleep(case.draw.uniform(0.0, 0.4))
    run.send(signal.SIGTERM)
    code = run.wait()
    if code == 0:
        raise MissedError
    spoken(run)
    assert code in (143, -signal.SIGTERM), f"exit code {code}: {run.said()}"
    return resumed(case)


def sigusr1(case: Case) -> Outcome:
    """SIGUSR1 at a random time: it saves and goes on"""
    run = case.start("--train.save_every", "100st")
    case.moment(run, first=0, last=STEPS - 1)
    run.send(signal.SIGUSR1)
    if (code := run.wait()) == -signal.SIGUSR1 and (case.out / SUMMARY).exists():
        raise MissedError  # the run was over, and the process about to end
    assert code == 0, f"exit code {code}: {run.said()}"
    spoken(run)
    saved = [int(path.name[5:]) for path in case.checkpoints()]
    if len(saved) == 1:  # it came after the last step
        raise MissedError
    assert len(saved) == 2 and saved[0] == STEPS, saved
    equal(case.out, case.bench.reference("--train.save_every", "100st"))
    nothing_left(case)
    return Outcome("saved, went on, equal")
