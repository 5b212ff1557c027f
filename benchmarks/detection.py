"""Does pre-training help detection, and does the region loss? Cells and road scenes, on a CPU.

    LEANVIT_TEST_DATA=FOLDER python benchmarks/detection.py [cells] [roads]

FOLDER holds `bccd-voc.tar`, 364 images of blood cells with boxes of three classes, and
`camvid.tar`, whose cars, pedestrians and bicyclists become objects with masks: connected parts of a
class of at least 100 pixels. A Swin of 0.6 million parameters is pre-trained on each set's training
images, with the view loss alone and with the region loss, in runs/detection and runs/segmentation;
runs that are there are used, and so are results. The tables in detection.md beside this file are
written anew.
"""

import json
import os
import sys
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.measure import label

import leanvit
from leanvit.evaluation.record import read_results
from leanvit.evaluation.result import Result

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE / "learning"))
from cifar10 import commit  # noqa: E402
from segmentation import DATA as CAMVID  # noqa: E402
from segmentation import NETWORKS, OPTIONS  # noqa: E402

RUNS = Path("runs/detection")
TABLE = HERE / "detection.md"
CELLS, ROADS = RUNS / "bccd-voc", RUNS / "roads"
THINGS = {8: "car", 9: "pedestrian", 10: "bicyclist"}
"""Value of CamVid's masks -> class of objects."""
LEAST = 100
"""Pixels of an object."""
SETTINGS: Mapping[str, tuple[Path, Path, Mapping[str, Any]]] = {
    "cells": (CELLS, CELLS / "JPEGImages", {"duration": "4ep"}),
    "roads": (ROADS, CAMVID / "train" / "images", {"duration": "3ep"}),
}
"""Name -> data, images to pre-train on, options."""
SHORTER = {"train.duration": "300st"}
"""Of the pre-trainings on cells, which look all alike: more steps only add to their collapse."""
KEPT = RUNS / "results.jsonl"
DONE: dict[str, dict[str, Result]] = {}
TITLES = {"cells": "Blood cells, boxes", "roads": "Road scenes, boxes and masks"}


def main() -> None:
    folder = Path(os.environ["LEANVIT_TEST_DATA"])
    for name, out in (("bccd-voc.tar", RUNS), ("camvid.tar", CAMVID.parent)):
        out.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / name) as archive:
            archive.extractall(out, filter="data")
    cut_out(ROADS)
    for asked in sys.argv[1:] or SETTINGS:
        title, (data, images, options) = TITLES[asked], SETTINGS[asked]
        found = {}
        for name, recipe in NETWORKS.items():
            model = recipe if recipe == "swin_nano" else pretrain(recipe, data, images)
            given = {"every": "25%", **options}
            if (known := kept(model, data, given)) is not None:
                found[name] = known
                continue
            given["results"] = str(KEPT)
            if name == "view + region":
                out = RUNS / f"out-{data.name}"
                given |= {"out": str(out), "resume": out.exists()}
            found[name] = leanvit.evaluate("detect", model, data=str(data), options=given)
            print(title, name, found[name], sep="\n", flush=True)
        DONE[asked] = found
    write(DONE)


def kept(model: str, data: Path, options: Mapping[str, Any]) -> Result | None:
    """Return the newest result of a model with these options, if there is one."""
    found = None
    for entry in read_results(KEPT) if KEPT.exists() else ():
        asked = {k: v for k, v in entry["asked"].items() if k not in ("out", "resume")}
        same = asked == options and entry["config"]["data"] == str(data)
        if same and entry["facts"]["model"] == model:
            found = Result(entry["name"], entry["facts"], entry["rows"], entry["notes"])
    return found


def pretrain(recipe: str, data: Path, images: Path) -> str:
    """Return the run of a recipe on the images of the training split, finished now if not yet."""
    if data == ROADS:
        out, source = CAMVID.parent / recipe, str(images)
    else:
        names = (data / "ImageSets" / "Main" / "train.txt").read_text().split()
        listed = RUNS / "train.txt"
        listed.write_text("".join(f"{(images / n).resolve()}.jpg\n" for n in names))
        out, source = RUNS / recipe, str(listed)
    if not (out / "summary.json").exists():
        resume = (out / "config.json").exists()
        options = {**OPTIONS, **(SHORTER if data == CELLS else {})}
        leanvit.pretrain(recipe, data=source, out=out, options=options, resume=resume)
    return str(out)


def cut_out(root: Path) -> None:
    """Write CamVid's things as COCO's instances; its images stay where they are."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": value, "name": name} for value, name in THINGS.items()]
    for split in ("train", "val", "test"):
        (root / split).unlink(missing_ok=True)
        (root / split).symlink_to((CAMVID / split / "images").resolve())
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for number, path in enumerate(sorted((CAMVID / split / "masks").iterdir())):
            values = np.asarray(Image.open(path))
            images.append({"id": number, "file_name": f"{path.stem}.jpg"})
            for value in THINGS:
                parts = label(values == value, connectivity=2)
                for part in range(1, parts.max() + 1):
                    found = instance(parts == part)
                    if found["area"] >= LEAST:
                        entry = {"id": len(objects) + 1, "image_id": number, "category_id": value}
                        objects.append({**entry, **found})
        plain = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(plain))


def instance(inside: Any) -> dict[str, Any]:
    """Return area, box and run lengths of a mask."""
    rows, columns = np.nonzero(inside)
    flat = inside.T.ravel().astype(np.int8)
    ends = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff(ends, prepend=0, append=flat.size).tolist()
    left, top = int(columns.min()), int(rows.min())
    return {
        "area": len(rows),
        "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
        "segmentation": {"size": list(inside.shape), "counts": counts},
    }


def write(tables: Mapping[str, Mapping[str, Result]]) -> None:
    date, cores = datetime.now(UTC).date().isoformat(), len(os.sched_getaffinity(0))
    lines = [
        f"# Detection of blood cells and of CamVid's things: average precision in percent\n\n"
        f"`benchmarks/detection.py`, {date}, revision {commit()}, torch {torch.__version__}, "
        f"{cores} cores. A Swin of 0.6 M parameters (`swin_nano`), before and after 900 steps (300 "
        f"on cells) of `dino_laptop` (view) and `esvit_laptop` (view + region) on the training "
        f"images, as in segmentation.md. The recipe is `small`, cut to the epochs named; of four "
        f"looks the best by the validation images is tested on the test images. One seed."
    ]
    for asked, found in tables.items():
        first = next(iter(found.values()))
        columns = [name for name in COLUMNS if name in first.rows[0]]
        facts = first.facts
        lines.append(
            f"\n## {TITLES[asked]}, {SETTINGS[asked][2]['duration']}\n\n"
            f"{facts['train_images']} images to "
            f"learn from, {facts['val_images']} to choose by, {facts['test_images']} to test on.\n"
        )
        lines.append(f"| network | {' | '.join(columns)} | {' | '.join(facts['classes'])} |")
        lines.append("|---|" + "---|" * (len(columns) + len(facts["classes"])))
        for name, result in found.items():
            row, each = result.rows[0], result.facts["ap"][0]["classes"]
            cells = [f"{row[c]:.1f}" for c in columns]
            cells += [f"{each[c]:.1f}" for c in facts["classes"]]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    TABLE.write_text("\n".join(lines) + "\n")


COLUMNS = ("ap", "ap50", "ap75", "mask ap", "mask ap50")

if __name__ == "__main__":
    main()
