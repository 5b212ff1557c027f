"""The region loss L_R: every student region predicts the teacher's most similar region.

EsViT, arXiv 2106.09785, eq. 4; the paper's ablations match by optimal transport, or compare
regions by their squared distance. Letters: V_g views of one size, B images, T_g regions of a
student view, T regions of a teacher view, d backbone channels, D bottleneck width, P pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.config import look_up
from leanvit.core.precision import full, unrounded
from leanvit.kernels.prototype_attention import prototype_cross_entropy
from leanvit.kernels.prototypes import Pairs, Projection
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
    matching: str = "argmax",
    metric: str = "prototypes",
    form: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the mean over view pairs, images and student regions of what matched regions differ.

    Beside it, how distinct the matches are: 1 if every region of the teacher was chosen, 0 if all
    regions of a view chose the same one, as they do when the features collapse.

    student_features: backbone features [V_g, B, T_g, d] of each size, global views first;
    teacher_features [2, B, T, d]. The projections' rows are the same regions, flattened in that
    order. Matching, by a name of `MATCHINGS`, uses backbone features and passes no gradient.
    metric: prototypes, for the cross-entropy of the distributions over them, or mse, for the
    squared distance of the rows. form: how prototype attention is computed.
    """
    pairs = region_pairs(student_features, teacher_features, mixing, matching)
    if metric == "mse":
        loss = _squared_distance(student.rows, teacher.rows, pairs)
    else:
        loss = prototype_cross_entropy(
            student, teacher, key_bias, pairs, student_temp, teacher_temp, form
        )
    chosen = torch.zeros(len(teacher.rows), dtype=pairs.weight.dtype, device=loss.device)
    chosen.index_add_(0, pairs.teacher, pairs.weight)  # an image with no share chooses nothing
    share, regions = (chosen > 0).to(chosen.dtype).mean(), teacher_features.shape[2]
    return loss, (regions * share - 1) / (regions - 1) if regions > 1 else share


def _squared_distance(student: Tensor, teacher: Tensor, pairs: Pairs) -> Tensor:
    """Return the weighted squared distance of unit rows, 2 - 2 cos (arXiv 2006.07733, eq. 2)."""
    there = full(teacher.detach()).index_select(0, pairs.teacher)
    distance = (full(student).index_select(0, pairs.student) - there).square().sum(1)
    return pairs.weight.to(distance.dtype) @ distance


@torch.no_grad()
def region_pairs(
    student: Sequence[Tensor],
    teacher: Tensor,
    mixing: Mixing | None = None,
    matching: str = "argmax",
) -> Pairs:
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
            found.append(_matched(group, teacher, rows, first, 1 - own, matching, mixing.partner))
        found.append(_matched(group, teacher, rows, first, own, matching))
        first, start = first + len(group), start + rows.numel()
    return Pairs(
        torch.cat([pairs.student for pairs in found]),
        torch.cat([pairs.teacher for pairs in found]),
        torch.cat([pairs.weight for pairs in found]) / total,
        torch.cat([pairs.image for pairs in found if pairs.image is not None]),
    )


def _matched(
    group: Tensor,
    teacher: Tensor,
    rows: Tensor,
    first: int,
    share: Tensor,
    matching: str,
    images: Tensor | None = None,
) -> Pairs:
    """Return the pairs of one group of views; `images` [B] names the teacher's image of each."""
    views, seen = different_views(first, len(group), group.device)
    batch, regions = teacher.shape[1:3]
    own = torch.arange(batch, device=group.device)
    if images is None:
        images = own
    else:
        teacher = teacher[:, images]
    best = match_regions(group, teacher, matching)[seen, views]  # [pairs of views, B, T_g]
    offset = (seen[:, None] * batch + images) * regions
    weight = share[views][:, None, None] / rows[0].numel()
    return Pairs(
        rows[views].flatten(),
        (offset[..., None] + best).flatten(),
        weight.expand(best.shape).flatten(),
        own[:, None].expand(best.shape).flatten(),
    )


@torch.no_grad()
def match_regions(student: Tensor, teacher: Tensor, matching: str = "argmax") -> Tensor:
    """Return for every student region the teacher region that it is matched with.

    student [V_g, B, T_g, d], teacher [2, B, T, d] -> [2, V_g, B, T_g], numbers below T.
    """
    choose = look_up("matching", matching, MATCHINGS)
    with unrounded(student):
        student = functional.normalize(full(student), dim=-1)
        teacher = functional.normalize(full(teacher), dim=-1)
        return choose(torch.einsum("vbid,tbjd->tvbij", student, teacher))


def nearest(cosines: Tensor) -> Tensor:
    """Return the most similar teacher region of every student region."""
    return cosines.argmax(-1)


TRANSPORT_TEMP = 0.05
"""Entropy of the transport plan, in units of the cosine."""
TRANSPORT_ITERATIONS = 10
"""Rounds of normalisation."""


def transported(cosines: Tensor) -> Tensor:
    """Return the teacher region that most of every student region is moved to.

    Entropic optimal transport with uniform marginals (arXiv 1306.0895): in sum every teacher
    region is wanted equally often.
    """
    plan = cosines / TRANSPORT_TEMP
    for _ in range(TRANSPORT_ITERATIONS):
        plan = plan.log_softmax(-1).log_softmax(-2)
    return plan.argmax(-1)


MATCHINGS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"argmax": nearest, "transport": transported}
)
"""From cosines [..., T_g, T] to the number of a teacher region for every student region."""
