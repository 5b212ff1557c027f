"""How much memory is free, how much a step takes, and what torch says where it is not enough."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from leanvit.core.errors import RunError

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux tells what a group of processes may take."""
REFUSALS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "bad_alloc")
"""What torch's errors say where memory is short."""


def extra_bytes(step: Callable[[], object], device: str) -> int:
    """Return the most bytes that a step takes beyond what there is before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = _most_memory()
    step()
    return max(_most_memory() - before, resource.getpagesize())  # it is counted in pages


def peak_bytes(device: str) -> int:
    """Return the most bytes that this process held at a time: on the device, or of the host."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _most_memory()


def _most_memory() -> int:
    """Return the most bytes that this process held at a time, on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def free_bytes(device: str) -> int:
    """Return the bytes that are free: of this process's GPU, or of the machine.

    Of the machine, where a container or a job may take less, what is left of that.
    """
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    found = _numbers(Path("/proc/meminfo"))
    own = Path("/proc/self/cgroup").read_text()
    return min([1024 * found["MemAvailable:"], *(max(left, 0) for left in _left(own, GROUPS))])


def _left(own: str, groups: Path) -> Iterator[int]:
    """Yield the bytes that each group with a limit around this process may still take.

    own: which groups it is in, as /proc/self/cgroup says: `0::/path` for all things (version 2), or
    a line for each thing, such as `4:memory:/path` (version 1). Pages of files that can go at any
    time count as free.
    """
    for line in own.splitlines():
        _, kinds, place = line.split(":", 2)
        if kinds == "":
            top, limit, used, cache = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            top, limit, used = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        inner = top / place.strip("/")
        for folder in {top, inner, *(p for p in inner.parents if p.is_relative_to(top))}:
            try:
                most = (folder / limit).read_text().strip()
                taken = int((folder / used).read_text())
                files = _numbers(folder / "memory.stat").get(cache, 0)
            except OSError:  # a container sees its own group alone, at the top
                continue
            if most != "max":
                yield int(most) - taken + files


def _numbers(path: Path) -> dict[str, int]:
    """Return the first number of each line of a file by the line's first word."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def limit_to(extra: int) -> None:
    """Let this process take so many bytes of the machine more; beyond, torch raises an error.

    And let Linux end this process before any other, should the machine run out all the same.
    """
    most = _numbers(Path("/proc/self/status"))["VmData:"] * 1024 + extra
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    Path("/proc/self/oom_score_adj").write_text("1000")


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in REFUSALS)


@contextmanager
def shortage_named(advice: str) -> Iterator[None]:
    """Turn torch's words for too little memory into a RunError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        said = str(error).split(". ")[0].removesuffix(".").splitlines() or [type(error).__name__]
        raise RunError(f"A step takes more memory than there is ({said[0]}). {advice}") from error
