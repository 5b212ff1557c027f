"""`leanvit bench loss`: what it measures, counts and says; never how fast a machine is."""

import json
from statistics import median

import pytest
import torch

from leanvit.bench import loss as bench
from leanvit.bench.loss import Contender, LossReport, Problem, bench_loss, contenders
from leanvit.cli import main
from leanvit.config.bench import BenchLossConfig
from tests.integration.command import Says, leanvit_process, refused

TINY = ("--batches", "1", "2", "--prototypes", "64", "--bottleneck", "8", "--rounds", "2")
KEYS = {
    *("speedup_official_fp32", "speedup_official_bf16", "speedup_best_fp32"),
    *("memory_ratio_official", "memory_ratio_best"),
}


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    process = leanvit_process("bench", "loss", *TINY, "--threads", "1", "--json")
    assert process.returncode == 0, process.stderr
    result: dict[str, object] = json.loads(process.stdout)
    return result


def test_json_has_the_ratios_and_all_that_they_come_from(found: dict[str, object]) -> None:
    assert found.keys() >= KEYS and found["batch"] == 2
    batches = found["batches"]
    assert isinstance(batches, dict) and list(batches) == ["1", "2"]
    for entry in batches.values():
        assert {len(rounds) for rounds in entry["rounds"].values()} == {2}
        for name, rounds in entry["rounds"].items():
            assert entry["seconds"][name] == median(rounds)
        assert entry["speedup_official_fp32"] == pytest.approx(
            entry["seconds"]["official fp32"] / entry["seconds"]["residuals fp32"]
        )
    machine = found["machine"]
    assert isinstance(machine, dict) and machine["threads"] == 1 and machine["prototypes"] == 64


def report() -> LossReport:
    """Figures by hand: ours takes a second in fp32 and half in bf16, and a tenth of the bytes."""
    seconds = {
        Contender("official", "fp32"): [4.0, 100.0, 4.0],
        Contender("official", "bf16"): [3.0] * 3,
        Contender("best with logits", "fp32"): [2.0] * 3,
        Contender("residuals", "fp32"): [1.0] * 3,
        Contender("residuals", "bf16"): [0.5] * 3,
    }
    memory = {(8, contender): 10 * 2**20 for contender in seconds}
    memory[8, Contender("residuals", "fp32")] = 2**20
    config = BenchLossConfig(batches=(8,), threads=1, device="cpu")
    return LossReport(config, {"fp32": 200.0}, {8: seconds}, memory, {2: [0.5]}, {1024: 5 * 2**20})


def test_ratios_are_of_medians() -> None:
    ratios = report().ratios(8)
    assert ratios == {
        "speedup_official_fp32": 4,
        "speedup_official_bf16": 8,
        "speedup_official_both_bf16": 6,
        "speedup_best_fp32": 2,
        "memory_ratio_official": 0.1,
        "memory_ratio_best": 0.1,
    }
    assert ratios.keys() >= KEYS


def test_who_finds_no_memory_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: Says) -> None:
    def out_of_memory(_: Problem) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "OPPONENTS", {"official": out_of_memory})
    every = [Contender("official", "fp32"), Contender("residuals", "fp32")]
    config = BenchLossConfig(prototypes=16, bottleneck=4, rounds=1, threads=1, device="cpu")
    found = bench._in_turn(1, every, config, True)
    assert list(found) == [Contender("residuals", "fp32")]
    assert "official fp32 finds too little memory at batch 1." in capsys.readouterr().err
    assert LossReport(config, {}, {1: found}, {}, {}, {}).ratios(1) == {}


def test_the_table_shows_every_figure() -> None:
    text = str(report())
    assert "official fp32" in text and "4.000" in text and "500.00" in text
    lines = [line for line in text.splitlines() if line.endswith("<- auto")]
    assert [line.split()[:3] for line in lines] == [
        ["residuals", "fp32", "1.000"],
        ["residuals", "bf16", "0.500"],
    ]
    assert "prototypes 1024" in text and "5 MiB" in text


def test_all_contenders_compute_one_loss() -> None:
    config = BenchLossConfig(batches=(2,), prototypes=64, bottleneck=8, threads=1, device="cpu")
    problem, found = Problem(2, config), {}
    for contender in contenders("cpu"):
        problem.step(contender.loss, bench.DTYPES[contender.precision])
        rows, prototypes = problem.student.rows.grad, problem.student.prototypes.grad
        assert rows is not None and prototypes is not None
        found[str(contender)] = torch.cat([rows, prototypes])
    exact = found.pop("official fp32")
    for name, gradients in found.items():
        bound = {"fp32": 1e-5, "bf16": 0.15 if "official" in name else 0.02}[name[-4:]]
        assert float((gradients - exact).norm() / exact.norm()) < bound, name


def test_the_published_views_are_measured() -> None:
    problem = Problem(3, BenchLossConfig(prototypes=16, bottleneck=4, device="cpu"))
    assert problem.student.rows.shape == (3 * (2 * 49 + 8 * 9), 4)
    assert problem.teacher.rows.shape == (3 * 2 * 49, 4)
    assert len(problem.pairs().student) == 3 * (2 * 49 + 2 * 8 * 9)


def test_growth_is_measured_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_extra_memory", lambda *_: 7)
    monkeypatch.setattr(bench, "GROWING_BATCHES", (1, 2))
    config = BenchLossConfig(
        batches=(1,), prototypes=16, bottleneck=4, rounds=1, threads=1, growth=True
    )
    threads = torch.get_num_threads()
    try:
        found = bench_loss(config, quiet=True)
    finally:
        torch.set_num_threads(threads)
    assert list(found.by_rows) == [1, 2]
    assert found.by_prototypes == dict.fromkeys(bench.GROWING_PROTOTYPES, 7)
    assert found.to_dict()["extra_bytes_by_prototypes"]["1024"] == 7


def test_mistakes_are_named(capsys: Says) -> None:
    assert "Name what to measure: loss." in refused(capsys, "bench")
    assert "did you mean 'loss'" in refused(capsys, "bench", "los")
    assert "at least 1" in refused(capsys, "bench", "loss", "--rounds", "0")
    assert "name one batch" in refused(capsys, "bench", "loss", "--batches")
    assert "finds no CUDA" in refused(capsys, "bench", "loss", "--device", "cuda")


def test_help_lists_the_options(capsys: Says) -> None:
    assert main(["bench", "loss", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in ("batches", "prototypes", "rounds", "growth"))
    assert main(["bench", "--help"]) == 0
    assert "loss" in capsys.readouterr().out
