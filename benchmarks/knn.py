"""Exact search for the nearest rows, beside faiss-cpu's flat index: time, memory, the same answer?

    pip install faiss-cpu
    python benchmarks/knn.py [ROWS]

A million random rows of 768 columns (3 GB), 1,000 queries, two threads. Both in one process, in
turns; memory in a process of its own for each. faiss is given rows of unit length; ours makes them
so within its time.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.evaluation.nearest import nearest

ROWS, QUERIES, COLUMNS, THREADS, ROUNDS = 1_000_000, 1_000, 768, 2, 3
KS = (1, 20, 200)


def main() -> None:
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(memory(sys.argv[2], int(sys.argv[3]))))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    compare(rows)
    for name in ("leanvit", "faiss"):
        command = [sys.executable, __file__, "--memory", name, str(rows)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(f"{name}: the rows are {found['rows']:.2f} GB, and it took {found['more']:.2f} more")


def compare(rows: int) -> None:
    """Print seconds of each, and how many neighbours are the same."""
    bank, queries = data(rows)
    index = faiss.IndexFlatIP(COLUMNS)
    index.add(bank.numpy())
    print(f"{rows:,} x {COLUMNS} rows, {QUERIES:,} queries, {THREADS} threads")
    print("| k | leanvit, s | faiss, s | ratio | the same neighbours |\n|---|---|---|---|---|")
    for k in KS:
        ways: dict[str, Callable[[], Tensor]] = {
            "leanvit": partial(ours, bank, queries, k),
            "faiss": partial(theirs, index, queries, k),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found = {}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                found[name] = way()
                seconds[name].append(time.perf_counter() - began)
        mine, other = (statistics.median(seconds[name]) for name in ways)
        ratios = [a / b for a, b in zip(seconds["leanvit"], seconds["faiss"], strict=True)]
        same = 100 * float((found["leanvit"] == found["faiss"]).double().mean())
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {k} | {mine:.1f} | {other:.1f} | {spread} | {same:.3f} % |", flush=True)


def data(rows: int) -> tuple[Tensor, Tensor]:
    """Return a bank and queries of unit length."""
    draw = torch.Generator().manual_seed(0)
    bank = torch.randn(rows, COLUMNS, generator=draw)
    for part in bank.split(10_000):
        part.copy_(functional.normalize(part, dim=1))
    return bank, functional.normalize(torch.randn(QUERIES, COLUMNS, generator=draw), dim=1)


def ours(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    return torch.cat([near.place for near in nearest(bank, queries, k)])


def theirs(index: faiss.IndexFlatIP, queries: Tensor, k: int) -> Tensor:
    return torch.from_numpy(index.search(queries.numpy(), k)[1])


def memory(name: str, rows: int) -> dict[str, float]:
    """Return GB of the rows themselves, and of what a search took beside them at its peak."""
    bank, queries = data(rows)
    index = faiss.IndexFlatIP(COLUMNS)
    if name == "faiss":
        index.add(bank.numpy())
        del bank
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    if name == "faiss":
        index.search(queries.numpy(), KS[-1])
    else:
        ours(bank, queries, KS[-1])
    return {"rows": rows * COLUMNS * 4 / 1e9, "more": (peak() - before) / 1e6}


def peak() -> int:
    """Return the most memory that this process has held, in kB."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1])


if __name__ == "__main__":
    main()
