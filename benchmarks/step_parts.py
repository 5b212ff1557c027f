"""Parts of a step on the CPU, each beside what it replaced, in turn in one process.

`python benchmarks/step_parts.py` prints the table of step.md.
"""

import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from leanvit.bench.machine import machine
from leanvit.bench.tables import markdown
from leanvit.bench.turns import seconds_of

ROUNDS = 9
PROBLEMS, TOKENS, WIDTH = 96, 49, 32
"""Heads and windows of 7 x 7 tokens, as the third stage of a Swin-T has them for four images."""
PROTOTYPES, BOTTLENECK = 65_536, 256


def masked(value: float) -> Callable[[], Tensor]:
    """Weights of windows whose last rows are masked, times values."""
    weights = torch.rand(PROBLEMS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
    weights[:, :, 28:] = value
    values = torch.ones(PROBLEMS, TOKENS, WIDTH)
    return lambda: torch.bmm(weights, values)


def normed(fused: bool) -> Callable[[], None]:
    """Prototypes of weight norm, and the gradients of directions and lengths."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(PROTOTYPES, BOTTLENECK, generator=draw).requires_grad_()
    lengths = torch.ones(PROTOTYPES, 1, requires_grad=True)
    outer = torch.randn(PROTOTYPES, BOTTLENECK, generator=draw)

    def step() -> None:
        if fused:
            found = torch._weight_norm(directions, lengths, 0)
        else:
            found = directions * (lengths / directions.norm(dim=1, keepdim=True))
        torch.autograd.grad(found, (directions, lengths), outer)

    return step


PARTS: Mapping[str, Mapping[str, Callable[[], object]]] = {
    "96 windows and heads, masked pairs": {
        "weights of e^-100": masked(3.8e-44),
        "weights of 0": masked(0.0),
    },
    "weight norm of 65,536 prototypes, forward and backward": {
        "operation by operation": normed(False),
        "fused": normed(True),
    },
}


def main() -> None:
    facts = {**machine("cpu"), "threads": torch.get_num_threads(), "rounds": ROUNDS}
    print("  ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    rows = []
    for what, forms in PARTS.items():
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(ROUNDS + 1):
            for name, step in forms.items():
                seconds[name].append(seconds_of(step, "cpu"))
        middle = [1e3 * statistics.median(each[1:]) for each in seconds.values()]
        for name, found in zip(forms, middle, strict=True):
            rows.append([what, name, f"{found:.3f}", f"{middle[0] / found:.1f}"])
    print("\n".join(markdown(["part", "form", "ms", "times faster"], rows)))


if __name__ == "__main__":
    main()
