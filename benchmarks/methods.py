"""Images a second of a training step of each method on a ViT-Ti/16, side by side in one run.

    python benchmarks/methods.py [--device cuda] [--batch 16] [--rounds 5]

Views are noise at the published sizes, so that reading and drawing them costs nothing; teachers
have fresh weights. Methods take turns, a step each in every round, and the median counts. Also how
long MAE's encoder takes for the quarter of the patches that it sees, beside all of them. Prints a
table in Markdown; benchmarks/methods.md keeps it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from leanvit.backbones.base import Ask
from leanvit.backbones.catalogue import build_backbone
from leanvit.bench.machine import machine
from leanvit.config import BACKBONES, Facts, RunConfig, ViTConfig, compose, resolve, settled
from leanvit.core.files import save_tensors
from leanvit.core.random import seeded
from leanvit.methods.catalogue import build_method
from leanvit.methods.masking import visible_count
from leanvit.recipes import recipe
from leanvit.train.state import TrainState
from leanvit.train.trial import noise_views
from leanvit.weights.file import header

SIZE, CLASSES = 224, 1000
METHODS = ("supervised", "mae", "dmae", "d2mae", "simmim", "mocov3", "dino", "esvit")
TEACHER = "vit_base"


def run_of(name: str, batch: int, device: str, teacher: str) -> RunConfig:
    """Return a resolved run of a recipe on the ViT that all methods share."""
    config = recipe(name)
    options: dict[str, object] = {"train.batch": batch, "train.device": device}
    if name in ("dmae", "d2mae"):
        options["method.teacher"] = teacher
    if name == "supervised":
        options |= {"method.mix.views": 0}
    config = compose(config, backbone="vit_tiny_h12", options=options)
    facts = Facts(images=100_000, classes=CLASSES, cores=2, device=device, bf16=device == "cuda")
    return resolve(config, facts).config


def step_of(config: RunConfig) -> Callable[[], None]:
    """Return a whole training step: forward, backward, update."""
    method = build_method(config.method, config.backbone, 0)
    state = TrainState(method, config, epoch_steps=1000)
    spec = method.views()
    assert spec is not None
    batch = noise_views(spec, settled(config.train.batch), CLASSES).to(state.device)

    def step() -> None:
        at = state.begin_step()
        state.backward(batch, at, 1)
        state.update(at)
        if state.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(works: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, all of them once a round."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work))
    return {name: statistics.median(times) for name, times in found.items()}


def encoder_shares(batch: int, device: str, rounds: int) -> dict[str, float]:
    """Return the seconds of the encoder, forward and backward, of all and of a quarter."""
    config = BACKBONES["vit_tiny_h12"]
    assert isinstance(config, ViTConfig)
    with seeded(0, "bench"):
        network = build_backbone(replace(config, positions="sincos", drop_path=0.0)).to(device)
    images = torch.zeros(batch, 3, SIZE, SIZE, device=device)
    patches = (SIZE // config.patch) ** 2
    kept = torch.arange(visible_count(patches, 0.75, "patches"), device=device).expand(batch, -1)

    def work(ask: Ask) -> Callable[[], None]:
        def run() -> None:
            network([images], ask)[0].grid.sum().backward()

        return run

    return in_turns({"all": work(Ask()), "a quarter": work(Ask(keep=kept))}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        with seeded(0, "teacher"):
            teacher = build_backbone(BACKBONES[TEACHER])
        save_tensors(teacher.state_dict(), path, header(teacher, {}))
        works = {
            name: step_of(run_of(name, asked.batch, asked.device, str(path))) for name in METHODS
        }
    times = in_turns(works, asked.rounds)
    facts = ", ".join(map(str, machine(asked.device).values()))
    print(f"{facts}, batch {asked.batch}, median of {asked.rounds}\n")
    print("| method | images/s | times supervised |\n|---|---|---|")
    for name, took in times.items():
        print(f"| {name} | {asked.batch / took:.1f} | {times['supervised'] / took:.2f} |")
    shares = encoder_shares(asked.batch, asked.device, asked.rounds)
    share = shares["a quarter"] / shares["all"]
    print(f"\nMAE's encoder takes {share:.2f} of the time of all patches.")


if __name__ == "__main__":
    main()
