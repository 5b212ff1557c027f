"""Commands of leanvit as processes of their own, for the price of a fork.

Python's fork server imports torch and leanvit and runs nothing: no thread, no kernel. Every command
is a fork of it, so that it starts like a fresh one, which takes seconds to import the same.
"""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, set_start_method
from multiprocessing.util import get_temp_dir
from pathlib import Path

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.server", "tests.faults.plants", "tests.faults.warm"])
PATIENCE = 120.0
"""Seconds after which a command hangs: no tiny run takes a tenth of it."""

Plant = Callable[[], None]
"""What is done in a new process before the command; a function of a module, or a partial of one."""


def _command(place: Path, words: Sequence[str], env: Mapping[str, str], plant: Plant) -> None:
    """Be `leanvit WORDS`: a session of its own, what it says in files, its own temporary folder."""
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY), number)
    os.environ.update(env, TMPDIR=str(place / "tmp"), OMP_NUM_THREADS="1")
    tempfile.tempdir = str(place / "tmp")
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 (the names alone)
    assert threads == 1, f"the server has {threads} threads: it ran something"
    import torch

    from leanvit import looks, run
    from leanvit.cli import main

    set_start_method("fork", force=True)  # what a command that nobody forked would find

    torch.set_num_threads(1)
    for part, picture in ((run, "loss_curves"), (looks, "matched_regions")):
        setattr(part, picture, _draw_nothing)  # they take longer than all else
    plant()
    sys.exit(main(list(words)))


def _draw_nothing(*_: object, **__: object) -> None:
    """Leave a picture out."""


def nothing() -> None:
    """Plant nothing."""


@dataclass
class Command:
    """A running `leanvit`: its signals, its words, its end."""

    place: Path
    """Folder for the pipes that it speaks into, `err` and `out`, and for its temporary files."""
    words: Sequence[str]
    plant: Plant = nothing
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.place / "tmp").mkdir(parents=True)
        self._pipes = {name: _pipe(self.place / name) for name in ("err", "out")}
        self._said = ""
        self._known: set[int] = set()
        self.struck: set[int] = set()
        get_temp_dir()  # of its sockets too: in the folder of its own their names would be too long
        self._process = FORKS.Process(
            target=_command, args=(self.place, self.words, self.env, self.plant)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or, as a terminal does, to its workers too."""
        self.family()
        if self.alive():
            (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send(signal.SIGKILL)
        self.wait()

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return its exit code, negative for a signal that ended it, once it ends."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self.clear()
            raise AssertionError(f"it hangs: {' '.join(self.words)}; it said {self.said()!r}")
        return code

    def said(self) -> str:
        """Return what it said on stderr."""
        if "err" in self._pipes:
            self._said += "".join(iter(partial(_heard, self._pipes["err"]), ""))
        return self._said

    def family(self) -> set[int]:
        """Return the processes of its session that live, itself among them."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    state, _, _, session = _stat(entry)
                except OSError:
                    continue  # it ended meanwhile
                if session == self.pid and state != "Z":
                    found.add(int(entry.name))
        self._known |= found
        return found

    def left(self, seconds: float = 20.0) -> list[str]:
        """Return the processes and the shared memory that it left behind, given time to end."""
        end = time.monotonic() + seconds
        while (family := self.family() - {self.pid}) and time.monotonic() < end:
            time.sleep(0.02)
        shared = self._shared({*self._known, self.pid} - self.struck)
        return [*map(str, family), *(path.name for path in shared)]

    def strike(self, pid: int) -> None:
        """kill -9 one of its processes, which so leaves the batch that it was sharing."""
        os.kill(pid, signal.SIGKILL)
        self.struck.add(pid)

    def _shared(self, pids: set[int]) -> list[Path]:
        names = Path("/dev/shm").iterdir()
        return [path for path in names if any(f"_{pid}_" in path.name for pid in pids)]

    def clear(self) -> None:
        """End it and whatever it started, and forget what it said."""
        for pid in {*self.family(), self.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.join()
        self.said()
        while self._pipes:
            os.close(self._pipes.popitem()[1])
        for path in self._shared({*self._known, self.pid}):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.place / "tmp", ignore_errors=True)


def _pipe(place: Path) -> int:
    """Make a pipe that holds all that a command says: no limit on files holds there."""
    os.mkfifo(place)
    reader = os.open(place, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)
    return reader


def _heard(pipe: int) -> str:
    try:
        return os.read(pipe, 2**20).decode()
    except BlockingIOError:
        return ""


def _stat(entry: Path) -> tuple[str, int, int, int]:
    """Return state, parent, group and session of a process."""
    state, *numbers = (entry / "stat").read_text().rpartition(") ")[2].split()[:4]
    parent, group, session = map(int, numbers)
    return state, parent, group, session
