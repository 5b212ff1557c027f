"""What a run reads and what it computes: readers, images, numbers."""

import json
import shutil
from functools import partial
from pathlib import Path

from tests.faults.case import EVERY, READERS, STEPS, Case, MissedError
from tests.faults.judge import (
    Outcome,
    again,
    equal,
    nothing_left,
    readable,
    refused,
    resumed,
    rows_of,
    spoken,
    whole,
)
from tests.faults.plants import bad_gradient, bad_pixels, spike_early, worker_fails
from tests.faults.server import Plant


def worker_killed(case: Case) -> Outcome:
    """kill -9 of a process that reads images, as the kernel does when memory is short"""
    run = case.start(*READERS)
    case.moment(run, first=0, last=STEPS - 4)
    readers = sorted(run.family() - {run.pid})
    if not readers:
        raise MissedError
    run.strike(case.draw.choice(readers))
    if run.wait() == 0:  # all it had to read was read
        raise MissedError
    refused(run, 1, "process that reads images")
    return resumed(case, *READERS)


def worker_raises(case: Case) -> Outcome:
    """an error that nobody expects, in a process that reads images"""
    call = case.draw.randint(1, 4 * STEPS // 2)
    run = case.start(*READERS, plant=partial(worker_fails, call))
    assert run.wait() == 1 and run.said().count("a planted fault") >= 1, run.said()
    return resumed(case, *READERS)


def image_damaged(case: Case) -> Outcome:
    """an image becomes unreadable in the middle of the run"""
    images = case.own_images()
    run = case.start()
    case.moment(run, last=STEPS - 4)
    case.draw.choice(sorted(images.iterdir())).write_bytes(b"no image")
    assert run.wait() == 0, f"exit code {run.wait()}: {run.said()}"
    spoken(run)
    whole(case.out, STEPS)
    nothing_left(case, extra=("unreadable.jsonl",))
    return Outcome("another stood in, whole")


def image_removed(case: Case) -> Outcome:
    """an image is removed in the middle of the run"""
    images = case.own_images()
    run = case.start(*READERS)
    case.moment(run, last=STEPS - 4)
    case.draw.choice(sorted(images.iterdir())).unlink()
    assert run.wait() == 0, f"exit code {run.wait()}: {run.said()}"
    spoken(run)
    whole(case.out, STEPS)
    nothing_left(case, extra=("unreadable.jsonl",))
    return Outcome("another stood in, whole")


def kill_with_bad_images(case: Case) -> Outcome:
    """kill -9 at a random time of a run with unreadable images"""
    images = case.own_images()
    for number in (3, 7, 8):
        (images / f"{number:03d}.png").write_bytes(b"no image")
    run = case.start()
    case.moment(run)
    run.kill()
    newest, reached = readable(case.out), case.reached()
    again(case)
    whole(case.out, STEPS)
    calm = Case(case.bench, f"{case.place.name}-calm", 0)
    calm.images = images
    case.commands.append(calm.start())
    assert case.commands[-1].wait() == 0
    equal(case.out, calm.out)
    listed = [(place.out / "unreadable.jsonl").read_text() for place in (case, calm)]
    assert listed[0] == listed[1], "the lists of unreadable images differ"
    nothing_left(case, extra=("unreadable.jsonl",))
    calm.clear()
    return Outcome("went on, equal", reached - newest)


# Numbers


def derailed(case: Case, plant: Plant, *options: str) -> Outcome:
    """Check that a run stops with its last good state saved, and ends well without the fault."""
    run = case.start(*options, plant=plant)
    refused(run, 1, "not finite|jumped far above")
    shutil.rmtree(case.out / "derailed")
    (case.out / "events.jsonl").unlink()
    return resumed(case, *options)


def nan_stop(case: Case) -> Outcome:
    """not a number in an image, policy stop"""
    return derailed(case, partial(bad_pixels, case.draw.randrange(STEPS), True))


def inf_gradient_stop(case: Case) -> Outcome:
    """an infinite gradient, policy stop"""
    return derailed(case, partial(bad_gradient, case.draw.randrange(STEPS)))


def nan_skip(case: Case) -> Outcome:
    """not a number in an image, policy skip, and kill -9 at a random time"""
    step = case.draw.randrange(STEPS)
    options, plant = ("--guard.bad_number", "skip"), partial(bad_pixels, step, True)
    run = case.start(*options, plant=plant)
    case.moment(run)
    run.kill()
    newest, reached = readable(case.out), case.reached()
    began, _ = again(case, *options, plant=plant)
    assert began == newest
    calm = case.bench.reference(*options, plant=plant)
    equal(case.out, calm)
    assert json.loads(rows_of(case.out)[-1])["skipped"] == 1
    nothing_left(case, extra=("events.jsonl",))
    return Outcome("left out, went on, equal", reached - newest)


def rolled_back(case: Case, plant: Plant, *options: str) -> Outcome:
    """Check that a run goes back to what it saved, once, and comes to its end."""
    run = case.start(*options, plant=plant)
    assert run.wait() == 0, f"exit code {run.wait()}: {run.said()}"
    assert "The run goes back to step" in spoken(run), run.said()
    whole(case.out, STEPS)
    assert json.loads(rows_of(case.out)[-1])["rollbacks"] == 1
    extra = [name for name in ("events.jsonl", "derailed") if (case.out / name).exists()]
    extra += [f"derailed/{path}" for path in _below(case.out / "derailed")]
    nothing_left(case, extra=tuple(extra))
    return Outcome("went back, whole", 2 * EVERY)


def _below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


def nan_rollback(case: Case) -> Outcome:
    """not a number in an image, policy rollback"""
    plant = partial(bad_pixels, case.draw.randrange(EVERY + 1, STEPS))
    return rolled_back(case, plant, "--guard.bad_number", "rollback")


def spike_rollback(case: Case) -> Outcome:
    """a loss that jumps far above its level, policy rollback"""
    plant = partial(spike_early, case.draw.randrange(4, STEPS), 10.0 ** case.draw.uniform(2, 6))
    return rolled_back(case, plant, "--guard.spike", "rollback")
