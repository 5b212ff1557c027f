"""Workers live exactly as long as their parent wants them, and leave nothing behind."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from leanvit.core import workers as ours
from leanvit.core.errors import RunError
from leanvit.core.workers import (
    _complain,
    _hand_over_why,
    _losses_named,
    calmly,
    with_room,
)
from tests.unit.test_house import TREES, nodes

PARENT = """
import multiprocessing, signal, sys, time
import torch
from torch.utils.data._utils import signal_handling
from torch.utils.data import DataLoader, Dataset
from leanvit.core.workers import serve_parent

class Images(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, number):
        if number > 1 and "stuck" in sys.argv:
            time.sleep(1000)
        return torch.zeros(3)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
batches = iter(DataLoader(Images(), num_workers=2, worker_init_fn=serve_parent))
next(batches), next(batches)  # one of each worker
workers = multiprocessing.active_children()
print(*(worker.pid for worker in workers), flush=True)
if sys.stdin.readline() == "go on\\n":
    print(sum(1 for _ in batches))
for worker in workers:
    worker.terminate()
    worker.join(3)
print(*(worker.exitcode for worker in workers), flush=True)
"""


@contextmanager
def loading(tmp: Path, *words: str) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """Yield a process that has loaded two images, and its workers; all are ended after it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            workers = [int(word) for word in process.stdout.readline().split()]
            assert len(workers) == 2
            yield process, workers
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # all have ended
                process.wait()


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_workers_end_with_a_killed_parent_and_tidy_up(tmp_path: Path) -> None:
    """In the middle of an image, too; torch's watchdog would look when that is done."""
    with loading(tmp_path, "stuck") as (parent, workers):
        assert list(tmp_path.glob("pymp-*")), "nothing to tidy up"
        parent.kill()
        until = time.monotonic() + 4
        while any(map(running, workers)) and time.monotonic() < until:
            time.sleep(0.01)
        assert not any(map(running, workers))
        assert not list(tmp_path.glob("pymp-*"))
        shared = [path.name for path in Path("/dev/shm").iterdir()]
        assert not [name for name in shared for w in workers if name.startswith(f"torch_{w}_")]


def test_a_signal_to_the_group_is_the_parents_affair(tmp_path: Path) -> None:
    with loading(tmp_path) as (parent, workers):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.killpg(parent.pid, number)
        said, _ = parent.communicate("go on\n", timeout=60)
        assert said.split() == ["7", "0", "0"]  # the other images; both workers ended in peace
        assert parent.returncode == 0 and not any(map(running, workers))


def test_a_stuck_worker_ends_when_its_parent_says_so(tmp_path: Path) -> None:
    with loading(tmp_path, "stuck") as (parent, workers):
        for worker in workers:
            os.kill(worker, signal.SIGTERM)  # anybody else's word does not count
        time.sleep(0.5)  # signals of one number do not queue
        assert all(map(running, workers))
        said, _ = parent.communicate("end\n", timeout=60)
        assert said.split() == ["0", "0"]


STARTING = """
import os, signal, time
from torch.utils.data import DataLoader
from leanvit.core.workers import calmly, serve_parent

os.setsid()
parent, numbers = os.getpid(), (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

def hear(*_):
    if os.getpid() != parent:
        os._exit(3)

def all_hear():  # before the worker has begun
    for number in numbers:
        os.killpg(parent, number)
    time.sleep(0.05)

for number in numbers:
    signal.signal(number, hear)
os.register_at_fork(after_in_child=all_hear)
loader = DataLoader([1, 2, 3], num_workers=1, worker_init_fn=serve_parent)
print(sum(int(one) for one in calmly(loader)), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_a_worker_is_born_deaf_to_signals_to_the_group() -> None:
    words = [sys.executable, "-c", STARTING]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (process.stdout, process.returncode) == ("6 set()\n", 0), process.stderr


@pytest.mark.parametrize("option", ["worker_init_fn=serve_parent", "generator=torch.Generator()"])
def test_every_loader_has_such_workers_and_draws_nothing(option: str) -> None:
    made = [
        (file, call) for file, call in nodes(ast.Call) if ast.unparse(call.func) == "DataLoader"
    ]
    assert len(made) >= 3
    for file, call in made:
        words = [ast.unparse(keyword) for keyword in call.keywords]
        assert option in words, f"{file}:{call.lineno}"
        assert "calmly(loader)" in ast.unparse(TREES[file]), f"{file} starts its workers itself"


class Numbers(Dataset[int]):
    """0, 1 and 2."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> int:
        return number


class Killed(Dataset[int]):
    """Ends the worker that reads it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_lost_worker_is_a_sentence() -> None:
    loader = DataLoader(Killed(), num_workers=1, generator=torch.Generator())
    with pytest.raises(RunError, match="A process that reads images"), _losses_named():
        list(loader)
    with pytest.raises(RunError, match="in the middle of a batch"), _losses_named():
        raise ConnectionResetError
    with pytest.raises(RuntimeError, match="another") as other, _losses_named():
        raise RuntimeError("another")
    assert type(other.value) is RuntimeError


UNSENT = """
import resource, sys
import torch
from torch.utils.data import DataLoader
from leanvit.core.errors import RunError
from leanvit.core.workers import calmly, serve_parent

if "little" in sys.argv:  # of shared memory: what is left of it is less than a batch needs
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
batches = [torch.zeros(10), torch.zeros(10_000), torch.zeros(10)]
loader = DataLoader(
    batches, batch_size=None, num_workers=2, worker_init_fn=serve_parent
)
found = 0
try:
    for batch in calmly(loader):
        found += 1
except RunError as error:
    print(found, error)
"""


@pytest.mark.parametrize(
    ("word", "found", "hint"),
    [("little", 1, "--shm-size"), ("long", 0, "set TMPDIR to a short one")],
)
def test_a_batch_that_cannot_be_handed_over_ends_the_wait(
    word: str, found: int, hint: str, tmp_path: Path
) -> None:
    """Shared memory is full, as in a container; a socket's name is too long for its address."""
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    own = {"TMPDIR": str(folder)} if word == "long" else {}
    process = subprocess.run(
        [sys.executable, "-c", UNSENT, word],
        env={**os.environ, "OMP_NUM_THREADS": "1", **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not process.returncode, process.stderr
    assert process.stdout.startswith(f"{found} A process that reads images could not hand over")
    assert hint in process.stdout and "Traceback" not in process.stderr


def test_what_cannot_be_handed_over_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: Queue[tuple[int, RunError]] = Queue()
    _hand_over_why(said, ConnectionResetError(), (3, "batch"))  # type: ignore[arg-type]
    assert said.empty(), "nobody is there to hear it"
    _hand_over_why(said, OSError("another reason"), (3, "batch"))  # type: ignore[arg-type]
    place, error = said.get_nowait()
    assert place == 3 and "another reason, or take 0 workers" in str(error)
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(said, "put", lambda _: None)
    _hand_over_why(said, OSError(), (3, error))  # type: ignore[arg-type]
    assert ended == [1], "the reason itself cannot be handed over"


def test_workers_have_room_for_what_they_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "SHARED", Path("/dev/shm/none"))
    assert with_room(15, 38_000_000) == 15, "elsewhere memory is shared otherwise"
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=16, f_frsize=4096))
    assert with_room(15, 1) == 15
    assert with_room(15, 4096) == 5
    assert with_room(15, 38_000_000) == 0


def test_a_loss_is_raised_where_a_batch_is_waited_for() -> None:
    """Not in a signal handler: torch puts none in place; loaders of others still have theirs."""
    loader = DataLoader(Numbers(), num_workers=1, generator=torch.Generator())
    before = signal.getsignal(signal.SIGCHLD), signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = False
    try:
        assert sum(1 for _ in calmly(loader)) == 3
        assert signal.getsignal(signal.SIGCHLD) == before[0]
        assert not signal_handling._SIGCHLD_handler_set
        assert sum(1 for _ in loader) == 3
        assert signal.getsignal(signal.SIGCHLD) != before[0], "torch has its handler no more"
    finally:
        signal.signal(signal.SIGCHLD, before[0])
        signal_handling._SIGCHLD_handler_set = before[1]


def test_workers_leave_threads_without_words(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (EOFError(), ConnectionResetError()):
        _complain(type(error), error, None)
    assert capsys.readouterr().err == ""
    _complain(KeyError, KeyError("a"), None)
    assert "KeyError" in capsys.readouterr().err
