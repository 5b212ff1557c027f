"""Time and memory of attention and CKA of 1,000 images, and of the formulas taken as they stand.

    python benchmarks/analysis.py

Of tiles of the sample, which a ViT-Tiny sees at 224 pixels. Both commands run in processes of their
own; the formulas, in turns on one batch of 32 images, five times after a first one. Prints
Markdown, which analysis.md beside this file keeps.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from leanvit.analysis.attention import attention_of, measure
from leanvit.analysis.cka import MiniBatchCka, grams
from leanvit.backbones.base import Ask
from leanvit.backbones.catalogue import build_backbone
from leanvit.bench.machine import machine
from leanvit.config import named_backbone
from leanvit.core.random import seeded

MODEL, IMAGES, BATCH, ROUNDS = "vit_tiny", 1000, 32, 5


def main() -> None:
    facts = ", ".join(map(str, machine("cpu").values()))
    print(f"{facts}, {torch.get_num_threads()} threads\n")
    print("| command | images | seconds | peak memory, GiB |\n|---|---|---|---|")
    whole = 0.0
    for name, options in (("attention", ["--maps", "0"]), ("cka", [])):
        seconds, memory, images = command(name, options)
        whole += seconds
        print(f"| analyze {name} {MODEL} | {images} | {seconds:.0f} | {memory:.2f} |", flush=True)
    print(f"| both | | {whole:.0f} | |\n")
    print(f"| formulas, one batch of {BATCH} | seconds | rounds |\n|---|---|---|")
    for name, found in formulas().items():
        times = f"{min(found):.3f} to {max(found):.3f}"
        print(f"| {name} | {statistics.median(found):.3f} | {times} |")


def command(name: str, options: list[str]) -> tuple[float, float, int]:
    """Return seconds, GiB and images of a command in a process of its own, start-up included."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "leanvit", "analyze", name, MODEL, "--data", "sample"]
        words += ["--images", str(IMAGES), "--out", out, *options]
        began = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        images = json.loads((Path(out) / f"{name}.json").read_text())["facts"]["images"]
    return seconds, used, images


@torch.no_grad()
def formulas() -> Mapping[str, list[float]]:
    """Return seconds of ours and of the plain forms, by turns."""
    with seeded(0, "benchmark"):
        backbone = build_backbone(named_backbone(MODEL)).eval()
    images = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    every = tuple(range(backbone.depth))
    (features,) = backbone([images], Ask(hidden=every, logits=every))
    layers = [tokens.grid.flatten(1) for tokens in features.hidden]
    pairs = list(zip(features.logits, features.hidden, strict=True))
    ways: dict[str, Callable[[], object]] = {
        "attention, ours": lambda: [measure(attention_of(*pair), (16.0, 16.0)) for pair in pairs],
        "attention, as the formulas stand": lambda: [plain(pair[0].values) for pair in pairs],
        "CKA, ours": lambda: ours(layers),
        "CKA, as the formulas stand": lambda: plain_cka(layers),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: found[1:] for name, found in times.items()}


def plain(values: Tensor) -> Tensor:
    """Distance in fp64 and entropy, image by image, of logits [B, 1, H, T, T], as published."""
    side = int((values.shape[-1] - 1) ** 0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = 16.0 * torch.stack([y.flatten(), x.flatten()], 1).double()
    apart = torch.cdist(places, places)
    found = []
    for image in values[:, 0]:
        attention = torch.softmax(image[:, 1:, 1:].double(), -1)
        distance = (attention * apart).sum(-1).mean(-1)
        entropy = -(attention * (attention + 1e-6).log()).sum(-1).mean(-1)
        found.append(torch.stack([distance, entropy], 1))
    return torch.stack(found)


def ours(layers: list[Tensor]) -> Tensor:
    found = MiniBatchCka()
    kernels = grams(layers)
    found.add(kernels, kernels)
    return found.value()


def plain_cka(layers: list[Tensor]) -> Tensor:
    """CKA of every two layers, the kernels of both computed for each (as published)."""
    return torch.tensor(
        [
            [hsic(left, right) / (hsic(left, left) * hsic(right, right)) ** 0.5 for right in layers]
            for left in layers
        ]
    )


def hsic(left: Tensor, right: Tensor) -> float:
    n = len(left)
    one, other = (side.double() @ side.double().T for side in (left, right))
    one.fill_diagonal_(0)
    other.fill_diagonal_(0)
    ones = torch.ones(n, dtype=torch.float64)
    total = (one @ other).trace() - 2 / (n - 2) * (ones @ one @ other @ ones)
    total += (ones @ one @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return float(total / (n * (n - 3)))


if __name__ == "__main__":
    main()
