"""What follows from sizes alone is built once, also where torch traces a graph."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

P = ParamSpec("P")
T = TypeVar("T")


def exporting() -> bool:
    """Return whether a graph is being exported (not strictly, as torch does by default).

    Other programs must be able to run it. `torch.compiler.is_exporting()` says yes while a graph is
    compiled, too.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def once_per_size(build: Callable[P, T]) -> Callable[P, T]:
    """Let a function of sizes and a device, which returns tables, keep the last 64 that it built.

    A compiled graph takes the tables as they are, and is compiled again for other sizes. Where
    tensors are stand-ins, as in an exported graph, tables are built and not kept.
    """
    kept = lru_cache(maxsize=64)(build)

    def tables(*args: P.args, **kwargs: P.kwargs) -> tuple[T]:
        if any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack()):
            return (build(*args, **kwargs),)
        with torch.inference_mode(False):
            return (kept(*args, **kwargs),)  # type: ignore[arg-type]

    # what torch.compiler.assume_constant_result does, without loading the compiler
    tables._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @wraps(build)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> T:
        if exporting():
            return build(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            args = _fixed(args)
        found: T = tables(*args, **kwargs)[0]
        return found

    return chosen


def _fixed(value: Any) -> Any:
    """Return sizes as numbers: a graph with symbols for them could not hold tables."""
    if isinstance(value, tuple):
        return tuple(_fixed(part) for part in value)
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return len(range(value))
    return value
