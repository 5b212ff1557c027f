"""What recipes for small images learn in ten minutes of one core, beside what needs no training.

    LEANVIT_TEST_DATA=FOLDER taskset -c 0 python benchmarks/learning/results.py cifar10|tiny [NAME]

FOLDER holds `cifar10.tar.xz` and `tiny-imagenet-50.tar.xz`. Every run sees the training images
without their classes; k-NN and a linear layer learn from some of these with classes, and are tested
once on the test images, on which nothing was chosen. Settings are those of the recipes, which were
chosen on held-out training images of CIFAR-10 (choices.md). Several of these processes, each on a
core of its own, share the runs; docs/results.md is written anew from what is done.
"""

import fcntl
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightly_dino import train as train_lightly
from study import (
    ALONE,
    CIFAR10,
    HERE,
    TINY,
    Study,
    Trial,
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
SHARP = {f"method.teacher_temp.{when}": 0.04 for when in ("peak", "end")}
PLAIN = {
    "backbone.image_size": 32,
    "backbone.patch": 4,
    "backbone.dim": 128,
    "backbone.depth": 6,
    "backbone.heads": 4,
    "backbone.pool": "mean",
    "backbone.positions": "sincos",
    "backbone.drop_path": 0.0,
}
"""The network of mae_laptop, for methods whose recipes have another."""
PLAIN_64 = {**PLAIN, "backbone.image_size": 64, "backbone.patch": 8}


def tiny() -> dict[str, list[Trial]]:
    """Return the runs on Tiny-ImageNet by their names, three seeds each."""
    rows = {
        "Swin, view": Trial("view-swin", "dino_laptop", SHARP),
        "Swin, view + region": Trial("region-swin", "esvit_laptop", SHARP),
        "ViT, view": Trial("view-vit", "dino_laptop", {**SHARP, **PLAIN_64}, "vit_tiny"),
        "ViT, view + region": Trial(
            "region-vit", "esvit_laptop", {**SHARP, **PLAIN_64}, "vit_tiny"
        ),
    }
    return {
        name: [replace(trial, minutes=MINUTES, seed=seed) for seed in range(3)]
        for name, trial in rows.items()
    }


def cifar10() -> dict[str, list[Trial]]:
    """Return the runs on CIFAR-10 by their names."""
    rows = {
        "DINO (view), Swin": Trial("view-swin", "dino_laptop", SHARP),
        "EsViT (view + region), Swin": Trial("region-swin", "esvit_laptop", SHARP),
        "DINO by lightly, our Swin": Trial(f"{LIGHTLY}-swin", "dino_laptop", SHARP),
        "MAE, ViT": Trial("mae-vit", "mae_laptop"),
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
        asked = compose(recipe(trial.recipe), data=data, options=options)
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
            claim = trial.folder(study).with_suffix(".lock")
            claim.parent.mkdir(parents=True, exist_ok=True)
            with claim.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
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
    return markdown([*heads, *more], lines)


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
