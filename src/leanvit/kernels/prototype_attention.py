"""Cross-entropy between distributions over prototypes, without logits: DINO's and EsViT's one loss.

With student rows z, prototypes W and teacher distributions q over the same K prototypes,

    CE(q, softmax(z W' / s)) = LSE_k(z . w_k / s) - z . u / s,      u = sum_k q_k w_k

so everything K wide stays inside an attention over prototypes, and is never kept. With
P_ik = softmax_k(z_i . w_k / s), Q_jk = softmax_k(t_j . v_k / r + b_k), pair weights o_ij and
g_i = sum_j o_ij, the gradients are

    dz = (g P - o Q) W / s,      dW = (g P - o Q)' z / s

They are known as soon as the pairs are, so the forward pass finds them as well and nothing is
computed twice. `prototype_sweeps` takes P and Q by themselves, `prototype_residuals` their
difference.

Letters: N student rows, M teacher rows, K prototypes, D bottleneck width, P pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanvit.config import look_up
from leanvit.core.console import warn
from leanvit.core.precision import full
from leanvit.kernels.prototype_residuals import residuals
from leanvit.kernels.prototype_sweeps import FLASH, attended, chunks, cpu_flash, swept, triton
from leanvit.kernels.prototypes import Pairs, Projection, Solve, Task


def prototype_cross_entropy(
    student: Projection,
    teacher: Projection,
    key_bias: Tensor,
    pairs: Pairs,
    student_temp: float,
    teacher_temp: float,
    form: str = "auto",
) -> Tensor:
    """Return the weighted sum over pairs of CE(teacher row, student row), in fp32 or wider.

    Teacher rows are softmax(rows @ prototypes' / teacher_temp + key_bias); key_bias [K] is
    -center / teacher_temp, or what `losses.sinkhorn` finds. Gradients reach the student's rows
    and prototypes alone, and only once. Under bf16 autocast the operands of matrix products may be
    rounded; logits, softmax, sums and the loss are fp32.

    form: a name of `FORMS`, or auto for the fastest here. Raises ValueError for a form that
    this device or this torch does not have.
    """
    device = student.rows.device.type
    narrow = torch.is_autocast_enabled(device) and student.rows.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if narrow else full(student.rows).dtype
    form = best_form(device, dtype) if form == "auto" else form
    require_form(form, device)
    with torch.autocast(device, enabled=False):
        z, w = full(student.rows), full(student.prototypes)
        if not len(pairs.student):
            return 0 * (z.sum() + w.sum())
        loss: Tensor = _PrototypeCrossEntropy.apply(
            *(z, full(teacher.rows), w, full(teacher.prototypes), key_bias.to(z.dtype)),
            pairs,
            (student_temp, teacher_temp),
            (form, dtype),
        )
        return loss


class _PrototypeCrossEntropy(torch.autograd.Function):
    """The loss of this file's head, with gradients for the student's rows and prototypes."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        t: Tensor,
        w: Tensor,
        v: Tensor,
        key_bias: Tensor,
        pairs: Pairs,
        temperatures: tuple[float, float],
        how: tuple[str, torch.dtype],
    ) -> Tensor:
        form, dtype = how
        task = Task(Projection(z, w), Projection(t, v), key_bias, pairs, *temperatures, dtype)
        prototypes = torch.zeros_like(w) if ctx.needs_input_grad[2] else None  # what becomes dW
        loss, rows = FORMS[form].solve(task, prototypes)
        ctx.gradients = rows, prototypes
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradients of prototype attention were used up by a backward.")
        rows, prototypes = (None if grad is None else grad.mul_(outer) for grad in ctx.gradients)
        ctx.gradients = None
        return rows, None, prototypes, *[None] * 5


@dataclass(frozen=True, slots=True)
class Form:
    """An implementation."""

    solve: Solve
    devices: tuple[str, ...]
    """Where it runs."""


MANY_ROWS = 512
"""Rows of the student from which flash is the faster one in bf16 (benchmarks/loss.md)."""


def by_rows(task: Task, prototypes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve a task on the CPU by residuals where the student has few rows, else by flash."""
    few = len(task.student.rows) < MANY_ROWS
    return FORMS["residuals" if few else "flash"].solve(task, prototypes)


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "residuals": Form(residuals, ("cpu",)),
        "chunks": Form(swept(chunks), ("cpu", "cuda")),
        "flash": Form(swept(attended(cpu_flash)), ("cpu",)),
        "by_rows": Form(by_rows, ("cpu",)),
        "triton": Form(swept(attended(triton)), ("cuda",)),
    }
)
"""Implementations by name; all give the same numbers but for rounding."""


@lru_cache
def best_form(device: str, dtype: torch.dtype) -> str:
    """Return the name of the fastest form for a device and the dtype of the products' operands.

    On a CPU, residuals do the fewest products; torch's flash is faster in bf16 with many rows where
    there are matrix units (benchmarks/loss.md).
    """
    if device == "cuda" and dtype != torch.float64 and find_spec("triton"):
        return "triton"
    units = device == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    if units:
        if hasattr(torch.ops.aten, FLASH):
            return "by_rows"
        warn(f"torch {torch.__version__} has no {FLASH}; prototype attention takes residuals.")
    return "residuals" if device == "cpu" else "chunks"


@lru_cache
def require_form(name: str, device: str) -> None:
    """Raise ValueError if a form is unknown, or if this device or this torch does not have it."""
    form = look_up("form of prototype attention", name, FORMS)
    if device not in form.devices:
        raise ValueError(
            f"Prototype attention has no form {name!r} on {device}, where it has "
            f"{', '.join(other for other in FORMS if device in FORMS[other].devices)}."
        )
    if name in ("flash", "by_rows") and not hasattr(torch.ops.aten, FLASH):
        raise ValueError(f"The form {name!r} needs {FLASH}, which torch {torch.__version__} lacks.")
    if name == "triton" and not find_spec("triton"):
        raise ValueError("The form 'triton' needs the package triton, which is not installed.")
