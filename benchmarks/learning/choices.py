"""What trains best on small images in a few minutes? One option at a time, on CIFAR-10.

    LEANVIT_TEST_DATA=FOLDER taskset -c 0 python benchmarks/learning/choices.py [NAME ...]

FOLDER holds `cifar10.tar.xz`. Every row differs from the first of its group in what its name says;
k-NN learns from 1,000 images a class and is tested on 500 that were held out of the training
images. choices.md beside this file is written anew from all rows that are done. Several of these
processes, each on a core of its own, share the rows.
"""

import sys
from collections.abc import Mapping
from typing import Any

from study import CIFAR10, HERE, RUNS, Trial, claimed, heading, kept, knn, pretrained, seen

TABLE = HERE / "choices.md"
MINUTES = 3.0
NOTE = (
    "Minutes are those of the processor, but for the first four rows of `dino, Swin`, for which a "
    "clock was read\nwhile other programs ran too."
)
SWIN: Mapping[str, Any] = {
    "backbone.image_size": 32,
    "backbone.patch": 2,
    "method.views.global_size": 24,
    "method.views.global_scale": (0.3, 1.0),
    "train.batch": 32,
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
}
VIT: Mapping[str, Any] = {
    "backbone.image_size": 32,
    "backbone.patch": 4,
    "backbone.dim": 96,
    "backbone.depth": 4,
    "backbone.heads": 3,
    "backbone.pool": "mean",
    "backbone.positions": "sincos",
    "backbone.drop_path": 0.0,
}
COARSE = {
    "backbone.patch": 4,
    "backbone.depths": (2, 2),
    "backbone.heads": (4, 8),
    "backbone.dim": 64,
    "backbone.window": 3,
}
LOCAL = {"method.views.local_sizes": (12,), "method.views.local_counts": (4,)}
MOCO = {
    "method.views.size": 24,
    "method.views.scale": (0.3, 1.0),
    "method.hidden": 256,
    "method.output": 64,
    "method.momentum.start": 0.97,
    "method.momentum.peak": 0.97,
    "optim.lr.peak": 1e-3,
    "optim.lr_rule": "none",
    "optim.lr.warmup": "10%",
    "train.batch": 128,
}
GROUPS: Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Mapping[str, Any]]]] = {
    "dino, Swin": (
        "dino_laptop",
        "",
        SWIN,
        {
            "as cifar10.py": {},
            "batch 64": {"train.batch": 64},
            "batch 128": {"train.batch": 128},
            "batch 64, rate 2e-3": {"train.batch": 64, "optim.lr.peak": 2e-3},
            "batch 64, momentum 0.99": {
                "train.batch": 64,
                "method.teacher_momentum.start": 0.99,
                "method.teacher_momentum.peak": 0.99,
            },
            "batch 64, 4 local crops": {"train.batch": 64, **LOCAL},
            "batch 64, 1,024 prototypes": {"train.batch": 64, "method.head.prototypes": 1024},
            "batch 64, Sinkhorn": {"train.batch": 64, "method.targets": "sinkhorn"},
            "batch 64, 64 channels": {"train.batch": 64, "backbone.dim": 64},
            "batch 64, patches of 4, two stages from 64 channels": {**COARSE, "train.batch": 64},
            "patches of 4, two stages from 64 channels": COARSE,
            "the same, Muon": COARSE,
            **{
                f"the same, Muon, KoLeo {weight:g}": {**COARSE, "method.koleo": weight}
                for weight in (0.1, 0.3, 1)
            },
            "the same, Muon, half with crops of 16": {
                **COARSE,
                "train.progressive": 0.5,
                "train.progressive_scale": 2 / 3,
            },
            "the same, crops of 32": {**COARSE, "method.views.global_size": 32},
            "the same, crops of 16": {
                **COARSE,
                "method.views.global_size": 16,
                "backbone.window": 4,
            },
        },
    ),
    "esvit, Swin of two stages": (
        "esvit_laptop",
        "",
        {**SWIN, **COARSE},
        {
            "both losses": {},
            "both losses, Muon": {},
            **{
                f"both losses, Muon, KoLeo {weight:g}": {"method.koleo": weight}
                for weight in (0.1, 0.3, 1)
            },
            **{
                f"both losses, Muon, region weight {weight:g}": {"method.region_weight": weight}
                for weight in (0.25, 0.75)
            },
            "both losses, Muon, regions in the last third": {"method.region_start": "67%"},
            "both losses, teacher to 0.07": {
                "method.teacher_temp.peak": 0.07,
                "method.teacher_temp.end": 0.07,
            },
        },
    ),
    "dino, ViT": (
        "dino_laptop",
        "vit_tiny",
        {**SWIN, **VIT, "train.batch": 64},
        {
            "batch 64": {},
            "batch 32": {"train.batch": 32},
            "batch 16": {"train.batch": 16},
            "batch 32, Muon": {"train.batch": 32},
            "batch 32, Muon, rate 3e-3": {"train.batch": 32, "optim.lr.peak": 3e-3},
            "batch 32, Muon, crops of 0.25 to 0.6": {
                "train.batch": 32,
                "method.views.global_scale": (0.25, 0.6),
            },
            "batch 32, Muon, token dropout 0.25": {
                "train.batch": 32,
                "method.token_dropout": 0.25,
            },
            "batch 32, Muon, token dropout 0.5": {"train.batch": 32, "method.token_dropout": 0.5},
            "batch 32, Muon, half with crops of 16": {
                "train.batch": 32,
                "train.progressive": 0.5,
                "train.progressive_scale": 2 / 3,
            },
            **{
                f"batch 32, Muon, KoLeo {weight:g}": {"train.batch": 32, "method.koleo": weight}
                for weight in (0.01, 0.1, 0.3, 1, 3)
            },
            "batch 32, seed 1, Muon, KoLeo 0.1": {
                "train.batch": 32,
                "train.seed": 1,
                "method.koleo": 0.1,
            },
            **{
                f"batch {count:,}, Muon": {"train.batch": count}
                for count in (64, 128, 256, 512, 1024)
            },
            "batch 256, Muon, rate 3e-3": {"train.batch": 256, "optim.lr.peak": 3e-3},
            "batch 32, seed 1": {"train.batch": 32, "train.seed": 1},
            "batch 32, seed 1, Muon": {"train.batch": 32, "train.seed": 1},
            "4 local crops": LOCAL,
            "1,024 prototypes": {"method.head.prototypes": 1024},
            "rate 2e-3": {"optim.lr.peak": 2e-3},
            "Sinkhorn": {"method.targets": "sinkhorn"},
            "crops of 32": {"method.views.global_size": 32},
            "batch 32, crops of 16": {"train.batch": 32, "method.views.global_size": 16},
            "blur as published": {"method.views.blur": (1.0, 0.1, 0.5)},
            **{
                f"batch 32, Muon, momentum {value}": {
                    "train.batch": 32,
                    "method.teacher_momentum.start": value,
                    "method.teacher_momentum.peak": value,
                }
                for value in (0.9, 0.99, 0.996)
            },
        },
    ),
    "dino, ViT, a tenth of the images": (
        "dino_laptop",
        "vit_tiny",
        {**SWIN, **VIT, "data.fraction": 0.1},
        {
            f"Muon, {count:,} prototypes": {"method.head.prototypes": count}
            for count in (256, 4096, 65536)
        },
    ),
    "mocov3, ViT": (
        "mocov3",
        "vit_tiny",
        {**VIT, **MOCO},
        {
            "batch 128": {},
            "batch 128, Muon": {},
            "batch 256": {"train.batch": 256},
            "batch 64": {"train.batch": 64},
            "crops of 32": {"method.views.size": 32},
            "momentum 0.9": {"method.momentum.start": 0.9, "method.momentum.peak": 0.9},
            "temperature 0.1": {"method.temperature": 0.1},
            "trained patches": {"method.freeze_patch_embed": False},
        },
    ),
    "mae, ViT": (
        "mae_laptop",
        "",
        {},
        {
            "as it is": {},
            "as it is, Muon": {},
            "96 channels, 4 blocks": {
                "backbone.dim": 96,
                "backbone.depth": 4,
                "backbone.heads": 3,
            },
            "patches of 2": {"backbone.patch": 2, "backbone.dim": 96, "backbone.heads": 3},
            "rate 2e-3": {"optim.lr.peak": 2e-3},
            "pixels as they are": {"method.normalize": False},
            "half hidden": {"method.mask_ratio": 0.5},
        },
    ),
}


def trials() -> dict[str, Trial]:
    """Return all runs by their names."""
    return {
        f"{group}: {name}": Trial(
            f"{group}: {name}".replace(" ", "_"),
            recipe,
            {**base, **own},
            backbone,
            MINUTES,
            optimizer="muon" if "Muon" in name else "adamw",
            seed=own.get("train.seed", 0),
        )
        for group, (recipe, backbone, base, rows) in GROUPS.items()
        for name, own in rows.items()
    }


def measured(trial: Trial) -> dict[str, Any]:
    """Return k-NN on the held-out images and the images that were seen, measured once."""
    out, split = pretrained(trial, CIFAR10), CIFAR10.split()
    return kept(out, "held", lambda: {**knn(out, split.bank, split.held), "seen": seen(out)})


def write_table() -> None:
    lines = []
    for name, trial in trials().items():
        if (trial.folder(CIFAR10) / "held.json").exists():
            found = measured(trial)
            both = [f"{found[key]:.1f}" for key in found if key.startswith("trained")]
            lines.append(f"| {name} | {found['seen']} | {' | '.join((both * 2)[:2])} |")
    TABLE.write_text(
        f"# One option at a time: {MINUTES:g} minutes of CIFAR-10\n\n"
        f"`benchmarks/learning/choices.py`, {heading()}. k-NN accuracy in percent (k = 20) on "
        f"5,000 held-out training images; one seed where no other is named.\n{NOTE}\n\n"
        "| run | thousands of images seen | teacher | student |\n|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    CIFAR10.split()
    for name, trial in trials().items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        with claimed(trial.folder(CIFAR10)) as ours:
            if ours:
                print(name, measured(trial), flush=True)
    write_table()
    print(TABLE.read_text(), RUNS)


if __name__ == "__main__":
    main()
