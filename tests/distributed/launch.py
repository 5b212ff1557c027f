"""Run a plain function in several processes that talk through gloo on this machine."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from leanvit.core.distributed import leave


def _worker(
    rank: int, world: int, place: str, job: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=world
    )
    try:
        torch.save(job(*args), f"{place}/{rank}.pt")
    finally:
        leave()


def in_processes(world: int, job: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `job(*args)` returns in each of `world` processes; job is a module's function."""
    with tempfile.TemporaryDirectory() as place:
        start_processes(_worker, (world, place, job, args), nprocs=world, start_method="spawn")
        return [torch.load(Path(place) / f"{rank}.pt", weights_only=False) for rank in range(world)]
