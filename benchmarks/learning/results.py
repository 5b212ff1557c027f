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

import torch
from choices import COARSE, MOCO, VIT
from lightly_dino import train as train_lightly
from lightly_dino import train_example
from study import (
    ALONE,
    CIFAR10,
    HERE,
    TINY,
    Study,
    Trial,
    claimed,
    finetuned,
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
EXAMPLE = f"{LIGHTLY}-example"
TUNED = ("mae-vit", "dmae-vit", "view-vit-muon")
"""Those that are fine-tuned, too; the first one's network also from fresh weights."""
SMALL: dict[str, Any] = {
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
    "method.views.global_scale": (0.3, 1.0),
}
"""Where images are objects, and runs are short: at 0.07 the teacher turns uniform."""


KOLEO: dict[str, Any] = {"method.koleo": 1.0}
"""Chosen on held-out images (choices.md); DINOv2 has 0.1."""
SWIN: dict[str, Any] = {**COARSE, "backbone.image_size": 32}
"""The network that the laptop recipes take for images of 32 pixels."""
WIDE: Mapping[str, Any] = {"backbone.dim": 192, "backbone.heads": 3}
"""Of the ViT that D-MAE imitates, six blocks of 2.7 M parameters."""


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
    return _seeds(rows, 3)


def cifar10() -> dict[str, list[Trial]]:
    """Return the runs on CIFAR-10 by their names."""
    small_vit = seen_by_vit(4)
    teacher = Trial("mae-wide", "mae_laptop", WIDE, minutes=MINUTES)
    imitated = {**vit(4), "method.teacher": str(teacher.folder(CIFAR10))}
    rows = {
        "DINO (view), Swin": Trial("view-swin-muon", "dino_laptop", SMALL),
        "DINO (view), Swin, AdamW": Trial("view-swin", "dino_laptop", SMALL, optimizer="adamw"),
        "EsViT (view + region), Swin": Trial("region-swin-muon", "esvit_laptop", SMALL),
        "EsViT (view + region), Swin, AdamW": Trial(
            "region-swin", "esvit_laptop", SMALL, optimizer="adamw"
        ),
        "DINO by lightly, our Swin": Trial(f"{LIGHTLY}-swin", "dino_laptop", SMALL),
        "DINO, ViT": Trial("view-vit-muon", "dino_laptop", small_vit, "vit_tiny"),
        "DINO and KoLeo, ViT": Trial(
            "view-vit-koleo", "dino_laptop", small_vit | KOLEO, "vit_tiny"
        ),
        "EsViT (view + region), ViT": Trial(
            "region-vit-muon", "esvit_laptop", small_vit, "vit_tiny"
        ),
        "DINO, ViT, AdamW": Trial(
            "view-vit", "dino_laptop", small_vit, "vit_tiny", optimizer="adamw"
        ),
        "DINO by lightly, our ViT": Trial(f"{LIGHTLY}-vit", "dino_laptop", small_vit, "vit_tiny"),
        "DINO by lightly, its example": Trial(EXAMPLE, "dino_laptop", {}, "timm:resnet18"),
        "MoCo-v3, ViT": Trial("mocov3-vit", "mocov3", {**vit(4), **MOCO}, "vit_tiny"),
        "MoCo-v3, Swin": Trial("mocov3-swin", "mocov3", {**SWIN, **MOCO}, "swin_nano"),
        "MAE, ViT": Trial("mae-vit", "mae_laptop", vit(4)),
        "MAE, ViT of 192 channels and 6 blocks": teacher,
        "D-MAE of it, ViT": Trial("dmae-vit", "dmae_laptop", imitated),
    }
    return _seeds(rows, 1)


def _seeds(rows: Mapping[str, Trial], count: int) -> dict[str, list[Trial]]:
    return {
        name: [replace(trial, minutes=MINUTES, seed=seed) for seed in range(count)]
        for name, trial in rows.items()
    }


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
        learn = train_example if trial.name == EXAMPLE else train_lightly
        steps, batch = learn(config, out, 60 * trial.minutes)
        (out / "resolved.json").write_text(json.dumps({"config": {"train": {"batch": batch}}}))
        (out / "summary.json").write_text(json.dumps({"steps": steps, "collapse": {}}))
    return out


def measured(trial: Trial, study: Study) -> dict[str, Any]:
    """Return what a run reached on the test images, measured once."""
    out, split = done(trial, study), study.split()
    both, own = (split.bank, split.test), not trial.name.startswith(LIGHTLY)

    def measure() -> dict[str, Any]:
        found: dict[str, Any] = {"knn": knn(out, *both, baselines=own), "seen": seen(out)}
        if trial.name != EXAMPLE:  # an hour for its images of 224 pixels
            found["linear"] = linear(out, *both, baselines=own)
        if trial.name in TUNED:
            found["finetune"] = finetuned(out, *both, untrained=trial.name == TUNED[0])
        if study is TINY:
            rows = leanvit.evaluate("correspondence", out, data=str(split.test)).rows
            found["correspondence"] = {row["network"]: row["accuracy"] for row in rows}
        return found

    return kept(out, "test", measure)


def share(rows: Mapping[str, Sequence[Trial]], study: Study, words: Sequence[str]) -> None:
    """Do all runs that no other process does, the first seeds before the others."""
    torch.set_num_threads(1)
    every = [(name, trial) for name, trials in rows.items() for trial in trials]
    for name, trial in sorted(every, key=lambda each: each[1].seed):
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
    """Return what runs reached untrained, as teachers (or alone) and as students."""
    alike = (("untrained",), ("trained (teacher)", "trained"), ("trained (student)",))
    values = [
        [run[protocol][name] for run in found for name in names if name in run.get(protocol, {})]
        for names in alike
    ]
    return [spread(each) for each in values]


def table(rows: Mapping[str, Sequence[Trial]], study: Study) -> list[str]:
    """Return a data set's table in Markdown."""
    lines = []
    heads = ["run", "seeds", "thousands of images seen"]
    protocols = {"k-NN": "knn", "linear": "linear"}
    protocols |= {"correspondence": "correspondence"} if study is TINY else {}
    for title in protocols:
        heads += [f"{title}: untrained", "teacher", "student"]
    for name, trials in rows.items():
        if found := finished(trials, study):
            row = [name, str(len(found)), spread([float(run["seen"]) for run in found])]
            for protocol in protocols.values():
                row += cells(found, protocol)
            lines.append(row)
    return [*markdown(heads, lines)]


def tuned(rows: Mapping[str, Sequence[Trial]], study: Study) -> list[str]:
    """Return what fine-tuned networks reached, in Markdown."""
    found = {name: finished(trials, study) for name, trials in rows.items()}
    lines = [
        [name, *cells(runs, "finetune")[:2]]
        for name, runs in found.items()
        if any("finetune" in run for run in runs)
    ]
    heads = ["fine-tuned for 5 epochs", "from fresh weights", "pre-trained"]
    return ["", *markdown(heads, lines)] if lines else []


def without_training(study: Study, rows: Mapping[str, Sequence[Trial]]) -> str:
    """Return what pixels and histograms reach."""
    found = [run for trials in rows.values() for run in finished(trials, study)]
    said = []
    for title, protocol in (("k-NN", "knn"), ("a linear layer", "linear")):
        reached: dict[str, float] = {}
        for run in found:
            reached |= run.get(protocol, {})
        if "raw pixels" in reached:
            pixels, histogram = reached["raw pixels"], reached["histogram"]
            both = f"{pixels:.1f} on raw pixels, {histogram:.1f} on color histograms"
            said.append(f"{title}: {both}")
    return f"Without training {'; '.join(said)}." if said else ""


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
        lines += tuned(rows, study)
        text = before + begin + "\n".join(lines) + "\n" + end + after
    TABLE.write_text(text)


def main() -> None:
    study, rows = {"cifar10": (CIFAR10, cifar10()), "tiny": (TINY, tiny())}[sys.argv[1]]
    study.split()
    share(rows, study, sys.argv[2:])
    write()


if __name__ == "__main__":
    main()
