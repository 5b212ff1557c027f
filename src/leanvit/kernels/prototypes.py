"""What prototype attention is asked: which rows, which prototypes, which pairs.

Letters: N student rows, M teacher rows, K prototypes, D bottleneck width, P pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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
    """[P] fp64, not negative; a loss that is a mean has weights that sum to one."""
    image: Tensor | None = None
    """[P]: pairs of one number share rows, so that doing them together saves work; no result
    depends on it."""

    def __getitem__(self, numbers: Tensor) -> "Pairs":
        """Return some of the pairs."""
        image = None if self.image is None else self.image[numbers]
        return Pairs(self.student[numbers], self.teacher[numbers], self.weight[numbers], image)


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that decides the loss; all tensors are fp32, or all fp64."""

    student: Projection
    teacher: Projection
    key_bias: Tensor
    """[K]"""
    pairs: Pairs
    student_temp: float
    teacher_temp: float
    dtype: torch.dtype
    """What the operands of products may be rounded to."""


Solve = Callable[[Task, Tensor | None], tuple[Tensor, Tensor]]
"""Returns the loss and its gradient for the student's rows [N, D]; adds the gradient for its
prototypes to the second argument [K, D], if there is one."""
