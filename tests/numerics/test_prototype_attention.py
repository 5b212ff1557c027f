"""Prototype attention in every form against logits: values, gradients, extremes, what it keeps."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from leanvit.bench.baselines import materialized, official, plain
from leanvit.core.precision import cpu_rounds, operands
from leanvit.kernels import prototype_attention, prototype_residuals, prototype_sweeps
from leanvit.kernels.prototype_attention import (
    FORMS,
    MANY_ROWS,
    best_form,
    prototype_cross_entropy,
    require_form,
)
from leanvit.kernels.prototype_residuals import parts
from leanvit.kernels.prototype_sweeps import matched
from leanvit.kernels.prototypes import Pairs, Projection
from leanvit.losses.region import region_loss
from tests.tiny import noise

ON_CPU = [name for name, form in FORMS.items() if "cpu" in form.devices]
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


def unit(count: int, width: int, seed: int) -> Tensor:
    return functional.normalize(noise(count, width, seed=seed, dtype=torch.float64), dim=1)


class Problem:
    """A student, a teacher, a center and pairs, in fp64."""

    def __init__(
        self,
        students: int = 40,
        teachers: int = 30,
        prototypes: int = 300,
        width: int = 24,
        *,
        pairs: int = 90,
        gain: float = 1.0,
        temperatures: tuple[float, float] = (0.1, 0.04),
        seed: int = 0,
    ) -> None:
        self.z, self.t = unit(students, width, seed), unit(teachers, width, seed + 1)
        self.w, self.v = (gain * unit(prototypes, width, seed + n) for n in (2, 3))
        self.bias = noise(prototypes, seed=seed + 4, dtype=torch.float64)
        draw = torch.Generator().manual_seed(seed)
        weight = torch.rand(pairs, generator=draw, dtype=torch.float64)
        self.pairs = Pairs(
            torch.randint(students, (pairs,), generator=draw),
            torch.randint(max(teachers // 2, 1), (pairs,), generator=draw),  # half is unmatched
            weight / weight.sum(),
        )
        self.temperatures = temperatures

    def solve(self, loss: Any, dtype: torch.dtype = torch.float64, **options: Any) -> list[Tensor]:
        """Return the loss and the gradients of rows and prototypes; rows are rounded to dtype."""
        narrow = dtype == torch.bfloat16
        wide = torch.float32 if narrow else dtype
        z, w = (x.to(wide, copy=True).requires_grad_() for x in (self.z, self.w))
        teacher = Projection(self.t.to(wide), self.v.to(wide))
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            found = loss(
                Projection(z, w), teacher, self.bias.to(wide), self.pairs, *self.temperatures,
                **options,
            )  # fmt: skip
        assert found.dtype == wide
        (2 * found).backward()
        assert z.grad is not None and w.grad is not None
        return [found.detach().double(), z.grad.double() / 2, w.grad.double() / 2]


def close(ours: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    """Compare each with a tolerance relative to the norm of the whole."""
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.isfinite().all()
        error = float((mine - theirs).norm() / theirs.norm().clamp_min(1e-300))
        assert error < tolerance, error


@pytest.fixture(params=[None, 700], ids=["one chunk", "many chunks"])
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chunks hold all rows at once, or two or three of 300 prototypes each."""
    if request.param:
        monkeypatch.setattr(prototype_sweeps, "CHUNK", request.param)
        monkeypatch.setattr(prototype_residuals, "ROOM", request.param)


SIZES = {
    "usual": Problem(),
    "one of each": Problem(1, 1, 1, 1, pairs=1),
    "one row": Problem(1, 7, 50, 16, pairs=5),
    "one prototype": Problem(5, 7, 1, 16),
    "wide": Problem(9, 11, 130, 256),
    "odd": Problem(33, 17, 1031, 7, pairs=200),
}


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradients_are_exact(form: str, size: str, chunking: None) -> None:
    problem = SIZES[size]
    exact = problem.solve(plain)
    ours = problem.solve(prototype_cross_entropy, form=form)
    if problem.w.shape[0] == 1:  # nothing to choose from: the loss and its gradients are zero
        assert all(float(value.abs().max()) < 1e-12 for value in (*ours, *exact))
    else:
        close(ours, exact, 1e-12)


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 3e-6), ("bf16", 1e-2)])
def test_rounding_stays_small(form: str, dtype: str, tolerance: float) -> None:
    problem = Problem(600, 400, 4096, 64, pairs=900)
    ours = problem.solve(prototype_cross_entropy, DTYPES[dtype], form=form)
    close(ours, problem.solve(plain), tolerance)


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("gain", [1.0, 3.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("temperatures", [(0.1, 0.04), (0.1, 0.07), (0.04, 0.04)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gains(form: str, gain: float, temperatures: tuple[float, float], dtype: str) -> None:
    """Logits up to 2,500: both sides are certain, and log-sum-exps spread over thousands."""
    problem = Problem(gain=gain, temperatures=temperatures)
    ours = problem.solve(prototype_cross_entropy, DTYPES[dtype], form=form)
    if dtype == "bf16":  # one rounding of a row moves such logits by several units
        assert all(value.isfinite().all() for value in ours)
    else:
        close(ours, problem.solve(plain), {"fp64": 1e-11, "fp32": 2e-4}[dtype])


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_a_certain_teacher(form: str, dtype: str) -> None:
    problem = Problem(gain=5.0, temperatures=(0.1, 1e-3))
    target = (problem.t @ problem.v.T / 1e-3 + problem.bias).softmax(1)
    assert float(target.amax(1).min()) > 0.99
    ours = problem.solve(prototype_cross_entropy, DTYPES[dtype], form=form)
    close(ours, problem.solve(plain), {"fp64": 1e-11, "fp32": 1e-3}[dtype])


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("constant", [7.0, -300.0, 1e4])
def test_a_constant_in_the_bias_changes_nothing(form: str, constant: float) -> None:
    problem = Problem()
    before = problem.solve(prototype_cross_entropy, form=form)
    problem.bias = problem.bias + constant
    close(problem.solve(prototype_cross_entropy, form=form), before, 1e-11)


@pytest.mark.parametrize("form", ON_CPU)
def test_prototypes_may_be_permuted(form: str, chunking: None) -> None:
    problem = Problem()
    loss, rows, prototypes = problem.solve(prototype_cross_entropy, form=form)
    order = torch.randperm(len(problem.w), generator=torch.Generator().manual_seed(1))
    for name in ("w", "v", "bias"):
        setattr(problem, name, getattr(problem, name)[order])
    again = problem.solve(prototype_cross_entropy, form=form)
    close(again, [loss, rows, prototypes[order]], 1e-12)


@pytest.mark.parametrize("form", ON_CPU)
def test_a_row_twice_is_a_row_with_twice_the_weight(form: str, chunking: None) -> None:
    problem = Problem()
    before = problem.solve(prototype_cross_entropy, form=form)
    pairs, (n, m) = problem.pairs, (len(problem.z), len(problem.t))
    problem.z, problem.t = problem.z.repeat(2, 1), problem.t.repeat(2, 1)
    problem.pairs = Pairs(
        torch.cat([pairs.student, pairs.student + n]),
        torch.cat([pairs.teacher, pairs.teacher + m]),
        pairs.weight.repeat(2) / 2,
    )
    loss, rows, prototypes = problem.solve(prototype_cross_entropy, form=form)
    close([loss, rows[:n] + rows[n:], prototypes], before, 1e-12)


@pytest.mark.parametrize("form", ON_CPU)
def test_a_pair_may_be_split(form: str) -> None:
    problem = Problem()
    before = problem.solve(prototype_cross_entropy, form=form)
    pairs = problem.pairs
    problem.pairs = Pairs(
        pairs.student.repeat(2),
        pairs.teacher.repeat(2),
        torch.cat([0.3 * pairs.weight, 0.7 * pairs.weight]),
    )
    close(problem.solve(prototype_cross_entropy, form=form), before, 1e-12)


def test_unmatched_teacher_rows_are_never_looked_at() -> None:
    problem = Problem()
    before = problem.solve(prototype_cross_entropy)
    unmatched = torch.ones(len(problem.t), dtype=torch.bool)
    unmatched[problem.pairs.teacher] = False
    assert unmatched.any()
    problem.t[unmatched] = torch.nan
    close(problem.solve(prototype_cross_entropy), before, 1e-15)


@pytest.mark.parametrize("image", [None, "image"])
@pytest.mark.parametrize("limit", [2, 7, 30, 1000])
def test_parts_hold_every_pair_that_weighs_once(image: str | None, limit: int) -> None:
    pairs = Problem(pairs=200).pairs
    pairs.weight[::7] = 0
    if image:
        pairs = Pairs(pairs.student, pairs.teacher, pairs.weight, pairs.teacher // 5)
    found = list(parts(pairs, limit))
    assert torch.cat(found).sort()[0].equal(pairs.weight.nonzero()[:, 0])
    rows = [len(pairs.student[n].unique()) + len(pairs.teacher[n].unique()) for n in found]
    assert max(rows) <= limit
    assert (len(found) == 1) == (limit == 1000)


def test_images_stay_whole_where_they_fit() -> None:
    image = torch.arange(12).repeat(3)  # three pairs of own rows each
    pairs = Pairs(torch.arange(36), torch.arange(36), torch.ones(36).double(), image)
    for limit, whole in ((6, 12), (13, 8), (35, 4), (72, 1)):
        found = list(parts(pairs, limit))
        assert len(found) == whole
        assert sum(len(image[numbers].unique()) for numbers in found) == 12


@pytest.mark.parametrize("form", ON_CPU)
def test_pairs_without_weight_and_rows_without_pairs_have_no_part(form: str) -> None:
    problem = Problem()
    problem.pairs.weight[problem.pairs.student < 20] = 0
    exact = problem.solve(plain)
    assert not exact[1][:20].any()
    close(problem.solve(prototype_cross_entropy, form=form), exact, 1e-12)
    problem.pairs.weight.zero_()
    assert not any(x.any() for x in problem.solve(prototype_cross_entropy, form=form))


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("weight", [1e-6, 1e-30, 1e-38, 1e-44, 1e-60])
def test_a_row_that_weighs_next_to_nothing(form: str, weight: float) -> None:
    problem = Problem()
    problem.pairs.weight[problem.pairs.student == problem.pairs.student[0]] = weight
    close(
        problem.solve(prototype_cross_entropy, torch.float32, form=form),
        problem.solve(plain),
        3e-6,
    )


@pytest.mark.parametrize("form", ON_CPU)
@pytest.mark.parametrize("logit", [20.0, 34.0, 36.0, 41.0, 60.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_all_logits_at_one_end(form: str, logit: float, sign: int) -> None:
    """Prototypes that are all alike, a bias that prefers one: sums of either side far apart."""
    problem = Problem(width=4, prototypes=5000, temperatures=(1.0, 1.0))
    problem.w = problem.w[:1] + 1e-3 * problem.w
    problem.v = problem.v[:1] + 1e-3 * problem.v
    problem.z, problem.t = sign * logit * problem.w[:40], -sign * logit * problem.v[:30]
    problem.bias = 0 * problem.bias
    problem.bias[7] = 90.0
    ours = problem.solve(prototype_cross_entropy, torch.float32, form=form)
    exact = problem.solve(plain)
    assert all(value.isfinite().all() for value in ours)
    close(ours[:1], exact[:1], 1e-5)
    scale = float(exact[0])  # gradients are small differences of such numbers
    assert all(float((a - b).abs().max()) < 5e-5 * scale for a, b in zip(ours, exact, strict=True))


def test_matched_rows_come_first_where_shapes_are_static() -> None:
    rows, numbers = noise(9, 2), torch.tensor([7, 2, 2, 5])
    kept, place, count = matched(rows, numbers, static=False)
    assert count is None and kept.equal(rows[[2, 5, 7]]) and kept[place].equal(rows[numbers])
    static, place, count = matched(rows, numbers, static=True)
    assert static.shape == rows.shape and count is not None and int(count) == 3
    assert static[:3].equal(kept) and static[place].equal(rows[numbers])


@pytest.mark.parametrize("form", ON_CPU)
def test_frozen_prototypes_cost_no_gradient(form: str) -> None:
    problem = Problem()
    exact = problem.solve(plain)
    z = problem.z.clone().requires_grad_()
    loss = prototype_cross_entropy(
        Projection(z, problem.w), Projection(problem.t, problem.v), problem.bias, problem.pairs,
        *problem.temperatures, form=form,
    )  # fmt: skip
    (rows,) = torch.autograd.grad(loss, [z])
    close([loss.detach(), rows], exact[:2], 1e-12)


class Watched(TorchDispatchMode):
    """Remembers every tensor that an operation gives, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Tensor]] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(value, Tensor):
                self.seen.append(weakref.ref(value))
                self.largest = max(self.largest, value.numel())
        return found


@pytest.mark.parametrize("form", ON_CPU)
def test_nothing_as_wide_as_the_prototypes_is_stored(form: str, monkeypatch: Any) -> None:
    """Backward is left the two gradients alone, and no tensor on the way exceeds a chunk."""
    monkeypatch.setattr(prototype_sweeps, "CHUNK", 4 * 2048)
    monkeypatch.setattr(prototype_residuals, "ROOM", 4 * 2048)
    problem = Problem(300, 200, 2048, 4, pairs=400)
    z, w = problem.z.requires_grad_(), problem.w.requires_grad_()
    with Watched() as watched:
        loss = prototype_cross_entropy(
            Projection(z, w), Projection(problem.t, problem.v), problem.bias, problem.pairs,
            *problem.temperatures, form=form,
        )  # fmt: skip
    alive = [tensor for ref in watched.seen if (tensor := ref()) is not None]
    assert {tensor.numel() for tensor in alive} == {1, 300 * 4, 2048 * 4}
    assert watched.largest == 4 * 2048 < 200 * 2048
    loss.backward()


def test_the_gradient_is_used_up() -> None:
    problem = Problem()
    z = problem.z.requires_grad_()
    loss = prototype_cross_entropy(
        Projection(z, problem.w), Projection(problem.t, problem.v), problem.bias, problem.pairs,
        *problem.temperatures,
    )  # fmt: skip
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="were used up by a backward"):
        loss.backward()


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_what_torch_is_set_to_changes_nothing_and_comes_back(precision: str) -> None:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    try:
        torch.set_float32_matmul_precision(precision)
        before = matmul.fp32_precision
        exact = Problem().solve(plain)
        close(Problem().solve(prototype_cross_entropy, torch.float32), exact, 3e-6)
        Problem().solve(prototype_cross_entropy, torch.bfloat16, form="chunks")
        assert matmul.fp32_precision == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def fresh() -> Iterator[None]:
    for function in (best_form, require_form):
        function.cache_clear()
    yield
    for function in (best_form, require_form):
        function.cache_clear()


@pytest.mark.parametrize("shape", [(1, 16, 1), (64, 64, 64), (5000, 256, 300), (256, 5000, 256)])
def test_fp32_products_are_exact_and_bf16_ones_as_the_cpu_says(
    shape: tuple[int, int, int],
) -> None:
    """1 + 2^-12 is 1 in bf16."""
    rows, width, columns = shape
    one = torch.full((rows, width), 1 + 2.0**-12), torch.ones(width, columns)
    with operands(torch.float32):
        assert float((one[0] @ one[1]).min()) / width == pytest.approx(1 + 2**-12, abs=1e-6)
    if min(shape) > 1:  # a single row is no matrix product
        with operands(torch.bfloat16):
            found = float((one[0] @ one[1]).min()) / width
        assert found == pytest.approx(1 + 2**-12, abs=1e-6) or (cpu_rounds() and found == 1)


def test_the_form_follows_device_and_dtype(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_form("cpu", torch.float32) == best_form("cpu", torch.float64) == "residuals"
    assert best_form("cuda", torch.bfloat16) == best_form("cuda", torch.float32) == "triton"
    assert best_form("cuda", torch.float64) == "chunks"
    for units, form in ((True, "by_rows"), (False, "residuals")):
        best_form.cache_clear()
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda units=units: units)
        assert best_form("cpu", torch.bfloat16) == form


@pytest.mark.parametrize(("rows", "form"), [(MANY_ROWS - 1, "residuals"), (MANY_ROWS, "flash")])
def test_rows_decide_between_two_forms(rows: int, form: str) -> None:
    problem = Problem(rows)
    ours = problem.solve(prototype_cross_entropy, torch.bfloat16, form="by_rows")
    theirs = problem.solve(prototype_cross_entropy, torch.bfloat16, form=form)
    assert all(mine.equal(other) for mine, other in zip(ours, theirs, strict=True))


def test_what_is_missing_is_not_chosen(
    fresh: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prototype_attention, "FLASH", "no_such_operation")
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    assert best_form("cpu", torch.bfloat16) == "residuals"
    assert (
        "has no no_such_operation; prototype attention takes residuals" in capsys.readouterr().err
    )
    monkeypatch.setattr(prototype_attention, "find_spec", lambda _: None)
    assert best_form("cuda", torch.bfloat16) == "chunks"


@pytest.mark.parametrize(
    ("form", "device", "said"),
    [
        ("triton", "cpu", "no form 'triton' on cpu, where it has residuals, chunks, flash"),
        ("flash", "cuda", "no form 'flash' on cuda, where it has chunks, triton"),
        ("chunk", "cpu", "did you mean 'chunks'"),
    ],
)
def test_an_impossible_form_is_an_error(form: str, device: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_form(form, device)


def test_a_missing_operation_is_an_error(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototype_attention, "FLASH", "no_such_operation")
    monkeypatch.setattr(prototype_attention, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="needs no_such_operation, which torch"):
        require_form("flash", "cpu")
    with pytest.raises(ValueError, match="needs the package triton"):
        require_form("triton", "cuda")


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_the_opponent_computes_the_same(dtype: str) -> None:
    problem = Problem()
    close(problem.solve(materialized, DTYPES[dtype]), problem.solve(plain), 3e-6)


def test_the_official_sequence_computes_the_same() -> None:
    batch, width, sizes = 3, 8, [(2, 6), (3, 4)]
    problem = Problem(sum(n * batch * r for n, r in sizes), 2 * batch * 6, 50, width)
    features = {
        "student_features": [noise(n, batch, r, 5, seed=r, dtype=torch.float64) for n, r in sizes],
        "teacher_features": noise(2, batch, 6, 5, seed=9, dtype=torch.float64),
        "student_temp": 0.1,
        "teacher_temp": 0.04,
    }
    z, w = problem.z.requires_grad_(), problem.w.requires_grad_()
    sides = Projection(z, w), Projection(problem.t, problem.v)
    ours, _ = region_loss(*sides, problem.bias, **features)  # type: ignore[arg-type]
    theirs = official(*sides, -0.04 * problem.bias, **features)  # type: ignore[arg-type]
    mine, others = ([x.detach(), *torch.autograd.grad(x, [z, w])] for x in (ours, theirs))
    close(mine, others, 1e-12)
