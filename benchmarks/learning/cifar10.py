"""Does leanvit still learn? Ten CPU minutes on CIFAR-10: view alone, then view and region.

    LEANVIT_TEST_DATA=FOLDER python benchmarks/learning/cifar10.py

FOLDER holds `cifar10.tar.xz`. Runs live in runs/cifar10 and continue where they were cut off; the
end of the last one appends a row to cifar10.md beside this file.
"""

import json
import os
import platform
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import torch

import leanvit
from leanvit.data.sources import FolderSource

HERE = Path(__file__).parent
RUNS = Path("runs/cifar10")
TABLE = HERE / "cifar10.md"
RECIPES = {"view": "dino_laptop", "view + region": "esvit_laptop"}
BATCH = 32
BANK, TEST = 1000, 200
"""Images of each class that k-NN learns from, and that it is tested on: the first by name."""
K = 20
OPTIONS = {
    "backbone.image_size": 32,
    "backbone.patch": 2,
    "method.views.global_size": 24,
    "method.views.global_scale": (0.3, 1.0),
    "train.duration": "1200st",
    "train.batch": BATCH,
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
    "watch.images": 0,
}
"""Two pixels a patch, since an image has 32; at a temperature of 0.07 the teacher turns uniform."""


def unpack() -> Path:
    """Return the folder of images, unpacked once."""
    data = RUNS / "cifar10"
    if not (data / "test").is_dir():
        given = os.environ.get("LEANVIT_TEST_DATA")
        if not given:
            sys.exit("Set LEANVIT_TEST_DATA to the folder that holds cifar10.tar.xz.")
        beside = RUNS / "unpacking"
        with tarfile.open(Path(given) / "cifar10.tar.xz") as archive:
            archive.extractall(beside, filter="data")
        (beside / "cifar10").rename(data)
    return data


def write_list(folder: Path, each: int) -> Path:
    """Name the first `each` images of every class in a list file."""
    source = FolderSource(folder)
    lines, seen = [], dict.fromkeys(source.classes, 0)
    for index, target in enumerate(source.targets.tolist()):
        name = source.classes[target]
        seen[name] += 1
        if seen[name] <= each:
            lines.append(f"{folder.name}/{source.name(index)}\t{name}")
    file = folder.with_suffix(".txt")
    file.write_text("\n".join(lines) + "\n")
    return file


def run(name: str, recipe: str, data: Path) -> tuple[Path, str]:
    """Train, or go on training; return the run's folder and its minutes, if done in one go."""
    out = RUNS / name.replace(" + ", "_")
    started = (out / "config.json").exists()
    if not (out / "summary.json").exists():
        leanvit.pretrain(recipe, data=str(data), out=out, options=OPTIONS, resume=started)
    summary = json.loads((out / "summary.json").read_text())
    whole = summary["seconds"] * summary["images_per_s"] >= 0.99 * summary["steps"] * BATCH
    return out, f"{summary['seconds'] / 60:.1f}" if whole else "-"


def commit() -> str:
    """Return the revision, marked if files differ from it."""
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, cwd=HERE, capture_output=True, text=True).stdout.strip()


def main() -> None:
    data = unpack()
    bank, test = write_list(data / "train", BANK), write_list(data / "test", TEST)
    cells: dict[str, str] = {}
    for name, recipe in RECIPES.items():
        out, minutes = run(name, recipe, data / "train")
        result = leanvit.evaluate("knn", out, data=str(bank), options={"val": str(test), "k": (K,)})
        print(name, result, sep="\n")
        found = {row["features"]: f"{row[f'k={K}']:.1f}" for row in result.rows}
        for baseline in ("raw pixels", "histogram", "untrained"):
            cells.setdefault(baseline, found[baseline])
        cells[f"{name}: teacher / student"] = (
            f"{found['trained (teacher)']} / {found['trained (student)']}"
        )
        cells[f"{name}: min"] = minutes
    row = {
        "date": datetime.now(UTC).date().isoformat(),
        "revision": commit(),
        "torch": torch.__version__,
        "cores": f"{len(os.sched_getaffinity(0))} {platform.machine()}",
        "steps": str(OPTIONS["train.duration"]),
        **cells,
    }
    if not TABLE.exists():
        heads = "| " + " | ".join(row) + " |"
        TABLE.write_text(
            f"# CIFAR-10, {K}-NN accuracy in percent after a few minutes\n\n"
            f"`benchmarks/learning/cifar10.py`, a row each time it was run. 32 images a step, all "
            f"50,000 training images without their classes; k-NN learns from {10 * BANK:,} of them "
            f"and is tested on {10 * TEST:,} test images.\n\n{heads}\n" + "|---" * len(row) + "|\n"
        )
    with TABLE.open("a") as file:
        file.write("| " + " | ".join(row.values()) + " |\n")


if __name__ == "__main__":
    main()
