"""The losses with logits, as others compute them: what ours is measured and tested against.

Letters: N student rows, M teacher rows, K prototypes, D bottleneck width, P pairs, V_g views of one
size, B images, T_g regions of a student view, T regions of a teacher view, d backbone channels.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from leanvit.core.precision import operands
from leanvit.kernels.prototypes import Pairs, Projection


def plain(
    student: Projection,
    teacher: Projection,
    key_bias: Tensor,
    pairs: Pairs,
    student_temp: float,
    teacher_temp: float,
) -> Tensor:
    """Return `prototype_cross_entropy` as it is defined, by autograd: the tests' reference."""
    with torch.no_grad():
        logits = teacher.rows @ teacher.prototypes.T / teacher_temp + key_bias
        target = logits.softmax(1).index_select(0, pairs.teacher)
    log_share = (student.rows @ student.prototypes.T / student_temp).log_softmax(1)
    cross = -(target * log_share.index_select(0, pairs.student)).sum(1)
    return pairs.weight.to(cross.dtype) @ cross


def official(
    student: Projection,
    teacher: Projection,
    center: Tensor,
    *,
    student_features: Sequence[Tensor],
    teacher_features: Tensor,
    student_temp: float,
    teacher_temp: float,
) -> Tensor:
    """Return the region loss by the sequence of operations of the official EsViT code.

    student_features [V_g, B, T_g, d] of each size, teacher_features [2, B, T, d]; rows in the same
    order. Targets are gathered K wide and a log-softmax is taken anew for every pair of views.
    """
    views = [view for group in student_features for view in group]
    logits = functional.linear(student.rows, student.prototypes) / student_temp
    parts = logits.split([view[..., 0].numel() for view in views])
    with torch.no_grad():
        scores = functional.linear(teacher.rows, teacher.prototypes)
        targets = ((scores - center) / teacher_temp).softmax(-1).chunk(2)
    total, terms = logits.new_zeros(()), 0
    for which, (seen, target) in enumerate(zip(teacher_features, targets, strict=True)):
        for number, (view, part) in enumerate(zip(views, parts, strict=True)):
            if number == which:
                continue
            with torch.no_grad():
                like = functional.normalize(view, dim=-1) @ functional.normalize(seen, dim=-1).mT
                best = like.max(2)[1][..., None].expand(-1, -1, target.shape[1])
            matched = torch.gather(target.unflatten(0, seen.shape[:2]), 1, best)
            log_share = part.unflatten(0, view.shape[:2]).log_softmax(-1)
            total, terms = total - (matched * log_share).sum(-1).mean(-1).mean(), terms + 1
    return total / terms


class _Materialized(torch.autograd.Function):
    """The loss with logits held once a side, and a gradient written by hand in their place."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        w: Tensor,
        t: Tensor,
        v: Tensor,
        key_bias: Tensor,
        pairs: Pairs,
        student_temp: float,
        teacher_temp: float,
    ) -> Tensor:
        used, place = pairs.teacher.unique(return_inverse=True)
        weight = pairs.weight.to(z.dtype)
        row_weight = weight.new_zeros(len(z)).index_add(0, pairs.student, weight)
        target = torch.addmm(key_bias, t[used], v.T, alpha=1 / teacher_temp)
        torch.softmax(target, 1, out=target)
        logits = torch.mm(z * (1 / (student_temp * math.log(2))), w.T)  # for base 2, the faster
        logits.sub_(logits.amax(1, keepdim=True))
        where = torch.stack([pairs.student, place])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "sparse CSR is in beta", and what it does not check
            mixture = torch.sparse_coo_tensor(where, weight, (len(z), len(used))).to_sparse_csr()
            wanted = torch.sparse.mm(mixture, target)  # [N, K]: what a row should say, times g
        del target
        loss = -torch.dot(logits.view(-1), wanted.view(-1))
        total = logits.exp2_().sum(1)
        loss = (loss + row_weight @ total.log2()) * math.log(2)
        logits.mul_((row_weight / total)[:, None]).sub_(wanted)
        del wanted
        logits.div_(student_temp)
        ctx.save_for_backward(logits @ w, logits.T @ z)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        rows, prototypes = ctx.saved_tensors
        return rows.mul_(outer), prototypes.mul_(outer), *[None] * 6


def materialized(
    student: Projection,
    teacher: Projection,
    key_bias: Tensor,
    pairs: Pairs,
    student_temp: float,
    teacher_temp: float,
) -> Tensor:
    """Return the loss by the best form with logits that we could write.

    One product a side for the logits, targets mixed by a sparse product instead of gathered,
    unmatched teacher rows dropped, everything else in place, products by the same library as ours;
    3 N + M rows times K D in all.
    """
    with operands(student.rows.dtype):
        loss: Tensor = _Materialized.apply(
            *(student.rows, student.prototypes, teacher.rows, teacher.prototypes),
            *(key_bias, pairs, student_temp, teacher_temp),
        )
    return loss
