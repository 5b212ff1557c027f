"""How much memory a step takes."""

import resource
from collections.abc import Callable
from pathlib import Path

import torch


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


def _most_memory() -> int:
    """Return the most bytes that this process held at a time, on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
