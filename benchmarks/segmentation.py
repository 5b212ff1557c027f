"""Does pre-training help segmentation, and does the region loss? CamVid, on a CPU.

    LEANVIT_TEST_DATA=FOLDER python benchmarks/segmentation.py

FOLDER holds `camvid.tar`: 367 road scenes of 480 x 360 pixels to learn from, 101 to choose by, 117
to test on, eleven classes. A Swin of 0.6 million parameters is pre-trained on the 367 images
without their labels, with the view loss alone and with the region loss, in runs/segmentation; runs
that are there are used. Then a linear layer learns on each network as it is, and a Semantic FPN
with all of its weights. The tables in segmentation.md beside this file are written anew.
"""

import os
import sys
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import leanvit
from leanvit.evaluation.result import Result

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "learning"))
from cifar10 import commit  # noqa: E402

RUNS = Path("runs/segmentation")
DATA = RUNS / "camvid-seg"
TABLE = HERE / "segmentation.md"
OPTIONS: Mapping[str, Any] = {
    "train.duration": "900st",
    "optim.lr.peak": 2e-4,
    "method.views.global_size": 96,
    "method.views.global_scale": (0.1, 0.5),
    "method.teacher_temp.start": 0.04,
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
    "watch.images": 200,
}
"""Of both pre-trainings: with the recipes' rate, 1e-3, the one with regions collapsed on these
scenes (an effective rank of 1.3), and with its own teacher's temperature, 0.07, too."""
NETWORKS = {"untrained": "swin_nano", "view": "dino_laptop", "view + region": "esvit_laptop"}
"""Row -> a backbone's name, or the recipe that pre-trains it."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "frozen, linear": {
        **{"frozen": True, "head": "linear", "lr": 3e-2, "average": 0.0},
        **{"duration": "4ep", "seeds": (0, 1)},
    },
    "all weights, Semantic FPN": {"duration": "6ep"},
}


def main() -> None:
    if not DATA.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        with tarfile.open(Path(os.environ["LEANVIT_TEST_DATA"]) / "camvid.tar") as archive:
            archive.extractall(RUNS, filter="data")
    models = {name: pretrain(recipe) for name, recipe in NETWORKS.items()}
    tables = {}
    for setting, options in SETTINGS.items():
        found = {}
        for name, model in models.items():
            given = {"every": "25%", "results": str(RUNS / "results.jsonl"), **options}
            found[name] = leanvit.evaluate("segment", model, data=str(DATA), options=given)
            print(setting, name, found[name], sep="\n", flush=True)
        tables[setting] = found
    write(tables)


def pretrain(recipe: str) -> str:
    """Return the run of a recipe, finished now if it was not; a backbone's name as it is."""
    if recipe == NETWORKS["untrained"]:
        return recipe
    out = RUNS / recipe
    if not (out / "summary.json").exists():
        resume = (out / "config.json").exists()
        images = str(DATA / "train" / "images")
        leanvit.pretrain(recipe, data=images, out=out, options=OPTIONS, resume=resume)
    return str(out)


def over_seeds(values: list[float]) -> str:
    """Return a mean, and a deviation where there are several."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def write(tables: Mapping[str, Mapping[str, Result]]) -> None:
    date, cores = datetime.now(UTC).date().isoformat(), len(os.sched_getaffinity(0))
    lines = [
        f"# Segmentation of CamVid: mean intersection over union in percent\n\n"
        f"`benchmarks/segmentation.py`, {date}, revision {commit()}, torch {torch.__version__}, "
        f"{cores} cores. A Swin of 0.6 M parameters (`swin_nano`), before and after 900 steps of "
        f"`dino_laptop` (view) and `esvit_laptop` (view + region) on the 367 training images: "
        f"crops of 96 pixels, 10 to 50 percent of the image, and a rate of 2e-4 for "
        f"both, at which neither collapses. The recipe is `small`, cut to the "
        f"epochs named; of four looks the best by the validation images is tested on 117 others. "
        f"Mean and standard deviation over seeds of the head, the order and the crops."
    ]
    for setting, found in tables.items():
        options = SETTINGS[setting]
        lines.append(f"\n## {setting[0].upper()}{setting[1:]}, {options['duration']}\n")
        lines.append("| network | mIoU | accuracy of pixels | of classes | minutes |")
        lines.append("|---|---|---|---|---|")
        for name, result in found.items():
            cells = [over_seeds([row[c] for row in result.rows]) for c in COLUMNS]
            minutes = mean(row["minutes"] for row in result.rows)
            lines.append(f"| {name} | {' | '.join(cells)} | {minutes:.1f} |")
    last = tables["all weights, Semantic FPN"]
    lines.append("\n## Intersection over union of each class, all weights, first seed\n")
    lines.append(f"| class | {' | '.join(last)} |\n|---|{'---|' * len(last)}")
    for name in next(iter(last.values())).facts["classes"]:
        cells = [f"{result.facts['iou'][0]['classes'][name]:.1f}" for result in last.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    TABLE.write_text("\n".join(lines) + "\n")


COLUMNS = ("miou", "pixels", "classes")

if __name__ == "__main__":
    main()
