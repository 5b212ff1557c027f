"""What recipes for small images learn in ten minutes of one core, beside what needs no training.

    LEANVIT_TEST_DATA=FOLDER taskset -c 0 python benchmarks/learning/results.py cifar10|tiny [NAME]

FOLDER holds `cifar10.tar.xz` and `tiny-imagenet-50.tar.xz`. Every run sees the training images
without their classes; k-NN and a linear layer learn from some of these with classes, and are tested
once on the test images, on which nothing was chosen. Settings are those of the recipes, which were
chosen on held-out training images of CIFAR-10 (choices.md). Several of these processes, each on a
core of its own, share the runs; docs/results.md is written anew from what is done.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from choices import MOCO, VIT
from lightly_dino import train as train_lightly
from study import (
    ALONE,
    CIFAR10,
    HERE,
    TINY,
    Study,
    Trial,
    claimed,
    heading,
    kept,
    knn,
    linear,
    pretrained,
    seen,
    spread,
)

import leanvit
from leanvit.bench.tables import markdown
from leanvit.config import compose, resolve
from leanvit.data.sources import open_source
from leanvit.recipes import recipe
from leanvit.train.facts import gather_facts

TABLE = HERE.parents[1] / "docs/results.md"
MINUTES = 10.0
LIGHTLY = "lightly"
SMALL: Mapping[str, Any] = {
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
    "method.views.global_scale": (0.3, 1.0),
}
"""Where images are objects, and runs are short: at 0.07 the teacher turns uniform."""


def vit(patch: int) -> dict[str, Any]:
    """Return a ViT of 0.5 M parameters that sees an image as 8 x 8 patches."""
    return {**VIT, "backbone.image_size": 8 * patch, "backbone.patch": patch}


def seen_by_vit(patch: int) -> dict[str, Any]:
    """Return that ViT and crops of 6 x 6 patches."""
    return {**SMALL, **vit(patch), "method.views.global_size": 6 * patch}


def tiny() -> dict[str, list[Trial]]:
    """Return the runs on Tiny-ImageNet by their names, three seeds each."""
    rows = {
        "Swin, view": Trial("view-swin", "dino_laptop", SMALL),
        "Swin, view + region": Trial("region-swin", "esvit_laptop", SMALL),
        "ViT, view": Trial("view-vit", "dino_laptop", seen_by_vit(8), "vit_tiny"),
        "ViT, view + region": Trial("region-vit", "esvit_laptop", seen_by_vit(8), "vit_tiny"),
    }
    return {
        name: [replace(trial, minutes=MINUTES, seed=seed) for seed in range(3)]
        for name, trial in rows.items()
    }


def cifar10() -> dict[str, list[Trial]]:
    """Return the runs on CIFAR-10 by their names."""
    rows = {
        "DINO (view), Swin": Trial("view-swin", "dino_laptop", SMALL),
        "EsViT (view + region), Swin": Trial("region-swin", "esvit_laptop", SMALL),
        "DINO by lightly, our Swin": Trial(f"{LIGHTLY}-swin", "dino_laptop", SMALL),
        "DINO, ViT": Trial("view-vit", "dino_laptop", seen_by_vit(4), "vit_tiny"),
        "DINO by lightly, our ViT": Trial(
            f"{LIGHTLY}-vit", "dino_laptop", seen_by_vit(4), "vit_tiny"
        ),
        "MAE, ViT": Trial("mae-vit", "mae_laptop", vit(4)),
        "MoCo-v3, ViT": Trial("mocov3-vit", "mocov3", {**vit(4), **MOCO}, "vit_tiny"),
    }
    return {name: [replace(trial, minutes=MINUTES)] for name, trial in rows.items()}


def done(trial: Trial, study: Study) -> Path:
    """Train, by lightly where the name says so; return the folder."""
    if not trial.name.startswith(LIGHTLY):
        return pretrained(trial, study)
    out, data = trial.folder(study), str(study.split().train)
    if not (out / "summary.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        options = {**ALONE, "train.duration": "100st", **trial.options, "train.seed": trial.seed}
        asked = compose(recipe(trial.recipe), data=data, backbone=trial.backbone, options=options)
        config = resolve(asked, gather_facts(open_source(data), sides=True)).config
        steps = train_lightly(config, out, 60 * trial.minutes)
        batch = {"config": {"train": {"batch": config.train.batch}}}
        (out / "resolved.json").write_text(json.dumps(batch))
        (out / "summary.json").write_text(json.dumps({"steps": steps, "collapse": {}}))
    return out


def measured(trial: Trial, study: Study) -> dict[str, Any]:
    """Return what a run reached on the test images, measured once."""
    out, split = done(trial, study), study.split()

    def measure() -> dict[str, Any]:
        found: dict[str, Any] = {
            "knn": knn(out, split.bank, split.test, baselines=not trial.name.startswith(LIGHTLY)),
            "linear": linear(out, split.bank, split.test),
            "seen": seen(out),
        }
        if study is TINY:
            rows = leanvit.evaluate("correspondence", out, data=str(split.test)).rows
            found["correspondence"] = {row["features"]: row["accuracy"] for row in rows}
        return found

    return kept(out, "test", measure)


def share(rows: Mapping[str, Sequence[Trial]], study: Study, words: Sequence[str]) -> None:
    """Do all runs that no other process does."""
    for name, trials in rows.items():
        for trial in trials:
            if words and not any(word in name for word in words):
                continue
            with claimed(trial.folder(study)) as ours:
                if ours:
                    print(name, trial.seed, measured(trial, study), flush=True)


def finished(trials: Sequence[Trial], study: Study) -> list[dict[str, Any]]:
    """Return what the runs that are done reached."""
    return [
        json.loads(file.read_text())
        for trial in trials
        if (file := trial.folder(study) / "test.json").exists()
    ]


def cells(found: Sequence[Mapping[str, Any]], protocol: str) -> list[str]:
    """Return untrained, teacher and student of runs, or untrained and trained of those with one."""
    names = ("untrained", "trained (teacher)", "trained (student)", "trained")
    values = [[run[protocol][name] for run in found if name in run[protocol]] for name in names]
    return [spread(each) if each else "-" for each in values]


def table(rows: Mapping[str, Sequence[Trial]], study: Study) -> list[str]:
    """Return a data set's table in Markdown."""
    lines = []
    more = ["correspondence: untrained", "correspondence"] if study is TINY else []
    heads = ["run", "seeds", "thousands of images seen"]
    for protocol in ("k-NN", "linear"):
        heads += [f"{protocol}: untrained", "teacher", "student"]
    for name, trials in rows.items():
        if found := finished(trials, study):
            row = [name, str(len(found)), spread([float(run["seen"]) for run in found])]
            for protocol in ("knn", "linear"):
                untrained, teacher, student, only = cells(found, protocol)
                row += [untrained, teacher if only == "-" else only, student]
            if more:
                untrained, teacher, *_ = cells(found, "correspondence")
                row += [untrained, teacher]
            lines.append(row)
    return [*markdown([*heads, *more], lines)]


def without_training(study: Study, rows: Mapping[str, Sequence[Trial]]) -> str:
    """Return what k-NN says of pixels and of histograms."""
    found = [run for trials in rows.values() for run in finished(trials, study)]
    knn_of = next((run["knn"] for run in found if "raw pixels" in run["knn"]), None)
    if knn_of is None:
        return ""
    return (
        f"k-NN on raw pixels: {knn_of['raw pixels']:.1f}; on color histograms: "
        f"{knn_of['histogram']:.1f}."
    )


def write() -> None:
    """Put both tables into the document, below what it says of them."""
    text = TABLE.read_text()
    for study, rows in ((CIFAR10, cifar10()), (TINY, tiny())):
        if not any(finished(trials, study) for trials in rows.values()):
            continue
        begin, end = f"<!-- {study.name} -->\n", f"<!-- end of {study.name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        lines = [heading() + ".", "", without_training(study, rows), "", *table(rows, study)]
        text = before + begin + "\n".join(lines) + "\n" + end + after
    TABLE.write_text(text)


def main() -> None:
    study, rows = {"cifar10": (CIFAR10, cifar10()), "tiny": (TINY, tiny())}[sys.argv[1]]
    study.split()
    share(rows, study, sys.argv[2:])
    write()


if __name__ == "__main__":
    main()
