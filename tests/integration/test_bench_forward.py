"""`leanvit bench forward`: what it measures, compares and says; never how fast a machine is."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from leanvit.bench import forward as bench
from leanvit.bench.forward import Problem, Task, bench_forward
from leanvit.bench.forward_report import (
    OURS,
    SKIPPING,
    TIMM,
    Case,
    Failure,
    ForwardReport,
    Grown,
    Measured,
    Throughput,
)
from leanvit.bench.machine import in_own_process
from leanvit.bench.tables import Form
from leanvit.bench.twins import Ours, Twin, has_twin, require_equal
from leanvit.cli import main
from leanvit.config import BACKBONES, BackboneConfig, SwinConfig, named_backbone
from leanvit.config.bench import BenchForwardConfig
from leanvit.core.errors import RunError
from tests.integration.command import Says, refused
from tests.tables import write_network
from tests.tiny import CVT, SWIN, VIT, VIT_FULL, build, noise

SMALL = BenchForwardConfig(
    backbones=("swin_tiny",),
    batch=1,
    global_size=32,
    local_size=16,
    precisions=("fp32",),
    rounds=2,
    threads=1,
    device="cpu",
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let names mean small networks, and every process find the same memory."""
    names: dict[str, BackboneConfig] = {"swin_tiny": SWIN, "vit_small": VIT, "cvt_tiny": CVT}
    monkeypatch.setattr(bench, "named_backbone", lambda n: names.get(n) or named_backbone(n))
    monkeypatch.setattr(bench, "in_own_process", lambda *_: 7)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# The opponents


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize(
    "config",
    [SWIN, VIT, replace(VIT, pool="mean", layer_scale=0.5), BACKBONES["swin_nano"]],
    ids=["swin", "vit", "vit, mean", "swin_nano"],
)
def test_timm_gives_the_same_features(config: BackboneConfig, flexible: bool) -> None:
    ours = build(config).eval()
    twin = Twin(ours, flexible=flexible).eval()
    image = noise(2, 3, config.image_size, config.image_size)
    with torch.no_grad():
        mine, others = Ours(ours)([image]), twin([image])
    for found, other in zip(mine, others, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4)


def test_who_has_an_opponent() -> None:
    alone = {name for name, config in BACKBONES.items() if not has_twin(config)}
    assert {"cvt_tiny", "resnet50", "vil_2262", "vit_tiny_h12_rpe"} <= alone
    assert not {"swin_tiny", "swin_base_w14", "vit_small", "vit_base_p14"} & alone
    assert not has_twin(VIT_FULL) and not has_twin(replace(VIT, pool="mean_norm"))


def test_another_function_is_refused() -> None:
    ours, image = build(SWIN), noise(2, 3, 32, 32)
    twin = Twin(ours, flexible=False)
    require_equal("swin_tiny", Ours(ours), twin, image)
    next(twin.parameters()).data.mul_(1.1)
    with pytest.raises(RunError, match="other features than our swin_tiny"):
        require_equal("swin_tiny", Ours(ours), twin, image)


def test_a_file_of_weights_is_measured_too(tmp_path: Path) -> None:
    file = str(write_network(tmp_path / "some.safetensors"))
    found = bench_forward(replace(SMALL, backbones=(file,), passes=("image",)), quiet=True)
    assert {m.case.backbone for m in found.measured} == {file} and not found.failed


@pytest.mark.parametrize("name", [OURS, TIMM])
def test_a_training_step_has_gradients_of_every_parameter(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(Problem(SWIN, ((2, 32), (8, 16)), True), Form(name, "fp32"), SMALL)
    seen: list[Tensor | None] = []

    def look(outputs: list[Tensor], gradients: list[Tensor]) -> None:
        backward(outputs, gradients)
        seen.extend(parameter.grad for parameter in task.network.parameters())

    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", look)
    task.step()
    assert seen and all(grad is not None and grad.abs().sum() > 0 for grad in seen)
    assert all(parameter.grad is None for parameter in task.network.parameters())
    assert not any(view.requires_grad for view in task.views)


# The command


def test_every_pass_is_measured_beside_timm() -> None:
    config = replace(SMALL, backbones=("swin_tiny", "cvt_tiny"), precisions=("fp32", "bf16"))
    found = bench_forward(config, quiet=True)
    cases = {(m.case.what, m.case.training) for m in found.measured}
    views = "2 x 32 + 8 x 16"
    assert cases == {("32", False), ("32", True), (views, False), (views, True)}
    forms = {(m.case.backbone, str(m.form)) for m in found.measured}
    assert forms == {
        *(("swin_tiny", f"{name} {precision}") for name in (OURS, TIMM) for precision in
          ("fp32", "bf16")),
        *(("cvt_tiny", f"ours {precision}") for precision in ("fp32", "bf16")),
        *(("swin_tiny", f"{SKIPPING} {precision}") for precision in ("fp32", "bf16")),
    }  # fmt: skip
    skipping = {m.case.what for m in found.measured if m.form.name == SKIPPING}
    assert skipping == {views}, "where nothing is padded there is nothing to skip"
    assert {len(m.seconds) for m in found.measured} == {2}
    assert found.alone == ["cvt_tiny"] and not found.failed
    plain = found.to_dict()
    assert plain["without_opponent"] == ["cvt_tiny"] and plain["machine"]["threads"] == 1
    for entry in plain["cases"]:
        assert entry["seconds"] == median(entry["rounds"])
        compared = entry["backbone"] == "swin_tiny" and entry["form"] == OURS
        assert ("speedup" in entry) == compared
        assert entry.get("memory_ratio", 1) == 1


def test_networks_of_timm_are_measured_alone() -> None:
    config = replace(SMALL, backbones=("timm:test_resnet",), passes=("image",), rounds=1)
    found = bench_forward(config, quiet=True)
    assert [m.case.training for m in found.measured] == [False, True]
    assert "without the same network of timm: timm:test_resnet." in str(found)


def test_passes_and_sizes_are_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[int, int], ...]] = []
    build = Problem.build

    def look(self: Problem, form: Form, device: str) -> Ours | Twin:
        seen.append(self.sizes)
        return build(self, form, device)

    monkeypatch.setattr(Problem, "build", look)
    bench_forward(replace(SMALL, passes=("image",), batch=3), quiet=True)
    assert set(seen) == {((3, 32),)}
    seen.clear()
    bench_forward(replace(SMALL, passes=("views",), global_size=24, local_size=8), quiet=True)
    assert set(seen) == {((2, 24), (8, 8))}


def test_what_timm_refuses_is_in_the_table() -> None:
    found = bench_forward(replace(SMALL, passes=("views",), local_size=15), quiet=True)
    assert {str(m.form) for m in found.measured} == {"ours fp32", f"{SKIPPING} fp32"}
    lines = [line for line in str(found).splitlines() if "takes whole patches alone" in line]
    assert len(lines) == 2 and all("| timm fp32 " in line for line in lines)
    assert found.failed[0].reason == "15 pixels are no multiple of a patch of 2"


# torch.compile

COMPLAINT = "C++ compile error\nmain.cpp:1: error: no such thing\nand more"


def eagerly(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    return graph.forward


def cannot(_: torch.fx.GraphModule, __: list[Tensor]) -> Callable[..., Any]:
    raise RuntimeError(COMPLAINT)


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_compiled_forms_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BACKEND", eagerly)
    found = bench_forward(replace(SMALL, compiled=True, passes=("image",)), quiet=True)
    forms = {str(m.form) for m in found.measured}
    assert forms == {"ours fp32", "timm fp32", "ours fp32 compiled", "timm fp32 compiled"}
    assert not found.failed


@pytest.mark.filterwarnings("ignore")
def test_what_torch_cannot_compile_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BACKEND", cannot)
    found = bench_forward(replace(SMALL, compiled=True, passes=("image",)), quiet=True)
    assert {str(m.form) for m in found.measured} == {"ours fp32", "timm fp32"}
    assert {str(fail.form) for fail in found.failed} == {"ours fp32 compiled", "timm fp32 compiled"}
    assert "| ours fp32 compiled | torch cannot compile it here |" in str(found)
    for entry in found.to_dict()["failed"]:
        assert entry["compiled"] and entry["said"] == "torch cannot compile it here"
        assert entry["reason"] == f"RuntimeError: {'; '.join(COMPLAINT.splitlines()[:2])}"


# Growth, throughput, memory


def test_growth_and_throughput_are_measured_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GROWING", {"batch": (1, 2), "window": (2, 4), "image": (16, 32)})
    monkeypatch.setattr(bench, "SIDE", 32)
    config = replace(SMALL, growth=True, throughput=True, throughput_batch=3, rounds=1)
    found = bench_forward(config, quiet=True)
    assert not found.measured, "they come instead of the comparison"
    points = [("batch", 1), ("batch", 2), ("window", 2), ("window", 4), ("image", 16)]
    assert [(g.what, g.value) for g in found.grown] == [*points, ("image", 32)]
    assert [g.images for g in found.grown] == [1, 2, 1, 1, 1, 1]
    assert [(t.backbone, t.images) for t in found.throughput] == [
        ("vit_small", 3),
        ("swin_tiny", 3),
    ]
    plain = found.to_dict()
    assert len(plain["growth"]) == 6 and plain["growth"][0]["extra_bytes"] == 7
    for entry in (*plain["growth"], *plain["throughput"]):
        assert entry["seconds"] == median(entry["rounds"])
    first, second = plain["throughput"]
    assert first["ratio"] == 1 and first["paper_images_per_second"] == 1007
    expected = second["images_per_second"] / first["images_per_second"]
    assert second["ratio"] == pytest.approx(expected)


def test_memory_is_that_of_a_step_in_a_process_of_its_own() -> None:
    wide = SwinConfig(image_size=64, patch=2, dim=64, depths=(1, 1), heads=(1, 2), window=4)
    problem = Problem(wide, ((8, 64),), True)
    found = in_own_process(bench._peak, problem, Form(OURS, "fp32"), SMALL)
    kept = 8 * 32 * 32 * 64 * 4 * 4  # the MLP's hidden values of the first block alone
    assert kept < found < 100 * kept


# What is said


def report() -> ForwardReport:
    """Figures by hand: ours takes a quarter of the time and half of the memory."""
    case = Case("swin_tiny", "224", False)
    return ForwardReport(
        BenchForwardConfig(batch=8, threads=1, device="cpu"),
        measured=[
            Measured(case, Form(TIMM, "fp32"), 8, [4.0, 100.0, 4.0], 2 * 2**20),
            Measured(case, Form(OURS, "fp32"), 8, [1.0] * 3, 2**20),
            Measured(case, Form(OURS, "bf16"), 8, [0.5] * 3, 2**20),
        ],
        failed=[Failure(case, Form(TIMM, "bf16"), "finds too little memory", "OutOfMemoryError")],
        grown=[Grown("swin_tiny", "window", 14, 8, [2.0], 3 * 2**20)],
        throughput=[
            Throughput("vit_small", "fp32", 128, [1.0, 1.0]),
            Throughput("swin_tiny", "fp32", 128, [2.0, 2.0]),
        ],
        alone=["cvt_tiny"],
    )


def test_the_tables_show_every_figure() -> None:
    lines = [" ".join(line.split()) for line in str(report()).splitlines()]
    case = "| swin_tiny | 224 | forward |"
    assert f"{case} timm fp32 | 4.000 | 4.000 to 100.000 | 500.0 | 2 | | |" in lines
    assert f"{case} ours fp32 | 1.000 | 1.000 to 1.000 | 125.0 | 1 | 4.00 | 0.50 |" in lines
    assert f"{case} ours bf16 | 0.500 | 0.500 to 0.500 | 62.5 | 1 | | |" in lines
    assert f"{case} timm bf16 | finds too little memory | | | | | |" in lines
    assert "| swin_tiny | window | 14 | 2.000 | 2.000 to 2.000 | 250.0 | 3 | 4.0 |" in lines
    assert "| swin_tiny | fp32 | 64.0 | 0.50 | 808 | 0.80 |" in lines
    assert any("rolls before it pads" in line for line in lines)
    assert any("cvt_tiny" in line for line in lines)
    assert any("Rounds differ" in line for line in lines)


def test_tables_are_aligned() -> None:
    tables = str(report()).split("\n\n")[1:4]
    for table in tables:
        head, rule, *rows = table.splitlines()
        assert set(rule) == {"|", "-", " "} and rows
        assert len({len(line) for line in (head, rule, *rows)}) == 1


def test_json_comes_from_the_command(capsys: Says) -> None:
    words = "--backbones swin_tiny --batch 1 --passes image --precisions fp32 --rounds 1 --json"
    assert main(["bench", "forward", *words.split(), "--device", "cpu"]) == 0
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert [entry["form"] for entry in found["cases"]] == [TIMM, OURS] * 2
    assert [entry["extra_bytes"] for entry in found["cases"]] == [7] * 4
    assert "swin_tiny, 32, forward: 1 + 1 rounds of 2 forms" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--backbones swin_tini", "Unknown backbone 'swin_tini'; did you mean 'swin_tiny'?"),
        ("--backbones", "backbones is empty; name one at least, such as swin_tiny"),
        ("--passes view", "Unknown pass 'view'; did you mean 'views'?"),
        ("--precisions fp16", "Unknown precision 'fp16'; did you mean"),
        ("--batch 0", "batch is 0; expected at least 1"),
        ("--throughput-batch 0", "throughput_batch is 0; expected at least 1"),
        ("--device cuda", "finds no CUDA"),
    ],
)
def test_mistakes_are_named(words: str, said: str, capsys: Says) -> None:
    assert said in refused(capsys, "bench", "forward", *words.split())
