"""Memory and speed of the training of dense tasks, each in a process of its own.

    LEANVIT_TEST_DATA=FOLDER python benchmarks/dense_memory.py

FOLDER holds `camvid.tar` and `bccd-voc.tar`. Eight steps of two crops; images a second are those of
the last four steps. Prints a table in Markdown; benchmarks/dense_memory.md keeps it.
"""

import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from leanvit.bench.machine import machine

TASKS = {
    "segment, linear, frozen": ("segment", "--head", "linear", "--frozen", "--crop", "256"),
    "segment, linear": ("segment", "--head", "linear", "--crop", "256"),
    "segment, fpn": ("segment", "--head", "fpn", "--crop", "256"),
    "segment, upernet": ("segment", "--head", "upernet", "--crop", "256"),
    "detect, boxes": ("detect", "--crop", "320"),
}
BACKBONES = ("swin_nano", "vit_tiny", "swin_tiny")
SHORT = (
    *("--duration", "8st", "--every", "8st", "--train-batch", "2", "--pictures", "0"),
    *("--test-split", "", "--workers", "0"),
)


def main() -> None:
    print(", ".join(map(str, machine("cpu").values())) + "\n")
    print("| task | backbone | crop | images/s | peak memory, GiB |\n|---|---|---|---|---|")
    folder = Path(os.environ["LEANVIT_TEST_DATA"])
    with tempfile.TemporaryDirectory() as place:
        for name in ("camvid.tar", "bccd-voc.tar"):
            with tarfile.open(folder / name) as archive:
                archive.extractall(place, filter="data")
        few(Path(place))
        data = {"segment": Path(place) / "camvid-seg", "detect": Path(place) / "bccd-voc"}
        for title, (task, *words) in TASKS.items():
            for backbone in BACKBONES:
                row = measured(task, backbone, data[task], words)
                print(
                    f"| {title} | {backbone} | {words[-1]} | {row[0]:.2f} | {row[1]:.2f} |",
                    flush=True,
                )


def few(place: Path) -> None:
    """Leave two images to look at: it is the training that is measured."""
    for part in ("images", "masks"):
        for path in sorted((place / "camvid-seg" / "val" / part).iterdir())[2:]:
            path.unlink()
    listed = place / "bccd-voc" / "ImageSets" / "Main" / "val.txt"
    listed.write_text("\n".join(listed.read_text().split()[:2]))


def measured(task: str, backbone: str, data: Path, words: list[str]) -> tuple[float, float]:
    """Return images a second and GiB of a training in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "leanvit", "evaluate", task, backbone]
        command += ["--data", str(data), "--out", f"{out}/run", *SHORT, *words]
        read, write = os.pipe()
        child = os.fork()
        if not child:  # so that its children's memory is its own
            subprocess.run(command, check=True, capture_output=True)
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            os.write(write, str(used).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        used = int(os.read(read, 20))
        os.close(read)
        lines = (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()
        speeds = [row["images_per_s"] for row in map(json.loads, lines) if "images_per_s" in row]
        return sum(speeds[-4:]) / 4, used / 2**20


if __name__ == "__main__":
    main()
