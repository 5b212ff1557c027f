"""Does each method teach a small ViT anything? CIFAR-10, minutes of one core, k-NN and fine-tuning.

    LEANVIT_TEST_DATA=FOLDER python benchmarks/learning/every_method.py [METHOD ...]

FOLDER holds `cifar10.tar.xz`. Every method pre-trains the same ViT on the same 3,000 images without
their classes; then k-NN and, for methods that hide patches, fine-tuning learn from those with
classes and are tested on 1,000 others, once. MAE and D-MAE do so with three seeds, the same student
and the same steps; D-MAE's teacher is a wider and deeper ViT that `mae` trained here. Runs live in
runs/methods and go on where they were cut off; every_method.md beside this file is written anew
from what they hold.
"""

import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from cifar10 import OPTIONS, commit, unpack, write_list

import leanvit

HERE = Path(__file__).parent
RUNS = Path("runs/methods")
TABLE = HERE / "every_method.md"
SPENT = "spent.json"
"""Processor minutes of a run, and whether they are those of all its steps."""
BANK, TEST, K = 300, 100, 20
"""Images of each class to learn from and to test on, and neighbours."""
STUDENT = {
    "backbone.image_size": 32,
    "backbone.patch": 4,
    "backbone.dim": 128,
    "backbone.depth": 6,
    "backbone.heads": 4,
    "backbone.pool": "mean",
    "backbone.positions": "sincos",
    "backbone.drop_path": 0.0,
}
SHARED = {
    "train.batch": 64,
    "train.save_every": "20%",
    "train.log_every": "20st",
    "watch.images": 0,
    "optim.lr_rule": "none",
    "optim.lr.peak": 1e-3,
    "optim.lr.warmup": "10%",
}
CROP = {"method.views.size": 32, "method.views.scale": (0.2, 1.0)}
LIGHT = {"method.decoder.dim": 64, "method.decoder.heads": 4}
HEADS = {
    "method.views.global_size": 32,
    "method.views.global_scale": (0.3, 1.0),
    "method.views.local_sizes": (),
    "method.views.local_counts": (),
    "method.views.blur": (0.2, 0.1, 0.1),
    "method.head.prototypes": 256,
    "method.head.hidden": 256,
    "method.head.bottleneck": 64,
    "method.head.batch_norm": True,
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
    "method.teacher_momentum.start": 0.97,
    "method.teacher_momentum.peak": 0.97,
}
TEACHER = "mae teacher"
SWIN = {
    **OPTIONS,
    "backbone.image_size": 32,
    "train.save_every": "20%",
    "train.log_every": "20st",
}
"""EsViT is for networks of several stages: the Swin and the options of cifar10.py."""
METHODS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    TEACHER: ("mae", "700st", {**CROP, **LIGHT, "backbone.dim": 192, "backbone.depth": 8}),
    "mae": ("mae", "700st", {**CROP, **LIGHT}),
    "dmae": ("dmae", "700st", {**CROP, **LIGHT, "method.teacher": str(RUNS / f"{TEACHER}-0")}),
    "d2mae": (
        "d2mae",
        "700st",
        {
            **CROP,
            **LIGHT,
            "method.teacher": str(RUNS / f"{TEACHER}-0"),
            "method.decode_from": 4,
        },
    ),
    "simmim": ("simmim", "1500st", {**CROP, "method.mask_patch": 8}),
    "mocov3": (
        "mocov3",
        "700st",
        {
            **CROP,
            "method.hidden": 256,
            "method.output": 64,
            "method.momentum.start": 0.97,
            "method.momentum.peak": 0.97,
        },
    ),
    "dino": ("dino", "700st", HEADS),
    "esvit": ("esvit_laptop", "1200st", SWIN),
    "supervised": ("supervised", "1500st", CROP),
}
"""Name -> recipe, steps, options. A step takes methods different times."""
TUNED = ("mae", "dmae", "d2mae", "simmim")
"""Methods whose features are meant to be fine-tuned rather than looked at as they are."""
SEEDS: Mapping[str, Sequence[int]] = {"mae": (0, 1, 2), "dmae": (0, 1, 2)}
TUNING: Mapping[str, Any] = {"duration": "4ep", "train_batch": 64, "every": "100%"}
"""Fine-tuning, the improved recipe but short."""


def pretrain(name: str, seed: int, data: Path) -> Path:
    """Train, or go on training; return the run's folder."""
    recipe, steps, options = METHODS[name]
    out = RUNS / f"{name}-{seed}"
    if not (out / "summary.json").exists():
        started = (out / "config.json").exists()
        vit = options is not SWIN
        known = {**(STUDENT | SHARED if vit else {}), **options}
        known |= {"train.duration": steps, "train.seed": seed}
        began = sum(os.times()[:4])
        leanvit.pretrain(
            recipe,
            data=str(data),
            out=out,
            backbone="vit_small" if vit else "",
            options=known,
            resume=started,
        )
        spent = {"minutes": (sum(os.times()[:4]) - began) / 60, "whole": not started}
        (out / SPENT).write_text(json.dumps(spent))
    return out


def measured(name: str, seed: int, bank: Path, test: Path) -> dict[str, float]:
    """Return k-NN before and after, and fine-tuned accuracy, measured once and kept."""
    out = pretrain(name, seed, bank)
    kept = out / "measured.json"
    if not kept.exists():
        spent = json.loads((out / SPENT).read_text())
        options = {"val": str(test), "k": (K,)}
        rows = leanvit.evaluate("knn", out, data=str(bank), options=options).rows
        knn = {row["features"]: row[f"k={K}"] for row in rows}
        trained = knn.get("trained (teacher)", knn.get("trained"))
        found = {
            "minutes": spent["minutes"] if spent["whole"] else math.nan,
            "untrained": knn["untrained"],
            "knn": trained,
        }
        if name in TUNED:
            options = {"val": str(test), "seeds": (seed,), **TUNING}
            tuned = leanvit.evaluate("finetune", out, data=str(bank), options=options)
            found["finetuned"] = tuned.rows[0]["top1"]
        kept.write_text(json.dumps(found))
    return dict(json.loads(kept.read_text()))


def from_scratch(bank: Path, test: Path) -> list[float]:
    """Return what fine-tuning reaches from fresh weights, for every seed."""
    kept = RUNS / "scratch.json"
    if not kept.exists():
        found = []
        for seed in SEEDS["mae"]:
            options = {"val": str(test), "seeds": (seed,), "untrained": True, **TUNING}
            rows = leanvit.evaluate(
                "finetune", RUNS / f"mae-{seed}", data=str(bank), options=options
            ).rows
            found.append(rows[-1]["top1"])
        kept.write_text(json.dumps(found))
    return list(json.loads(kept.read_text()))


def spread(values: Sequence[float]) -> str:
    """Return a mean with its deviation."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def write_table(found: Mapping[str, list[dict[str, float]]], scratch: Sequence[float]) -> None:
    lines = [
        f"| {name} | {METHODS[name][1].removesuffix('st')} | {len(runs)} | "
        f"{spread([run['minutes'] for run in runs])} | "
        f"{spread([run['untrained'] for run in runs])} | "
        f"{spread([run['knn'] for run in runs])} | "
        f"{spread([run['finetuned'] for run in runs]) if name in TUNED else '-'} |"
        for name, runs in found.items()
    ]
    cores = len(os.sched_getaffinity(0))
    TABLE.write_text(
        f"# Every method on CIFAR-10: accuracy in percent after processor minutes\n\n"
        f"`benchmarks/learning/every_method.py`, {datetime.now(UTC).date()}, revision {commit()}, "
        f"torch {torch.__version__}, {cores} cores. A ViT of 1.2 M parameters, patches of 4 "
        f"pixels, 64 images a step (EsViT: a Swin of 0.6 M and 32), {10 * BANK:,} images; k-NN "
        f"(k = {K}) and fine-tuning ({TUNING['duration']}, the improved recipe) learn from those "
        f"with classes and are tested on {10 * TEST:,} others, once. Deviations are over seeds.\n\n"
        f"Fine-tuned from fresh weights: {spread(scratch)}.\n\n"
        f"| method | steps | seeds | CPU min | k-NN untrained | k-NN | fine-tuned |\n"
        f"|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    chosen = sys.argv[1:] or list(METHODS)
    data = unpack()
    bank, test = write_list(data / "train", BANK), write_list(data / "test", TEST)
    found = {
        name: [measured(name, seed, bank, test) for seed in SEEDS.get(name, (0,))]
        for name in dict.fromkeys([TEACHER, *chosen])
    }
    write_table(found, from_scratch(bank, test))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
