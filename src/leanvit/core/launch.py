"""How many processes were started, and which of them this is: what the environment says.

torchrun and a person's own scripts say it by WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT. Where WORLD_SIZE is not set, what srun tells each task of a SLURM step counts (the
output variables in https://slurm.schedmd.com/srun.html). A batch script has SLURM_NTASKS and
SLURM_PROCID without srun too, so only the step's own variables tell.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

TASKS, PORTS = "SLURM_STEP_NUM_TASKS", range(10_000, 30_000)


@dataclass(frozen=True, slots=True)
class Launch:
    """One of the processes that were started together."""

    world: int = 1
    """How many there are."""
    rank: int = 0
    """Which of them this is."""
    neighbours: int = 1
    """How many of them share this machine, this one included."""
    local_rank: int | None = 0
    """Which of those this is; None if nobody said."""
    host: str = ""
    """Name or address of the machine of rank 0."""
    port: int = 0
    """Where rank 0 listens there."""


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return what an environment says. Raises ValueError if it says too little or nonsense."""
    if "WORLD_SIZE" not in environment and TASKS in environment:
        return _by_slurm(environment)
    world = whole(environment, "WORLD_SIZE", 1)
    if world <= 1:  # schedulers set RANK for other ends too
        return Launch()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {world}, but {missing[0]} is not set. torchrun sets it: torchrun "
            f"--nproc-per-node={world} -m leanvit ...; who starts processes by hand sets RANK, "
            f"WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each."
        )
    rank = whole(environment, "RANK", 0)
    if rank >= world:
        raise ValueError(f"RANK is {rank}, but of {world} processes the last has {world - 1}.")
    local = next((name for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environment), "")
    return Launch(
        world=world,
        rank=rank,
        neighbours=whole(environment, "LOCAL_WORLD_SIZE", world),
        local_rank=whole(environment, local, 0) if local else None,
        host=environment["MASTER_ADDR"],
        port=whole(environment, "MASTER_PORT", 0),
    )


def _by_slurm(environment: Mapping[str, str]) -> Launch:
    """Return what srun says to a task."""
    world = whole(environment, TASKS, 1)
    if world <= 1:
        return Launch()
    needed = ("PROCID", "LOCALID", "NODEID", "STEP_NODELIST", "STEP_TASKS_PER_NODE", "JOB_ID")
    missing = [f"SLURM_{name}" for name in needed if f"SLURM_{name}" not in environment]
    if missing:
        raise ValueError(
            f"{TASKS} is {world}, but {missing[0]} is not set, so this is no task of srun. "
            f"WORLD_SIZE=1 makes this process stand alone."
        )
    tasks = expand_tasks(environment["SLURM_STEP_TASKS_PER_NODE"])
    node = whole(environment, "SLURM_NODEID", 0)
    if node >= len(tasks) or sum(tasks) != world:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE is {environment['SLURM_STEP_TASKS_PER_NODE']!r}, which is "
            f"not {world} tasks on more than {node} machines."
        )
    # a job's steps may run at the same time, and so may jobs that share a machine
    job, step = whole(environment, "SLURM_JOB_ID", 0), environment.get("SLURM_STEP_ID", "0")
    number = job + 1_000 * int(step if step.isdecimal() else 0)
    return Launch(
        world=world,
        rank=whole(environment, "SLURM_PROCID", 0),
        neighbours=tasks[node],
        local_rank=whole(environment, "SLURM_LOCALID", 0),
        host=environment.get("MASTER_ADDR") or expand_hosts(environment["SLURM_STEP_NODELIST"])[0],
        port=whole(environment, "MASTER_PORT", PORTS[number % len(PORTS)]),
    )


def whole(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    """Return a variable's whole number. Raises ValueError for another word."""
    word = environment.get(name, str(otherwise))
    if not (word.isascii() and word.isdecimal()):
        raise ValueError(f"The environment says {name}={word!r}; expected a whole number.")
    return int(word)


def expand_hosts(text: str) -> list[str]:
    """Return the hosts of a list as SLURM writes it, such as `node[003-005,7],gpu1`.

    Raises ValueError for what is no such list.
    """
    entries = re.split(r",(?![^\[]*\])", text)  # at commas outside brackets
    if not all(re.fullmatch(r"(?=.)[\w.-]*(\[[\d,-]+\][\w.-]*)*", entry) for entry in entries):
        raise ValueError(f"{text!r} is no list of hosts such as node[003-005,7],gpu1.")
    return [host for entry in entries for host in _expand(entry)]


def _expand(entry: str) -> list[str]:
    """Return the hosts of one name, which may hold numbers in several brackets."""
    parts = [
        _numbers(part[1:-1]) if part.startswith("[") else [part]
        for part in re.split(r"(\[.*?\])", entry)
    ]
    return ["".join(words) for words in product(*parts)]


def _numbers(text: str) -> list[str]:
    """Return the numbers of `003-005,7`, with the zeros that they begin with."""
    found: list[str] = []
    for span in text.split(","):
        first, dash, last = span.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"{span!r} is no range of numbers such as 003-005.")
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found


def expand_tasks(text: str) -> list[int]:
    """Return the tasks of each machine from SLURM's short form: `2(x3),1` is [2, 2, 2, 1].

    Raises ValueError for what is no such form.
    """
    found: list[int] = []
    for span in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", span)
        if match is None:
            raise ValueError(f"{text!r} is no list of tasks a machine such as 2(x3),1.")
        found += [int(match[1])] * int(match[2] or 1)
    return found
