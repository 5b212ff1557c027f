"""Memory and time of a training step whose blocks are computed again, and of one that is compiled.

`python benchmarks/recompute.py` prints the tables of recompute.md; with three words, such as
`memory swin_tiny bf16`, a part of one. Memory: the most that a step takes beyond what there is
before it, in a process of its own that gives what it frees back to the system at once: glibc's
malloc would keep many places, and the figure were that of its gaps. Time: that of the processor, of
one thread, so that others who use the machine count little; all ways in turn in one process.
"""

import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from leanvit.backbones.base import Manner
from leanvit.bench.machine import in_own_process, machine
from leanvit.config import Facts, compose, resolve
from leanvit.core.memory import extra_bytes
from leanvit.data.batch import ViewBatch
from leanvit.methods.catalogue import build_method
from leanvit.recipes import recipe
from leanvit.train.state import TrainState

NETWORKS = {"swin_tiny": "esvit", "vit_small": "dino"}
"""Backbones, and the recipe whose step is measured."""
BATCH, ROUNDS, THREADS = 4, 3, 1
OFFERED = ("none", "selective", "full")
"""Values of train.recompute."""
WAYS = (*OFFERED, "products")
"""And what is not offered: to compute again all but matrix products and attention."""
PRODUCTS = ("mm", "addmm", "bmm", "_linear_pointwise", "window_chunks", "scaled_dot_product")
"""What the names of operators hold whose results `products` keeps."""


class Step:
    """A training step on random pixels of the published views."""

    def __init__(self, name: str, precision: str, recompute: str, compiled: str = "none") -> None:
        options = {
            "train.batch": BATCH,
            "train.duration": "100st",
            "train.precision": precision,
            "train.recompute": "none" if recompute == "products" else recompute,
            "train.compile": compiled,
        }
        asked = compose(recipe(NETWORKS[name]), backbone=name, options=options)
        config = resolve(asked, Facts(images=1000, cores=2, device="cpu", bf16=True)).config
        method = build_method(config.method, config.backbone, 0)
        self.state = TrainState(method, config, epoch_steps=10)
        if recompute == "products":
            self.state.passes._manners[method.learner()] = Manner(products_kept)  # type: ignore[index]
        pixels = torch.Generator().manual_seed(0)
        groups = [torch.randn(n, BATCH, 3, s, s, generator=pixels) for n, s in ((2, 224), (8, 96))]
        self.views = ViewBatch(tuple(groups), torch.arange(BATCH), torch.zeros(BATCH))

    def __call__(self) -> float:
        """Do it once; return the seconds of the processor that took."""
        start = time.process_time()
        at = self.state.begin_step()
        self.state.backward(self.views, at, 1)
        self.state.update(at)
        self.state.require_sound()
        return time.process_time() - start


def products_kept(block: torch.nn.Module, *args: Any) -> Any:
    """Call a block, of which the backward pass keeps products and attention alone."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    kept = any(part in str(operator).split("::")[-1] for part in PRODUCTS)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def memory(name: str, precision: str, way: str) -> int:
    """Return the extra bytes of a step; the first one, which makes averages, does not count."""
    torch.set_num_threads(THREADS)
    step = Step(name, precision, way)
    step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept for later, would not count
    return extra_bytes(step, "cpu")


def extra(name: str, precision: str) -> Iterator[str]:
    """Yield the rows of memory of a network in a precision."""
    first = 0
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # what the processes begin with
    for way in WAYS if precision == "fp32" else OFFERED:
        found = in_own_process(memory, name, precision, way)
        first = first or found
        yield f"| {name} | {precision} | {way} | {found / 2**20:.0f} | {found / first:.2f} |"


def timed(name: str, precision: str) -> Iterator[str]:
    """Yield the rows of time of a network in a precision."""
    torch.set_num_threads(THREADS)
    ways = WAYS if precision == "fp32" else OFFERED
    seconds = _in_turn({way: Step(name, precision, way) for way in ways})
    for way, found in seconds.items():
        yield f"| {name} | {precision} | {way} | {found:.2f} | {found / seconds['none']:.2f} |"


def compiled(name: str, precision: str) -> Iterator[str]:
    """Yield the row of a network that is compiled."""
    torch.set_num_threads(THREADS)
    steps = {way: Step(name, precision, "none", way) for way in ("none", "blocks")}
    seconds, told = _in_turn(steps), steps["blocks"].state.passes.row()
    ratio = seconds["blocks"] / seconds["none"]
    yield (
        f"| {name} | {precision} | {told['compiled']} | {told['compile_s']:.0f} | "
        f"{seconds['blocks']:.2f} | {ratio:.2f} |"
    )


def _in_turn(steps: dict[str, Step]) -> dict[str, float]:
    """Return the middle time of each step; the first round does not count."""
    found: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(1 + ROUNDS):
        for way, step in steps.items():
            found[way].append(step())
    return {way: statistics.median(times[1:]) for way, times in found.items()}


TABLES: dict[str, tuple[Callable[[str, str], Iterator[str]], str]] = {
    "memory": (extra, "| backbone | precision | recompute | extra MiB | ratio |"),
    "time": (timed, "| backbone | precision | recompute | CPU s a step | ratio |"),
    "compiled": (
        compiled,
        "| backbone | precision | kinds of blocks | s to compile | CPU s a step | ratio to eager |",
    ),
}


def main() -> None:
    """Print what the words ask for, or everything."""
    if len(sys.argv) == 4:
        table, name, precision = sys.argv[1:]
        for row in TABLES[table][0](name, precision):
            print(row, flush=True)
        return
    print(machine("cpu"))
    for table, (rows, head) in TABLES.items():
        print(f"\n{head}\n{'|---' * (head.count('|') - 1)}|")
        for name in NETWORKS:
            for precision in ("fp32",) if table == "compiled" else ("fp32", "bf16"):
                for row in rows(name, precision):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
