"""Our step on views of real images, waiting for them included."""

import time

import torch

from leanvit.bench.operations import count_operations
from leanvit.bench.step_report import Alone
from leanvit.bench.turns import seconds_of
from leanvit.config import RunConfig, settled
from leanvit.core.memory import peak_bytes
from leanvit.data.batch import ViewBatch
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import open_source
from leanvit.methods.base import Method
from leanvit.train.state import TrainState


def fed(
    method: Method, config: RunConfig, images: str, at: int, rounds: int
) -> tuple[list[float], Alone]:
    """Return the seconds of steps one after another, and what a process of their own takes.

    images: their source; at: where in the run the steps lie. Those for which data lay ready when
    they began do not count. Memory is that of this process, without those that render.
    """
    start = time.perf_counter()
    source, spec, device = open_source(images), method.views(), torch.device(config.train.device)
    assert spec is not None and config.data.workers != "auto"
    workers, batch, seed = config.data.workers, settled(config.train.batch), config.train.seed
    order = Order(len(source), batch, seed, repeats=spec.repeats)
    views = Views(source, spec, config.data, seed)
    state = TrainState(method, config, epoch_steps=order.epoch_steps)
    state.step = at
    warm = 1 + 2 * workers
    last = at + warm + rounds + 1 + 2 * workers
    rendering = config.data.rendering
    batches = load_views(
        views, order, at, last, workers=workers, device=device, rendering=rendering
    )
    first, seconds = 0.0, list[float]()

    def step(batch: ViewBatch) -> None:
        moment = state.begin_step()
        state.backward(batch, moment, 1)
        state.update(moment)

    for _ in range(warm + rounds):
        seconds.append(seconds_of(lambda: step(next(batches)), config.train.device))
        first = first or time.perf_counter() - start
    memory, given = peak_bytes(config.train.device), next(batches)
    counted = count_operations(lambda: step(given))
    return seconds[warm:], Alone(memory, first, counted.counts.total(), counted.reads.total())
