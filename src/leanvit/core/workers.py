"""What the processes that read images owe the one that started them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType

LEFT_TO_PARENT = (signal.SIGINT, signal.SIGUSR1)
"""Signals to a whole group, as of Ctrl-C, that the parent answers; it still needs its workers."""
PATIENCE = 5.0
"""Seconds in which a worker without a parent tidies up."""


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
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of the threads below too
    for wait in (_wait_for_end, _wait_for_word):
        threading.Thread(target=wait, daemon=True).start()


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
