"""Regions found again in a second view, and in the stereo pair, before training and after.

    python benchmarks/correspondence.py IMAGES MODEL ...

IMAGES is what photographs are read from, such as imagenet-sample-256.tar; MODEL is a run. Prints
two tables in Markdown; benchmarks/correspondence.md keeps them.
"""

import sys
from pathlib import Path

import leanvit
from leanvit.bench.machine import machine


def main() -> None:
    images, *models = sys.argv[1:]
    print(", ".join(map(str, machine("cpu").values())))
    for data in (images, "stereo"):
        results = {model: leanvit.evaluate("correspondence", model, data=data) for model in models}
        heads = [*next(iter(results.values())).rows[0]]
        print(f"\n| run | regions | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
        for model, result in results.items():
            facts = result.facts
            count = facts.get("regions") or "{} x {}".format(*facts["grid"])
            for row in result.rows:
                cells = [
                    "-" if value is None else value if isinstance(value, str) else f"{value:.1f}"
                    for value in row.values()
                ]
                print(f"| {Path(model).name} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
