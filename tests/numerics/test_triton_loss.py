"""The whole loss on our CUDA kernel, with what a GPU does around it; interpreted without one.

Shapes stay static, so unmatched teacher rows are passed by with a count on the device.
"""

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor

from leanvit.bench.baselines import plain
from leanvit.kernels import prototype_attention, prototype_sweeps
from leanvit.kernels.prototype_attention import prototype_cross_entropy, require_form
from leanvit.kernels.prototype_sweeps import matched
from leanvit.kernels.prototypes import Pairs, Projection
from tests.numerics.test_prototype_attention import Problem, close
from tests.numerics.test_triton_attention import NoReads, interpret

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(40, 150, 300, 24), (70, 30, 129, 256), (1, 1, 5, 16)]


def problem(index: int) -> Problem:
    students, teachers, prototypes, width = SIZES[index]
    return Problem(students, teachers, prototypes, width, pairs=90)


def pretend() -> None:
    """Interpret, and treat this process's CPU as if it were a GPU."""
    interpret()
    prototype_attention.require_form = lambda *_: None  # type: ignore[assignment]
    prototype_sweeps.matched = lambda rows, numbers, *, static: matched(rows, numbers, static=True)


def solve(index: int, narrow: bool) -> list[Tensor]:
    """Return the loss and its gradients; the unmatched teacher rows are NaN."""
    case, wide = problem(index), torch.float32
    unmatched = torch.ones(len(case.t), dtype=torch.bool)
    unmatched[case.pairs.teacher] = False
    case.t[unmatched] = torch.nan
    z, w, t, v, bias = (
        x.to(DEVICE, wide).detach() for x in (case.z, case.w, case.t, case.v, case.bias)
    )
    z.requires_grad_(), w.requires_grad_()
    pairs = Pairs(
        *(x.to(DEVICE) for x in (case.pairs.student, case.pairs.teacher, case.pairs.weight))
    )
    with torch.autocast(DEVICE, torch.bfloat16, enabled=narrow), NoReads():
        loss = prototype_cross_entropy(
            Projection(z, w), Projection(t, v), bias, pairs, *case.temperatures, form="triton"
        )
    loss.backward()
    assert z.grad is not None and w.grad is not None
    return [x.detach().double().cpu() for x in (loss, z.grad, w.grad)]


@pytest.mark.parametrize(("narrow", "bound"), [(False, 5e-6), (True, 1e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("index", range(len(SIZES)), ids=str)
def test_the_loss_is_the_one_with_logits(index: int, narrow: bool, bound: float) -> None:
    exact = problem(index).solve(plain)
    if DEVICE == "cuda":
        require_form("triton", "cuda")
        close(solve(index, narrow), exact, bound)
        return
    with ProcessPoolExecutor(1, get_context("spawn"), pretend) as pool:
        close(pool.submit(solve, index, narrow).result(), exact, bound)
