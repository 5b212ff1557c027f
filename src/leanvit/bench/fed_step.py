"""A step on views of real images, waiting for them included."""

import time
from collections.abc import Callable

import torch

from leanvit.bench.operations import count_operations
from leanvit.bench.step_report import Alone
from leanvit.bench.turns import seconds_of
from leanvit.config import RunConfig, settled
from leanvit.core.memory import peak_bytes
from leanvit.data.batch import ViewBatch
from leanvit.data.loader import Views, at_hand, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import Source
from leanvit.data.views import ViewSpec


def fed(
    step: Callable[[ViewBatch], object],
    spec: ViewSpec,
    config: RunConfig,
    source: Source,
    rounds: int,
) -> tuple[list[float], Alone]:
    """Return the seconds of steps one after another, and what a process of their own takes.

    step: done on a batch of views, as spec says, of the source's images. Steps for which data lay
    ready do not count. Memory is that of this process, without those that render.
    """
    start = time.perf_counter()
    device, workers, seed = config.train.device, config.data.workers, config.train.seed
    assert workers != "auto"
    order = Order(len(source), settled(config.train.batch), seed, repeats=spec.repeats)
    warm = at_hand(workers)
    batches = load_views(
        Views(source, spec, config.data, seed),
        order,
        0,
        2 * warm + rounds + 1,
        workers=workers,
        device=torch.device(device),
        rendering=config.data.rendering,
    )
    first, seconds = 0.0, list[float]()
    for _ in range(warm + rounds):
        seconds.append(seconds_of(lambda: step(next(batches)), device))
        first = first or time.perf_counter() - start
    memory, given = peak_bytes(device), next(batches)
    counted = count_operations(lambda: step(given))
    return seconds[warm:], Alone(memory, first, counted.counts.total(), counted.reads.total())
