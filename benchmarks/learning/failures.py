"""Is a run that goes wrong told so in its first tenth, and a healthy one left alone?

    LEANVIT_TEST_DATA=FOLDER python benchmarks/learning/failures.py

FOLDER holds `cifar10.tar.xz`. The first quarter of runs with settings that are known to fail,
beside the same run as it should be; failures.md beside this file has what each was told and at
which step, and how many of the runs of the other studies, as far as they lie in runs/learning, were
told anything.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study import CIFAR10, HERE, RUNS, heading, kept, knn

from leanvit.train.alarm import CollapseAlarm

TABLE = HERE / "failures.md"
SEEN = 0.25
"""Share of a run's steps that is waited for."""
ALONE: Mapping[str, Any] = {"data.workers": 0, "watch.images": 0, "train.device": "cpu"}
HOT = {f"method.teacher_temp.{when}": 1.0 for when in ("start", "peak", "end")}
CASES: Mapping[str, Mapping[str, Any]] = {
    "as it should be": {},
    "teacher temperature 1 instead of 0.04": HOT,
    "no centering": {"method.center_momentum": 1.0},
    "learning rate times ten, no warm-up": {"optim.lr.peak": 1e-2, "optim.lr.warmup": "0st"},
    "learning rate times a hundred, no warm-up": {"optim.lr.peak": 1e-1, "optim.lr.warmup": "0st"},
}
WHOLE = ("as it should be", "learning rate times ten, no warm-up")
"""Cases that are seen to their end: the healthy one, and the one that fails least."""
RECIPES = ("dino_laptop", "esvit_laptop")


def told(name: str, recipe: str, options: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """Return the steps of a run, and the step at which it was first told each thing."""
    out = RUNS / "failures" / called(name, recipe)
    said = out.with_suffix(".txt")
    if not said.exists():
        words = [
            word
            for option, value in {**ALONE, **options}.items()
            for word in (f"--{option}", str(value))
        ]
        command = [sys.executable, "-m", "leanvit", "pretrain", recipe, "--out", str(out)]
        data = ["--data", str(CIFAR10.split().train), "--overwrite"]
        part = said.with_suffix(".part")
        with part.open("w") as file:
            stopped_early(subprocess.Popen([*command, *data, *words], stderr=file), out)
        part.rename(said)
    found = alarmed(out)
    for line in said.read_text().splitlines():
        if match := re.search(r"[Ll]oss .* at step (\d+)", line):
            found.setdefault("spike" if "jumped" in line else "bad number", int(match[1]))
    return steps_of(out), found


def alarmed(out: Path) -> dict[str, int]:
    """Return the step at which a run's rows first show each collapse, as the terminal tells it."""
    found: dict[str, int] = {}
    alarm = CollapseAlarm(lambda _: None)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        alarm.on_row(row)
        found |= {name: int(row["step"]) for name in alarm.told if name not in found}
    return found


def stopped_early(run: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until a run has seen enough, and stop it."""
    rows = out / "metrics.jsonl"
    while run.poll() is None:
        lines = rows.read_text().splitlines() if rows.exists() else []
        if len(lines) > 1 and json.loads(lines[-2])["step"] >= SEEN * steps_of(out):
            run.terminate()
            run.wait()
        time.sleep(1)


def reached(name: str, recipe: str) -> str:
    """Return what k-NN says at the end of a run that goes on to it."""
    out, split = RUNS / "failures" / called(name, recipe), CIFAR10.split()
    if name not in WHOLE:
        return "-"
    if not (out / "summary.json").exists():
        words = ["pretrain", "--out", str(out), "--resume"]
        subprocess.run([sys.executable, "-m", "leanvit", *words], capture_output=True, check=True)
    found = kept(out, "held", lambda: knn(out, split.bank, split.held, baselines=True))
    return f"{found['untrained']:.1f}, {found['trained (teacher)']:.1f}"


def called(name: str, recipe: str) -> str:
    """Return the name of a run's folder."""
    return f"{recipe}-{name.replace(' ', '_')}"


def steps_of(out: Path) -> int:
    """Return how many steps a run was to have."""
    duration = json.loads((out / "resolved.json").read_text())["config"]["train"]["duration"]
    return int(duration.removesuffix("st"))


def others() -> tuple[int, int, list[str]]:
    """Return how many runs of the other studies there are, and what they would be told now.

    The second number is of those that were measured by all that is warned by now.
    """
    count, whole, alarms = 0, 0, list[str]()
    for file in sorted(RUNS.glob("*/*/summary.json")):
        rows = file.with_name("metrics.jsonl")
        if file.parent.parent.name == "failures" or not rows.exists():
            continue
        count += 1
        whole += "teacher_information" in rows.read_text()
        names = ", ".join(alarmed(file.parent))
        alarms += [f"{file.parent.name}: {names}"] if names else []
    return count, whole, alarms


def main() -> None:
    (RUNS / "failures").mkdir(parents=True, exist_ok=True)
    lines = []
    for recipe in RECIPES:
        for name, options in CASES.items():
            steps, found = told(name, recipe, options)
            first = sorted((step, what) for what, step in found.items())
            what = "; ".join(f"{what} at step {step}" for step, what in first) or "nothing"
            end = reached(name, recipe)
            lines.append(f"| `{recipe}` | {name} | {what} | {steps // 10} | {end} |")
            print(lines[-1], flush=True)
    count, whole, alarms = others()
    TABLE.write_text(
        f"# What a run that goes wrong is told\n\n`benchmarks/learning/failures.py`, {heading()}. "
        f"The first {SEEN:.0%} of runs on CIFAR-10 as the recipes decide, some of them to the end; "
        "k-NN (k = 20) in percent on 5,000 held-out training images.\n\n"
        "| recipe | setting | warned of | a tenth of the run | k-NN untrained, at the end |\n"
        "|---|---|---|---|---|\n"
        + "\n".join(lines)
        + f"\n\nOf {count} whole runs of the other studies, {whole} of them with all that is "
        f"measured by now, {len(alarms)} would be warned of a collapse"
        + (": " + "; ".join(alarms) if alarms else "")
        + ".\n"
    )


if __name__ == "__main__":
    main()
