"""What `train.batch auto` and `train.accumulate auto` become: a rule over measured memory.

A share of what is free is left alone. Of the images in a step, `auto` takes the most that fits,
but no more than learn well: at most `LARGEST`, and at most so many that an epoch still has
`LEAST_STEPS` steps, since weights, centers and averages move once a step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from leanvit.config.facts import Facts, StepMemory
from leanvit.config.methods import DinoConfig, MocoV3Config, SupervisedConfig
from leanvit.config.run import RunConfig

Decisions = dict[str, tuple[Any, str]]
"""Option -> (value, why)."""

LARGEST = 1024
"""Images in a step that auto takes at most: DINO's published batch, up to which its rate follows
the linear rule (arXiv 2104.14294, section 3.2); a larger one is a decision of its own."""
LEAST_STEPS = 8
"""Steps that an epoch has at least: fewer would leave up to a seventh of its images out."""
FEW = 16
"""Images in a step that auto takes of so few images that an eighth of them would be less."""
USED: Mapping[str, float] = MappingProxyType({"cpu": 0.8, "cuda": 0.9})
"""Share of the free memory that a run is fitted into. Looks, checkpoints and other programs take of
a machine's memory too, and where it ends Linux kills; a GPU is shared less, and a step is tried."""


def choose_batch(config: RunConfig, facts: Facts) -> Decisions:
    """Decide on the images of a step and on its micro-batches where they are open.

    config: with its device decided. Raises ValueError where not even one image fits, where a step
    that cannot be split does not fit, and where nothing was measured.
    """
    batch, parts = config.train.batch, config.train.accumulate
    if batch != "auto" and parts != "auto":
        return {}
    if facts.step is None:
        raise ValueError(
            "train.batch or train.accumulate is auto, but what a step takes was not measured; give "
            "numbers."
        )
    fit = _Fit(config, facts, facts.step)
    if batch != "auto":
        return {"train.accumulate": fit.split(batch)}
    if parts != "auto":
        return {"train.batch": fit.largest(parts)}
    whole = (1, "the batch is chosen to fit as a whole")
    return {"train.batch": fit.largest(1), "train.accumulate": whole}


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a run goes into the memory that is free."""

    config: RunConfig
    facts: Facts
    step: StepMemory

    @property
    def free(self) -> int:
        return int(USED[self.config.train.device] * self.facts.memory)

    @property
    def room(self) -> str:
        share, world = USED[self.config.train.device], self.facts.world
        each = f" to each of {world} processes" if world > 1 else ""
        return f"{100 * share:.0f} % of the {spoken_bytes(self.facts.memory)} that are free{each}"

    def largest(self, parts: int) -> tuple[int, str]:
        """Return the images of a step in so many micro-batches, and what bounds them."""
        images, world = self.facts.images, self.facts.world
        fits, unit = self.step.largest(self.free, parts, world), parts * world
        if not fits:
            raise self._too_small(parts)
        most = even(fits) * unit
        bound = min(most, max(images // LEAST_STEPS, min(images, FEW)), LARGEST)
        batch = max(even(bound // unit), 1) * unit
        if bound == most:
            taken = spoken_bytes(self.step.needed(batch // world, parts, world))
            return batch, f"the most that fits: it takes {taken}, within {self.room}"
        fit = f"{most} would fit into {self.room}"
        if bound == LARGEST:
            return batch, f"the most that auto takes; {fit}"
        steps = f"{images // batch} step{'s' * (images >= 2 * batch)}"
        return batch, f"so that an epoch of {images} images has {steps}; {fit}"

    def split(self, batch: int) -> tuple[int, str]:
        """Return the fewest micro-batches with which a batch fits, and why."""
        world = self.facts.world
        share = batch // world
        taken = spoken_bytes(self.step.needed(share, 1, world))
        if batch % world or self.step.needed(share, 1, world) <= self.free:
            return 1, f"the step takes {taken}, within {self.room}"
        whole = f"{share} images at once take {taken}, more than {self.room}"
        fits = even(self.step.largest(self.free, 1, world))
        if takes_whole(self.config, self.step) and fits:
            raise ValueError(
                f"{whole}, and this method or network couples the images of a batch, so that a "
                f"step cannot be split (docs/distributed.md): set train.batch to {fits * world}, "
                f"or to auto."
            )
        method = self.config.method
        pairs = isinstance(method, DinoConfig | SupervisedConfig) and method.mix.views > 0
        for parts in range(2, share + 1):
            usable = share % parts == 0 and not (pairs and share // parts % 2)
            if usable and self.step.needed(share, parts, world) <= self.free:
                return parts, f"{whole}; the fewest that fit"
        raise self._too_small(share)

    def _too_small(self, parts: int) -> ValueError:
        one = self.step.needed(parts, parts, self.facts.world)
        return ValueError(
            f"Not even one image at a time fits: that takes {spoken_bytes(one)}, of which an image "
            f"{spoken_bytes(self.step.each)}, more than {self.room}. Take a smaller --backbone, "
            f"fewer or smaller views (method.views), or free some memory."
        )


def takes_whole(config: RunConfig, step: StepMemory) -> bool:
    """Whether a step cannot be split, since the loss or the network couples its images."""
    method = config.method
    coupled = isinstance(method, MocoV3Config)
    if isinstance(method, DinoConfig):
        coupled = method.targets == "sinkhorn" or method.koleo > 0
    return step.whole or coupled


def even(images: int) -> int:
    """Return the next number from there down that devices, and mixing in pairs, work well with."""
    if images < 2:
        return images
    return images - images % (8 if images >= 8 else 2)


def spoken_bytes(count: float) -> str:
    """Return an amount of memory in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
