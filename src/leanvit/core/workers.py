"""What the processes that read images owe the one that trains."""

import signal


def leave_signals(_: int) -> None:
    """Let a worker ignore what its parent hears, and end when that tells it to.

    Ctrl-C reaches every process of a terminal, and the run still wants the images of its last step.
    Torch's loader calls this in every worker, with its number.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
