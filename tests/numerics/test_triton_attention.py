"""One-pass attention against its definition in fp64: on CUDA where there is one, else interpreted.

Triton reads whether to interpret when it is first imported, and other tests may have imported it:
a process of its own interprets.
"""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import noise

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

Attend = Callable[..., tuple[Tensor, Tensor]]
BOUNDS = {
    torch.float32: (2e-6, 2e-6),
    torch.float16: (1e-3, 1e-4),
    torch.bfloat16: (1e-2, 1e-4),
}
"""Errors relative to the norms of the outputs and of 1 + |log-sums|; inputs are rounded before."""
TYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)
INFINITY = float("inf")


class NoReads(TorchDispatchMode):
    """Refuse to read a number back from a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def interpret() -> None:
    """Make this process interpret Triton, with products of bf16 numbers, not of their bits."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    from triton import language
    from triton.runtime import interpreter

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar is not language.bfloat16:
            return handle
        bits = torch.from_numpy(handle.data.copy()).view(torch.bfloat16)
        return interpreter.TensorHandle(bits.float().numpy(), language.float32)

    dot = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(
        self, widened(a), widened(b), *rest
    )


def packed(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def call(content: bytes) -> bytes:
    """Return what `attend` returns for these arguments; each travels as a file of torch."""
    from leanvit.kernels.triton_attention import attend

    arguments, options = torch.load(io.BytesIO(content))
    with NoReads():
        result = attend(*arguments, **options)
    return packed(result)


def call_on_device(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    from leanvit.kernels.triton_attention import attend

    def moved(x: Any) -> Any:
        return x.cuda() if isinstance(x, Tensor) else x

    there = [moved(x) for x in arguments], {name: moved(x) for name, x in options.items()}
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, log_sum = attend(*there[0], **there[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    return out.cpu(), log_sum.cpu()


@pytest.fixture(scope="module")
def attend() -> Iterator[Attend]:
    if torch.cuda.is_available():
        yield call_on_device
        return
    with ProcessPoolExecutor(1, get_context("spawn"), interpret) as pool:
        yield lambda *arguments, **options: torch.load(
            io.BytesIO(pool.submit(call, packed((arguments, options))).result())
        )


def inputs(
    n: int, k: int, d: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values whose logits at `scale_of(d)` are of size 2."""
    query, key, value = (noise(rows, d, seed=seed) for seed, rows in enumerate((n, k, k)))
    return query.to(dtype), key.to(dtype), value.to(dtype)


def scale_of(d: int) -> float:
    return 2 / d**0.5


def definition(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    logits = scale * query.double() @ key.double().T
    if bias is not None:
        logits = logits + bias.double()
    return logits.softmax(1) @ value.double(), logits.logsumexp(1)


def check(
    ours: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], bounds: tuple[float, float]
) -> None:
    sizes = wanted[0], 1 + wanted[1].abs()  # a log-sum near 0 is what large logits left
    for mine, right, size, bound in zip(ours, wanted, sizes, bounds, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == right.shape
        assert float((mine.double() - right).norm()) <= bound * float(size.norm())


@TYPES
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize(
    "shape", [(130, 70, 256), (67, 200, 40), (129, 129, 16), (1, 1, 256), (5, 1, 16), (1, 97, 40)]
)
def test_it_is_its_definition(
    attend: Attend, shape: tuple[int, int, int], biased: bool, dtype: torch.dtype
) -> None:
    case = (*inputs(*shape, dtype), scale_of(shape[2]))
    bias = 3 * noise(shape[1], seed=3) if biased else None
    check(attend(*case, bias), definition(*case, bias), BOUNDS[dtype])


def test_rows_that_are_not_contiguous_are_read_as_they_are(attend: Attend) -> None:
    query, key, value = inputs(20, 36, 40)
    wide = torch.cat([key, value], 1)
    case = (
        query.T.contiguous().T,
        wide[:, :40],
        wide[:, 40:],
        scale_of(40),
        noise(72, seed=3)[::2],
    )
    check(attend(*case), definition(*case), BOUNDS[torch.float32])


@TYPES
@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_splits_of_the_keys_change_nothing(attend: Attend, splits: int, dtype: torch.dtype) -> None:
    """200 keys are 4 or 7 tiles: the last of 3 or 7 splits is short or has none."""
    case = (*inputs(130, 200, 40, dtype), scale_of(40), 3 * noise(200, seed=3))
    check(attend(*case, splits=splits), definition(*case), BOUNDS[dtype])


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("counts", [(70, 77), (128, 64), (3, 1), (150, 140), (999, 999)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_counted_rows_count(
    attend: Attend, dtype: torch.dtype, counts: tuple[int, int], integer: torch.dtype, splits: int
) -> None:
    query, key, value = inputs(150, 140, 40, dtype)
    bias = 3 * noise(140, seed=3)
    n, k = (min(count, limit) for count, limit in zip(counts, (150, 140), strict=True))
    wanted = definition(query[:n], key[:k], value[:k], scale_of(40), bias[:k])
    query[n:], key[k:], value[k:], bias[k:] = (torch.nan,) * 4
    queries, keys = (torch.tensor(count, dtype=integer) for count in counts)
    out, log_sum = attend(
        *(query, key, value, scale_of(40), bias), queries=queries, keys=keys, splits=splits
    )
    assert out.shape == (150, 40) and log_sum.shape == (150,)
    check((out[:n], log_sum[:n]), wanted, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("splits", [None, 3])
def test_blocks_of_queries_beyond_the_count_are_skipped(
    attend: Attend, splits: int | None, dtype: torch.dtype
) -> None:
    """A block is 32 or 128 queries; memory that nothing wrote is NaN in these tests."""
    out, log_sum = attend(
        *inputs(300, 70, 16, dtype), 1.0, queries=torch.tensor(100), splits=splits
    )
    assert out[:100].isfinite().all() and log_sum[:100].isfinite().all()
    assert out[128:].isnan().all() and log_sum[128:].isnan().all()


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("rows", [0, 70], ids=["none given", "none counted"])
def test_without_keys_nothing_is_attended(attend: Attend, rows: int, splits: int) -> None:
    query, key, value = inputs(40, rows, 16)
    key.fill_(torch.nan), value.fill_(torch.nan)
    out, log_sum = attend(query, key, value, 1.0, keys=torch.tensor(0), splits=splits)
    assert torch.equal(out, torch.zeros(40, 16))
    assert torch.equal(log_sum, torch.full((40,), -INFINITY))


def test_without_queries_nothing_happens(attend: Attend) -> None:
    query, key, value = inputs(0, 5, 16)
    out, log_sum = attend(query, key, value, 1.0)
    assert out.shape == (0, 16) and log_sum.shape == (0,)
    attend(*inputs(9, 5, 16), 1.0, queries=torch.tensor(0))


@TYPES
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_biases_may_spread_over_thousands(
    attend: Attend, order: str, splits: int, dtype: torch.dtype
) -> None:
    """A logit of 3000 is known to 2e-4 in fp32, and so are weights; pairs of equal biases share."""
    bias = torch.linspace(-3000, 3000, 90).repeat_interleave(2)
    if order == "falling":
        bias = bias.flip(0)
    if order == "mixed":
        bias = bias[torch.randperm(180, generator=torch.Generator().manual_seed(4))]
    case = (*inputs(50, 180, 40, dtype), scale_of(40), bias)
    bounds = max(BOUNDS[dtype][0], 4e-4), 1e-6
    check(attend(*case, splits=splits), definition(*case), bounds)


@pytest.mark.parametrize("shift", [-500.0, 500.0])
def test_a_shifted_bias_shifts_the_log_sums_alone(attend: Attend, shift: float) -> None:
    case = (*inputs(20, 90, 40), scale_of(40))
    bias = (8 * noise(90, seed=3)).round() / 8  # exact, shifted too
    out, log_sum = attend(*case, bias)
    shifted_out, shifted_log_sum = attend(*case, bias + shift)
    torch.testing.assert_close(shifted_out, out, rtol=0, atol=4e-4)
    torch.testing.assert_close(shifted_log_sum - shift, log_sum, rtol=0, atol=2e-4)


@TYPES
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("hidden", [slice(64), slice(64, 128), slice(128, None)])
def test_a_tile_may_be_hidden(
    attend: Attend, hidden: slice, splits: int, dtype: torch.dtype
) -> None:
    bias = 3 * noise(150, seed=3)
    bias[hidden] = -INFINITY
    case = (*inputs(20, 150, 40, dtype), scale_of(40), bias)
    check(attend(*case, splits=splits), definition(*case), BOUNDS[dtype])


@pytest.mark.parametrize("splits", [1, 3])
def test_all_keys_may_be_hidden(attend: Attend, splits: int) -> None:
    out, log_sum = attend(*inputs(20, 150, 40), 1.0, torch.full((150,), -INFINITY), splits=splits)
    assert torch.equal(out, torch.zeros(20, 40))
    assert torch.equal(log_sum, torch.full((20,), -INFINITY))


@TYPES
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("size", [1e8, -1e8, 1e12])
def test_huge_logits_choose_one_key(
    attend: Attend, size: float, biased: bool, splits: int, dtype: torch.dtype
) -> None:
    """Logits of one query have one sign and are far from each other, or equal."""
    query, key, value = inputs(20, 150, 40, dtype)
    query[:, 1:], key[:, 0] = 0, torch.linspace(1, 2, 150)[torch.arange(150) * 7 % 150]
    bias = torch.full((150,), -1e10) if biased else None
    case = (query, key, value, size, bias)
    check(attend(*case, splits=splits), definition(*case), (1e-2, 1e-6))


def test_few_queries_split_the_keys() -> None:
    from leanvit.kernels.triton_attention import _splits

    def rounds(blocks: int, splits: int) -> float:
        return -(-blocks * splits // 132) / splits

    assert _splits(704, 1024, 132) == 1  # 90,000 queries
    assert _splits(40, 1024, 132) == 3  # 5,000 queries: 120 of 132 processors
    assert 0.85 * 132 <= 2 * _splits(2, 1024, 132) <= 132
    for blocks in (1, 2, 7, 40, 67, 133, 140, 512):
        splits = _splits(blocks, 1024, 132)
        assert rounds(blocks, splits) <= min(rounds(blocks, 1), blocks / 132 / 0.85), blocks
    assert _splits(1, 15, 132) == _splits(1, 0, 132) == _splits(0, 15, 132) == 1
    assert _splits(1, 64, 132) == 8  # as many as have 8 tiles each


def test_tiles_fit_into_shared_memory() -> None:
    from leanvit.kernels.triton_attention import _SHARED, _tiles

    assert _tiles(256, 2, _SHARED) == _tiles(200, 2, _SHARED) == _tiles(16, 2, _SHARED) == (128, 64)
    assert _tiles(256, 2, _SHARED // 2) == _tiles(512, 2, _SHARED) == (64, 32)
    assert _tiles(256, 4, _SHARED) == (32, 32) and _tiles(512, 4, _SHARED) == (16, 16)
    assert _tiles(1 << 20, 2, _SHARED) == (32, 16)  # none fits


@pytest.mark.parametrize("counted", [False, True], ids=["all", "counted"])
@pytest.mark.parametrize(
    ("width", "kind", "bytes_each"), [(256, "bf16", 2), (40, "fp16", 2), (256, "fp32", 4)]
)
def test_it_compiles_for_hopper(
    width: int, kind: str, bytes_each: int, counted: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    """The interpreter accepts what the compiler may not; the latter needs no device."""
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from leanvit.kernels import triton_attention as ours

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tiles = ours._tiles(width, bytes_each, ours._SHARED)
    constants = {"width": width, "columns": ours._columns(width)}
    constants |= {"query_tile": tiles.queries, "key_tile": tiles.keys}
    given = dict.fromkeys(("query", "key", "value"), f"*{kind}")
    given |= {"out": "*fp32", "log_sum": "*fp32", "n": "i32", "k": "i32", "scale": "fp32"}
    given |= {"key_bias": "*fp32", "queries": "*i32", "keys": "*i64"} if counted else {}
    names = ours._attend.arg_names
    signature = {name: given.get(name, "constexpr") for name in names}
    absent = {name: None for name in names if name not in given | constants}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*")
    }
    source = ASTSource(ours._attend, signature, constants | absent, aligned)
    options = {"num_warps": ours._WARPS, "num_stages": ours._STAGES}
    kernel = compiled(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert 0 < kernel.metadata.shared <= ours._SHARED
