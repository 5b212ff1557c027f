"""What goes on inside a method in one step: where numbers are first not finite, how large they are.

Looking reads numbers back from the device after every module, so a training run does not look.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from leanvit.backbones.base import Backbone, Logits, Packed
from leanvit.methods.base import Method, StepOutput


@dataclass(frozen=True, slots=True)
class Fault:
    """The first module whose output was not finite; a module counts before those it lies in."""

    module: str
    """Its name; empty for the method as a whole, whose losses are computed in no module."""
    finite_input: bool
    """Whether what came in was finite, so that the module itself is where it happened."""

    def __str__(self) -> str:
        came = "is finite" if self.finite_input else "is not finite either"
        return f"{self.module or 'the loss, after all modules'}, whose input {came}"


class Inside:
    """Listens to a method between `with` and its end; what it found stays."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.fault: Fault | None = None
        self.gradient = ""
        """The first parameter, as gradients arrive, whose gradient was not finite."""
        self.largest: dict[str, float] = {}
        """Largest absolute output of every block by its name; not finite if any is not."""
        self.outputs: list[StepOutput] = []
        """What the method returned for each micro-batch."""
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        networks = [module for module in self.method.modules() if isinstance(module, Backbone)]
        blocks = {id(block) for network in networks for block in network.blocks()}
        for name, module in self.method.named_modules():
            heard = partial(self._output, name, id(module) in blocks)
            self._handles.append(module.register_forward_hook(heard))
        for name, parameter in self.method.named_parameters():
            if parameter.requires_grad:
                arrived = partial(self._arrived, name)
                self._handles.append(parameter.register_post_accumulate_grad_hook(arrived))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _output(
        self, name: str, block: bool, module: nn.Module, given: tuple[Any, ...], output: Any
    ) -> None:
        if isinstance(output, StepOutput):
            self.outputs.append(output)
        if block:
            found = [float(tensor.abs().max()) for tensor in numbers(output)]
            self.largest[name] = _worst([self.largest.get(name, 0.0), *found])
        if self.fault is None and not finite(output):
            self.fault = Fault(name, finite(given[:1]))  # the others are masks, scales and plans

    def _arrived(self, name: str, parameter: Tensor) -> None:
        if not self.gradient and not finite(parameter.grad):
            self.gradient = name


def finite(value: Any) -> bool:
    """Return whether all numbers that a module takes or returns are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in numbers(value))


def numbers(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors that are not empty in what a module takes or returns.

    Logits, which are -inf where a token does not see another, and plans of packed tokens, which
    hold masks, are left out.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value.detach()
    elif isinstance(value, Packed):
        yield value.x.detach()
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from numbers(entry)
    elif isinstance(value, Mapping):
        yield from numbers(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, Logits):
        yield from numbers([getattr(value, field.name) for field in fields(value)])


def _worst(values: list[float]) -> float:
    """Return the first number that is not finite, else the largest."""
    return next((value for value in values if not math.isfinite(value)), max(values))
