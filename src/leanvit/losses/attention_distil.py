"""Distillation of attention (D-MAE, arXiv 2205.14443, section 5).

Letters: B images, H_s and H_t heads of student and teacher, T tokens, D channels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.precision import full, unrounded


def attention_distillation(student: Tensor, teacher: Tensor, adapter: Tensor | None) -> Tensor:
    """Return the mean squared distance of attention logits, which are scaled and before softmax.

    student: [B, H_s, T, T]; teacher: [B, H_t, T, T] of the same tokens in the same order; adapter:
    [H_t, H_s], how the teacher's heads are made of the student's; None for the same heads.
    """
    with unrounded(student):
        student, teacher = full(student), full(teacher)
        if adapter is not None:
            student = torch.einsum("gh,bhts->bgts", full(adapter), student)
        return functional.mse_loss(student, teacher)


def hidden_distillation(student: Tensor, teacher: Tensor, adapter: Tensor) -> Tensor:
    """Return the mean squared distance of normed tokens [B, T, D_s] and [B, T, D_t].

    adapter: [D_t, D_s].
    """
    with unrounded(student):
        student = functional.linear(full(student), full(adapter))
        return functional.mse_loss(student, full(teacher))
