"""The blocks of timm's networks, and how a training step has them called in its own way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from leanvit.backbones.base import Manner, call_block
from leanvit.core.recompute import block_again

CONTAINERS = (nn.Sequential, nn.ModuleList)
MLP = "mlp"
"""What timm calls the MLP of a block."""


def blocks_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's blocks: what its containers hold, from the outside in.

    What holds more than half of its parameters in containers is no block, but a stage of such.
    """
    return tuple(name for name, block in _blocks("", model) if any(block.children()))


def stages_of(model: Any) -> tuple[str, ...]:
    """Return the names of the stages that timm lists, of a network that has blocks elsewhere."""
    names = [info["module"] for info in model.feature_info]
    return tuple(name for name in names if any(model.get_submodule(name).children()))


def _blocks(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    held = list(_outermost(module))
    inside = sum(map(_size, (container for _, container in held)))
    if 2 * inside <= _size(module):
        if name and _size(module):
            yield name, module
        return
    for place, container in held:
        for key, item in container.named_children():
            yield from _blocks(".".join(filter(None, (name, place, key))), item)


def _outermost(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the containers in a module that lie in no other, by name; or the module itself."""
    if isinstance(module, CONTAINERS):
        yield "", module
        return
    for name, child in module.named_children():
        yield from ((f"{name}.{rest}".rstrip("."), found) for rest, found in _outermost(child))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def mlps_of(model: nn.Module, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the MLPs in these blocks."""
    return tuple(
        f"{block}.{name}"
        for block in blocks
        for name, _ in model.get_submodule(block).named_modules()
        if name.split(".")[-1] == MLP
    )


class Called(nn.Module):
    """Stands in place of a module for a pass, and has it called in another way."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["place"] = module  # beside its parts: parameters keep their names
        self.call, self.used = call, False

    def forward(self, *args: Any, **named: Any) -> Any:
        """Do what the module does; the words are those of timm's blocks."""
        self.used = True
        return self.call(self.__dict__["place"], *args, **named)

    def __getattr__(self, name: str) -> Any:
        """Return what the module has by a name."""
        return getattr(self.__dict__["place"], name)


@contextmanager
def in_manner(
    model: nn.Module, blocks: Sequence[str], mlps: Sequence[str], manner: Manner
) -> Iterator[None]:
    """Have these blocks and MLPs of a network called as a manner says.

    Raises ValueError where the network runs none of them by itself.
    """
    calls: dict[str, Callable[..., Any]] = {}
    if manner.mlps_again:
        calls |= dict.fromkeys(mlps, _again)
    if manner.call is not call_block:
        calls |= dict.fromkeys(blocks, manner.call)
    own = {name: model.get_submodule(name) for name in calls}
    stand_ins = {name: Called(own[name], call) for name, call in calls.items()}
    try:
        for name, stand_in in stand_ins.items():  # MLPs before the blocks that they lie in
            model.set_submodule(name, stand_in)
        yield
    finally:
        for name, module in reversed(own.items()):
            model.set_submodule(name, module)
    if stand_ins and not any(stand_in.used for stand_in in stand_ins.values()):
        raise ValueError(
            f"timm's {type(model).__name__} does not run its blocks one by one: set "
            f"train.recompute and train.compile to none."
        )


def _again(mlp: nn.Module, *args: Any, **named: Any) -> Any:
    return block_again(call_block, mlp, *args, **named)
