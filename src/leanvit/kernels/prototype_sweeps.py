"""Prototype attention as one sweep over the prototypes a side, in chunks or by an attention.

A sweep gives a side's mean prototype and log-sum-exp a row, and what its rows pull each prototype
by:

    student   O = P W,  L = LSE,  A = P' (g z)
    teacher   U = Q W,            B = Q' (o' z)

    loss = sum_i g_i L_i - sum_ij o_ij z_i . u_j / s
    dz_i = (g_i O_i - sum_j o_ij u_j) / s
    dW   = (A - B) / s

A second attention gives the pulled sums too, with prototypes as queries and rows as keys:
P_ik = exp(z_i . w_k / s - L_i), so -L is a bias of the keys (fp32) and the values stay plain.
(exp(-L) as a factor of the values would overflow once L spreads.) Letters as in
`prototype_attention`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanvit.core.precision import operands
from leanvit.kernels.prototypes import Solve, Task

FLASH = "_scaled_dot_product_flash_attention_for_cpu"
"""torch's operation behind `flash`: private, so its absence is looked for."""


def swept(sweep: "Sweep") -> Solve:
    """Return what solves a task by two sweeps."""

    def solve(task: Task, prototypes: Tensor | None) -> tuple[Tensor, Tensor]:
        z, w, pairs = task.student.rows, task.student.prototypes, task.pairs
        scale, dtype = 1 / task.student_temp, task.dtype
        weight = pairs.weight.to(z.dtype)
        row_weight = weight.new_zeros(len(z)).index_add(0, pairs.student, weight)
        t, place, count = matched(task.teacher.rows, pairs.teacher, static=z.device.type != "cpu")
        # index_select, since z[...] has no fixed order of sums where it is differentiated
        paired_z = z.index_select(0, pairs.student).mul_(weight[:, None])
        pull = torch.zeros_like(t).index_add_(0, place, paired_z, alpha=-scale)
        v, bias = task.teacher.prototypes, task.key_bias
        u, _ = sweep(Side(t, v, w, 1 / task.teacher_temp, pull, dtype, bias, count), prototypes)
        pull = (row_weight * scale)[:, None] * z
        mean, log_sum = sweep(Side(z, w, w, scale, pull, dtype), prototypes)
        paired_u = u.index_select(0, place)
        loss = row_weight @ log_sum - (paired_z * paired_u).sum() * scale
        rows = mean.mul_(row_weight[:, None])
        rows.index_add_(0, pairs.student, paired_u.mul_(weight[:, None]), alpha=-1)
        return loss, rows.mul_(scale)

    return solve


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


Attend = Callable[
    [Tensor, Tensor, Tensor, float, Tensor | None, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor],
]
"""(query, key, value, scale, key_bias, queries, keys) -> attention's output and log-sum-exp.

Forward only, for one head; queries, keys: how many of either count, on the device; None for all.
"""


def attended(attend: Attend) -> Sweep:
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


def cpu_flash(
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


def triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Attend with our kernel, which is compiled when it is first needed."""
    from leanvit.kernels.triton_attention import attend

    *inputs, queries, keys = arguments
    return attend(*inputs, queries=queries, keys=keys)
