"""The losses against their definitions written as loops: values, gradients, extremes."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.kernels.prototype_attention import prototype_cross_entropy
from leanvit.kernels.prototypes import Pairs, Projection
from leanvit.losses.region import (
    TRANSPORT_ITERATIONS,
    TRANSPORT_TEMP,
    match_regions,
    region_loss,
)
from leanvit.losses.view import Mixing, view_loss
from leanvit.methods.dino import FEW_ROWS, teacher_stats
from tests.tiny import noise

K, D, CHANNELS = 12, 5, 6
TEMPERATURES: dict[str, Any] = {"student_temp": 0.1, "teacher_temp": 0.05}


def rows(count: int, seed: int) -> Tensor:
    return functional.normalize(noise(count, D, seed=seed, dtype=torch.float64), dim=1)


def prototypes(seed: int, scale: float = 1.0) -> Tensor:
    return scale * noise(K, D, seed=seed, dtype=torch.float64)


def cross_entropy(student: Tensor, teacher: Tensor, w: Tensor, v: Tensor, center: Tensor) -> Tensor:
    """CE of a student row [D] and a teacher row [D] as published."""
    q = ((teacher @ v.T - center) / 0.05).softmax(0)
    return -(q * (student @ w.T / 0.1).log_softmax(0)).sum()


def shares(mixing: Mixing | None, view: int, image: int) -> list[tuple[int, float]]:
    """The images that a view shows, and how much of each."""
    if mixing is None:
        return [(image, 1.0)]
    own = float(mixing.own[view])
    return [(image, own), (int(mixing.partner[image]), 1 - own)]


MIXED = Mixing(
    torch.tensor([1, 0, 3, 2]), torch.tensor([0.3, 0.6, 0.8, 1.0], dtype=torch.float64), views=3
)


@pytest.mark.parametrize("mixing", [None, MIXED], ids=["clean", "mixed"])
@pytest.mark.parametrize("views", [2, 4])
def test_view_loss_is_its_definition(views: int, mixing: Mixing | None) -> None:
    batch = 4
    if mixing is not None:
        mixing = Mixing(mixing.partner, mixing.own[:views], min(views, 3))
    z, w = rows(views * batch, 0).requires_grad_(), prototypes(1).requires_grad_()
    t, v, center = rows(2 * batch, 2), prototypes(3), noise(K, seed=4, dtype=torch.float64)
    ours = view_loss(
        Projection(z, w), Projection(t, v), -center / 0.05, mixing=mixing, **TEMPERATURES
    )
    terms = [
        share * cross_entropy(z[view * batch + i], t[seen * batch + j], w, v, center) / batch
        for seen in range(2)
        for view in range(views)
        if view != seen
        for i in range(batch)
        for j, share in shares(mixing, view, i)
    ]
    expected = torch.stack(terms).sum() / (2 * (views - 1))
    check(ours, expected, [z, w])


def check(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mixing", [None, MIXED], ids=["clean", "mixed"])
@pytest.mark.parametrize(
    "sizes", [[(2, 4)], [(2, 4), (2, 3)], [(2, 4), (1, 3), (1, 2)]], ids=["globals", "1", "2"]
)
def test_region_loss_is_its_definition(sizes: list[tuple[int, int]], mixing: Mixing | None) -> None:
    batch, regions = 4, 4
    total_views = sum(count for count, _ in sizes)
    if mixing is not None:
        mixing = Mixing(mixing.partner, mixing.own[:total_views], min(total_views, 3))
    total = sum(count * batch * size for count, size in sizes)
    z, w = rows(total, 0).requires_grad_(), prototypes(1).requires_grad_()
    t, v = rows(2 * batch * regions, 2), prototypes(3)
    center = noise(K, seed=4, dtype=torch.float64)
    student = [
        noise(count, batch, size, CHANNELS, seed=5 + n, dtype=torch.float64)
        for n, (count, size) in enumerate(sizes)
    ]
    teacher = noise(2, batch, regions, CHANNELS, seed=9, dtype=torch.float64)
    ours, distinct = region_loss(
        Projection(z, w),
        Projection(t, v),
        -center / 0.05,
        student_features=student,
        teacher_features=teacher,
        mixing=mixing,
        **TEMPERATURES,
    )
    terms, row, view = [], 0, 0
    chosen: set[int] = set()
    for group in student:
        for features in group:
            for i in range(batch):
                for r in range(group.shape[2]):
                    for seen in {0, 1} - {view}:
                        for j, share in shares(mixing, view, i):
                            like = functional.cosine_similarity(features[i, r], teacher[seen, j])
                            best = (seen * batch + j) * regions + int(like.argmax())
                            chosen |= {best} if share else set()
                            entropy = cross_entropy(z[row], t[best], w, v, center)
                            terms.append(share * entropy / (batch * group.shape[2]))
                    row += 1
            view += 1
    expected = torch.stack(terms).sum() / (2 * (total_views - 1))
    check(ours, expected, [z, w])
    share = len(chosen) / len(t)
    wanted = (share * regions - 1) / (regions - 1) if regions > 1 else share
    assert float(distinct) == pytest.approx(wanted, abs=1e-6)
    assert not distinct.requires_grad


def test_collapsed_regions_share_one_match() -> None:
    """All regions point one way: each view pair and image has one chosen region of its T."""
    batch, regions = 3, 4
    alike = torch.ones(2, batch, regions, CHANNELS)
    z, t = rows(2 * batch * regions, 0), rows(2 * batch * regions, 1)
    _, distinct = region_loss(
        Projection(z, prototypes(2)),
        Projection(t, prototypes(3)),
        torch.zeros(K, dtype=torch.float64),
        student_features=[alike],
        teacher_features=alike,
        student_temp=0.1,
        teacher_temp=0.05,
    )
    assert float(distinct) == 0


def test_an_image_without_a_share_chooses_nothing() -> None:
    batch, regions = 4, 6
    student = noise(2, batch, 2, CHANNELS, seed=5, dtype=torch.float64)
    teacher = noise(2, batch, regions, CHANNELS, seed=9, dtype=torch.float64)
    whole = Mixing(torch.tensor([1, 0, 3, 2]), torch.ones(2, dtype=torch.float64), views=2)
    z, t = rows(2 * batch * 2, 0), rows(2 * batch * regions, 1)
    found = [
        region_loss(
            Projection(z, prototypes(2)),
            Projection(t, prototypes(3)),
            torch.zeros(K, dtype=torch.float64),
            student_features=[student],
            teacher_features=teacher,
            student_temp=0.1,
            teacher_temp=0.05,
            mixing=mixing,
        )
        for mixing in (None, whole)
    ]
    torch.testing.assert_close(found[0], found[1])
    assert 0 < float(found[0][1]) <= 2 / regions


def plain_stats(logits: Tensor) -> dict[str, Tensor]:
    """Entropy and mutual information of n rows and K prototypes, from their joint distribution."""
    n, k = logits.shape
    q = logits.softmax(1)
    joint = q / n
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return {
        "teacher_entropy": -(q * q.log()).sum(1).mean() / math.log(k),
        "teacher_information": (joint * (joint / apart).log()).sum() / math.log(min(n, k)),
    }


@pytest.mark.parametrize("count", [6, 20])
@pytest.mark.parametrize("temperature", [0.04, 1.0])
def test_teacher_stats_are_their_definition(temperature: float, count: int) -> None:
    z, w, bias = rows(count, 0), prototypes(1), noise(K, seed=2, dtype=torch.float64)
    found = teacher_stats(Projection(z, w), bias, temperature)
    torch.testing.assert_close(found, plain_stats(z @ w.T / temperature + bias))
    half = teacher_stats(Projection(z.bfloat16(), w), bias.float(), temperature)
    assert all(abs(float(half[name] - found[name])) < 0.03 for name in found)


def test_teacher_stats_look_at_the_first_rows() -> None:
    z, w, bias = rows(FEW_ROWS + 40, 0), prototypes(1), torch.zeros(K, dtype=torch.float64)
    expected = plain_stats(z[:FEW_ROWS] @ w.T / 0.1)
    found = teacher_stats(Projection(z, w), bias, 0.1)
    torch.testing.assert_close(found, expected)
    whole = plain_stats(z @ w.T / 0.1)
    assert not any(torch.isclose(whole[name], expected[name]) for name in whole)


def test_teacher_stats_have_their_ends() -> None:
    z, bias = rows(8, 0), torch.zeros(K, dtype=torch.float64)

    def stats(z: Tensor, w: Tensor, bias: Tensor = bias) -> tuple[float, float]:
        found = teacher_stats(Projection(z, w), bias, 0.04)
        return float(found["teacher_entropy"]), float(found["teacher_information"])

    assert stats(z, torch.ones(K, D, dtype=torch.float64)) == pytest.approx((1, 0))
    one = z[:1].expand(8, -1)
    assert stats(one, 1e4 * prototypes(1)) == pytest.approx((0, 0), abs=1e-12)
    own = torch.nn.functional.normalize(z, dim=1)
    assert stats(z, 1e4 * own, bias[:8]) == pytest.approx((0, 1), abs=1e-12)
    assert stats(z, prototypes(1)[:1], bias[:1]) == (0, 0)


def test_matching_takes_the_nearest_direction() -> None:
    student = torch.tensor([[1.0, 0.1], [0.0, -3.0], [5.0, 4.9]]).view(1, 1, 3, 2)
    regions = torch.tensor([[0.0, -0.1], [9.0, 0.0], [0.2, 0.2]])
    teacher = regions.view(1, 1, 3, 2).expand(2, 1, 3, 2)
    assert match_regions(student, teacher).tolist() == [[[[1, 0, 2]]], [[[1, 0, 2]]]]


def test_transport_spreads_what_argmax_crowds() -> None:
    """Every student region is most like region 0 of the teacher; transport uses all of them."""
    regions = torch.eye(4)
    student = (regions + torch.tensor([3.0, 0, 0, 0])).view(1, 1, 4, 4)
    teacher = regions.view(1, 1, 4, 4).expand(2, 1, 4, 4)
    assert match_regions(student, teacher).unique().tolist() == [0]
    assert match_regions(student, teacher, "transport").tolist() == [[[[0, 1, 2, 3]]]] * 2


def test_transport_is_the_textbooks_plan() -> None:
    student = noise(2, 3, 5, CHANNELS, dtype=torch.float64)
    teacher = noise(2, 3, 7, CHANNELS, seed=1, dtype=torch.float64)
    found = match_regions(student, teacher, "transport")
    for seen, view, image in itertools.product(range(2), range(2), range(3)):
        cosines = functional.cosine_similarity(
            student[view, image][:, None], teacher[seen, image][None], dim=-1
        )
        plan = (cosines / TRANSPORT_TEMP).exp()
        for _ in range(TRANSPORT_ITERATIONS):
            plan = plan / plan.sum(1, keepdim=True) / 5
            plan = plan / plan.sum(0, keepdim=True) / 7
        assert found[seen, view, image].tolist() == plan.argmax(1).tolist()


def test_an_unknown_matching_is_an_error() -> None:
    with pytest.raises(ValueError, match="did you mean 'transport'"):
        match_regions(torch.ones(1, 1, 1, 2), torch.ones(2, 1, 1, 2), "transprot")


def test_squared_distance_is_its_definition() -> None:
    batch, regions = 2, 3
    z, t = rows(2 * batch * regions, 0).requires_grad_(), rows(2 * batch * regions, 1)
    w = prototypes(2).requires_grad_()
    student = noise(2, batch, regions, CHANNELS, seed=5, dtype=torch.float64)
    teacher = noise(2, batch, regions, CHANNELS, seed=9, dtype=torch.float64)
    ours, _ = region_loss(
        Projection(z, w),
        Projection(t, prototypes(3)),
        torch.zeros(K, dtype=torch.float64),
        student_features=[student],
        teacher_features=teacher,
        metric="mse",
        **TEMPERATURES,
    )
    best = match_regions(student, teacher)
    at = lambda view, image, region: (view * batch + image) * regions + region  # noqa: E731
    terms = [
        (z[at(view, i, r)] - t[at(1 - view, i, int(best[1 - view, view, i, r]))]).square().sum()
        for view, i, r in itertools.product(range(2), range(batch), range(regions))
    ]
    check(ours, torch.stack(terms).mean(), [z])
    (unused,) = torch.autograd.grad(ours, [w], allow_unused=True)
    assert unused is None


def any_pairs(count: int, students: int, teachers: int) -> Pairs:
    return Pairs(
        torch.arange(count) % students,
        torch.arange(count) * 3 % teachers,
        torch.full((count,), 1 / max(count, 1), dtype=torch.float64),
    )


def loss_of(z: Tensor, w: Tensor, t: Tensor, v: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
    return prototype_cross_entropy(Projection(z, w), Projection(t, v), bias, pairs, 0.1, 0.04)


def test_a_constant_in_the_bias_changes_nothing() -> None:
    z, t, w, v = rows(4, 0), rows(3, 1), prototypes(2), prototypes(3)
    bias, pairs = noise(K, dtype=torch.float64), any_pairs(6, 4, 3)
    torch.testing.assert_close(
        loss_of(z, w, t, v, bias, pairs), loss_of(z, w, t, v, bias + 7, pairs)
    )


def test_the_order_of_prototypes_changes_nothing() -> None:
    z, t, w, v = rows(4, 0), rows(3, 1), prototypes(2), prototypes(3)
    bias, pairs, order = noise(K, dtype=torch.float64), any_pairs(6, 4, 3), torch.randperm(K)
    torch.testing.assert_close(
        loss_of(z, w, t, v, bias, pairs), loss_of(z, w[order], t, v[order], bias[order], pairs)
    )


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("rows_alike", [False, True])
def test_extreme_rows_stay_finite(scale: float, rows_alike: bool) -> None:
    z, t = rows(4, 0).float(), rows(3, 1).float()
    if rows_alike:
        z, t = z[:1].expand(4, D).clone(), t[:1].expand(3, D).clone()
    w, v = prototypes(2, scale).float(), prototypes(3, scale).float()
    z.requires_grad_(), w.requires_grad_()
    loss = loss_of(z, w, t, v, torch.zeros(K), any_pairs(6, 4, 3))
    loss.backward()
    assert loss.isfinite() and loss > -1e-4 * scale
    assert z.grad is not None and w.grad is not None
    assert z.grad.isfinite().all() and w.grad.isfinite().all()


def test_one_row_and_one_pair() -> None:
    z, t, w, v = rows(1, 0), rows(1, 1), prototypes(2), prototypes(3)
    ours = loss_of(z, w, t, v, torch.zeros(K, dtype=torch.float64), any_pairs(1, 1, 1))
    q = (t[0] @ v.T / 0.04).softmax(0)
    torch.testing.assert_close(ours, -(q * (z[0] @ w.T / 0.1).log_softmax(0)).sum())


def test_no_pairs_give_zero() -> None:
    z, w = rows(2, 0).requires_grad_(), prototypes(2)
    loss = loss_of(z, w, rows(1, 1), prototypes(3), torch.zeros(K), any_pairs(0, 2, 1))
    loss.backward()
    assert loss == 0 and z.grad is not None and not z.grad.any()


def test_the_teacher_gets_no_gradient() -> None:
    t, v = rows(3, 1).requires_grad_(), prototypes(3).requires_grad_()
    z, w = rows(4, 0).requires_grad_(), prototypes(2)
    loss_of(z, w, t, v, torch.zeros(K), any_pairs(6, 4, 3)).backward()
    assert t.grad is None and v.grad is None and z.grad is not None


def test_gradients_are_the_same_every_time() -> None:
    """Exact resume needs sums in a fixed order, at sizes that are split over threads."""
    z, t, w, v = (noise(count, 64, seed=seed) for seed, count in enumerate((4000, 2000, 300, 300)))
    z.requires_grad_(), w.requires_grad_()
    pairs = any_pairs(12_000, 4000, 2000)
    found = [
        torch.autograd.grad(loss_of(z, w, t, v, torch.zeros(300), pairs), [z, w]) for _ in range(5)
    ]
    assert all(a.equal(b) for again in found[1:] for a, b in zip(found[0], again, strict=True))


def test_bf16_rows_are_widened() -> None:
    z, t, w, v = (x.float() for x in (rows(8, 0), rows(6, 1), prototypes(2), prototypes(3)))
    pairs, inputs = any_pairs(12, 8, 6), []
    for dtype in (torch.float32, torch.bfloat16):
        row, prototype = z.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of(row, prototype, t.to(dtype), v.to(dtype), torch.zeros(K), pairs)
        assert loss.dtype == torch.float32
        inputs.append((loss, *torch.autograd.grad(loss, [row, prototype])))
    for exact, rough in zip(*inputs, strict=True):
        assert (exact - rough.float()).norm() < 0.03 * exact.norm()
