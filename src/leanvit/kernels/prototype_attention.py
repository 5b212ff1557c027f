"""Cross-entropy between distributions over prototypes: the one loss of DINO and EsViT.

With student rows z, prototypes W and teacher distributions q over the same K prototypes,

    CE(q, softmax(z W' / s)) = LSE_k(z . w_k / s) - z . u / s,      u = sum_k q_k w_k,

so pairs of rows meet in D-wide dot products and a log-sum-exp is needed once a student row.

Letters: N student rows, M teacher rows, K prototypes, D bottleneck width, P pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.core.precision import full


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
) -> Tensor:
    """Return the weighted sum over pairs of CE(teacher row, student row), in fp32 or wider.

    Teacher rows are softmax(rows @ prototypes' / teacher_temp + key_bias); key_bias [K] is
    -center / teacher_temp. Gradients reach the student's rows and prototypes alone.
    """
    with torch.autocast(student.rows.device.type, enabled=False):
        z, w = full(student.rows), full(student.prototypes)
        with torch.no_grad():
            logits = full(teacher.rows) @ full(teacher.prototypes).T / teacher_temp
            target = (logits + key_bias).softmax(1)
        mean_prototype = target @ w  # [M, D]; u above
        log_sum = torch.logsumexp(z @ w.T / student_temp, 1)
        weight = pairs.weight.to(z.dtype)
        row_weight = weight.new_zeros(len(z)).index_add(0, pairs.student, weight)
        # index_select, since the backward of z[...] adds in an order that changes from run to run
        paired = mean_prototype.index_select(0, pairs.teacher)
        agreement = (z.index_select(0, pairs.student) * paired).sum(1)
        return row_weight @ log_sum - weight @ agreement / student_temp
