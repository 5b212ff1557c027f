"""What follows from sizes alone is built once, also where torch traces a graph."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def exporting() -> bool:
    """Return whether a graph is being exported, which other programs must be able to run.

    `torch.compiler.is_exporting()` says yes while a graph is compiled, too.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def once_per_size(build: Callable[P, T]) -> Callable[P, T]:
    """Let a function of sizes and a device, which returns tables, keep what it built last.

    A compiled graph takes the tables as they are. An exported one builds them: its stand-ins for
    tensors must not outlive it.
    """
    kept = lru_cache(maxsize=64)(build)

    def tables(*args: P.args, **kwargs: P.kwargs) -> tuple[T]:
        with torch.inference_mode(False):
            return (kept(*args, **kwargs),)  # type: ignore[arg-type]

    # what torch.compiler.assume_constant_result does, without loading the compiler
    tables._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @wraps(build)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> T:
        if exporting():
            return build(*args, **kwargs)
        found: T = tables(*args, **kwargs)[0]
        return found

    return chosen
