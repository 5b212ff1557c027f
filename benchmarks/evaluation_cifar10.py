"""Do evaluations of frozen features tell a pre-trained network from an untrained one? CIFAR-10.

    LEANVIT_TEST_DATA=FOLDER python benchmarks/evaluation_cifar10.py [RUN]

FOLDER holds `cifar10.tar.xz`. RUN is the folder of a pre-training on its training images; without
it a small MAE is trained in runs/evaluation for about three minutes of one core. Every evaluation
learns from the first 300 images of each class and is tested on the first 100 test images of each.
The tables in evaluation_cifar10.md beside this file are written anew.
"""

import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sklearn
import torch

import leanvit
from leanvit.core.files import save_tensors
from leanvit.evaluation.models import before_training
from leanvit.evaluation.result import Result
from leanvit.weights.file import header

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "learning"))
from cifar10 import commit, unpack, write_list  # noqa: E402

RUNS = Path("runs/evaluation")
TABLE = HERE / "evaluation_cifar10.md"
LEARN, TEST = 300, 100
OPTIONS = {
    "backbone.image_size": 32,
    "backbone.patch": 4,
    "backbone.dim": 128,
    "backbone.depth": 6,
    "backbone.heads": 4,
    "backbone.pool": "mean",
    "backbone.positions": "sincos",
    "backbone.drop_path": 0.0,
    "method.views.size": 32,
    "method.decoder.dim": 64,
    "method.decoder.depth": 1,
    "method.decoder.heads": 4,
    "train.batch": 64,
    "train.duration": "700st",
    "watch.images": 0,
    "optim.lr_rule": "none",
    "optim.lr.peak": 1e-3,
    "optim.lr.warmup": "10%",
}
EVALUATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "k-NN, k = 20": ("knn", {"k": (20,), "baselines": False}),
    "k-NN, k = 20, leave-one-out": (
        "knn",
        {"k": (20,), "baselines": False, "leave_one_out": True, "val": ""},
    ),
    "linear, SGD": ("linear", {}),
    "linear, SGD, blocks 1 and 4": ("linear", {"blocks": (1, 4)}),
    "linear, L-BFGS": ("linear", {"solver": "lbfgs", "blocks": (1,)}),
    "low-shot k-NN": ("lowshot", {"probe": "knn"}),
    "low-shot SGD": ("lowshot", {"probe": "linear"}),
    "low-shot L-BFGS": ("lowshot", {"probe": "lbfgs"}),
}
"""What is printed, the evaluation, and its options."""


def main() -> None:
    torch.set_num_threads(1)
    data = unpack()
    learn, test = write_list(data / "train", LEARN), write_list(data / "test", TEST)
    trained = Path(sys.argv[1]) if len(sys.argv) > 1 else pretrain(data / "train")
    untrained = RUNS / "untrained.safetensors"
    fresh = before_training(trained, leanvit.load_backbone(trained))
    untrained.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(fresh.state_dict(), untrained, header(fresh, {}))
    lines = []
    for title, (name, options) in EVALUATIONS.items():
        results, began = {}, time.perf_counter()
        for row, model in {"untrained": untrained, "trained": trained}.items():
            given = {"val": str(test), "results": str(RUNS / "results.jsonl"), **options}
            results[row] = leanvit.evaluate(name, model, data=str(learn), options=given)
            print(title, row, results[row], sep="\n", flush=True)
        lines += cells(title, results, time.perf_counter() - began)
    write(lines)


def pretrain(images: Path) -> Path:
    """Return the run of a short MAE, finished now if it was not."""
    out = RUNS / "mae"
    if not (out / "summary.json").exists():
        resume = (out / "config.json").exists()
        leanvit.pretrain("mae", data=str(images), out=out, options=OPTIONS, resume=resume)
    return out


def cells(title: str, results: Mapping[str, Result], seconds: float) -> list[str]:
    """Return the lines of one evaluation, one for each number of images to learn from."""
    lines = []
    for place, row in enumerate(results["trained"].rows):
        found = [results[name].rows[place] for name in ("untrained", "trained")]
        shots = f", {row['shots']}" if "shots" in row else ""
        column = "top1" if "top1" in row else "k=20"
        told = [
            f"{one[column]:.1f}" + (f" ± {one['deviation']:.1f}" if shots else "") for one in found
        ]
        chosen = row.get("chosen") or " ".join(
            f"{key} {row[key]}" for key in ("blocks", "rate", "strength") if key in row
        )
        spent = f"{seconds:.0f}" if place == 0 else ""
        lines.append(f"| {title}{shots} | {told[0]} | {told[1]} | {chosen} | {spent} |")
    return lines


def write(lines: list[str]) -> None:
    date, cores = datetime.now(UTC).date().isoformat(), len(os.sched_getaffinity(0))
    TABLE.write_text(
        f"# Evaluations of frozen features on CIFAR-10: top-1 accuracy in percent\n\n"
        f"`benchmarks/evaluation_cifar10.py`, {date}, revision {commit()}, torch "
        f"{torch.__version__}, scikit-learn {sklearn.__version__}, one thread of {cores} cores. A "
        f"ViT of 1.2 M parameters, patches of 4 pixels, before and after 700 steps of MAE (64 "
        f"images each, of all 50,000 without their classes). Every evaluation learns from "
        f"{10 * LEARN:,} images and is tested on {10 * TEST:,} others, but for leave-one-out. "
        f"Low-shot: mean and standard deviation of five draws. *Chosen* is for the trained "
        f"network; seconds are for both, with other programs running.\n\n"
        f"| evaluation | untrained | trained | chosen | seconds |\n|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
