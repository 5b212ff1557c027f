"""`leanvit bench step`: what it measures, compares and says; never how fast a machine is."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leanvit.backbones import layers, swin
from leanvit.bench import everything, fed_step
from leanvit.bench import step as bench
from leanvit.bench.lightly_step import LightlyDINO
from leanvit.bench.operations import count_flops, count_operations
from leanvit.bench.plain_step import PlainStep
from leanvit.bench.step import OurStep, Problem, Task, bench_step
from leanvit.bench.step_report import Alone, Grown, StepReport
from leanvit.bench.tables import Form
from leanvit.cli import main
from leanvit.config import BACKBONES, RunConfig, compose
from leanvit.config.bench import (
    BenchAllConfig,
    BenchForwardConfig,
    BenchLossConfig,
    BenchStepConfig,
)
from leanvit.data.loader import load_views
from leanvit.methods.dino import DINO
from leanvit.recipes import recipe
from tests.integration.command import Says, refused
from tests.tiny import SWIN, VIT, noise, write_images

SMALL: dict[str, Any] = {
    "train.batch": 2,
    "train.duration": "1000st",
    "train.device": "cpu",
    "train.accumulate": 1,
}
CROPS: dict[str, Any] = {
    "method.head.prototypes": 64,
    "method.head.hidden": 16,
    "method.head.bottleneck": 8,
    "method.views.global_size": 32,
    "method.views.local_sizes": (16,),
    "method.views.local_counts": (2,),
}


def small(name: str) -> RunConfig:
    backbone = SWIN if name == "esvit" else VIT
    options = SMALL | ({"method.views.size": 32} if name == "mae" else CROPS)
    return compose(replace(recipe(name), backbone=backbone), options=options)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("esvit", "plain"),
        ("esvit", "ours"),
        ("dino", "lightly, timm"),
        ("dino", "lightly, our backbone"),
        ("mae", "lightly, timm"),
        ("mae", "ours"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_step_trains(name: str, form: str, precision: str) -> None:
    """Its loss is a number, and what it trains moves."""
    task = Task(Problem(small(name), 1), Form(form, precision))
    built, views = task.trained, task.views
    networks: dict[type, str] = {OurStep: "state.method", PlainStep: "student"}
    network: Any = built
    for part in filter(None, networks.get(type(built), "").split(".")):
        network = getattr(network, part)
    before = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    for _ in range(2):
        found = built.step(views)
        loss = built.state.row()["loss"] if isinstance(built, OurStep) else float(found)  # type: ignore[arg-type]
        assert 0 < loss < 20
    still = {n for n, p in network.named_parameters() if n in before and p.equal(before[n])}
    assert not {n for n in still if "mask_token" not in n}, still


def test_lightlys_loss_is_ours() -> None:
    """With the same heads: the opponent does the same job."""
    problem = Problem(small("dino"), 1)
    tasks = [Task(problem, Form(name, "fp32")) for name in ("lightly, our backbone", "ours")]
    (theirs, ours), views = (task.trained for task in tasks), tasks[0].views
    assert isinstance(theirs, LightlyDINO) and isinstance(ours, OurStep)
    method = ours.state.method
    assert isinstance(method, DINO)
    own = {
        name.replace("mlp.", "layers."): value
        for name, value in method.student.head.state_dict().items()
    }
    for network in (theirs.student, theirs.teacher):
        network[1].load_state_dict(own)
    loss = float(theirs.step(views))
    ours.step(views)
    assert loss == pytest.approx(ours.state.row()["loss"], rel=1e-4)


def test_a_step_wastes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """EsViT's Swin-T: fewer than 1,500 operations, and not one number that the host waits for.

    Without the chunks of the CPU, whose number says nothing; as a GPU is given it.
    """
    for module in (layers, swin):
        monkeypatch.setattr(module, "fits", lambda *_: False)
    options = SMALL | {"method.head.prototypes": 512, "train.precision": "fp32"}
    asked = compose(replace(recipe("esvit"), backbone=BACKBONES["swin_tiny"]), options=options)
    task = Task(Problem(asked, 1), Form("ours", "fp32"))
    task.step()
    found = count_operations(task.step)
    assert found.counts.total() < 1500, found.counts.most_common(20)
    assert not found.reads, found.reads


def test_reads_are_seen() -> None:
    x = noise(4)
    assert count_operations(lambda: x.sum().item()).reads.total() == 1
    assert count_operations(lambda: x[x > 0]).reads.total() >= 1
    assert count_operations(lambda: x[torch.tensor([0, 1])]).reads.total() == 0
    assert count_operations(lambda: x.view(2, 2).T + 1).counts == {"add": 1}


def test_flops_are_counted() -> None:
    a, b = noise(3, 4), noise(4, 5)
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert count_flops(lambda: noise(3, 5).addmm_(a, b)) == 2 * 3 * 4 * 5


def report() -> StepReport:
    forms = Form("plain", "fp32"), Form("ours", "fp32"), Form("ours", "bf16")
    config = BenchStepConfig(device="cpu", threads=1)
    return StepReport(
        config,
        small("esvit"),
        "2x32 + 2x16",
        10**9,
        rates={"fp32": 1e10, "bf16": 4e10},
        seconds={form: [each, each, each] for form, each in zip(forms, (4, 2, 1), strict=True)},
        alone={
            form: Alone(each * 2**30, 1.0, 100, 0)
            for form, each in zip(forms, (6, 3, 2), strict=True)
        },
    )


def test_ratios() -> None:
    found = report()
    assert found.ratios(Form("ours", "fp32")) == {"plain speed": 2, "plain memory": 0.5}
    narrow = found.ratios(Form("ours", "bf16"))
    assert narrow == {"plain fp32 speed": 4, "plain fp32 memory": pytest.approx(1 / 3)}
    assert found.ratios(Form("plain", "fp32")) == {}
    assert found.share(Form("ours", "fp32")) == pytest.approx(4e9 / 2 / 1e10)
    text = str(found)
    assert "| ours bf16 | plain fp32 | 4.00" in text and "of the roofline" in text
    assert json.loads(json.dumps(found.to_dict()))["forms"][1]["plain speed"] == 2


def test_the_whole_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "in_own_process", lambda function, *given: function(*given))
    monkeypatch.setattr(bench, "product_rate", lambda *_: 1e9)
    monkeypatch.setattr(bench, "_problem", lambda _: Problem(small("esvit"), 1))
    config = BenchStepConfig(batch=2, rounds=2, threads=1, device="cpu")
    found = bench_step(config, quiet=True)
    assert list(found.seconds) == [
        Form(name, precision) for precision in ("fp32", "bf16") for name in ("plain", "ours")
    ]
    assert all(len(seconds) == 2 for seconds in found.seconds.values())
    assert found.alone[Form("plain", "fp32")].reads > 0 == found.alone[Form("ours", "fp32")].reads
    assert found.flops > 0 and "plain fp32" in str(found)


def test_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "in_own_process", lambda function, *given: function(*given))
    monkeypatch.setattr(bench, "product_rate", lambda *_: 1e9)
    monkeypatch.setattr(bench, "_problem", lambda c: Problem(small("esvit"), 1))
    grows = {"batch": (2,), "crops": (1, 3), "prototypes": (32,), "image": (32,)}
    monkeypatch.setattr(bench, "GROWING", grows)
    config = BenchStepConfig(batch=2, rounds=1, threads=1, device="cpu", growth=True)
    found = bench_step(config, quiet=True)
    assert [(each.what, each.value) for each in found.grown] == [
        (what, value) for what, values in grows.items() for value in values
    ]
    assert "peak GiB" in str(found)


def test_the_law_joins_the_ends() -> None:
    found = report()
    for value, seconds in ((100, 1.0), (200, 2.0), (300, 9.0)):
        found.grown.append(Grown("image", value, 4, [seconds], 2**30))
    assert [found.expected(each) for each in found.grown] == pytest.approx([1, 4, 9])


def test_everything_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noted(config: Any, quiet: bool) -> StepReport:
        asked.append(config)
        return report()

    for name in ("bench_loss", "bench_forward", "bench_step"):
        monkeypatch.setattr(everything, name, noted)
    found = everything.bench_all(BenchAllConfig(batch=2, rounds=1, device="cpu", threads=1))
    assert [type(each) for each in asked] == [
        BenchLossConfig,
        BenchForwardConfig,
        *[BenchStepConfig] * 3,
    ]
    assert [each.recipe for each in asked[2:]] == ["esvit", "dino", "mae"]
    assert {each.device for each in asked} == {"cpu"} and {each.rounds for each in asked} == {1}
    assert "## MAE step" in str(found) and len(found.to_dict()) == 5


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("esvit", ["plain"]),
        ("dino", ["lightly, timm", "lightly, our backbone"]),
        ("mae", ["lightly, timm"]),
    ],
)
def test_auto_takes_the_opponents_there_are(name: str, there: list[str]) -> None:
    forms = bench._forms(small(name), BenchStepConfig(precisions=("fp32",)))
    assert [form.name for form in forms] == [*there, "ours"]
    alone = bench._forms(small(name), BenchStepConfig(precisions=("fp32",), against=()))
    assert alone == [Form("ours", "fp32")]


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(function: Any, *given: Any) -> Any:
        if Form("plain", "fp32") in given:
            raise torch.OutOfMemoryError("no")
        return function(*given)

    monkeypatch.setattr(bench, "in_own_process", apart)
    monkeypatch.setattr(bench, "product_rate", lambda *_: 1e9)
    monkeypatch.setattr(bench, "_problem", lambda _: Problem(small("esvit"), 1))
    config = BenchStepConfig(batch=2, rounds=1, threads=1, device="cpu", precisions=("fp32",))
    found = bench_step(config, quiet=True)
    assert list(found.seconds) == [Form("ours", "fp32")]
    assert "plain fp32: finds too little memory." in str(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--recipe", "mae", "--against", "plain"],
            "plain has no step of mae on vit: it has",
        ),
        (["--recipe", "dino", "--against", "plain"], "plain has no step of dino on vit"),
        (["--against", "lightly"], "lightly has no step of esvit on swin: it has dino, and mae on"),
        (["--against", "plain", "lightl"], "lightly"),
        (["--precisions"], "precisions"),
        (["--growth", "true", "--precisions", "bf16", "fp32"], "one precision"),
        (["--batch", "0"], "batch"),
    ],
)
def test_mistakes(given: list[str], said: str, capsys: Says) -> None:
    assert said in refused(capsys, "bench", "step", *given)


def test_help(capsys: Says) -> None:
    assert main(["bench", "step", "--help"]) == 0
    assert "--against" in capsys.readouterr().out


# Real images


def test_ours_is_timed_on_real_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    """Waiting for views counts: each batch takes a second to come on a clock of our own."""
    images = write_images(tmp_path / "images", 12)
    monkeypatch.setattr(bench, "recipe", small)
    monkeypatch.setattr(bench, "in_own_process", lambda job, *given: job(*given))
    clock, load = [0.0], load_views

    def slowly(*given: Any, **named: Any) -> Iterator[Any]:
        for batch in load(*given, **named):
            clock[0] += 1
            yield batch

    monkeypatch.setattr(fed_step, "load_views", slowly)

    def by_the_clock(action: Callable[[], object], _: str) -> float:
        before = clock[0]
        action()
        return clock[0] - before

    monkeypatch.setattr(fed_step, "seconds_of", by_the_clock)
    config = BenchStepConfig(
        recipe="dino",
        prototypes=64,
        batch=2,
        rounds=3,
        threads=1,
        device="cpu",
        precisions=("fp32",),
        against=(),
        source=str(images),
    )
    report = bench_step(config, quiet=True)
    assert report.seconds[Form("ours, from images", "fp32")] == [1.0, 1.0, 1.0]
    alone = report.alone[Form("ours, from images", "fp32")]
    assert alone.operations == report.alone[Form("ours", "fp32")].operations and alone.reads == 0
    assert "| ours, from images fp32 | 1.000 | 1.000 to 1.000 | 2.00 " in str(report)
    with pytest.raises(ValueError, match="nowhere"):
        bench_step(replace(config, source=str(tmp_path / "nowhere")), quiet=True)
    assert "leave out either" in refused(capsys, "bench", "step", "--growth", "--source", images)
