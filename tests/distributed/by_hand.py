"""Processes of the command line as a person or srun starts them: by environment variables alone."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["leanvit.run", "leanvit.cli"])
"""It imports torch once and runs nothing; every process is forked from it."""

Prepare = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How one of the processes ended."""

    code: int | None
    """Exit code; None for one that did not end and was killed."""
    out: str
    error: str


def nothing() -> None:
    """Change nothing in a process."""


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return int(there.getsockname()[1])


def numbered(world: int) -> list[dict[str, str]]:
    """Return the variables that a person sets for each process."""
    shared = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [{k: str(v) for k, v in {**shared, "RANK": rank}.items()} for rank in range(world)]


def by_hand(
    folder: Path,
    words: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    prepared: Mapping[int, Prepare] | None = None,
    limit: float = 60.0,
) -> list[Ended]:
    """Run a command in a process for each environment; prepared: what some do before it, by number.

    Returns how each ended, by itself within `limit` seconds or not.
    """
    folder.mkdir(exist_ok=True)
    places = [folder / str(number) for number in range(len(environments))]
    processes = [
        SERVER.Process(
            target=_command,
            args=(list(words), dict(environment), place, (prepared or {}).get(number, nothing)),
        )
        for number, (environment, place) in enumerate(zip(environments, places, strict=True))
    ]
    for process in processes:
        process.start()
    end, codes = time.monotonic() + limit, []
    for process in processes:
        process.join(max(end - time.monotonic(), 0.0))
        codes.append(process.exitcode)
        process.kill()
        process.join()
    return [
        Ended(code, *(place.with_suffix(kind).read_text() for kind in (".out", ".err")))
        for code, place in zip(codes, places, strict=True)
    ]


def _command(words: list[str], environment: dict[str, str], place: Path, prepare: Prepare) -> None:
    for stream, kind in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(place.with_suffix(kind), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of the command
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    import torch

    from leanvit.cli import main

    torch.set_num_threads(1)
    prepare()
    sys.exit(main(words))
