"""What is measured before a run is resolved, and how long its steps take."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from leanvit.config import (
    Facts,
    Resolved,
    RunConfig,
    at_once,
    resolve,
    settled,
    times,
)
from leanvit.core.console import say
from leanvit.core.distributed import all_max, joined, rank
from leanvit.core.memory import shortage_named
from leanvit.data.batch import ViewBatch
from leanvit.data.loader import at_hand
from leanvit.data.sources import Source
from leanvit.data.views import ViewSpec
from leanvit.run import LESS_MEMORY, Run
from leanvit.train.facts import gather_facts
from leanvit.train.fitting import with_memory

LEAST, MOST = 3, 30
"""Steps that tell how long one takes."""
SPENT = 10.0
"""Seconds that they may take, where these are more than the fewest."""


def measured_facts(asked: RunConfig, source: Source, *, quiet: bool = False) -> Facts:
    """Find out all that a run is resolved with; what no option hangs on is not measured.

    Raises ValueError if a step does not fit into memory.
    """
    facts = gather_facts(source, sides=bool(asked.fit))
    facts = with_memory(asked, facts, source, quiet=quiet)
    return with_pace(asked, facts, source, quiet=quiet) if times(asked) else facts


def with_pace(asked: RunConfig, facts: Facts, source: Source, *, quiet: bool = False) -> Facts:
    """Add how long a step takes: the mean of some, after those for which data lay ready.

    asked: with durations that are times. All that would begin later has begun. Processes that train
    together come to the same seconds, those of the slowest.
    """
    config = resolve(at_once(asked), facts).config
    with joined(config.train.device):
        if rank() == 0 and not quiet:
            say("Doing a few steps, to see how many the time is worth ...")
        seconds = seconds_a_step(Run(Resolved(config, {}), source, Path(), quiet=True))
    gc.collect()  # networks that point at each other stay in memory until then
    return replace(facts, seconds=seconds)


@shortage_named(LESS_MEMORY)
def seconds_a_step(run: Run, look: Callable[[ViewBatch], None] = lambda _: None) -> float:
    """Return what a step of a run takes on average over whole views and the small ones, if any.

    look: sees the batch of every step, whole views first; the time that it takes does not count.
    """
    small = run.config.train.progressive
    kinds = ((run.views, 1 - small), (run.small, small))
    seconds = sum(share * _seconds(run, spec, look) for spec, share in kinds if share)
    run.state.leave()
    return seconds


def _seconds(run: Run, spec: ViewSpec | None, look: Callable[[ViewBatch], None]) -> float:
    """Return the mean of some steps on such views, after those for which data lay ready."""
    warm, taken, wanted = at_hand(run.workers), list[float](), math.inf
    for batch, seconds in timed_steps(run, spec, min(warm + MOST, run.state.run)):
        look(batch)
        taken.append(seconds)
        if len(taken) == warm:
            wanted = warm + min(max(LEAST, int(SPENT / _slowest(run, seconds))), MOST)
        if len(taken) >= wanted:
            break
    return _slowest(run, fmean(taken[warm:] or taken[-1:]))


def _slowest(run: Run, seconds: float) -> float:
    """Return the most seconds of all processes."""
    return float(all_max(torch.tensor(seconds, dtype=torch.float64, device=run.state.device)))


def timed_steps(run: Run, spec: ViewSpec | None, count: int) -> Iterator[tuple[ViewBatch, float]]:
    """Do the first `count` steps of a run on such views; yield the batch and the seconds of each.

    Waiting for data counts, what is done between two of them does not.
    """
    state, parts = run.state, settled(run.config.train.accumulate)
    end = count + at_hand(run.workers)  # so that reading goes on to the last step
    batches = run.load_as(spec, 0, end)
    state.step = 0
    began = time.perf_counter()
    for number, batch in enumerate(batches):
        if number == count:
            break
        at = state.begin_step()
        for micro in batch.split(parts):
            state.backward(micro, at, parts)
        state.update(at)
        if state.device.type == "cuda":
            torch.cuda.synchronize(state.device)
        yield batch, time.perf_counter() - began
        began = time.perf_counter()
