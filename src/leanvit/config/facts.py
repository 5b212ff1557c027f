"""What is found out about the images and the machine before a run, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Bytes that training takes in one process, as steps of few images showed.

    A process's share of a step is the batch over the number of processes; its micro-batches are
    equal parts of that share.
    """

    fixed: int
    """Of weights, gradients and what the optimiser keeps, whatever the batch."""
    each: int
    """Of every image in a micro-batch: its views and what the backward pass needs."""
    views: int
    """Of the views of an image, which all of a share are there from its first micro-batch on."""
    waiting: int
    """Of an image in the batches that are made ready meanwhile, for each of the share."""
    gradients: int
    """Of the gradients, which are there twice where several micro-batches or processes add up."""
    whole: bool = False
    """Whether the network couples the images of a batch, so that a step cannot be split."""

    def needed(self, share: int, parts: int = 1, world: int = 1) -> int:
        """Return the bytes that a share takes in so many micro-batches."""
        micro = share // parts
        rest = (share - micro) * self.views + share * self.waiting
        return self._at_least(parts, world) + micro * self.each + rest

    def largest(self, memory: int, parts: int = 1, world: int = 1) -> int:
        """Return the most images of a micro-batch with which `parts` of them fit; 0 for none."""
        image = self.each + (parts - 1) * self.views + parts * self.waiting
        return max((memory - self._at_least(parts, world)) // image, 0)

    def _at_least(self, parts: int, world: int) -> int:
        return self.fixed + ((parts > 1) + (world > 1)) * self.gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out about the images and the machine, once."""

    images: int
    """Number of images."""
    side: int = 0
    """Middle of their shorter sides in pixels; 0 where nobody looked."""
    classes: int = 0
    """Number of their classes."""
    unlabelled: int = 0
    """Images without a class."""
    cores: int
    """Processor cores that this process may use."""
    device: str
    """Best device at hand: cpu or cuda."""
    bf16: bool
    """Whether that device computes in bf16 at full speed."""
    matrix_units: bool = False
    """Whether the CPU has units for products of bf16 matrices."""
    attention: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Fastest form of prototype attention for a device and a precision; chunks where it is open."""
    rendering: Mapping[str, str] = field(default_factory=dict)
    """Who renders views where a device trains; host where it is open."""
    world: int = 1
    """Number of processes that train together."""
    neighbours: int = 0
    """How many of them share this machine; 0 for all."""
    memory: int = 0
    """Bytes that are free to each process where it trains; looked up if a batch hangs on it."""
    step: StepMemory | None = None
    """What a step takes of it; measured if a batch hangs on it."""
    seconds: float = 0.0
    """Of a step, waiting for data included; measured if a duration is a time."""
