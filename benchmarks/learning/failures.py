"""Is a run that goes wrong told so in its first tenth, and a healthy one left alone?

    LEANVIT_TEST_DATA=FOLDER python benchmarks/learning/failures.py

FOLDER holds `cifar10.tar.xz`. Short runs with settings that are known to fail beside the same run
as it should be; failures.md beside this file has what each was told and at which step, and how many
of the healthy runs of the other studies, as far as they lie in runs/learning, were told anything.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from study import ALONE, CIFAR10, HERE, RUNS, heading

TABLE = HERE / "failures.md"
STEPS = 800
SMALL: Mapping[str, Any] = {
    **ALONE,
    "backbone.image_size": 32,
    "backbone.patch": 2,
    "method.views.global_size": 24,
    "method.views.global_scale": (0.3, 1.0),
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
    "train.duration": f"{STEPS}st",
    "train.log_every": "10st",
}
HOT = {f"method.teacher_temp.{when}": 1.0 for when in ("start", "peak", "end")}
CASES: Mapping[str, Mapping[str, Any]] = {
    "as it should be": {},
    "teacher temperature 1 instead of 0.04": HOT,
    "no centering": {"method.center_momentum": 1.0},
    "learning rate times ten": {"optim.lr.peak": 1e-2, "optim.lr.warmup": "0st"},
}
RECIPES = ("dino_laptop", "esvit_laptop")


def told(name: str, recipe: str, options: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return what a run was told: the step and the name of every warning, those of spikes once."""
    out = RUNS / "failures" / f"{recipe}-{name.replace(' ', '_')}"
    said = out.with_suffix(".txt")
    if not said.exists():
        words = [
            word
            for option, value in {**SMALL, **options}.items()
            for word in (f"--{option}", *map(str, value if isinstance(value, tuple) else [value]))
        ]
        command = [sys.executable, "-m", "leanvit", "pretrain", recipe, "--out", str(out)]
        data = ["--data", str(CIFAR10.split().train), "--overwrite"]
        done = subprocess.run([*command, *data, *words], capture_output=True, text=True)
        said.write_text(done.stderr)
    found = {}
    for line in said.read_text().splitlines():
        if match := re.search(r"collapse \(([a-z ]+)\) at step (\d+)", line):
            found[match[1]] = int(match[2])
        elif match := re.search(r"[Ll]oss .* at step (\d+)", line):
            found.setdefault("spike" if "jumped" in line else "bad number", int(match[1]))
    return sorted((step, name) for name, step in found.items())


def others() -> tuple[int, list[str]]:
    """Return how many runs of the other studies there are, and what any of them was told."""
    count, alarms = 0, []
    for file in sorted(RUNS.glob("*/*/summary.json")):
        if file.parent.parent.name != "failures":
            count += 1
            collapse = json.loads(file.read_text())["collapse"]
            alarms += [f"{file.parent.name}: {', '.join(collapse)}"] if collapse else []
    return count, alarms


def main() -> None:
    (RUNS / "failures").mkdir(parents=True, exist_ok=True)
    lines = []
    for recipe in RECIPES:
        for name, options in CASES.items():
            found = told(name, recipe, options)
            what = "; ".join(f"{what} at step {step}" for step, what in found) or "nothing"
            lines.append(f"| `{recipe}` | {name} | {what} |")
            print(lines[-1], flush=True)
    count, alarms = others()
    TABLE.write_text(
        f"# What a run that goes wrong is told\n\n`benchmarks/learning/failures.py`, {heading()}. "
        f"Runs of {STEPS} steps of 32 images on CIFAR-10.\n\n| recipe | setting | warned of |\n"
        "|---|---|---|\n" + "\n".join(lines) + f"\n\nOf {count} runs of the other studies here "
        f"{len(alarms)} were warned of a collapse" + (": " + "; ".join(alarms) if alarms else "")
        + ".\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
