"""A network that learns, and its moving average that is tested."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Backbone
from leanvit.core.ema import ema_update, follow_buffers
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.methods.base import Method, Moment

N = TypeVar("N", bound=nn.Module)


class Averaged(Method, Generic[N]):
    """A method of one network that stands on a backbone."""

    def __init__(self, network: N, momentum: float) -> None:
        """momentum: of the moving average of all weights; 0 for none."""
        super().__init__()
        self.network, self.momentum = network, momentum
        self.average: N | None = None
        if momentum:
            self.average = copy.deepcopy(network).requires_grad_(False)

    @property
    def tested(self) -> N:
        """The network that is tested: the moving average if there is one."""
        return self.network if self.average is None else self.average

    def views(self) -> None:
        """Return None: crops come with what is to be told of them."""

    def encoder(self) -> Backbone:
        """Return the backbone of the network that is tested."""
        return backbone_of(self.tested)

    def learner(self) -> Backbone | None:
        """Return the backbone, where its average is the encoder."""
        return None if self.average is None else backbone_of(self.network)

    def part(self, name: str) -> str:
        """Return the network's part that a parameter belongs to."""
        return name.split(".")[1]

    def coupled(self) -> bool:
        """Whether batch norm couples images; a frozen backbone's norms by what it knows already."""
        backbone = backbone_of(self.network)
        learns = any(parameter.requires_grad for parameter in backbone.parameters())
        still = set() if learns else {*backbone.modules()}
        return any(isinstance(part, SyncBatchNorm) for part in {*self.network.modules()} - still)

    @torch.no_grad()
    def after_step(self, at: Moment, sound: Tensor) -> None:
        """Move the average, with what its batch norms know: it never runs in training itself."""
        if self.average is not None:
            ema_update(self.average, self.network, self.momentum, sound)
            follow_buffers(self.average, self.network, self.momentum)


def backbone_of(network: nn.Module) -> Backbone:
    """Return the backbone that a network stands on."""
    return next(part for part in network.modules() if isinstance(part, Backbone))
