"""How processes that train together come to the same gradients; alone there is nothing to share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leanvit.core.distributed import all_sum, world_size
from leanvit.methods.base import Method, Moment


class Sharing:
    """Freezes what a moment freezes, and averages the gradients of all else over the processes."""

    def __init__(self, method: Method, trained: list[tuple[str, Tensor]]) -> None:
        """trained: names and parameters that the optimiser has."""
        self.idle: list[str] | None = None
        """Trained parameters that the loss never reached; None until a step found out."""
        self._method, self._trained = method, trained
        self._frozen: set[int] | None = None
        self._shared: DistributedDataParallel | None = None

    @property
    def module(self) -> nn.Module:
        """What is called in a step."""
        return self._shared or self._method

    def freeze(self, at: Moment) -> None:
        """Let gradients pass by what is frozen now; the step of a change finds what is idle."""
        frozen = {id(parameter) for parameter in self._method.frozen(at)}
        if frozen == self._frozen:
            return
        self._frozen, self._shared, self.idle = frozen, None, None
        for _, parameter in self._trained:
            parameter.requires_grad_(id(parameter) not in frozen)

    @contextmanager
    def gradients(self, *, last: bool) -> Iterator[Any]:
        """Make gradients of a micro-batch within; those of the last one leave the process."""
        if self._shared is None or last:
            yield
            return
        with self._shared.no_sync():
            yield

    def settle(self) -> None:
        """After a first step, find what the loss does not reach; let DDP share the rest then on.

        DDP waits for the gradient of every parameter that could have one when it was made, so it
        is made only now, and these first gradients are averaged here. Its buffers stay apart, see
        `methods.heads.Center`.
        """
        if self.idle is not None:
            return
        moving = [pair for pair in self._trained if pair[1].requires_grad]
        self.idle = [name for name, parameter in moving if parameter.grad is None]
        if world_size() == 1:
            return
        for _, parameter in moving:
            parameter.requires_grad_(parameter.grad is not None)
            if parameter.grad is not None:
                parameter.grad = all_sum(parameter.grad) / world_size()
        self._shared = DistributedDataParallel(self._method, broadcast_buffers=False)

    def leave(self) -> None:
        """Let go of the other processes."""
        self._frozen = self._shared = None
