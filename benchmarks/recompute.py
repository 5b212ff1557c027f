"""Memory and time of a training step whose blocks are computed again, and of one that is compiled.

`python benchmarks/recompute.py` prints the tables of recompute.md; with the name of a network, and
a precision or `compiled`, those of that part. Memory: the most that a step takes beyond what there
is before it, in a process of its own. Time: all ways in turn in one process, so that the ratios
hold where others use the machine too.
"""

import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from leanvit.backbones.base import Manner
from leanvit.bench.machine import extra_bytes, in_own_process, machine
from leanvit.config import Facts, compose, resolve
from leanvit.data.batch import ViewBatch
from leanvit.methods.catalogue import build_method
from leanvit.recipes import recipe
from leanvit.train.state import TrainState

NETWORKS = {"swin_tiny": "esvit", "vit_small": "dino"}
"""Backbones, and the recipe whose step is measured."""
BATCH, ROUNDS = 4, 3
WAYS = ("none", "selective", "products", "full")
"""Values of train.recompute, and one that is not offered: all but matrix products and attention."""
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
        """Do it once; return the seconds that took."""
        start = time.perf_counter()
        at = self.state.begin_step()
        self.state.backward(self.views, at, 1)
        self.state.update(at)
        self.state.require_sound()
        return time.perf_counter() - start


def products_kept(block: torch.nn.Module, *args: Any) -> Any:
    """Call a block, of which the backward pass keeps products and attention alone."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    kept = any(part in str(operator).split("::")[-1] for part in PRODUCTS)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def memory(name: str, precision: str, way: str) -> int:
    """Return the extra bytes of a step; the first one, which makes averages, does not count."""
    torch.set_num_threads(2)
    step = Step(name, precision, way)
    step()
    return extra_bytes(step, "cpu")


def again(name: str, precision: str) -> list[str]:
    """Return the rows of a network in a precision."""
    bytes_ = {way: in_own_process(memory, name, precision, way) for way in WAYS}
    torch.set_num_threads(2)
    steps = {way: Step(name, precision, way) for way in WAYS}
    seconds = _in_turn(steps)
    rows = []
    for way in WAYS:
        share, ratio = bytes_[way] / bytes_["none"], seconds[way] / seconds["none"]
        rows.append(
            f"| {name} | {precision} | {way} | {bytes_[way] / 2**20:.0f} | {share:.2f} | "
            f"{seconds[way]:.2f} | {ratio:.2f} |"
        )
    return rows


def compiled(name: str) -> list[str]:
    """Return the row of a network that is compiled."""
    torch.set_num_threads(2)
    steps = {way: Step(name, "fp32", "none", way) for way in ("none", "blocks")}
    seconds = _in_turn(steps)
    told = steps["blocks"].state.passes.row()
    return [
        f"| {name} | {told['compiled']} | {told['compile_s']:.0f} | {seconds['blocks']:.2f} | "
        f"{seconds['blocks'] / seconds['none']:.2f} |"
    ]


def _in_turn(steps: dict[str, Step]) -> dict[str, float]:
    """Return the middle time of each step; the first round does not count."""
    found: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(1 + ROUNDS):
        for way, step in steps.items():
            found[way].append(step())
    return {way: statistics.median(times[1:]) for way, times in found.items()}


def main() -> None:
    """Print what the words ask for, or everything."""
    if len(sys.argv) == 3:
        name, what = sys.argv[1:]
        print("\n".join(compiled(name) if what == "compiled" else again(name, what)), flush=True)
        return
    print(machine("cpu"))
    print("| backbone | precision | recompute | extra MiB | ratio | s a step | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        for precision in ("fp32", "bf16"):
            print("\n".join(again(name, precision)), flush=True)
    print("\n| backbone | kinds of blocks | s to compile | s a step | ratio to eager |")
    print("|---|---|---|---|---|")
    for name in NETWORKS:
        print("\n".join(compiled(name)), flush=True)


if __name__ == "__main__":
    main()
