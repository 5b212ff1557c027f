"""`torchrun -m leanvit pretrain`: two processes write what one does, once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from leanvit.cli import main
from leanvit.methods.base import Moment
from leanvit.train.state import TrainState
from tests.distributed.by_hand import SERVER, numbered
from tests.integration.command import TINY, Says, leanvit_process, refused
from tests.tiny import write_classes

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
WIDE = ("--data.max-unreadable", "20")


def together(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes."""
    words = [*TORCHRUN, "-m", "leanvit", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run on one process and on two; one of the images is broken."""
    folder = tmp_path_factory.mktemp("together")
    images = write_classes(folder / "images", cats=8, dogs=8)
    (images / "cats" / "003.png").write_bytes(b"no image")
    words = ("pretrain", "esvit", "--data", str(images), *TINY, *WIDE)
    return {
        "words": words,
        "folder": folder,
        "one": leanvit_process(*words, "--out", folder / "one"),
        "two": together(*words, "--out", folder / "two"),
    }


def rows(folder: Path) -> list[dict[str, float]]:
    ignored = ("images_per_s", "data_wait", "feature_std", "teacher_entropy", "teacher_information")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ignored} for row in found]


def same_weights(one: Path, other: Path) -> None:
    for name in ("backbone.safetensors", "student.safetensors"):
        ours, theirs = load_file(one / name), load_file(other / name)
        for key in ours:
            assert float((ours[key] - theirs[key]).abs().max()) < 1e-5, key


def test_two_processes_write_one_run(runs: dict[str, Any]) -> None:
    one, two = runs["folder"] / "one", runs["folder"] / "two"
    assert runs["one"].returncode == runs["two"].returncode == 0, runs["two"].stderr
    names = [{path.name for path in folder.iterdir()} for folder in (one, two)]
    assert names[0] == names[1]
    for ours, theirs in zip(rows(one), rows(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    same_weights(one, two)
    listed = (two / "unreadable.jsonl").read_text()
    assert listed == (one / "unreadable.jsonl").read_text() and listed.count("003.png") == 1
    assert (
        json.loads((two / "resolved.json").read_text())["config"]
        == (json.loads((one / "resolved.json").read_text())["config"])
    )


def test_it_is_said_once(runs: dict[str, Any]) -> None:
    assert runs["two"].stdout.count("The backbone is in") == 1
    for said in ("shared by 2 processes", "Everything is written to", "step 4/4", "cannot be read"):
        assert runs["two"].stderr.count(said) == 1, said


def test_two_processes_continue_what_one_began(runs: dict[str, Any], tmp_path: Path) -> None:
    out = shutil.copytree(runs["folder"] / "one", tmp_path / "out")
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    again = together(*runs["words"], "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("Continuing at step 2") == 1
    assert [row["step"] for row in rows(out)] == [0, 1, 2, 3, 4]
    same_weights(runs["folder"] / "one", out)


def test_one_process_continues_what_two_began(runs: dict[str, Any], tmp_path: Path) -> None:
    out = shutil.copytree(runs["folder"] / "two", tmp_path / "out")
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    assert main([*runs["words"], "--out", str(out), "--resume"]) == 0
    for ours, theirs in zip(rows(out), rows(runs["folder"] / "two"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    same_weights(runs["folder"] / "two", out)


def killed_once(words: list[str], out: Path, marker: Path) -> None:
    """Run the command; process 1 dies before the update of step 3, unless a marker says it did."""
    torch.set_num_threads(1)
    update = TrainState.update

    def deadly(state: TrainState, at: Moment) -> None:
        if state.step == 3 and os.environ["RANK"] == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        update(state, at)

    pytest.MonkeyPatch().setattr(TrainState, "update", deadly)
    again = ["--resume"] if marker.exists() else []
    assert main([*words, "--out", str(out), *again]) == 0


def start_elastic(words: list[str], out: Path, marker: Path) -> None:
    """Do what torchrun does, in processes that are forked and need no import."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=1,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="elastic",
        start_method="fork",
        monitor_interval=0.1,
    )
    elastic_launch(config, killed_once)(words, out, marker)


def test_a_killed_process_restarts_all_and_changes_nothing(
    runs: dict[str, Any], tmp_path: Path
) -> None:
    """The agent of torchrun starts all again, and they resume: the same bits in the end."""
    out, marker = tmp_path / "out", tmp_path / "killed"
    agent = SERVER.Process(target=start_elastic, args=(list(runs["words"]), out, marker))
    agent.start()
    agent.join(120)
    agent.kill()
    assert agent.exitcode == 0 and marker.exists()
    assert rows(out) == rows(runs["folder"] / "two")
    for name in ("backbone.safetensors", "student.safetensors"):
        ours, theirs = load_file(out / name), load_file(runs["folder"] / "two" / name)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)


@pytest.mark.long
def test_processes_choose_one_batch(runs: dict[str, Any], tmp_path: Path) -> None:
    found = together(*runs["words"], "--out", tmp_path / "out", "--train.batch", "auto")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("Trying steps of a few images") == 1
    assert found.stderr.count("\nBatch 16 (so that an epoch of 16 images has 1 step; ") == 1
    assert "that are free to each of 2 processes)" in found.stderr


@pytest.mark.long
def test_processes_do_as_many_steps_as_the_slowest_finds(
    runs: dict[str, Any], tmp_path: Path
) -> None:
    found = together(*runs["words"], "--out", tmp_path / "out", "--train.duration", "0.03m")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("Doing a few steps, to see how many the time is worth") == 1
    record = json.loads((tmp_path / "out" / "resolved.json").read_text())
    seconds = float(record["origins"]["train.duration"].split(" at ")[1].split()[0])
    steps = int(record["config"]["train"]["duration"].removesuffix("st"))
    assert abs(steps - 1.8 / seconds) <= 1 + 0.01 * steps
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == steps


def test_a_mistake_is_a_sentence_said_once(runs: dict[str, Any], tmp_path: Path) -> None:
    found = together(*runs["words"], "--out", tmp_path / "out", "--train.batch", "5")
    said = "train.batch 5 does not split into 1 micro-batches on each of 2 processes"
    assert found.returncode != 0 and found.stderr.count(said) == 1
    assert not (tmp_path / "out").exists()


def test_what_the_first_refuses_ends_all_in_one_sentence(runs: dict[str, Any]) -> None:
    found = together(*runs["words"], "--out", runs["folder"] / "one")
    assert found.returncode != 0 and found.stderr.count("is not empty") == 1
    assert "gloo" not in found.stderr


def test_what_is_for_one_process_says_so(
    runs: dict[str, Any], tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in numbered(2)[0].items():
        monkeypatch.setenv(name, value)
    out, images = tmp_path / "out.npz", runs["words"][3]
    for words in (
        ("check", *runs["words"][1:], "--out", out),
        ("evaluate", "finetune", runs["folder"] / "one", "--data", images),
        ("embed", runs["folder"] / "one", "--data", images, "--out", out),
        ("bench", "loss"),
    ):
        said = refused(capsys, *words)
        name = "evaluate finetune" if words[0] == "evaluate" else words[0]
        assert f"{name} is for one process: " in said and "torchrun or with one task" in said
    assert not out.exists()
    monkeypatch.setenv("WORLD_SIZE", "many")
    said = refused(capsys, *runs["words"], "--out", out)
    assert "WORLD_SIZE='many'; expected a whole number" in said
