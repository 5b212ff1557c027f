"""`srun leanvit pretrain`: what SLURM tells each task is enough, and the first alone writes."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.by_hand import Ended, by_hand, free_port
from tests.integration.command import TINY
from tests.tiny import draw_nothing, write_images

WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
READING = ("r", "rb", "rt")


def telling_writes(out: Path) -> None:
    """Print every path in a folder that this process changes, as Python's audit events tell it."""
    draw_nothing(pytest.MonkeyPatch())

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and args[1] not in READING and args[1] is not None
        path = str(args[0]) if opened or event in WRITES else ""
        if path.startswith(str(out)):
            print("changes", Path(path).relative_to(out))

    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Ended], Path]:
    """A run of two tasks on one machine; one of its images is broken."""
    folder = tmp_path_factory.mktemp("slurm")
    images, out = write_images(folder / "images", 12), folder / "out"
    (images / "003.png").write_bytes(b"no image")
    shared = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(free_port()),  # that of the job may be taken here
    }
    tasks = [shared | {"SLURM_PROCID": name, "SLURM_LOCALID": name} for name in ("0", "1")]
    words = ["pretrain", "esvit", "--data", str(images), *TINY, "--watch.images", "0"]
    words += ["--out", str(out), "--data.max-unreadable", "20"]
    telling = partial(telling_writes, out)
    return by_hand(folder / "logs", words, tasks, {0: telling, 1: telling}), out


def test_two_tasks_of_srun_train_together(run: tuple[list[Ended], Path]) -> None:
    ended, out = run
    assert [task.code for task in ended] == [0, 0], ended
    assert "shared by 2 processes" in ended[0].error
    assert json.loads((out / "summary.json").read_text())["processes"] == 2
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]


def test_the_first_alone_writes(run: tuple[list[Ended], Path]) -> None:
    """But for the list of images that cannot be read: each process adds those that it met."""
    first, second = (
        {line.removeprefix("changes ") for line in task.out.splitlines() if "changes " in line}
        for task in run[0]
    )
    assert {"metrics.jsonl", "config.json"} <= first and any("checkpoints" in p for p in first)
    assert second <= {"unreadable.jsonl"}
    assert "unreadable.jsonl" in first | second
