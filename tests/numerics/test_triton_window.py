"""The kernels of window attention against the CPU's path in fp64: on CUDA if there is one, else
interpreted, and compiled for a device that is not there."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensorMode

from leanvit.backbones.base import Backbone
from leanvit.kernels import window_attention as ours
from leanvit.kernels.window_attention import window_attention
from leanvit.kernels.windows import MASKED, Shapes, window_layout
from tests.numerics.test_triton_attention import interpret, packed
from tests.tiny import SWIN, build, noise

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Errors relative to norms, of outputs and of gradients; inputs are rounded before. The interpreter
cuts off what does not fit into bf16, where a device rounds."""
NAMES = ("out", "of qkv", "of fill", "of bias")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """Windows of images of some sizes, and what attends there."""

    shapes: Shapes
    window: int
    shift: int
    heads: int
    width: int
    dtype: torch.dtype = torch.float32
    skip_padding: bool = False

    def inputs(self) -> list[Tensor]:
        """Return qkv [N, 3C], fill [3C], bias [H, T, T] and the gradient of outputs [N, C]."""
        tokens = sum(b * h * w for b, h, w in self.shapes)
        channels, side = self.heads * self.width, self.window**2
        qkv, gradient = noise(tokens, 3 * channels), noise(tokens, channels, seed=1)
        bias = noise(side, side, self.heads, seed=2).permute(2, 0, 1)
        fill = noise(3 * channels, seed=3)
        return [qkv.to(self.dtype), fill, bias, gradient.to(self.dtype)]


Results = list[Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Run = Callable[[Case, list[Tensor]], Results]


def results(attend: Attend, inputs: list[Tensor]) -> Results:
    """Return outputs and the gradients of qkv, fill and bias."""
    qkv, fill, bias = (x.detach().requires_grad_() for x in inputs[:3])
    out = attend(qkv, fill, bias)
    return [out.detach(), *torch.autograd.grad(out, (qkv, fill, bias), inputs[3])]


def plain(case: Case, device: torch.device = CPU) -> Attend:
    """Return `window_attention` in the windows of a case."""
    layout = window_layout(case.shapes, case.window, case.shift, device, case.skip_padding)
    return lambda qkv, fill, bias: window_attention(qkv, fill, bias, layout)[0]


def kernels(case: Case) -> Attend:
    """Return the kernels in the windows of a case."""
    from leanvit.kernels.triton_window_attention import attend_windows

    layout = window_layout(case.shapes, case.window, case.shift, CPU, case.skip_padding)
    assert layout.tables is not None
    tables = layout.tables.windows, layout.tables.patterns, MASKED
    return lambda qkv, fill, bias: attend_windows(qkv, fill, bias, *tables)[0]


def call(content: bytes) -> bytes:
    """Return what the kernels make of a case, in the process that interprets."""
    case, inputs = torch.load(io.BytesIO(content), weights_only=False)
    return packed(results(kernels(case), inputs))


def call_on_device(case: Case, inputs: list[Tensor]) -> Results:
    attend, there = plain(case, torch.device("cuda")), [x.cuda() for x in inputs]
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = results(attend, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    return [x.cpu() for x in found]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, get_context("spawn"), interpret) as pool:
        yield pool


@pytest.fixture(scope="module")
def run(interpreter: Executor) -> Run:
    if torch.cuda.is_available():
        return call_on_device

    def interpreted(case: Case, inputs: list[Tensor]) -> Results:
        content = interpreter.submit(call, packed((case, inputs))).result()
        found: Results = torch.load(io.BytesIO(content))
        return found

    return interpreted


def definition(case: Case, inputs: list[Tensor]) -> Results:
    """Return what the CPU makes of these numbers in fp64."""
    qkv, fill, bias, gradient = inputs
    exact = qkv, fill.to(case.dtype), bias, gradient
    return results(plain(case), [x.double() for x in exact])


def check(found: Results, wanted: Results, dtype: torch.dtype) -> None:
    for name, mine, right in zip(NAMES, found, wanted, strict=True):
        assert mine.dtype == (dtype if name in NAMES[:2] else torch.float32), name
        assert mine.shape == right.shape, name
        error, size = (mine.double() - right).norm(), right.norm()
        assert float(error) <= BOUNDS[dtype] * float(size) + 1e-12, name


CASES = {
    "7": Case(((2, 7, 7),), 7, 0, 2, 32),
    "7 shifted, two sizes, padded": Case(((1, 9, 10), (2, 7, 5)), 7, 3, 2, 32),
    "7 shifted, two sizes, padding skipped": Case(
        ((1, 9, 10), (2, 7, 5)), 7, 3, 2, 32, skip_padding=True
    ),
    "7 padded": Case(((1, 4, 16),), 7, 0, 1, 32),
    "7 shifted, wide heads": Case(((1, 7, 10),), 7, 3, 1, 128),
    "4 shifted, two sizes, padded": Case(((1, 9, 10), (2, 4, 4)), 4, 2, 2, 16),
    "3 shifted, odd width": Case(((2, 7, 5),), 3, 1, 1, 24),
    "6 padded": Case(((2, 5, 7),), 6, 0, 1, 32),
    "one token a window": Case(((2, 3, 1),), 1, 0, 2, 8),
    "several windows a program": Case(((2, 6, 6),), 3, 1, 4, 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_path_of_the_cpu(run: Run, case: Case, dtype: torch.dtype) -> None:
    case = replace(case, dtype=dtype)
    inputs = case.inputs()
    check(run(case, inputs), definition(case, inputs), dtype)


def test_half_precision(run: Run) -> None:
    case = Case(((1, 5, 9),), 4, 2, 2, 32, torch.float16)
    inputs = case.inputs()
    check(run(case, inputs), definition(case, inputs), case.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_window_of_fourteen(run: Run, dtype: torch.dtype) -> None:
    """196 slots are several tiles of keys, the last short; a window is cut in four."""
    case = Case(((1, 14, 12),), 14, 7, 1, 16, dtype)
    inputs = case.inputs()
    check(run(case, inputs), definition(case, inputs), dtype)


def test_without_padding_its_row_has_no_gradient(run: Run) -> None:
    case = CASES["7"]
    inputs = case.inputs()
    inputs[1].fill_(1e30)  # its square is inf
    found = run(case, inputs)
    assert not found[2].any() and all(x.isfinite().all() for x in found)


def test_the_same_call_gives_the_same_bits(run: Run) -> None:
    case = replace(CASES["several windows a program"], dtype=torch.bfloat16)
    inputs = case.inputs()
    for first, second in zip(run(case, inputs), run(case, inputs), strict=True):
        assert first.equal(second)


def test_masked_keys_win_where_their_logits_are_larger(run: Run) -> None:
    """The mask is -100, not -inf: a bias of hundreds outweighs it."""
    case = Case(((1, 7, 8),), 4, 2, 1, 16)
    inputs = case.inputs()
    inputs[2] = 200 * inputs[2]
    found, wanted = run(case, inputs), definition(case, inputs)
    unmasked = definition(replace(case, shift=0), inputs)[0]
    assert (unmasked - wanted[0]).norm() > 0.1 * wanted[0].norm()
    for mine, right in zip(found[:2], wanted[:2], strict=True):
        assert (mine - right).norm() <= 1e-4 * right.norm()  # logits of 600 are known to 5e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [4, 7])
def test_huge_logits_choose_one_key(run: Run, window: int, dtype: torch.dtype) -> None:
    """Keys are far from each other: logits of 1e5 and more differ by thousands, or are equal."""
    case = Case(((1, 7, 6),), window, 2, 1, 16, dtype)
    qkv, fill, bias, gradient = case.inputs()
    qkv[:, 1:32], fill[1:32] = 0, 0
    qkv[:, 0], qkv[:, 16] = 1e3, torch.linspace(-1e3, 1e3, 42).to(dtype)[torch.arange(42) * 11 % 42]
    fill[0], fill[16] = 1e3, -2e3
    inputs = [qkv, fill, bias, gradient]
    found, wanted = run(case, inputs), definition(case, inputs)
    assert all(x.isfinite().all() for x in found)
    assert (found[0].double() - wanted[0]).norm() <= BOUNDS[dtype] * wanted[0].norm()


VIEWS = [noise(1, 3, 18, 24), noise(1, 3, 16, 16)]


def of_swin(backbone: Backbone) -> list[Tensor]:
    """Return region features of views and the gradients of all parameters."""
    grids = [found.grid for found in backbone(VIEWS)]
    weights = [noise(*grid.shape) for grid in grids]
    return [*grids, *torch.autograd.grad(grids, list(backbone.parameters()), weights)]


def compiled() -> bytes:
    """Return `of_swin` with blocks that are compiled around the kernels."""
    graphs: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return aot_eager(graph, inputs)

    backbone = build(SWIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "_has_kernels", lambda *_: True)
        for block in backbone.blocks():
            block.compile(backend=backend, fullgraph=True)
        found = of_swin(backbone)
    assert [graph.count("torch.ops.leanvit.window_attention.default") for graph in graphs] == [
        1
    ] * 4
    return packed([x.detach() for x in found])


def test_blocks_compile_whole_around_the_kernels(interpreter: Executor) -> None:
    found = torch.load(io.BytesIO(interpreter.submit(compiled).result()))
    for mine, right in zip(found, of_swin(build(SWIN)), strict=True):
        assert (mine - right).norm() <= 1e-5 * right.norm() + 1e-6


def operators_are_sound() -> None:
    """Let torch check schema, stand-ins and gradients of the operator, traced and not."""
    from leanvit.kernels.triton_window_attention import attend_windows

    layout = window_layout(((2, 3, 3),), 3, 1, CPU)
    inputs = noise(18, 48), noise(48), noise(1, 9, 9)
    assert layout.tables is not None
    tables = layout.tables.windows, layout.tables.patterns
    arguments = *(x.requires_grad_() for x in inputs), *tables, MASKED
    torch.library.opcheck(attend_windows, arguments)
    out, _ = attend_windows(*arguments)
    (gradient,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_torch_takes_the_operator_for_its_own(interpreter: Executor) -> None:
    interpreter.submit(operators_are_sound).result()


def test_the_kernels_are_taken_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cuda") -> bool:
        return ours._has_kernels(torch.empty(*shape, dtype=dtype, device=device), 2)

    with FakeTensorMode():
        assert all(taken(5, 6 * 32, dtype=dtype) for dtype in BOUNDS)
        assert not taken(5, 6 * 32, device="cpu")
        assert not taken(5, 6 * 32, dtype=torch.float64)
        assert taken(5, 6 * 128) and not taken(5, 6 * 129)
        monkeypatch.setattr(ours, "exporting", lambda: True)
        assert not taken(5, 6 * 32)


def test_window_attention_calls_them_unless_logits_are_asked() -> None:
    case = CASES["4 shifted, two sizes, padded"]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        build = window_layout.__wrapped__  # type: ignore[attr-defined]
        there = build(case.shapes, case.window, case.shift, torch.device("cuda"))
        qkv, fill, bias = (
            mode.from_tensor(x).to("cuda").requires_grad_() for x in case.inputs()[:3]
        )
        out, logits = window_attention(qkv, fill, bias, there)
        assert logits is None and "leanvit_window_attention" in type(out.grad_fn).__name__
        other, logits = window_attention(qkv, fill, bias, there, with_logits=True)
        assert logits is not None and other.shape == out.shape and other.dtype == out.dtype
        assert "leanvit" not in type(other.grad_fn).__name__


KERNELS = ("_attend", "_grad_keys", "_grad_queries", "_grad_bias")
LEAST_SHARED = 99 * 1024
"""Bytes of shared memory that a program may take on any GPU since Ampere."""


@pytest.mark.parametrize(
    ("side", "width", "dtype", "target"),
    [
        (49, 32, torch.bfloat16, 90),
        (196, 32, torch.bfloat16, 90),
        (49, 128, torch.float16, 90),
        (49, 32, torch.float32, 90),
        (16, 128, torch.float32, 90),
        (196, 64, torch.bfloat16, 80),
    ],
    ids=str,
)
def test_they_compile(
    side: int, width: int, dtype: torch.dtype, target: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """The interpreter accepts what the compiler may not; the latter needs no device."""
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from leanvit.kernels import triton_window_attention as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = kernels._sizes(torch.empty(1, 3 * width, dtype=dtype), 1, side)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    alone = sizes["tile"] >= side
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    types = dict.fromkeys(("qkv", "gradient", "of_qkv", "out"), f"*{kind}")
    types |= dict.fromkeys(("fill", "bias", "log_sum", "of_fill", "of_bias"), "*fp32")
    types |= {"windows": "*i32", "patterns": "*i32", "masked": "fp32"}
    types |= {"count": "i32", "group": "i32"}
    for name in KERNELS[: 2 if alone else 4]:
        kernel = getattr(kernels, name)
        absent = {"out": None} if alone and name == "_grad_keys" else {}
        given = {name: kind for name, kind in types.items() if name not in absent}
        signature = {name: given.get(name, "constexpr") for name in kernel.arg_names}
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, kind in enumerate(signature.values())
            if kind.startswith("*")
        }
        source = ASTSource(kernel, signature, sizes | absent, aligned)
        made = compiled(source, target=GPUTarget("cuda", target, 32), options=options)
        assert 0 < made.metadata.shared <= LEAST_SHARED, name
