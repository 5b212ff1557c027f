"""The view loss L_V: every student view predicts the other views' teacher distribution.

DINO, arXiv 2104.14294, eq. 3; EsViT, arXiv 2106.09785, section 3.1.
Letters: V student views (the teacher's views come first), B images.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from leanvit.kernels.prototype_attention import prototype_cross_entropy
from leanvit.kernels.prototypes import Pairs, Projection

TEACHER_VIEWS = 2
"""The teacher sees the two global views."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """How the student's views were mixed with a partner image."""

    partner: Tensor
    """[B] number of the other image."""
    own: Tensor
    """[V] fp64 share of a view that still shows its own image; 1 where nothing was mixed."""
    views: int
    """How many views were mixed, counted from the first."""


def view_loss(
    student: Projection,
    teacher: Projection,
    key_bias: Tensor,
    *,
    student_temp: float,
    teacher_temp: float,
    mixing: Mixing | None = None,
    form: str = "auto",
) -> Tensor:
    """Return the mean over ordered pairs of different views, and over images, of the CE.

    Rows lie view after view: student [V * B, D], teacher [2 * B, D]. form: how prototype attention
    is computed.
    """
    batch = len(teacher.rows) // TEACHER_VIEWS
    pairs = view_pairs(len(student.rows) // batch, batch, teacher.rows.device, mixing)
    return prototype_cross_entropy(
        student, teacher, key_bias, pairs, student_temp, teacher_temp, form
    )


def view_pairs(views: int, batch: int, device: torch.device, mixing: Mixing | None = None) -> Pairs:
    """Return all pairs of a student view and another teacher view of the same image.

    A mixed view is held against both of its images, each with its share.
    """
    student_view, teacher_view = different_views(0, views, device)
    image = torch.arange(batch, device=device)
    rows = (student_view[:, None] * batch + image).flatten()
    own = (teacher_view[:, None] * batch + image).flatten()
    share = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64, device=device)
    if mixing is None:
        return Pairs(rows, own, share, image.repeat(len(student_view)))
    partner = (teacher_view[:, None] * batch + mixing.partner).flatten()
    kept = mixing.own[student_view].repeat_interleave(batch, output_size=len(rows))
    return Pairs(
        torch.cat([rows, rows]),
        torch.cat([own, partner]),
        torch.cat([share * kept, share * (1 - kept)]),
        image.repeat(2 * len(student_view)),
    )


@lru_cache(maxsize=64)
def different_views(first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return student views first..first + count - 1 (from 0) and the teacher views they predict."""
    pairs = [
        (view, seen)
        for view in range(count)
        for seen in range(TEACHER_VIEWS)
        if first + view != seen
    ]
    with torch.inference_mode(False):
        both = torch.tensor(pairs, dtype=torch.long).view(-1, 2).to(device)
        return both[:, 0], both[:, 1]
