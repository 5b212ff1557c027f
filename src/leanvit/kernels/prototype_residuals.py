"""Prototype attention on a CPU: both sides of a few images meet before any product with prototypes.

The gradients are products of one matrix, the residual R = g P - o Q:

    dz = R W / s,      dW = R' z / s

so the rows of a teacher cost one product, its logits, where sweeps take three. R exists for a part
of the pairs at a time: those of an image share their rows, and the loss is a sum over pairs. With
x_i = z_i . w / s, less any number a row, loss = sum_i g_i LSE(x_i) - sum_ij o_ij q_j . x_i.

Letters as in `prototype_attention`. Exponentials have base 2, which torch computes faster than
those of base e.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from leanvit.core.precision import operands
from leanvit.kernels.prototypes import Pairs, Projection, Task

ROOM = 544 * 2**16
"""Logits that exist at a time: in fp32 136 MiB, of two images' regions and 65,536 prototypes."""
SMALL = 100
"""What both sides' largest logits, of base 2, and log2 K may be in sum, so that no quotient of sums
of their exponentials is near fp32's end; beyond, the largest of each row is taken off."""


def residuals(task: Task, prototypes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve a task on the CPU by its residuals, a part of the pairs at a time."""
    z, count = task.student.rows, len(task.student.prototypes)
    student = _Side.of(task.student, task.student_temp, None)
    teacher = _Side.of(task.teacher, task.teacher_temp, task.key_bias)
    pairs = replace(task.pairs, weight=task.pairs.weight.to(z.dtype))
    reach = student.reach(pairs.student) + teacher.reach(pairs.teacher)
    small = bool(reach.numpy() + math.log2(count) < SMALL)
    loss, rows = z.new_zeros(()), torch.zeros_like(z)
    limit = max(ROOM // count, 2)
    room = z.new_empty(min(limit, len(z) + len(task.teacher.rows)) * count)
    # the mixture of targets is built from pairs, so that its entries are where they may be
    with operands(task.dtype), torch.sparse.check_sparse_tensor_invariants(False):
        for numbers in parts(pairs, limit):
            loss += _part(student, teacher, small, pairs[numbers], room, rows, prototypes)
    return loss, rows


def parts(pairs: Pairs, limit: int) -> Iterator[Tensor]:
    """Yield numbers of pairs with weight, whole images where they fit, of at most `limit` rows."""
    student, teacher = pairs.student.numpy(), pairs.teacher.numpy()
    image = teacher if pairs.image is None else pairs.image.numpy()
    weighing = np.flatnonzero(pairs.weight.numpy())
    left = [weighing[np.lexsort((student[weighing], image[weighing]))]]
    while left:
        part = left.pop()
        rows = len(np.unique(student[part])) + len(np.unique(teacher[part]))
        if rows <= limit:
            yield torch.from_numpy(part)
            continue
        for key in (image, student, teacher):
            edges = np.flatnonzero(np.diff(key[part])) + 1
            if len(edges):
                break
        cut = edges[np.abs(edges - len(part) / 2).argmin()]
        left += [part[cut:], part[:cut]]


def _part(
    student: "_Side",
    teacher: "_Side",
    small: bool,
    pairs: Pairs,
    room: Tensor,
    rows: Tensor,
    prototypes: Tensor | None,
) -> Tensor:
    """Return the loss of some pairs; add their gradients to `rows` and `prototypes`."""
    z, w = student.sees.rows, student.sees.prototypes
    here, i = _numbered(pairs.student)
    there, j = _numbered(pairs.teacher)
    both = room[: (len(there) + len(here)) * len(w)].view(-1, len(w))
    target, share = both.split([len(there), len(here)])
    row_weight = z.new_zeros(len(here)).index_add_(0, i, pairs.weight)
    teacher.logits(there, small, out=target)
    weight = pairs.weight / row_weight[i] / target.exp2_().sum(1)[j]
    where = torch.stack([i, j])
    mixture = torch.sparse_coo_tensor(where, weight, (len(here), len(there))).to_sparse_csr()
    row = torch.arange(len(here)).repeat_interleave(mixture.crow_indices().diff())
    student.logits(here, small, out=share)
    wanted = torch.sparse.sampled_addmm(mixture, share, target.T, beta=0).values()
    total = share.exp2_().sum(1)
    loss = row_weight @ total.log2() - row_weight[row] @ (mixture.values() * wanted)
    # share becomes R, but for a factor a row that R W and R' z get afterwards
    mixture.values().mul_(total[row])
    torch.addmm(share, mixture, target, alpha=-1, out=share)
    factor = (row_weight * student.scale * math.log(2) / total)[:, None]
    rows.index_add_(0, here, torch.mm(share, w).mul_(factor))
    if prototypes is not None:
        prototypes.addmm_(share.T, z[here].mul_(factor))
    return loss * math.log(2)


def _numbered(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different ones of row numbers [P], and each one's place among them [P]."""
    found, places = np.unique(rows.numpy(), return_inverse=True)
    return torch.from_numpy(found), torch.from_numpy(places)


@dataclass(frozen=True, slots=True)
class _Side:
    """A student or a teacher, with what its logits have in common."""

    sees: Projection
    scale: float
    """What a product of a row and a prototype is times, for exponentials of base 2."""
    bias: Tensor | None
    """[K] of the prototypes, at most 0."""

    @classmethod
    def of(cls, sees: Projection, temp: float, bias: Tensor | None) -> "_Side":
        scale = 1 / (temp * math.log(2))
        return cls(sees, scale, None if bias is None else (bias - bias.amax()) / math.log(2))

    def reach(self, rows: Tensor) -> Tensor:
        """Return a bound of the logits of rows, without their bias: a product of lengths."""
        rows, keys = self.sees.rows[rows], self.sees.prototypes
        longest = [torch.linalg.vector_norm(x, dim=1).amax() for x in (rows, keys)]
        return self.scale * math.prod(longest)

    def logits(self, rows: Tensor, small: bool, out: Tensor) -> None:
        """Fill `out` with the logits of rows, less the largest of each where they are not small."""
        torch.mm(self.sees.rows[rows] * self.scale, self.sees.prototypes.T, out=out)
        if self.bias is not None:
            out += self.bias
        if not small:
            out -= out.amax(1, keepdim=True)


with warnings.catch_warnings():  # torch says once a process that sparse CSR is in beta
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()
