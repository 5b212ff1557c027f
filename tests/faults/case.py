"""One injection: its folder, its draws, its commands; and the bench that many share."""

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from leanvit.config import steps, to_dict
from leanvit.train.checkpoint import CHECKPOINTS
from tests.faults.plants import count_lines, hold_at
from tests.faults.server import Command, Plant, nothing
from tests.tiny import VIT, run_config, write_images

STEPS, EVERY = 8, 2
"""Length of the runs, and steps from one save to the next."""
IMAGES = 12
STOPPED = (5, 6, 7)
"""Steps at which the runs were killed that damage is done to."""
Env = Mapping[str, str]
READERS = ("--data.workers", "2")
"""Options of a run whose images other processes read."""
ALONE: tuple[Env, ...] = ({},)


class MissedError(Exception):
    """The run was over before its fault came: draw another moment."""


def worlds(count: int) -> tuple[Env, ...]:
    """Return the environments of processes that train together, as torchrun sets them."""
    if count == 1:
        return ALONE
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LEANVIT_START_SECONDS": "20"}
    return tuple({**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count))


def saved(step: int) -> range:
    """Return the steps that a run has checkpoints of when it stands at a step."""
    return range(EVERY, step + 1, EVERY)


class Bench:
    """A folder with images, a configuration, and what runs end with that nothing befell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = write_images(folder / "images", IMAGES)
        base = run_config(
            duration=steps(STEPS), save_every=steps(EVERY), keep=3, log_every=steps(1)
        )
        config = replace(
            base,
            backbone=replace(VIT, depth=1, patch=8),
            watch=replace(base.watch, images=0),
            data=replace(base.data, workers=0, rendering="host", max_unreadable=50.0),
        )
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        self._known: dict[str, Path] = {}

    def reference(self, *options: str, plant: Plant = nothing, world: int = 1) -> Path:
        """Return the folder of a whole run with these options."""
        key = f"{options} {plant!r} {world}"
        if key not in self._known:
            case = Case(self, f"reference-{len(self._known)}", 0)
            for command in [case.start(*options, plant=plant, env=env) for env in worlds(world)]:
                assert command.wait() == 0, command.said()
            self._known[key] = case.out
        return self._known[key]

    def lines(self, *files: str) -> int:
        """Return how many lines of these files of leanvit a whole run goes through."""
        place = self.folder / f"lines-{'-'.join(Path(file).stem for file in files)}"
        if not place.exists():
            case = Case(self, place.name + "-run", 0)
            assert case.start(plant=partial(count_lines, files, place)).wait() == 0
        return place.stat().st_size

    def size(self) -> int:
        """Return the bytes of the largest file of a run."""
        return max(path.stat().st_size for path in self.reference().rglob("state.safetensors"))

    def stopped(self, step: int) -> Path:
        """Return the folder of a run that was killed at a step, once all before it was saved."""
        key = f"stopped {step}"
        if key not in self._known:
            case = Case(self, f"stopped-{step}", 0)
            command = case.start(plant=partial(hold_at, step))
            last = case.out / CHECKPOINTS / f"step-{saved(step)[-1]:08d}"
            while not (last.exists() and case.reached() == step):
                assert command.alive(), command.said()
                time.sleep(0.002)
            command.kill()
            self._known[key] = case.out
        return self._known[key]


class Case:
    """One injection of a kind; the same seed draws the same moments."""

    def __init__(self, bench: Bench, name: str, seed: int, attempt: int = 0) -> None:
        self.bench = bench
        self.draw = random.Random(f"{name} {seed} {attempt}")
        self.place = bench.folder / f"{name}-{seed}-{attempt}"
        self.out = self.place / "run"
        self.images = bench.images
        self.commands: list[Command] = []

    def start(self, *options: str, plant: Plant = nothing, env: Env = ALONE[0]) -> Command:
        """Start `leanvit pretrain` on the case's folder."""
        place = self.place / f"command-{len(self.commands)}"
        config = str(self.bench.folder / "config.json")
        words = ("pretrain", "--config", config, "--data", str(self.images), "--out", str(self.out))
        self.commands.append(Command(place, (*words, *options), plant, env))
        return self.commands[-1]

    def rows(self) -> list[dict[str, float]]:
        """Return the whole rows that the run has written."""
        path = self.out / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def reached(self) -> int:
        """Return the step of the last row, 0 before there is one."""
        rows = self.rows()
        return int(rows[-1]["step"]) if rows else 0

    def reach(self, command: Command, row: int) -> None:
        """Wait until the run has written the row of a step."""
        while command.alive() and (not self.rows() or self.reached() < row):
            time.sleep(0.002)
        if not command.alive():
            raise MissedError

    def moment(self, command: Command, first: int = -1, last: int = STEPS) -> None:
        """Wait for a random moment: after a random row (-1: the start), a random while."""
        row = self.draw.randrange(first, last)
        if row < 0:
            time.sleep(self.draw.uniform(0.0, 0.6))
        else:
            self.reach(command, row)
            time.sleep(self.draw.uniform(0.0, 0.06))
        if not command.alive():
            raise MissedError

    def own_images(self) -> Path:
        """Return a copy of the images that the case may damage."""
        self.images = Path(shutil.copytree(self.bench.images, self.place / "images"))
        return self.images

    def stopped(self, checkpoints: int = 1, *, after_save: bool = False) -> None:
        """Be a run that was killed at one of a few steps, with so many checkpoints or more.

        after_save: not at a step that was saved.
        """
        steps_ = [step for step in STOPPED if len(saved(step)) >= checkpoints]
        step = self.draw.choice([s for s in steps_ if not after_save or s not in saved(s)])
        self.place.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.bench.stopped(step), self.out)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, the newest first."""
        return sorted((self.out / CHECKPOINTS).glob("step-*"), reverse=True)

    def clear(self) -> None:
        """End all that still runs and remove the folder."""
        for command in self.commands:
            command.clear()
        shutil.rmtree(self.place, ignore_errors=True)


def entries(folder: Path) -> Sequence[str]:
    """Return the names of all that lies in a folder, however deep."""
    return sorted(
        os.path.relpath(Path(place) / name, folder)
        for place, folders, files in os.walk(folder)
        for name in [*folders, *files]
    )
