"""Transfer to CIFAR-10 by each of the three ways to learn it: before training, and after.

    LEANVIT_TEST_DATA=FOLDER python benchmarks/transfer.py RUN

FOLDER holds `cifar10.tar.xz`; RUN is the folder of a run of leanvit. 500 images of each class are
learned from and 200 are tested on, the first by name. Prints a table in Markdown, with the seconds
that each cell took; benchmarks/transfer.md keeps it.
"""

import argparse
import os
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import leanvit
from leanvit.bench.machine import machine
from leanvit.core.files import save_tensors
from leanvit.evaluation.models import before_training
from leanvit.weights.file import header
from leanvit.weights.loading import load_backbone

EACH = {"train": 500, "test": 200}
PROBES: Mapping[str, Mapping[str, Any]] = {
    "logistic": {},
    "elevater": {},
    "finetune": {"duration": "4ep"},
}


def unpack(archive: Path, root: Path) -> None:
    """Write the first images of each class below a folder."""
    seen: Counter[str] = Counter()
    with tarfile.open(archive) as images:
        files = sorted((each for each in images if each.isfile()), key=lambda each: each.name)
        chosen = []
        for file in files:
            folder = Path(file.name).parent
            seen[str(folder)] += 1
            if seen[str(folder)] <= EACH.get(folder.parent.name, 0):
                chosen.append(file)
        images.extractall(root, members=chosen, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    asked = parser.parse_args()
    given = os.environ.get("LEANVIT_TEST_DATA")
    if not given:
        sys.exit("Set LEANVIT_TEST_DATA to the folder that holds cifar10.tar.xz.")
    with tempfile.TemporaryDirectory() as place:
        unpack(Path(given) / "cifar10.tar.xz", Path(place))
        fresh = before_training(asked.run, load_backbone(asked.run))
        random = Path(place) / "random.safetensors"
        save_tensors(
            fresh.state_dict(), random, header(fresh, {"mean": fresh.mean, "std": fresh.std})
        )
        print(", ".join(map(str, machine("cpu").values())) + "\n")
        print("| probe | random | s | trained | s |\n|---|---|---|---|---|")
        for probe, more in PROBES.items():
            cells = []
            for model in (random, asked.run):
                began = time.perf_counter()
                options = {"probe": probe, "sets": ("CIFAR10",), "keep_features": False, **more}
                found = leanvit.evaluate("transfer", model, data=place, options=options, quiet=True)
                row = found.rows[0]
                cells += [f"{row['ours']:.1f} ({row['chosen']})"]
                cells += [f"{time.perf_counter() - began:.0f}"]
            print(f"| {probe} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
