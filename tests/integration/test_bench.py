"""`leanvit bench`: what it measures, counts and says; never how fast a machine is."""

import json
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image

from leanvit.bench import loss as bench
from leanvit.bench.data import DataReport, published_views
from leanvit.bench.loss import Contender, LossReport, Problem, bench_loss, contenders
from leanvit.cli import main
from leanvit.config import DataConfig
from leanvit.config.bench import BenchDataConfig, BenchLossConfig
from leanvit.core import random
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


@pytest.mark.long
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


@pytest.fixture
def without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fastest on a CPU without matrix units, wherever the test runs."""
    monkeypatch.setattr("leanvit.bench.loss.best_form", lambda *_, **__: "residuals")


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


@pytest.mark.usefixtures("without_units")
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


@pytest.mark.usefixtures("without_units")
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
    assert "Name what to measure: loss, data, forward, step, all." in refused(capsys, "bench")
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


# Decoding and views


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photographs")
    draw = np.random.default_rng(0)
    for number in range(9):
        coarse = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90 + number, 70)).save(folder / f"{number}.jpg")
    (folder / "bad.jpg").write_bytes(b"no photograph")
    return str(folder)


@pytest.mark.long
def test_data_is_measured_beside_torchvision(photographs: str) -> None:
    words = ("--images", "10", "--batch", "4", "--rounds", "2", "--device", "cpu", "--json")
    process = leanvit_process("bench", "data", "--source", photographs, *words)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    seconds = found["seconds"]
    assert seconds.keys() == {"pillow", "host", "share", "decode"}
    assert {len(rounds) for rounds in seconds.values()} == {2}
    for name in ("host", "share"):
        ratio = median(seconds["pillow"]) / median(seconds[name])
        assert found[f"speedup_{name}"] == pytest.approx(ratio)
    assert found["workers"].keys() == {f"{k} {n}" for k in ("processes", "threads") for n in (1, 2)}
    assert found["machine"]["images"] == 8 and found["device_seconds"] == []


def test_the_report_of_data_shows_every_figure() -> None:
    seconds = {"pillow": [0.02] * 3, "host": [0.005, 0.004, 0.1], "share": [0.002] * 3}
    config = BenchDataConfig(source="place/photos.tar", device="cpu")
    text = str(DataReport(config, 64, seconds, {"threads 2": [0.001]}, [0.0001]))
    assert "photos.tar" in text and "place" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "through Pillow 50.0 20.000 (20.000 to 20.000)" in lines
    assert "ours on the CPU 200.0 5.000 (4.000 to 100.000)" in lines
    assert "threads 2 1000.0 1.000 (1.000 to 1.000)" in lines
    assert "rendered on device 10000.0 0.100 (0.100 to 0.100)" in lines
    assert any(line.startswith("4.00 times") for line in lines)
    assert any(line.startswith("10.00 times") for line in lines)


def test_the_opponents_views_are_the_published_ones() -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    with random.seeded(0, "test"):
        views = [make(photo) for make in published_views(DataConfig())]
    assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * 2 + [(3, 96, 96)] * 8
    assert all(view.isfinite().all() and view.std() > 0 for view in views)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Name photographs to measure on: --source FOLDER"),
        (("--source", "sample"), "has 0 encoded images that can be read, fewer than the 16"),
        (("--source", "sample", "--images", "4"), "A batch of 16 needs as many images, not 4"),
        (("--source", "nowhere"), "'nowhere' does not exist"),
    ],
)
def test_what_cannot_be_measured_is_said(words: tuple[str, ...], said: str, capsys: Says) -> None:
    assert said in refused(capsys, "bench", "data", *words)
