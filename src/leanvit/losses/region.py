"""The region loss L_R: every student region predicts the teacher's most similar region.

EsViT, arXiv 2106.09785, eq. 4. Letters: V_g views of one size, B images, T_g regions of a student
view, T regions of a teacher view, d backbone channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.precision import full
from leanvit.kernels.prototype_attention import Pairs, Projection, prototype_cross_entropy
from leanvit.losses.view import Mixing, different_views


def region_loss(
    student: Projection,
    teacher: Projection,
    key_bias: Tensor,
    *,
    student_features: Sequence[Tensor],
    teacher_features: Tensor,
    student_temp: float,
    teacher_temp: float,
    mixing: Mixing | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean over view pairs, images and student regions of the matched regions' CE.

    Beside it, how distinct the matches are: 1 if every region of the teacher was chosen, 0 if all
    regions of a view chose the same one, as they do when the features collapse.

    student_features: backbone features [V_g, B, T_g, d] of each size, global views first;
    teacher_features [2, B, T, d]. The projections' rows are the same regions, flattened in that
    order. Matching uses backbone features and passes no gradient.
    """
    pairs = region_pairs(student_features, teacher_features, mixing)
    loss = prototype_cross_entropy(student, teacher, key_bias, pairs, student_temp, teacher_temp)
    chosen = torch.zeros(len(teacher.rows), dtype=pairs.weight.dtype, device=loss.device)
    chosen.index_add_(0, pairs.teacher, pairs.weight)  # an image with no share chooses nothing
    share, regions = (chosen > 0).float().mean(), teacher_features.shape[2]
    return loss, (regions * share - 1) / (regions - 1) if regions > 1 else share


@torch.no_grad()
def region_pairs(student: Sequence[Tensor], teacher: Tensor, mixing: Mixing | None = None) -> Pairs:
    """Match every student region with one region of each other teacher view.

    A mixed view's regions are matched in both of its images, each with its share.
    """
    total = sum(len(group) for group in student) * len(teacher) - len(teacher)
    found: list[Pairs] = []
    first = start = 0
    for group in student:
        rows = torch.arange(start, start + group[..., 0].numel(), device=group.device)
        rows = rows.view(group.shape[:3])
        own = torch.ones(len(group), dtype=torch.float64, device=group.device)
        if mixing is not None and first < mixing.views:
            own = mixing.own[first : first + len(group)]
            found.append(_matched(group, teacher, rows, first, 1 - own, mixing.partner))
        found.append(_matched(group, teacher, rows, first, own))
        first, start = first + len(group), start + rows.numel()
    return Pairs(
        torch.cat([pairs.student for pairs in found]),
        torch.cat([pairs.teacher for pairs in found]),
        torch.cat([pairs.weight for pairs in found]) / total,
    )


def _matched(
    group: Tensor,
    teacher: Tensor,
    rows: Tensor,
    first: int,
    share: Tensor,
    images: Tensor | None = None,
) -> Pairs:
    """Return the pairs of one group of views; `images` [B] names the teacher's image of each."""
    views, seen = different_views(first, len(group), group.device)
    batch, regions = teacher.shape[1:3]
    if images is None:
        images = torch.arange(batch, device=group.device)
    else:
        teacher = teacher[:, images]
    best = match_regions(group, teacher)[seen, views]  # [pairs of views, B, T_g]
    offset = (seen[:, None] * batch + images) * regions
    weight = share[views][:, None, None] / rows[0].numel()
    return Pairs(
        rows[views].flatten(),
        (offset[..., None] + best).flatten(),
        weight.expand(best.shape).flatten(),
    )


@torch.no_grad()
def match_regions(student: Tensor, teacher: Tensor) -> Tensor:
    """Return for every student region the teacher region with the highest cosine similarity.

    student [V_g, B, T_g, d], teacher [2, B, T, d] -> [2, V_g, B, T_g], numbers below T.
    """
    with torch.autocast(student.device.type, enabled=False):
        student = functional.normalize(full(student), dim=-1)
        teacher = functional.normalize(full(teacher), dim=-1)
        return torch.einsum("vbid,tbjd->tvbij", student, teacher).argmax(-1)
