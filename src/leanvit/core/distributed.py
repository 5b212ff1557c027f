"""What the code needs to know of other processes. In a single process everything is a no-op."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn import functional

from leanvit.core.errors import GoneError, RunError
from leanvit.core.launch import Launch, launch, whole
from leanvit.core.lifeline import Lifeline, gone_text, wait_for_answer

T = TypeVar("T")

START, STEP = "LEANVIT_START_SECONDS", "LEANVIT_STEP_SECONDS"
LIMITS = {START: 600, STEP: 120}
"""Seconds that a process waits for the others, unless the environment says otherwise: until the
first step is done, for which kernels are compiled, and in every later step."""
FAILED, SAID = "failed", "said"
"""What is stored of a failure: the rank of the last process that had one, and the first's words."""
FOR_EVER = timedelta(days=365)
PATIENCE = timedelta(seconds=2)
"""How long a failed process waits to learn whether the first failed in the same way."""


def launched() -> int:
    """Return how many processes torchrun or srun started; 1 without them."""
    return launch().world


def neighbours() -> int:
    """Return how many of them share this machine."""
    return launch().neighbours


def require_alone(what: str) -> None:
    """Raise ValueError if several processes were started for what one does."""
    if launched() > 1:
        raise ValueError(
            f"{what} is for one process: start it without torchrun or with one task of srun."
        )


@contextmanager
def joined(device: str, *, patient: bool = False) -> Iterator[None]:
    """Work together with the other processes that were started, if any were.

    Over NCCL on GPUs, of which each process takes its own, and over gloo on CPUs. patient: wait
    for others as long as they live, and take tensors of the CPU too. Raises ValueError if the
    environment says too little, and GoneError in place of what torch raises if another process
    does not come, ends or stops to answer.
    """
    here = launch()
    if here.world == 1:
        yield
        return
    if device == "cuda":
        _take_gpu(here)
    store = _meet(here)
    lifeline = _hold(here, store)
    healthy = False
    try:
        backend = "nccl" if device == "cuda" else "gloo"
        limit = _limit(START)
        if patient:  # evaluations also share what lies on the host
            backend, limit = backend.replace("nccl", "cpu:gloo,cuda:nccl"), FOR_EVER
        dist.init_process_group(
            backend, store=store, rank=here.rank, world_size=here.world, timeout=limit
        )
        yield
        healthy = True
    except RuntimeError as error:
        if not _of_others(error):
            raise
        raise GoneError(gone_text(lifeline.who_is_gone())) from error
    finally:
        if dist.is_initialized():
            leave(healthy=healthy)
        lifeline.leave(farewell=healthy)


def _take_gpu(here: Launch) -> None:
    """Choose this process's own GPU: the only one it sees, or the one of its number."""
    seen = torch.cuda.device_count()
    if here.local_rank is None and seen > 1:
        raise ValueError(
            f"There are {seen} GPUs, but LOCAL_RANK is not set: number the processes of each "
            f"machine from 0."
        )
    number = 0 if seen == 1 else here.local_rank or 0
    if number >= seen:
        raise ValueError(
            f"Process {number} of this machine has no GPU: torch sees {seen} of them. Start one "
            f"process a GPU."
        )
    torch.cuda.set_device(number)


def _limit(name: str) -> timedelta:
    seconds = whole(os.environ, name, LIMITS[name])
    if not seconds:
        raise ValueError(f"{name} is 0; expected at least 1 second.")
    return timedelta(seconds=seconds)


@cache
def _store(here: Launch, limit: timedelta) -> Store:
    """Return what rank 0, or torchrun in its place, holds for all: small values by name.

    It lives as long as the process, which may have something to tell after it left the others.
    Raises OSError or torch's DistError if it cannot be reached within the limit.
    """
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds = here.rank == 0 and not by_torchrun
    if not holds:
        wait_for_answer(here.host, here.port, limit.total_seconds())
    store = TCPStore(
        here.host,
        here.port,
        is_master=holds,
        timeout=limit,
        wait_for_workers=False,
        multi_tenant=True,  # a process may ask twice, with different limits
    )
    return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _meet(here: Launch) -> Store:
    """Return a store for this meeting once every process has come to it.

    Raises GoneError that says who is missing after the time limit.
    """
    limit = _limit(START)
    try:
        store = _store(here, limit)
    except (OSError, dist.DistError) as error:
        raise GoneError(_absent(here, [0], limit)) from error
    try:
        meeting = PrefixStore(f"meeting {store.add(f'met/{here.rank}', 1)}", store)
        meeting.set(f"here/{here.rank}", "")
        missing = _missing(meeting, [f"here/{rank}" for rank in range(here.world)], limit, store)
    except dist.DistError as error:
        raise GoneError(gone_text(0)) from error
    if missing:
        raise GoneError(_absent(here, missing, limit))
    return meeting


def _missing(
    store: Store, names: list[str], limit: timedelta, failures: Store | None = None
) -> list[int]:
    """Wait until names are stored; return the places of those that still are not at the limit.

    Raises GoneError if a failure is told meanwhile. A plain `store.wait` would hold the store, and
    print torch's own lines.
    """
    missing, end = list(range(len(names))), time.monotonic() + limit.total_seconds()
    while missing := [place for place in missing if not store.check([names[place]])]:
        if failures is not None and failures.check([FAILED]):
            raise GoneError(gone_text(int(failures.get(FAILED))))
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return missing


def _absent(here: Launch, missing: list[int], limit: timedelta) -> str:
    names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return (
        f"{here.world} processes should train together, but rank {names} did not come to "
        f"{here.host}:{here.port} within {limit.total_seconds():g} seconds. Its own message says "
        f"why, if it was started; {START} sets another limit."
    )


def _hold(here: Launch, store: Store) -> Lifeline:
    limit = min(_limit(START), timedelta(seconds=60))  # all are here
    try:
        return Lifeline(store, here.host, here.rank, here.world, limit)
    except (OSError, dist.DistError) as error:
        raise GoneError(f"A process was lost as they met: {error}.") from error


def _of_others(error: RuntimeError) -> bool:
    """Whether an error is that of talking to other processes, and no fault of this one."""
    if isinstance(error, RunError):
        return False
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def leave(*, healthy: bool = True) -> None:
    """Part from the other processes; from those that may not answer, without waiting for them."""
    # what still holds the group (DDP does, in cycles) must go first: whoever frees the group while
    # holding Python's lock can wait for ever for a thread that wants it
    gc.collect()
    group = dist.group.WORLD
    if not healthy and group is not None and dist.get_backend() == "nccl":
        group.abort()
    del group
    dist.destroy_process_group()


def expect_step(*, first: bool) -> None:
    """Set the time limit of what follows: long for a first step, short for others."""
    if world_size() > 1:
        _group().set_timeout(_limit(START if first else STEP))


def while_others_wait(job: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Return what the first process makes of a job, however long it takes, or of `otherwise`.

    The others do that and wait as long as the first lives. No limit holds then until `expect_step`.
    """
    if world_size() > 1:
        _group().set_timeout(FOR_EVER)
    found = job() if rank() == 0 else otherwise()
    wait_for_all()
    return found


def _group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


@contextmanager
def speaking(text: str, *, of_another: bool) -> Iterator[bool]:
    """Yield whether this process is to say why it failed; say it within.

    The first process says it, the others what only they know. text: what it would say; of_another:
    whether it merely lost another process.
    """
    here = launch()
    try:
        store = _store(here, PATIENCE)
        if here.rank == 0:
            store.set(SAID, text)
        if here.rank == 0 or not of_another:
            store.set(FAILED, str(here.rank))  # for those who still wait for it
        told = here.rank > 0 and not _missing(store, [SAID], PATIENCE)
        speaks = not told or not (of_another or store.get(SAID).decode() == text)
    except (OSError, dist.DistError):
        yield True  # nobody speaks for this one
        return
    yield speaks
    try:
        store.set(f"heard/{here.rank}", "")
        if here.rank == 0:  # it may hold the store, which the others ask
            _missing(store, [f"heard/{rank}" for rank in range(here.world)], PATIENCE)
    except dist.DistError:
        return  # the first has ended


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Return this process's number, also before it joined and after; 0 writes the files."""
    if _together():
        return dist.get_rank()
    return launch().rank


def first_alone(job: Callable[[], None]) -> None:
    """Let the first process do a job while the others wait.

    Raises what the job does; ValueError and RunError in every process.
    """
    failure: list[Exception | None] = [None]
    if rank() == 0:
        try:
            job()
        except (ValueError, RunError) as error:
            failure = [error]
    if world_size() > 1:
        dist.broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


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


def all_rows_of_any_number(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in their order, of which each may bring another number."""
    if world_size() == 1:
        return tensor
    counts = all_rows(torch.tensor([len(tensor)], device=tensor.device)).tolist()
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = all_rows(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_lists(items: Sequence[T]) -> list[T]:
    """Return the things of all processes, in their order; they travel as pickles."""
    if world_size() == 1:
        return [*items]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, [*items])
    return [item for part in found for item in part]


def all_sum_with_grad(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; the gradient is summed over them too."""
    if world_size() == 1:
        return tensor
    total: Tensor = _summed(tensor)
    return total


def all_rows_with_grad(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in their order; a row's gradient is summed over them.

    Every process is to bring the same number of rows [n, D].
    """
    count, after = len(tensor), world_size() - 1 - rank()
    return all_sum_with_grad(functional.pad(tensor, (0, 0, rank() * count, after * count)))


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
