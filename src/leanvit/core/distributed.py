"""What the code needs to know of other processes. In a single process everything is a no-op."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from leanvit.core.errors import RunError


def launched() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return _whole("WORLD_SIZE", 1)


def neighbours() -> int:
    """Return how many of them share this machine."""
    return _whole("LOCAL_WORLD_SIZE", launched())


def _whole(name: str, otherwise: int) -> int:
    word = os.environ.get(name, str(otherwise))
    if not word.isdecimal():
        raise ValueError(f"The environment says {name}={word!r}, which is no number of processes.")
    return int(word)


def require_alone(what: str) -> None:
    """Raise ValueError if torchrun started several processes for what one does."""
    if launched() > 1:
        raise ValueError(f"{what} is for one process: start it without torchrun.")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Train together with the other processes that torchrun started, if it did.

    Over NCCL on GPUs, of which each process takes its own, and over gloo on CPUs. Raises
    ValueError if the environment is not torchrun's.
    """
    if launched() == 1:
        yield
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {launched()}, but {missing[0]} is not set: several processes are "
            f"started by torchrun --nproc-per-node={launched()} -m leanvit ..."
        )
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """Part from the other processes."""
    # what still holds the group (DDP does, in cycles) must go first: whoever frees the group while
    # holding Python's lock can wait for ever for a thread that wants it
    gc.collect()
    dist.destroy_process_group()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Return this process's number, also before it joined and after; 0 writes the files."""
    if _together():
        return dist.get_rank()
    return _whole("RANK", 0) if launched() > 1 else 0


def first_alone(job: Callable[[], None]) -> None:
    """Let the first process do a job; the others wait, and where it fails leave without a word.

    Raises what the job does; ValueError and RunError are told to the others.
    """
    failure: Exception | None = None
    if rank() == 0:
        try:
            job()
        except (ValueError, RunError) as error:
            failure = error
    device = "cuda" if world_size() > 1 and dist.get_backend() == "nccl" else "cpu"
    failed = all_max(torch.tensor(int(failure is not None), device=device))
    if failure is not None:
        raise failure
    if failed.item():
        raise SystemExit(2)


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if world_size() > 1:
        dist.barrier()


class Agreement:
    """The greatest of what each process says, known one call later, so that nobody waits.

    Words are on the host and travel over gloo, whatever the devices do meanwhile. Every process
    makes the same calls. Alone, a process agrees with itself at once.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._said: Tensor | None = None
        self._work: dist.Work | None = None

    def __call__(self, words: Sequence[int]) -> list[int]:
        """Say some whole numbers; return what all said the time before, zeros at first."""
        if self._group is None:
            return list(words)
        found = self.settle() or [0] * len(words)
        self._said = torch.tensor(words)
        self._work = dist.all_reduce(
            self._said, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return found

    def settle(self) -> list[int]:
        """Wait for what was said last; return it, nothing if there is nothing on its way."""
        if self._work is None or self._said is None:
            return []
        self._work.wait()
        self._work = None
        return self._said.tolist()


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; gradients do not pass."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_max(tensor: Tensor) -> Tensor:
    """Return the maximum over all processes; gradients do not pass."""
    if world_size() == 1:
        return tensor
    largest = tensor.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def all_rows(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in their order; gradients do not pass.

    Every process is to bring the same number of rows.
    """
    if world_size() == 1:
        return tensor
    rows = tensor.new_empty((world_size() * len(tensor), *tensor.shape[1:]))
    dist.all_gather_into_tensor(rows, tensor.detach().contiguous())
    return rows


def all_sum_with_grad(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; the gradient is summed over them too."""
    if world_size() == 1:
        return tensor
    total: Tensor = _summed(tensor)
    return total


def _sum(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


# An operator of its own, since the gradient of torch's differentiable sum is 0 in compiled code
# (torch 2.11).
_summed = torch.library.custom_op("leanvit::all_sum", _sum, mutates_args=())
_summed.register_fake(_like)
_summed.register_autograd(lambda _, gradient: _summed(gradient))
