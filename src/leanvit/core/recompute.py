"""Parts of a network that are computed again in the backward pass, so that it keeps less.

Values and gradients keep their bits: the same operations see the same numbers again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Again = Callable[[], AbstractContextManager[None]]


class Remembering(ABC):
    """A module whose forward pass reads or moves more than its input and its parameters."""

    @abstractmethod
    def remember(self) -> Again:
        """Return a context in which the module computes what it would compute now.

        What the forward pass moves stays where it is when the context ends.
        """


def computed_again(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call a function, of which the backward pass keeps the arguments alone and calls it again.

    For functions that draw nothing and move nothing; `block_again` is for whole modules.
    """
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **named)


def block_again(call: Callable[..., Any], block: nn.Module, /, *args: Any, **named: Any) -> Any:
    """Do `call(block, ...)`; the backward pass keeps the arguments alone and does it again.

    Modules in the block that remember something (batch norm: running statistics) find it then as
    it is now, and leave it as it is. The words are those of timm's blocks.
    """
    found = [module for module in block.modules() if isinstance(module, Remembering)]
    if found:
        named["context_fn"] = partial(_contexts, found)
    return computed_again(call, block, *args, **named)


def _contexts(
    modules: Sequence[Remembering],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _all([module.remember() for module in modules])


@contextmanager
def _all(contexts: Sequence[Again]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield


def mlp_again(norm: nn.Module, mlp: nn.Module, x: Tensor) -> Tensor:
    """Return mlp(norm(x)) of tokens [N, C]; the backward pass keeps x alone and does it again."""
    found: Tensor = computed_again(_normed_mlp, norm, mlp, x)
    return found


def _normed_mlp(norm: nn.Module, mlp: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = mlp(norm(x))
    return found
