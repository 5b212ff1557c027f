"""Runs whose blocks are computed again or compiled: what is said, and how they go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leanvit.cli import main
from leanvit.core import compiling
from tests.integration.command import TINY, Finished, Says, refused
from tests.integration.test_resuming import STATE, cut, same_weights, went_on

pytestmark = [
    pytest.mark.usefixtures("undrawn"),
    pytest.mark.filterwarnings("ignore"),  # of torch about its own tracing
]


@pytest.fixture(autouse=True)
def without_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation is tracing alone."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")


def test_a_run_goes_on_with_less_memory(run: Finished, tmp_path: Path, capsys: Says) -> None:
    """To the same bits, and nothing is to be allowed."""
    out = cut(run, tmp_path)
    went_on(capsys, "pretrain", "--out", out, "--resume", "--train.recompute", "full")
    assert same_weights(out, run.out)
    assert json.loads((out / "resolved.json").read_text())["config"]["train"]["recompute"] == "none"


def test_a_run_says_what_it_compiled(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out = tmp_path / "run"
    words = ("pretrain", "esvit", "--data", run.data, *TINY, "--out", str(out))
    said = went_on(capsys, *words, "--train.compile", "blocks")
    (line,) = [line for line in said.splitlines() if line.startswith("compiled")]
    assert line.startswith("compiled 4 kinds of blocks in ") and line.endswith(" s")
    found = json.loads((out / "summary.json").read_text())
    assert found["compiled"] == 4 and 0 < found["compile_s"] < found["seconds"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert "compiled" not in rows[0] and [row["compiled"] for row in rows[1:]] == [4] * 4
    assert "compiled" not in json.loads((run.out / "summary.json").read_text())
    assert json.loads((out / STATE.replace("safetensors", "json")).read_text())["step"] == 4


def test_what_is_given_as_a_run_goes_on_is_written_down(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = cut(run, tmp_path)
    words = ("--train.recompute", "full", "--train.duration", "6st", "--allow", "train.duration")
    went_on(capsys, "pretrain", "--out", out, "--resume", *words)
    record = json.loads((out / "resolved.json").read_text())
    assert record["config"]["train"]["recompute"] == "full"
    assert record["origins"]["train.recompute"] == "given"


def test_a_run_is_compiled_from_a_step_on(run: Finished, tmp_path: Path, capsys: Says) -> None:
    """It rounds otherwise, so it is to be allowed; a replay of it is not compiled, and says so."""
    out = cut(run, tmp_path)
    words = ("pretrain", "--out", out, "--resume", "--train.compile", "blocks")
    assert "train.compile was 'none', now 'blocks'" in refused(capsys, *words, lines=3)
    assert "compiled 4 kinds" in went_on(capsys, *words, "--allow", "train.compile")
    again = ("replay", str(out), "--step", "2", "--out", str(tmp_path / "again"), "--json")
    assert main([*again]) == 0
    assert json.loads(capsys.readouterr().out)["same"]


def cannot(_: torch.fx.GraphModule, __: list[Tensor]) -> Callable[..., Any]:
    raise OSError("no compiler\nand more")


@pytest.mark.parametrize(("backend", "code"), [(cannot, 1), ("no such backend", 2)])
def test_a_failure_names_the_way_out(
    backend: Any,
    code: int,
    run: Finished,
    tmp_path: Path,
    capsys: Says,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And ends the run, or keeps it from beginning."""
    monkeypatch.setattr(compiling, "BACKEND", backend)
    out = tmp_path / "run"
    words = ["pretrain", "esvit", "--data", run.data, *TINY, "--out", str(out)]
    assert main([*words, "--train.compile", "blocks"]) == code
    said = capsys.readouterr().err
    assert "torch cannot compile" in said and "--train.compile none" in said
    assert "Traceback" not in said and out.exists() == (code == 1)
