"""CKA against its definition, and where its values are known beforehand."""

import pytest
import torch
from torch import Tensor

from leanvit.analysis.cka import MiniBatchCka, grams, unbiased_hsic


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic_by_hand(x: Tensor, y: Tensor) -> float:
    """Return the unbiased HSIC of equation 3 of arXiv 2010.15327, term by term."""
    n = len(x)
    k, l = (rows.flatten(1) @ rows.flatten(1).T for rows in (x, y))  # noqa: E741 (as published)
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    one = torch.ones(n, dtype=k.dtype)
    total = (k @ l).trace()
    total = total + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    total = total - 2 / (n - 2) * (one @ k @ l @ one)
    return float(total / (n * (n - 3)))


def cka(*pairs: tuple[list[Tensor], list[Tensor]]) -> Tensor:
    found = MiniBatchCka()
    for left, right in pairs:
        found.add(grams(left), grams(right))
    return found.value()


def test_hsic_is_that_of_the_definition() -> None:
    left = [features(i, 9, 4, 5) + 10 for i in range(3)]
    right = [features(i, 9, 7) - 3 for i in range(3, 5)]
    found = unbiased_hsic(grams(left), grams(right))
    expected = [[hsic_by_hand(x, y) for y in right] for x in left]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9)


def test_averages_are_taken_before_the_quotient() -> None:
    batches = [([features(i, 8, 6)], [features(i + 50, 8, 5)]) for i in range(4)]
    cross, left, right = (
        sum(hsic_by_hand(*pair) for pair in pairs) / 4
        for pairs in (
            [(a[0], b[0]) for a, b in batches],
            [(a[0], a[0]) for a, _ in batches],
            [(b[0], b[0]) for _, b in batches],
        )
    )
    assert float(cka(*batches)) == pytest.approx(cross / (left * right) ** 0.5, rel=1e-9)


def test_the_same_features_are_wholly_alike() -> None:
    x = features(0, 12, 3, 4)
    turned = x.flatten(1) @ torch.linalg.qr(features(1, 12, 12))[0]
    values = cka(([x, 3 * x, x + 7], [x, turned]))
    assert torch.allclose(values, torch.ones_like(values))


def test_independent_features_have_nothing_in_common() -> None:
    batches = [([features(i, 32, 16)], [features(1000 + i, 32, 16)]) for i in range(60)]
    assert abs(float(cka(*batches))) < 0.05


@pytest.mark.parametrize("constant", [0.0, 1.0, 1e6])
def test_what_does_not_vary_gives_zero(constant: float) -> None:
    same = torch.full((8, 5), constant, dtype=torch.float32)
    other = features(0, 8, 5)
    values = cka(([same, other], [other, same]))
    assert values.isfinite().all()
    assert values.tolist() == [[0.0, 0.0], [pytest.approx(1.0), 0.0]]


def test_float32_far_from_zero_keeps_its_digits() -> None:
    x = features(0, 16, 8)
    shifted = (x + 1000).float()
    assert float(cka(([x], [shifted]))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_three_images_are_too_few(images: int) -> None:
    with pytest.raises(ValueError, match="needs 4 images at least"):
        grams([features(0, images, 5)])


def test_more_batches_take_no_more_memory() -> None:
    found = MiniBatchCka()
    for i in range(3):
        found.add(grams([features(i, 6, 4)] * 2), grams([features(i + 9, 6, 4)] * 3))
    assert found.cross.shape == (2, 3) and found.left.shape == (2,) and found.right.shape == (3,)
