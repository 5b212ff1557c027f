"""The command line, in which process 1 is killed once. Started by torchrun with `-m`."""

import os
import signal
import sys
from pathlib import Path

import pytest

from leanvit.cli import main
from leanvit.train.state import TrainState


def kill_once(marker: Path, step: int) -> None:
    """Let process 1 die before a step's gradients are used, unless a marker says it did."""
    update = TrainState.update

    def deadly(state: TrainState, at: object) -> None:
        if state.step == step and os.environ["RANK"] == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        update(state, at)  # type: ignore[arg-type]

    pytest.MonkeyPatch().setattr(TrainState, "update", deadly)


if __name__ == "__main__":
    kill_once(Path(sys.argv[1]), 3)
    again = ["--resume"] if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" else []
    sys.exit(main([*sys.argv[2:], *again]))
