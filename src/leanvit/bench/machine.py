"""Where something is measured, and in which process."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from leanvit.config import replace_options
from leanvit.config.bench import BenchForwardConfig, BenchLossConfig, BenchStepConfig

T = TypeVar("T")
C = TypeVar("C", BenchLossConfig, BenchForwardConfig, BenchStepConfig)


def device_named(name: str) -> str:
    """Return the device, auto being the best here. Raises ValueError for cuda where there is none.

    name: auto, cpu or cuda.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device here; use cpu.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def on_this_machine(config: C) -> C:
    """Return the configuration of a bench with its device and threads decided; take the threads.

    Raises ValueError for cuda where there is none.
    """
    threads = torch.get_num_threads() if config.threads == "auto" else config.threads
    torch.set_num_threads(threads)
    device = device_named(config.device)
    return replace_options(config, {"device": device, "threads": threads})


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
