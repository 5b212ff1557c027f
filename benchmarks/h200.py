"""The plan for a machine with one large GPU: every speed that the CPU tables have, at its sizes.

`python benchmarks/h200.py` runs it whole, each part in a process of its own and with a limit, and
writes h200.md; `--device cpu --small` runs it on small networks, which shows that it runs.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

PLAN = (
    ("loss", "leanvit bench loss --batches 64 256 --rounds 5", 90),
    ("EsViT, the published batch", "leanvit bench step --batch 32 --rounds 5", 120),
    (
        "EsViT, filled",
        "leanvit bench step --batch 256 --precisions bf16 --against --rounds 5",
        60,
    ),
    (
        "DINO, ViT-S/16",
        "leanvit bench step --recipe dino --against lightly --batch 128 --precisions bf16"
        " --rounds 5",
        90,
    ),
    (
        "MAE, ViT-Tiny",
        "leanvit bench step --recipe mae --backbone vit_tiny --against lightly --batch 512"
        " --precisions bf16 --rounds 5",
        60,
    ),
    ("backbones", "leanvit bench forward --batch 64 --rounds 5", 90),
    ("growth", "leanvit bench step --growth true --precisions bf16 --batch 64 --rounds 3", 60),
)
"""Name, command, seconds at most: nine and a half minutes in all."""
SMALL, SMALL_LOSS = "--batch 1 --rounds 1", "--batches 1 --rounds 1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="one image and round")
    given = parser.parse_args()
    parts, start = [], time.perf_counter()
    for name, command, limit in PLAN:
        words = [sys.executable, "-m", *command.split(), "--device", given.device]
        if given.small:
            words += (SMALL_LOSS if "loss" in command else SMALL).split()
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=limit)
            said = done.stdout if done.returncode == 0 else f"Failed: {done.stderr[-2000:]}"
        except subprocess.TimeoutExpired:
            said = f"Not finished within {limit} s."
        parts.append(f"## {name}\n\n`{command}`\n\n{said.strip()}\n")
        print(parts[-1], flush=True)
    took = f"{(time.perf_counter() - start) / 60:.1f} minutes in all."
    if not given.small:
        Path(__file__).with_suffix(".md").write_text("\n".join(["# One GPU\n", took, "", *parts]))


if __name__ == "__main__":
    main()
