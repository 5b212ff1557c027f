"""The memory of a step, measured where a batch is `auto`; the rule over it is `config.batch`.

Steps of few images, of two sizes, each in a process of its own, tell what a step takes whatever the
batch and what every image adds. Memory is a line over the images but for blocks that stop growing
and for holes in the heap: on a CPU larger steps took 0.85 to 1 of what was foretold, in parts up to
1.15. On a GPU the step that was chosen is tried too, since it takes seconds and blocks of memory do
not always fit together. On a CPU it is not: a step of hundreds of images takes minutes.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch

from leanvit.config import Facts, RunConfig, StepMemory, rehearsal, resolve, settled
from leanvit.core.console import say
from leanvit.core.distributed import all_max, joined, rank
from leanvit.core.memory import free_bytes
from leanvit.data.batch import Unreadable
from leanvit.data.decode import read_image
from leanvit.data.sources import Source
from leanvit.train.trial import Trial, attempt

FIRST: Mapping[str, int] = MappingProxyType({"cpu": 8, "cuda": 32})
"""Images of the larger step that is measured; of the smaller one, a quarter."""
SEEN = 16
"""Images that are read to see how large images are."""
LESS = 0.8
"""What the free memory is taken for after a step that was chosen for it did not fit."""


def with_memory(asked: RunConfig, facts: Facts, source: Source, *, quiet: bool = False) -> Facts:
    """Add to the facts what decides on a batch that is `auto`; others are as they were.

    Processes that train together come to the same facts, those of the one with the least room.
    Raises ValueError if not even a step of two images fits.
    """
    if "auto" not in (asked.train.batch, asked.train.accumulate):
        return facts
    config = rehearsal(asked, facts)
    device = config.train.device
    with joined(device):
        if rank() == 0 and not quiet:
            say("Trying steps of a few images, to see how many fit into memory ...")
        free = free_bytes(device)
        if device == "cpu":
            free //= facts.neighbours or facts.world
        memory, step = _agreed(free, _measure(config, free, source), device)
        facts = replace(facts, memory=memory, step=step)
        return _tried(asked, facts) if device == "cuda" else facts


def _measure(config: RunConfig, free: int, source: Source) -> StepMemory:
    """Return what a step takes, from two steps of few images."""
    many, found = FIRST[config.train.device], None
    while many > 1 and (found := attempt(Trial(config, many, most=free))) is None:
        many //= 4
    if found is None:
        raise ValueError(
            f"Not even a step of 2 images fits into the {free / 2**30:.1f} GiB that are free: take "
            f"a smaller --backbone, fewer or smaller views (method.views), or free some memory."
        )
    few = many // 4
    less = attempt(Trial(config, few, most=free)) if few > 1 else None
    if less is None:
        each = -(-(found.peak - found.state) // many)
    else:
        each = -(-(found.peak - less.peak) // (many - few))
    each = max(each, found.views, 1)
    return StepMemory(
        fixed=max(found.peak - many * each, 0),
        each=each,
        views=found.views,
        waiting=_waiting(config, found.views, source),
        gradients=found.gradients,
        whole=found.whole,
    )


def _waiting(config: RunConfig, views: int, source: Source) -> int:
    """Return the bytes that an image of a step takes where the next steps are made ready.

    Processes that render hold two batches each, a GPU one. Where the device renders, images as
    they were read wait: three batches on the host, of which a GPU holds one.
    """
    cuda, workers = config.train.device == "cuda", config.data.workers
    assert workers != "auto"
    if config.data.rendering == "host":
        return views * (1 if cuda else 2 * workers)
    places = range(0, len(source), -(-len(source) // SEEN))
    read = (read_image(source, place) for place in places)
    sizes = [found[0].numel() for found in read if not isinstance(found, Unreadable)]
    return views + sum(sizes) // max(len(sizes), 1) * (1 if cuda else 3)


def _agreed(memory: int, step: StepMemory, device: str) -> tuple[int, StepMemory]:
    """Return the least memory and the largest step of all processes."""
    numbers = [step.fixed, step.each, step.views, step.waiting, step.gradients, int(step.whole)]
    least, *most = all_max(torch.tensor([-memory, *numbers], device=device)).tolist()
    fixed, each, views, waiting, gradients, whole = most
    return -least, StepMemory(
        fixed=fixed,
        each=each,
        views=views,
        waiting=waiting,
        gradients=gradients,
        whole=bool(whole),
    )


def _tried(asked: RunConfig, facts: Facts) -> Facts:
    """Return the facts with which the step that is chosen runs."""
    while True:
        config = resolve(asked, facts).config
        assert facts.step is not None
        share, parts = settled(config.train.batch) // facts.world, settled(config.train.accumulate)
        waiting = share * facts.step.waiting
        found = attempt(Trial(rehearsal(config, facts), share // parts, parts, beside=waiting))
        short = torch.tensor(int(found is None), device=config.train.device)
        if not all_max(short).item():
            return facts
        facts = replace(facts, memory=int(LESS * facts.memory))
