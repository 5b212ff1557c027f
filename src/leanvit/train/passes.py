"""How the blocks of a method's networks run in a training step: compiled, and what they keep.

Backbones have their usual manner outside of a step, so that nothing else sees any of this:
evaluations, files, copies.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from leanvit.backbones.base import Backbone, Manner, call_block
from leanvit.config.run import TrainConfig
from leanvit.core.errors import RunError
from leanvit.core.recompute import block_again
from leanvit.methods.base import Method
from leanvit.methods.teacher import Teacher

if TYPE_CHECKING:
    from leanvit.core.compiling import Compilations


_CANNOT = "torch cannot compile the blocks of this network here"


class Passes:
    """Gives every backbone of a method its manner for the time of a step."""

    def __init__(self, method: Method, config: TrainConfig) -> None:
        """Raises ValueError if a backbone cannot run as the configuration says."""
        self.compilations: Compilations | None = None
        """What was compiled so far; None without compilation."""
        call = call_block
        if config.compile == "blocks":
            call, self.compilations = _compiler()
        self._manners = dict.fromkeys(_networks(method), Manner(call))
        again = partial(block_again, call) if config.recompute == "full" else call
        learner = method.learner() or method.encoder()
        self._manners[learner] = Manner(again, mlps_again=config.recompute == "selective")
        for network, manner in self._manners.items():
            network.require_manner(manner)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run blocks so within. Raises RunError if torch cannot compile one."""
        with ExitStack() as stack:
            for network, manner in self._manners.items():
                stack.callback(setattr, network, "manner", network.manner)
                network.manner = manner
            if self.compilations is not None:
                stack.enter_context(_compiled(self.compilations))
            yield

    def row(self) -> dict[str, float]:
        """Return what a row of metrics holds of it: kinds of blocks compiled, and seconds."""
        if self.compilations is None:
            return {}
        return {"compiled": self.compilations.kinds, "compile_s": self.compilations.seconds}


def _compiler() -> tuple[Callable[..., Any], "Compilations"]:
    """Return `call_block`, to be compiled, and what counts. Raises ValueError if torch cannot."""
    from leanvit.core import compiling  # which loads slowly

    try:
        return compiling.compiled(call_block), compiling.Compilations()
    except RuntimeError as error:  # no such backend, or a Python that torch does not know yet
        raise ValueError(f"{_CANNOT} ({compiling.reason(error)}): --train.compile none.") from error


def _networks(method: Method) -> list[Backbone]:
    """Return the backbones that run in a step, teachers from files included."""
    found = [module for module in method.modules() if isinstance(module, Backbone)]
    return found + [m.backbone for m in method.modules() if isinstance(m, Teacher)]


@contextmanager
def _compiled(compilations: "Compilations") -> Iterator[None]:
    from leanvit.core.compiling import NOT_COMPILED, compiling, reason

    try:
        with compiling(), compilations.counted():
            yield
    except NOT_COMPILED as error:
        raise RunError(
            f"{_CANNOT} ({reason(error)}). Train without: --train.compile none (with --allow "
            f"train.compile, where a run is continued)."
        ) from error
