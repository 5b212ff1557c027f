"""Accuracy under common corruptions, of a network before its training and after.

    leanvit pretrain esvit_laptop --data sample --out runs/sample
    python benchmarks/robust.py runs/sample

The tiles of the sample in color at 60 pixels, as many as that run's views have; k-NN with k = 20.
Prints a table in Markdown; benchmarks/robust.md keeps it.
"""

import sys
import time

import leanvit
from leanvit.bench.machine import machine
from leanvit.evaluation.result import Result

OPTIONS = {"image_size": 60, "protocol": "color", "severities": (1, 3, 5)}


def main() -> None:
    print(", ".join(map(str, machine("cpu").values())) + "\n")
    for model in sys.argv[1:]:
        began = time.perf_counter()
        show(leanvit.evaluate("robust", model, data="sample", options=OPTIONS))
        print(f"\n{time.perf_counter() - began:.0f} seconds.\n", flush=True)


def show(result: Result) -> None:
    """Print a corruption a line: each network's accuracy, in brackets that at each severity."""
    networks = list(dict.fromkeys(row["network"] for row in result.rows))
    levels = [head for head in result.rows[0] if head.startswith("severity")]
    print(f"| corruption | {' | '.join(networks)} |\n|---|{'---|' * len(networks)}")
    for corruption in dict.fromkeys(row["corruption"] for row in result.rows):
        rows = [row for row in result.rows if row["corruption"] == corruption]
        cells = [
            f"{row['accuracy']:.1f}"
            + ("" if row[levels[0]] is None else f" ({', '.join(f'{row[x]:.1f}' for x in levels)})")
            for row in rows
        ]
        print(f"| {corruption.replace('_', ' ')} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
