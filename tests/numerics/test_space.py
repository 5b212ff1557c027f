"""Uniformity, alignment, components, neighbours and matches, each against its definition."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional

from leanvit.analysis.pairs import matching
from leanvit.analysis.pca import components
from leanvit.analysis.retrieval import nearest
from leanvit.analysis.spectrum import alignment, uniformity


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uniformity_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    features = drawn(23, 5)
    unit = functional.normalize(features, dim=1)
    pairs = [
        math.exp(-2 * float((unit[i] - unit[j]).square().sum()))
        for i in range(23)
        for j in range(23)
        if i != j
    ]
    expected = math.log(sum(pairs) / len(pairs))
    assert uniformity(features) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("leanvit.analysis.spectrum.MOST_PAIRS", 50)  # in parts
    assert uniformity(features) == pytest.approx(expected, rel=1e-9)


def test_the_same_everywhere_is_not_uniform() -> None:
    assert uniformity(torch.ones(6, 4).double()) == pytest.approx(0, abs=1e-12)


def test_alignment_is_the_mean_squared_distance() -> None:
    left, right = drawn(9, 4), drawn(9, 4, seed=1)
    expected = sum(
        float((x / x.norm() - y / y.norm()).square().sum())
        for x, y in zip(left, right, strict=True)
    )
    assert alignment(left, right) == pytest.approx(expected / 9)
    assert alignment(left, 5 * left) == pytest.approx(0, abs=1e-12)


def test_components_are_those_of_scikit_learn() -> None:
    grid = drawn(3, 4, 5, 7) @ torch.diag(torch.arange(7, 0, -1.0).double())
    found = components(grid, foreground=False)
    theirs = PCA(3).fit(grid.reshape(-1, 7).numpy())
    assert found.explained == pytest.approx(theirs.explained_variance_ratio_)
    projected = theirs.transform(grid.reshape(-1, 7).numpy())
    for i in range(3):
        shade = found.colors.reshape(-1, 3)[:, i].double().numpy()
        inside = (shade > 0) & (shade < 1)
        assert abs(np.corrcoef(shade[inside], projected[inside, i])[0, 1]) > 0.99999
    assert found.foreground.all() and found.colors.min() >= 0 and found.colors.max() <= 1


def test_the_foreground_is_what_lies_inside() -> None:
    grid = 0.1 * drawn(4, 8, 8, 6)
    grid[:, 2:6, 2:6] += torch.tensor([5.0, 0, 0, 0, 0, 0]).double()
    for sign in (1, -1):  # whichever way the component points
        found = components(sign * grid, foreground=True)
        expected = torch.zeros(4, 8, 8, dtype=torch.bool)
        expected[:, 2:6, 2:6] = True
        assert torch.equal(found.foreground, expected)
        assert (found.colors[~expected] == 0).all() and found.colors[expected].std() > 0.1


def test_equal_regions_have_equal_colors_in_all_images() -> None:
    one = drawn(1, 6, 6, 5)
    found = components(torch.cat([one, drawn(1, 6, 6, 5, seed=3), one]), foreground=False)
    assert torch.equal(found.colors[0], found.colors[2])


def test_too_few_directions_are_named() -> None:
    with pytest.raises(ValueError, match="have no 3 principal components"):
        components(drawn(1, 1, 3, 5), foreground=False)
    with pytest.raises(ValueError, match="of 2 numbers"):
        components(drawn(4, 4, 4, 2), foreground=False)


def test_features_without_spread_have_colors_all_the_same() -> None:
    found = components(torch.ones(2, 4, 4, 5), foreground=True)
    assert found.colors.isfinite().all() and found.foreground.all()


def test_neighbors_are_those_of_a_loop() -> None:
    features = drawn(15, 4)
    queries = torch.tensor([3, 14])
    places, cosines = nearest(features, queries, 5)
    for query, found, values in zip(queries.tolist(), places, cosines, strict=True):
        cosine = functional.cosine_similarity(features[query][None], features)
        others = sorted((i for i in range(15) if i != query), key=lambda i: -float(cosine[i]))
        assert found.tolist() == others[:5]
        assert torch.allclose(values, cosine[found])


def test_a_shift_is_found_and_counted() -> None:
    left = drawn(4, 6, 8)
    right = left.roll(1, dims=1)
    y, x = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    truth = torch.stack([(x.flatten() + 1.5) / 6, (y.flatten() + 0.5) / 4], 1)
    truth = truth.where(truth[:, :1] < 1, torch.nan)
    found = matching(left, right, truth)
    expected = (y * 6 + (x + 1) % 6).flatten()
    assert torch.equal(found.match, expected) and found.cycle.all()
    assert torch.equal(found.known, truth[:, 0].isfinite())
    assert torch.equal(found.correct, found.known)
    assert found.figures() == {
        "correct %": 100,
        "chance %": pytest.approx(100 * by_chance(found.truth.tolist(), 4, 6)),
        "matched back %": 100,
        "similarity %": pytest.approx(100),
    }
    assert found.known[found.strongest(30)].all() and len(found.strongest(30)) == 20


def by_chance(truth: list[int], h: int, w: int) -> float:
    """Return the share of right matches if each were drawn from all regions."""
    known = [place for place in truth if place >= 0]
    hits = sum(
        abs(place // w - other // w) <= 1 and abs(place % w - other % w) <= 1
        for place in known
        for other in range(h * w)
    )
    return hits / (len(known) * h * w)


def test_who_is_not_matched_back() -> None:
    left, right = drawn(1, 3, 4), drawn(1, 3, 4)
    left[0, 1] = left[0, 0] + 0.01  # two of the left take the same of the right
    right[0] = left[0]
    right[0, 1] = -left[0, 1]
    found = matching(left, right, torch.full((3, 2), torch.nan))
    assert found.match.tolist() == [0, 0, 2] and found.cycle.tolist() == [True, False, True]
    assert not found.known.any() and found.figures()["correct %"] is None
