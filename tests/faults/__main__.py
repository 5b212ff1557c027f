"""`make faults`: inject every kind of fault many times, and write down what happened.

`python -m tests.faults KIND --seed 17` does one injection again, alone.
"""

import argparse
import inspect
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import leanvit
from leanvit.bench.machine import machine
from tests.faults.judge import Outcome
from tests.faults.kinds import KINDS
from tests.faults.kinds.disk import may_mount
from tests.faults.many import Found, run

TABLE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- make faults: begin -->", "<!-- make faults: end -->"


def table(found: Found) -> str:
    """Return what was found as a table of Markdown."""
    lines = [
        "| fault | injected | what happened | most steps lost | wrong |",
        "|---|---:|---|---:|---:|",
    ]
    for kind, outcomes in found.items():
        good = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
        counts = Counter(outcome.what for outcome in good).most_common()
        what = "; ".join(f"{text} {count}" for text, count in counts)
        lost = max((outcome.lost for outcome in good), default=0)
        text = f"`{kind}`: {inspect.getdoc(KINDS[kind])}"
        lines.append(
            f"| {text} | {len(outcomes)} | {what} | {lost} | {len(outcomes) - len(good)} |"
        )
    every = [outcome for outcomes in found.values() for outcome in outcomes]
    wrong = sum(not isinstance(outcome, Outcome) for outcome in every)
    return "\n".join([*lines, f"| all {len(found)} kinds | {len(every)} | | | {wrong} |"])


def write(found: Found, seeds: Sequence[int], jobs: int, seconds: float) -> None:
    """Put the table into the document, with when and where it was found."""
    facts = machine("cpu")
    text = (
        f"{facts['date']}, {facts['device']}, {os.cpu_count()} cores, {jobs} injections at a time; "
        f"leanvit {leanvit.__version__}, torch {facts['torch']}, Python "
        f"{platform.python_version()}; seeds {seeds[0]} to {seeds[-1]}; {seconds / 60:.0f} minutes."
    )
    before, _, rest = TABLE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    TABLE.write_text(f"{before}{BEGIN}\n{text}\n\n{table(found)}\n{END}{after}")


def main() -> int:
    """Inject what was asked for; return 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, help="this injection alone")
    parser.add_argument("--count", type=int, default=100, help="injections of each kind")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--write", action="store_true", help=f"the table into {TABLE.name}")
    asked = parser.parse_args()
    kinds = asked.kinds or [name for name in KINDS if name != "small_disk_full" or may_mount()]
    seeds = range(asked.count) if asked.seed is None else [asked.seed]
    began = time.monotonic()
    found = run(kinds, seeds, min(asked.jobs, len(kinds) * len(seeds)))
    if asked.write:
        write(found, seeds, asked.jobs, time.monotonic() - began)
    else:
        print(table(found))
    errors = (
        entry for every in found.values() for entry in every if not isinstance(entry, Outcome)
    )
    return int(any(True for _ in errors))


if __name__ == "__main__":
    sys.exit(main())
