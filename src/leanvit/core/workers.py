"""What a process that reads images owes the one that started it."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from torch.utils.data._utils import signal_handling

from leanvit.core.errors import RunError

T = TypeVar("T")
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGUSR1)
"""Signals to a whole group, as of Ctrl-C, that the parent answers; it still needs its workers."""
TO_ALL = (*LEFT_TO_PARENT, signal.SIGTERM)
"""Signals that a worker hears because it belongs to a group or to a job."""
LOST = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal: \w+|exited unexpectedly)")
"""What torch says where a worker ended that should not have."""
PATIENCE = 5.0
"""Seconds in which a worker without a parent tidies up."""
SHARED = Path("/dev/shm")
"""Memory through which workers hand over batches; a container often has little of it."""
HINTS = {
    "</torch_": f"there is too little room in {SHARED}: give it more (docker run --shm-size)",
    "path too long": "the folder of temporary files has too long a name: set TMPDIR to a short one",
    "Too many open files": "allow more of them (ulimit -n)",
}
"""What to do where a batch cannot be handed over, by what the error says."""


def with_room(workers: int, batch: int) -> int:
    """Return how many of these workers can read ahead, by two batches of so many bytes each."""
    try:
        shared = os.statvfs(SHARED)
    except OSError:  # a system that shares memory otherwise
        return workers
    return min(workers, shared.f_bavail * shared.f_frsize // (3 * batch))  # and one in use


def calmly(batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches of a loader, the loss of whose workers is raised while one is waited for.

    Raises RunError if a worker is lost, or cannot hand a batch over.
    """
    with _losses_named():
        for batch in _begun(batches):  # under no name: an error's traceback would keep the workers
            if isinstance(batch, RunError):
                raise batch
            yield batch


def _begun(batches: Iterable[T]) -> Iterator[T]:
    """Return the iterator of a loader, with its workers started.

    Torch would raise the loss of one in a signal handler too, so wherever Python is: in a thread
    that starts, in what ends the other workers. It looks every five seconds as well, which is soon
    enough, so it is told that its handler is in place. Until a worker serves its parent it would
    answer signals to the group as the parent does, so it is born deaf to them.
    """
    installed = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_ALL)
    try:
        return iter(batches)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal_handling._SIGCHLD_handler_set = installed


@contextmanager
def _losses_named() -> Iterator[None]:
    """Turn the loss of a worker, as torch tells it, into a RunError that says what to do."""
    try:
        yield
    except (ConnectionError, EOFError) as error:  # before torch has noticed
        raise _lost("ended in the middle of a batch") from error
    except RuntimeError as error:
        if not (lost := LOST.match(str(error))):
            raise
        raise _lost(lost[1]) from error


def _lost(how: str) -> RunError:
    return RunError(
        f"A process that reads images {how}, as where memory is short; fewer workers take less. "
        f"A run continues with --resume."
    )


def serve_parent(_: int) -> None:
    """Let this worker live exactly as long as its parent wants it: a loader's `worker_init_fn`.

    It ends the moment its parent does, even by kill -9: torch's own watchdog looks every five
    seconds, and only between batches. SIGTERM ends it if the parent sent it. From a scheduler,
    which tells all processes of a job, it leaves the worker alone, so that the parent can finish
    its step and save.
    """
    for number in LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, _leave)
    sys.excepthook = _complain
    Queue._on_queue_feeder_error = _hand_over_why  # type: ignore[attr-defined]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of the threads below too
    for wait in (_wait_for_end, _wait_for_word):
        threading.Thread(target=wait, daemon=True).start()


def _complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error, unless it is that of a thread whose parent left in the middle of a batch."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _hand_over_why(queue: "Queue[Any]", error: Exception, item: tuple[int, Any]) -> None:
    """Put the error in the place of a batch that could not be handed over.

    Python shows it and forgets the batch, for which the parent would wait for ever.
    """
    place, batch = item
    if isinstance(error, ConnectionError):  # the parent has left
        return
    if isinstance(batch, RunError):
        os._exit(1)
    why = next((hint for word, hint in HINTS.items() if word in str(error)), str(error))
    text = f"A process that reads images could not hand over a batch: {why}, or take 0 workers."
    queue.put((place, RunError(f"{text} A run continues with --resume.")))


def _wait_for_end() -> None:
    """End soon after the parent, as a pipe says whose other end closes with it.

    Workers that were started later hold that end too, but they end first.
    """
    parent, main = multiprocessing.parent_process(), threading.main_thread().ident
    assert parent is not None and main is not None
    parent.join()
    signal.pthread_kill(main, signal.SIGUSR2)  # os._exit would leave its folder in /tmp behind
    time.sleep(PATIENCE)
    os._exit(1)


def _leave(signal_number: int, frame: FrameType | None) -> None:
    """Leave the main thread, wherever it is, by way of what multiprocessing tidies up at exit."""
    sys.exit(1)


def _wait_for_word() -> None:
    """End when the parent says so, which it does only if all else failed."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
