"""Many injections, several at a time, each in folders of its own."""

import os
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.faults.case import Bench, Case, MissedError
from tests.faults.judge import Outcome
from tests.faults.kinds import KINDS

ATTEMPTS = 30
"""Moments that are drawn until one comes before the run is over."""
Found = Mapping[str, Sequence[Outcome | BaseException]]


def inject(bench: Bench, kind: str, seed: int) -> Outcome:
    """Inject one fault; return what became of it. Raises AssertionError if that is not right."""
    for attempt in range(ATTEMPTS):
        case = Case(bench, kind, seed, attempt)
        try:
            return KINDS[kind](case)
        except MissedError:
            continue
        finally:
            case.clear()
    raise AssertionError(f"{ATTEMPTS} moments came too late")


_bench: list[Bench] = []
"""The bench of a process that injects: whole runs to compare with are made once."""


def _set_up(folder: str) -> None:
    place = Path(folder) / str(os.getpid())
    place.mkdir()
    _bench.append(Bench(place))


def _inject(kind: str, seed: int) -> Outcome:
    return inject(_bench[0], kind, seed)


def run(kinds: Sequence[str], seeds: Sequence[int], jobs: int) -> Found:
    """Return what became of every injection, by kind."""
    found: dict[str, list[Outcome | BaseException]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory(prefix="leanvit-faults-") as folder,
        ProcessPoolExecutor(
            jobs, get_context("spawn"), initializer=_set_up, initargs=(folder,)
        ) as pool,
    ):
        asked: dict[Future[Outcome], tuple[str, int]] = {
            pool.submit(_inject, kind, seed): (kind, seed) for kind in kinds for seed in seeds
        }
        for number, future in enumerate(as_completed(asked), 1):
            kind, seed = asked[future]
            error = future.exception()
            found[kind].append(error if error is not None else future.result())
            said = f"WRONG: {error!r}" if error is not None else future.result().what
            print(f"{number}/{len(asked)} {kind} --seed {seed}: {said}", flush=True)
            if error is not None and len(asked) == 1:
                traceback.print_exception(error)
    return found
