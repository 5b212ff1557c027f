"""Cross-entropy between distributions over prototypes, without logits: DINO's and EsViT's one loss.

With student rows z, prototypes W and teacher distributions q over the same K prototypes,

    CE(q, softmax(z W' / s)) = LSE_k(z . w_k / s) - z . u / s,      u = sum_k q_k w_k,

so pairs of rows meet in D-wide dot products, and everything K wide stays inside an attention over
prototypes. With P_ik = softmax_k(z_i . w_k / s), Q_jk = softmax_k(t_j . v_k / r + b_k), pair
weights o_ij and g_i = sum_j o_ij, one sweep over the prototypes gives a side's mean prototype and
log-sum-exp a row, and what its rows pull each prototype by:

    student   O = P W,  L = LSE,  A = P' (g z)
    teacher   U = Q W,            B = Q' (o' z)

    loss = sum_i g_i L_i - sum_ij o_ij z_i . u_j / s
    dz_i = (g_i O_i - sum_j o_ij u_j) / s
    dW   = (A - B) / s

The pulled sums are known as soon as the pairs are, so the forward pass finds the gradients as well
and nothing is computed twice. A second attention gives them too, with prototypes as queries and
rows as keys: P_ik = exp(z_i . w_k / s - L_i), so -L is a bias of the keys (fp32) and the values
stay plain. (exp(-L) as a factor of the values would overflow once L spreads.)

Letters: N student rows, M teacher rows, K prototypes, D bottleneck width, P pairs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

FLASH = "_scaled_dot_product_flash_attention_for_cpu"
"""torch's operation behind `flash`: private, so its absence is looked for."""


@dataclass(frozen=True, slots=True)
class Projection:
    """What a head says: rows in its bottleneck, and the prototypes they are compared with."""

    rows: Tensor
    """[N, D]; unit length in DINO and EsViT, which the loss does not rely on."""
    prototypes: Tensor
    """[K, D]"""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which student row is held against which teacher row, and how much it counts."""

    student: Tensor
    """[P] row numbers."""
    teacher: Tensor
    """[P] row numbers."""
    weight: Tensor
    """[P] fp64; a loss that is a mean has weights that sum to one."""


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
        sweep, (student_temp, teacher_temp) = FORMS[form].sweep, temperatures
        pulling = ctx.needs_input_grad[2]
        weight = pairs.weight.to(z.dtype)
        row_weight = weight.new_zeros(len(z)).index_add(0, pairs.student, weight)
        prototypes = torch.zeros_like(w) if pulling else None  # what becomes dW
        t, place, count = matched(t, pairs.teacher, static=t.device.type != "cpu")
        # index_select, since z[...] has no fixed order of sums where it is differentiated
        paired_z = z.index_select(0, pairs.student).mul_(weight[:, None])
        pull = torch.zeros_like(t).index_add_(0, place, paired_z, alpha=-1 / student_temp)
        u, _ = sweep(Side(t, v, w, 1 / teacher_temp, pull, dtype, key_bias, count), prototypes)
        pull = (row_weight / student_temp)[:, None] * z
        mean, log_sum = sweep(Side(z, w, w, 1 / student_temp, pull, dtype), prototypes)
        paired_u = u.index_select(0, place)
        loss = row_weight @ log_sum - (paired_z * paired_u).sum() / student_temp
        rows = mean.mul_(row_weight[:, None])
        rows.index_add_(0, pairs.student, paired_u.mul_(weight[:, None]), alpha=-1)
        ctx.gradients = rows.div_(student_temp), prototypes
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradients of prototype attention were used up by a backward.")
        rows, prototypes = (None if grad is None else grad.mul_(outer) for grad in ctx.gradients)
        ctx.gradients = None
        return rows, None, prototypes, *[None] * 5


def matched(rows: Tensor, numbers: Tensor, *, static: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring the rows [M, D] that `numbers` [P] names to the front; the others need no work.

    Returns the rows, each number's new place, and how many rows count: None where the others are
    gone. static: they stay, and the count is a tensor that the host never reads.
    """
    used = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    used.index_fill_(0, numbers, True)
    place = used.cumsum(0).sub_(1).index_select(0, numbers)
    if not static:
        return rows[used], place, None
    return rows.index_select(0, used.logical_not().argsort(stable=True)), place, used.sum()


@dataclass(frozen=True, slots=True)
class Side:
    """A student's or teacher's attention over the prototypes: P = softmax(scale rows keys' + b)."""

    rows: Tensor
    """[N, D]; all tensors are fp32, or all fp64."""
    keys: Tensor
    """[K, D]"""
    values: Tensor
    """[K, D]"""
    scale: float
    """One over the temperature."""
    pull: Tensor
    """[N, D]: by P' pull the rows pull at the prototypes."""
    dtype: torch.dtype
    """What the operands of products are rounded to."""
    key_bias: Tensor | None = None
    """[K]: b above; None for nothing."""
    count: Tensor | None = None
    """Rows from there on are not looked at, and undefined in what is returned; None for all."""


Sweep = Callable[[Side, Tensor | None], tuple[Tensor, Tensor]]
"""Returns P values [N, D] and the log-sum-exp [N]; adds P' pull to the second argument [K, D]."""

CHUNK = 2**24
"""Logits that exist at a time in `chunks`: 64 MiB, which are 256 rows of 65,536 prototypes."""


def chunks(side: Side, pulled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sweep with plain matrix products, a chunk of rows at a time: any device, any shape."""
    rows, keys = side.rows, side.keys
    mean, log_sum = torch.empty_like(rows), rows.new_empty(len(rows))
    size = max(CHUNK // len(keys), 1)
    buffer = rows.new_empty(len(keys) * min(size, len(rows)))
    with operands(side.dtype):
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            stop = start + len(part)
            share = buffer[: len(keys) * len(part)].view(len(keys), -1)  # prototypes x rows
            torch.mm(keys, part.T * side.scale, out=share)
            if side.key_bias is not None:
                share += side.key_bias[:, None]
            peak = share.amax(0)
            total = share.sub_(peak).exp_().sum(0)
            log_sum[start:stop] = peak + total.log()
            mean[start:stop] = (share.T @ side.values) / total[:, None]
            if pulled is not None:
                pulled.addmm_(share, side.pull[start:stop] / total[:, None])
    return mean, log_sum


def log_sum_exp(rows: Tensor, keys: Tensor, scale: float, key_bias: Tensor) -> Tensor:
    """Return log sum_k exp(scale rows . key_k + key_bias_k) for every row: [N], in chunks."""
    found = []
    with operands(rows.dtype):
        for part in rows.split(max(CHUNK // len(keys), 1)):
            logits = torch.mm(keys, part.T * scale).add_(key_bias[:, None])
            found.append(logits.logsumexp(0))
    return torch.cat(found)


@contextmanager
def operands(dtype: torch.dtype) -> Iterator[None]:
    """Let fp32 matrix products on the CPU round their operands to bf16 where it has units for that.

    Sums and results stay fp32, which products of bf16 tensors would not give. Without such units,
    and for any other dtype, products are exact fp32, by the faster of two libraries: oneDNN, which
    torch asks only if rounding is allowed, does not round without units, and took less than half
    of MKL's time on an AMD CPU (benchmarks/loss.md). A GPU's fp32 products stay as torch is set.
    """
    allowed = dtype == torch.bfloat16 or not cpu_rounds()
    with _rounding("bf16" if allowed else "ieee"):
        yield


@lru_cache
def cpu_rounds() -> bool:
    """Return whether fp32 products on this CPU round to bf16 where they may."""
    if torch.cpu._is_amx_tile_supported():
        return True
    with _rounding("bf16"):  # 1 + 2^-12 is 1 in bf16
        product = torch.full((512, 256), 1 + 2.0**-12) @ torch.ones(256, 128)
    return bool((product <= 256).any())


@contextmanager
def _rounding(precision: str) -> Iterator[None]:
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        yield
    finally:
        setting.fp32_precision = before


Attend = Callable[
    [Tensor, Tensor, Tensor, float, Tensor | None, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor],
]
"""(query, key, value, scale, key_bias, queries, keys) -> attention's output and log-sum-exp.

Forward only, for one head; queries, keys: how many of either count, on the device; None for all.
"""


def _attended(attend: Attend) -> Sweep:
    """Return the sweep that consists of two attentions, there and back."""

    def sweep(side: Side, pulled: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key = side.rows.to(side.dtype), side.keys.to(side.dtype)
        value = key if side.values is side.keys else side.values.to(side.dtype)
        mean, log_sum = attend(query, key, value, side.scale, side.key_bias, side.count, None)
        if pulled is not None:
            pull = side.pull.to(side.dtype)
            back, mass = attend(key, query, pull, side.scale, -log_sum, None, side.count)
            mass = mass if side.key_bias is None else mass + side.key_bias  # its exp is <= N
            pulled.addcmul_(back.to(pulled.dtype), mass.exp()[:, None])
        return mean.to(side.rows.dtype), log_sum

    return sweep


def _cpu_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    key_bias: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attend with the operation behind torch's scaled_dot_product_attention on the CPU."""
    mask = None if key_bias is None else key_bias[None, None, None]
    attention = getattr(torch.ops.aten, FLASH)
    out, log_sum = attention(
        query[None, None], key[None, None], value[None, None], attn_mask=mask, scale=scale
    )
    return out[0, 0], log_sum.flatten()


def _triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Attend with our kernel, which is compiled when it is first needed."""
    from leanvit.kernels.triton_attention import attend

    *inputs, queries, keys = arguments
    return attend(*inputs, queries=queries, keys=keys)


@dataclass(frozen=True, slots=True)
class Form:
    """An implementation."""

    sweep: Sweep
    devices: tuple[str, ...]
    """Where it runs."""


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "chunks": Form(chunks, ("cpu", "cuda")),
        "flash": Form(_attended(_cpu_flash), ("cpu",)),
        "triton": Form(_attended(_triton), ("cuda",)),
    }
)
"""Implementations by name; all give the same numbers but for rounding."""


@lru_cache
def best_form(device: str, dtype: torch.dtype) -> str:
    """Return the name of the fastest form for a device and the dtype of the products' operands.

    On a CPU, chunks do three products where flash does four (benchmarks/loss.md); torch's flash
    multiplies in bf16 only where there are matrix units.
    """
    if device == "cuda" and dtype != torch.float64 and find_spec("triton"):
        return "triton"
    if device == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        if hasattr(torch.ops.aten, FLASH):
            return "flash"
        warn(f"torch {torch.__version__} has no {FLASH}; prototype attention takes chunks instead.")
    return "chunks"


@lru_cache
def require_form(name: str, device: str) -> None:
    """Raise ValueError if a form is unknown, or if this device or this torch does not have it."""
    form = look_up("form of prototype attention", name, FORMS)
    if device not in form.devices:
        raise ValueError(
            f"Prototype attention has no form {name!r} on {device}, where it has "
            f"{', '.join(other for other in FORMS if device in FORMS[other].devices)}."
        )
    if name == "flash" and not hasattr(torch.ops.aten, FLASH):
        raise ValueError(f"The form 'flash' needs {FLASH}, which torch {torch.__version__} lacks.")
    if name == "triton" and not find_spec("triton"):
        raise ValueError("The form 'triton' needs the package triton, which is not installed.")
