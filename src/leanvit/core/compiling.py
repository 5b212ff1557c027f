"""torch's compiler where it may not fail in silence, and how much it compiled."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.exc import CppCompileError

Compiler = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]
BACKEND: str | Compiler = "inductor"
"""What `torch.compile` compiles with."""
VARIANTS = 64
"""Kinds of blocks, times precisions, that a network may be compiled for. torch's 8 are too few for
a Swin, and beyond them it would run what is not compiled."""
NOT_COMPILED = (TorchDynamoException, FailOnRecompileLimitHit, CppCompileError)
"""What torch raises where it cannot compile."""


def reason(error: Exception) -> str:
    """Return the kind of an error, its first line and, of a C++ compiler's, the first complaint."""
    if isinstance(error, BackendCompilerFailed):
        error = error.inner_exception
    lines = str(error).splitlines() or [""]
    complaints = [line for line in lines[1:] if " error: " in line]
    return "; ".join([f"{type(error).__name__}: {lines[0]}", *complaints[:1]])


@contextmanager
def compiling() -> Iterator[None]:
    """Let torch compile as many kinds of blocks as a network has, and raise if it cannot.

    A block is compiled whole within DDP too, which would cut graphs by the size of its buckets:
    gradients of a block are ready after it anyway.
    """
    with dynamo.patch(
        recompile_limit=VARIANTS, fail_on_recompile_limit_hit=True, optimize_ddp=False
    ):
        yield


class Compilations:
    """Counts what is compiled while it listens, and the seconds that takes."""

    def __init__(self) -> None:
        self.kinds = 0
        """Functions that were compiled: one for each kind of argument that differs."""
        self.seconds = 0.0
        self._began = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Listen to the compiler."""
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)
        try:
            yield
        finally:
            callback_handler.remove_start_callback(self._start)
            callback_handler.remove_end_callback(self._end)

    def _start(self, _: CallbackArgs) -> None:
        self._began = time.perf_counter()

    def _end(self, what: CallbackArgs) -> None:
        self.seconds += time.perf_counter() - self._began
        self.kinds += what.callback_trigger == CallbackTrigger.DYNAMO


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is compiled whole, anew for every kind and size of argument.

    What was compiled before is forgotten: torch would look through it at every call.
    """
    torch.compiler.reset()
    return torch.compile(function, backend=BACKEND, fullgraph=True, dynamic=False)
