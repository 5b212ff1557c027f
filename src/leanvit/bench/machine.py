"""Where something is measured, and how much memory it takes there."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def device_named(name: str) -> str:
    """Return the device, auto being the best here. Raises ValueError for cuda where there is none.

    name: auto, cpu or cuda.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device here; use cpu.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def machine(device: str) -> dict[str, Any]:
    """Return what every figure depends on: date, device and versions."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu[0],
        "units": _units(),
        "torch": torch.__version__,
    }


def _units() -> str:
    """Return what the CPU multiplies with."""
    matrix = torch.cpu._is_amx_tile_supported()
    return torch.backends.cpu.get_cpu_capability() + (", matrix units (AMX)" if matrix else "")


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function gives in a fresh process, where nothing else has taken memory."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(function, *arguments).result()


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


def product_rate(dtype: torch.dtype, device: str, rounds: int = 5) -> float:
    """Return the floating-point operations a second that a large matrix product reaches."""
    side = 8192 if device == "cuda" else 3072
    factor = torch.ones(side, side, dtype=dtype, device=device)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        factor @ factor
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[1:])


def _most_memory() -> int:
    """Return the most bytes that this process held at a time, on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
