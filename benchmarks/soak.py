"""Does a long run stay as it is? Memory, time of a step, open files, threads and processes.

    python benchmarks/soak.py [--steps 20000] [--kills 10]

A tiny EsViT trains through `leanvit.pretrain` on a folder of images, one of them unreadable, with
two workers, a checkpoint every hundredth and a look at the features every tenth of the run. It is
watched from outside, through /proc. Prints the table of soak.md; exits with 1 if anything grows.

Memory is what the run and its workers hold beside files: pages that forked processes share count
once (PSS of /proc/PID/smaps_rollup), and libraries, which neighbours may share, do not. Time is
processor time of the run itself, which neighbours do not stretch as they do a clock. The first
fifth is left out: allocators and caches fill there.

Then another run is killed (-9) and resumed again and again: how long do its workers outlive it, and
what stays in shared memory, in the temporary folder and in its own?
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

STEPS = 20_000
SAMPLES = 100
"""How often a run is looked at."""
WARM = 0.2
"""Share of a run that is left out at its start."""
LIMIT = 0.01
"""Growth in 10,000 steps, as a share of the median, below which a run counts as flat."""
SMALL = {
    "backbone.image_size": 32,
    "backbone.dim": 8,
    "backbone.depths": (1, 1),
    "backbone.heads": (1, 2),
    "backbone.window": 4,
    "method.views.global_size": 32,
    "method.views.local_sizes": (16,),
    "method.views.local_counts": (2,),
    "method.head.prototypes": 64,
    "method.head.hidden": 16,
    "method.head.bottleneck": 8,
    "train.batch": 4,
    "train.precision": "fp32",
    "train.device": "cpu",
    "data.workers": 2,
    "data.max_unreadable": 5.0,
    "watch.k": 3,
}
"""A run whose step takes milliseconds and does all that a large one does."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a run is at a moment."""

    step: int
    memory: float
    """MiB of the run and its workers."""
    seconds: float
    """Processor time that the run itself has taken."""
    files: int
    """Open handles of the run and its workers."""
    threads: int
    processes: int
    """The run and those below it."""


def family(process: int) -> list[int]:
    """Return a process and all below it.

    The kernel's own lists of children may miss some while others end.
    """
    children: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and (words := stat(int(place.name))):
            children.setdefault(int(words[1]), []).append(int(place.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def stat(process: int) -> list[str]:
    """Return state, parent and what else the kernel says of a process; nothing if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _facts(process: int) -> tuple[float, int, int]:
    """Return MiB, open files and threads of a process; zeros if it has just ended."""
    place = Path(f"/proc/{process}")
    try:
        lines = (place / "smaps_rollup").read_text().splitlines()
        kilobytes = {name: int(line.split()[1]) for line in lines[1:] for name in [line.split()[0]]}
        memory = (kilobytes["Pss_Anon:"] + kilobytes["Pss_Shmem:"]) / 1024
        files, threads = (len(list((place / part).iterdir())) for part in ("fd", "task"))
    except OSError:
        return 0.0, 0, 0
    return memory, files, threads


def look(process: int, step: int) -> Sample:
    """Return what a run is now; it has not ended."""
    times = stat(process)[11:13]
    found = [facts for one in family(process) if (facts := _facts(one))[2]]
    memory, files, threads = (sum(part) for part in zip(*found, strict=True))
    seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return Sample(step, memory, seconds, files, threads, len(found))


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of a line through points: the middle one of all pairs (Theil and Sen).

    Single points far away, such as a look at the features, do not move it.
    """
    points = list(zip(xs, ys, strict=True))
    pairs = ((a, b) for n, a in enumerate(points) for b in points[n + 1 :] if a[0] != b[0])
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


@dataclass(frozen=True, slots=True)
class Finding:
    """How a figure went over a run."""

    name: str
    first: float
    """Its middle in the first fifth that counts; of what is counted, the least."""
    last: float
    """The same of the last fifth."""
    growth: float
    """In 10,000 steps, as a share of the middle of all."""
    noise: float
    """Width of the middle half of what a line leaves, as the same share."""
    flat: bool

    def row(self) -> str:
        """Return a line of the table."""
        verdict = "flat" if self.flat else "GROWS"
        return (
            f"| {self.name} | {self.first:.1f} | {self.last:.1f} | {100 * self.growth:+.2f} % | "
            f"{100 * self.noise:.2f} % | {verdict} |"
        )


def judge(
    name: str, steps: Sequence[float], values: Sequence[float], *, counted: bool = False
) -> Finding:
    """Return whether a figure grows.

    What is counted comes and goes with batches on their way and with looks at the features, but
    its least must be the same in the last fifth as in the first: one handle more is a leak. What
    is measured grows if its line rises by more than LIMIT in 10,000 steps, and over the whole run
    by more than the noise around it.
    """
    fifth, typical = max(len(values) // 5, 1), min if counted else statistics.median
    first, last = typical(values[:fifth]), typical(values[-fifth:])
    rise, middle = slope(steps, values), statistics.median(values)
    rest = [value - rise * step for step, value in zip(steps, values, strict=True)]
    low, _, high = statistics.quantiles(rest, n=4)
    growth, noise = 10_000 * rise / middle, (high - low) / middle
    over = rise * (steps[-1] - steps[0]) / middle
    flat = last <= first if counted else growth <= LIMIT or over <= noise
    return Finding(name, first, last, growth, noise, flat)


def verdicts(samples: Sequence[Sample], steps: int) -> list[Finding]:
    """Return how memory, time, files, threads and processes went after the warm part of a run."""
    kept = [sample for sample in samples if sample.step >= WARM * steps]
    at = [float(sample.step) for sample in kept]
    spent = [1000 * (b.seconds - a.seconds) / (b.step - a.step) for a, b in pairwise(kept)]
    counts: Mapping[str, Callable[[Sample], int]] = {
        "open files": lambda sample: sample.files,
        "threads": lambda sample: sample.threads,
        "processes": lambda sample: sample.processes,
    }
    return [
        judge("memory, MiB", at, [sample.memory for sample in kept]),
        judge("processor ms a step", at[1:], spent),
        *(judge(name, at, list(map(of, kept)), counted=True) for name, of in counts.items()),
    ]


SHARED = Path("/dev/shm")


def tenths(samples: Sequence[Sample]) -> list[float]:
    """Return the middle of the memory in each tenth of the looks, the warm ones included."""
    memory = [sample.memory for sample in samples]
    cuts = [len(memory) * tenth // 10 for tenth in range(11)]
    return [statistics.median(memory[a:b]) for a, b in pairwise(cuts)]


def write_images(folder: Path) -> Path:
    """Write 64 small photographs of noise in two classes, and one that cannot be read."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(64):
        place = folder / ("left" if number % 2 else "right")
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40)).save(place / f"{number:03d}.jpg")
    (folder / "left" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photograph")
    return folder


def train(images: Path, out: Path, steps: int) -> None:
    """Do the run that is watched, or go on with it."""
    import torch

    import leanvit

    torch.set_num_threads(1)
    every = {"save": max(steps // 100, 10), "log": max(steps // 500, 1)}
    durations = {f"train.{what}_every": f"{count}st" for what, count in every.items()}
    durations |= {"train.duration": f"{steps}st", "watch.every": f"{steps // 10}st"}
    options, resume = SMALL | durations, (out / "resolved.json").exists()
    leanvit.pretrain("esvit", data=str(images), out=out, options=options, resume=resume, quiet=True)


def start(images: Path, out: Path, steps: int, **environment: str) -> "subprocess.Popen[bytes]":
    """Begin a run in a process of its own, or go on with it."""
    words = [sys.executable, __file__, "--train", str(images), str(out), str(steps)]
    return subprocess.Popen(words, env=os.environ | environment, stderr=subprocess.DEVNULL)


def reached(out: Path) -> int:
    """Return the step of the last whole row that a run wrote."""
    rows = out / "metrics.jsonl"
    lines = rows.read_text().split("\n")[:-1] if rows.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def soak(steps: int) -> tuple[list[Sample], float]:
    """Return what a run was at about SAMPLES moments, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as place:
        out, samples = Path(place, "run"), list[Sample]()
        run, began = start(write_images(Path(place, "images")), out, steps), time.perf_counter()
        while run.poll() is None:
            step, last = reached(out), samples[-1].step if samples else 0
            if step < steps and step - last >= steps / SAMPLES:
                samples.append(look(run.pid, step))
            time.sleep(0.02)
        if run.returncode or not samples:
            raise SystemExit(f"The run ended with {run.returncode} at step {reached(out)}.")
        return samples, time.perf_counter() - began


def running(process: int) -> bool:
    """Whether a process is there and does something."""
    return stat(process)[:1] not in ([], ["Z"])


@dataclass(frozen=True, slots=True)
class Left:
    """What runs left behind that were killed and resumed."""

    seconds: float
    """The longest that a worker outlived its run."""
    files: list[str]
    """Names in shared memory, in the temporary folder, and beside those of a run in its own."""


def kill(times: int, each: int = 20) -> Left:
    """Kill a run `times` times, about `each` steps after it goes on; return what its end leaves."""
    seconds, begun, steps = 0.0, set[int](), each * (times + 1)
    with tempfile.TemporaryDirectory() as place:
        images, out, own = (
            write_images(Path(place, "images")),
            Path(place, "run"),
            Path(place, "tmp"),
        )
        own.mkdir()
        for _ in range(times):
            run, until = start(images, out, steps, TMPDIR=str(own)), reached(out) + each
            while reached(out) < until and run.poll() is None:
                time.sleep(0.01)
            _, *workers = family(run.pid)
            begun |= {run.pid, *workers}
            run.kill()
            began, failed = time.perf_counter(), run.wait() != -9 or len(workers) != 2
            if failed:
                raise SystemExit(f"The run ended with {run.returncode}, {len(workers)} workers.")
            while any(map(running, workers)):
                time.sleep(0.005)
            seconds = max(seconds, time.perf_counter() - began)
        if start(images, out, steps, TMPDIR=str(own)).wait():
            raise SystemExit("The run did not go on to its end.")
        left = {path for path in SHARED.glob("torch_*") if int(path.name.split("_")[1]) in begun}
        left |= {path for path in own.iterdir() if not path.name.startswith("torchinductor_")}
        left |= {path for path in out.rglob("*") if path.name.startswith(".")}
        kept = sorted(out.glob("checkpoints/*"))
        return Left(seconds, sorted(map(str, [*left, *kept[2:]])))


def main() -> int:
    """Watch a run, print the table; return 1 if anything grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the run")
    parser.add_argument("--kills", type=int, default=10, help="how often a run is killed")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        images, out, steps = given.train
        train(Path(images), Path(out), int(steps))
        return 0
    from leanvit.bench.machine import machine

    samples, seconds = soak(given.steps)
    found = verdicts(samples, given.steps)
    print(", ".join(map(str, machine("cpu").values())))
    print(f"{given.steps} steps in {seconds:.0f} s, {len(samples)} looks.\n")
    print("| | first fifth | last fifth | growth in 10,000 steps | noise | |")
    print("|---|---|---|---|---|---|")
    print("\n".join(finding.row() for finding in found))
    print("\nMemory, tenth by tenth: " + ", ".join(f"{x:.1f}" for x in tenths(samples)) + " MiB.")
    left = kill(given.kills)
    print(f"\nOf {given.kills} runs killed, workers lived on for {left.seconds:.2f} s at most.")
    print(f"Left behind: {', '.join(left.files) or 'nothing'}.")
    return 0 if all(finding.flat for finding in found) and not left.files else 1


if __name__ == "__main__":
    sys.exit(main())
