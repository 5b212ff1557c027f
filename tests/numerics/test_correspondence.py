"""Regions found again: the protocol against a plain loop, the stereo pair against its geometry."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from leanvit.backbones.base import Backbone, Features
from leanvit.config import SwinConfig
from leanvit.core import random
from leanvit.data.sample import stereo_pair
from leanvit.data.views import UNITS, plan
from leanvit.evaluation.correspondence import (
    SECOND,
    TwoViews,
    chance,
    describe_pairs,
    found_again,
    second_view,
)
from leanvit.evaluation.stereo import (
    Regions,
    baselines,
    centers,
    matched,
    regions,
    starts,
    true_places,
)
from tests.tiny import FAMILIES, build, noise

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_scores(
    first: Tensor, second: Tensor, pairs: int, cell: float
) -> tuple[float, float, float]:
    """Return accuracy, distance and similarity of one image [h, w, D], region by region."""
    h, w = first.shape[:2]
    found = []
    for row in range(h):
        for column in range(w):
            one = first[row, column].tolist()
            best = (-2.0, 0, 0)
            for row2 in range(h):
                for column2 in range(w):
                    other = second[row2, column2].tolist()
                    product = sum(a * b for a, b in zip(one, other, strict=True))
                    norms = sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5
                    best = max(best, (product / norms, row2, column2))
            similarity, row2, column2 = best
            x, y = (column2 - (w - 1 - column)) * cell, (row2 - row) * cell
            found.append((similarity, x * x + y * y))
    found = sorted(found, reverse=True)[:pairs]
    right = sum(square == 0 for _, square in found)
    distance = sum(square**0.5 for _, square in found) / len(found)
    return 100 * right / len(found), distance, 100 * found[-1][0]


@pytest.mark.parametrize("pairs", [2, 5, 100])
def test_found_again_is_its_definition(pairs: int) -> None:
    first = noise(3, 4, 4, 6)
    second = first.flip(2) + 1.2 * noise(3, 4, 4, 6, seed=1)
    found = found_again(first, second, pairs, 32)
    assert found.shape == (3, 3)
    for ours, one, two in zip(found, first, second, strict=True):
        assert ours.tolist() == pytest.approx(plain_scores(one, two, pairs, 8.0), abs=1e-4)
    assert 0 < found[:, 0].mean() < 100, "some pairs are right, some are wrong"


def test_a_mirror_image_is_found_and_the_image_itself_is_not() -> None:
    grid = noise(2, 3, 4, 8)
    assert found_again(grid, grid.flip(2), 12, 24)[:, :2].tolist() == [[100, 0]] * 2
    there = found_again(grid, grid, 12, 24)
    assert (there[:, 0] == 0).all(), "no column of four is its own mirror image"
    # columns 0 and 3 are three cells of 6 pixels away from their mirror images, 1 and 2 one cell
    assert there[:, 1].tolist() == pytest.approx([12, 12])


def test_scale_says_nothing() -> None:
    first, second = noise(2, 4, 4, 6), noise(2, 4, 4, 6, seed=1)
    torch.testing.assert_close(
        found_again(first, second, 4, 32), found_again(3 * first, second / 7, 4, 32)
    )


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_chance_is_the_mean_over_all_regions(shape: tuple[int, int]) -> None:
    h, w = shape
    places = centers(h, w, 30).tolist()
    away = [np.hypot(x - u, y - v) for x, y in places for u, v in places]
    found = chance(h, w, 30)
    assert found == {
        "accuracy": pytest.approx(100 / (h * w)),
        "distance": pytest.approx(np.mean(away)),
        "similarity": None,
    }
    draw = np.random.default_rng(0)
    first, second = (
        torch.from_numpy(draw.standard_normal((400, h, w, 16))).float() for _ in range(2)
    )
    nothing = found_again(first, second, 5, 30).mean(0)
    assert nothing[0] == pytest.approx(100 / (h * w), abs=2)
    assert nothing[1] == pytest.approx(np.mean(away), rel=0.05)


def test_the_second_view_is_mirrored_grey_and_of_other_colors() -> None:
    """As torchvision's functions make it of the same drawn numbers, in four of five cases."""
    image = functional.interpolate(torch.rand(1, 3, 6, 6), (24, 24), mode="bicubic").clamp(0, 1)[0]
    jittered = 0
    for index in range(60):
        found = second_view(image, 3, index)
        jitter = plan(SECOND, random.units(3, "correspondence", index, count=UNITS), 24, 24).jitter
        expected = tv.horizontal_flip(image)
        for name, factor in jitter:
            expected = getattr(tv, f"adjust_{name}")(expected, factor)
            reach = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}[name]
            assert abs(factor - (name != "hue")) <= reach
        expected = tv.rgb_to_grayscale(expected, num_output_channels=3)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
        assert len(jitter) in (0, 4)
        jittered += bool(jitter)
    assert 40 <= jittered <= 56


def test_a_view_s_draw_is_that_of_its_image() -> None:
    image = noise(3, 8, 8).sigmoid()
    two = TwoViews(0)(image, 5)
    assert two.shape == (2, 3, 8, 8) and torch.equal(two[0], image)
    assert torch.equal(two, TwoViews(0)(image, 5))
    others = [TwoViews(0)(image, 6), TwoViews(1)(image, 5)]
    assert all(not torch.equal(two[1], other[1]) for other in others)
    assert TwoViews(0).key != TwoViews(1).key


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_regions_to_find(family: str) -> None:
    backbone = build(FAMILIES[family]).eval()
    images = noise(2, 3, 32, 32).sigmoid()
    views = torch.stack([images, images.flip(-1)], 1)
    found = describe_pairs(backbone, 3)(views)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        grids = [backbone.features((view - mean) / std).grid for view in views.unbind(1)]
    torch.testing.assert_close(found, found_again(grids[0], grids[1], 3, 32))


# The stereo pair


@pytest.mark.parametrize(
    ("side", "size", "expected"),
    [(10, 4, [0, 4, 6]), (8, 4, [0, 4]), (4, 4, [0]), (9, 8, [0, 1])],
)
def test_windows_lie_edge_to_edge_and_reach_the_border(
    side: int, size: int, expected: list[int]
) -> None:
    assert starts(side, size) == expected


class Pixels(Backbone):
    """Regions of 4 x 4 pixels that are described by these pixels."""

    def __init__(self) -> None:
        super().__init__(SwinConfig())
        self.norm = torch.nn.Linear(1, 1)

    def features(self, images: Tensor, *, stages: bool = False) -> Features:
        cells = functional.pixel_unshuffle(images, 4).permute(0, 2, 3, 1)
        return Features(cells.mean((1, 2)), cells, None)


def test_regions_cover_a_picture_once() -> None:
    picture = noise(3, 14, 21).sigmoid()
    found = regions(Pixels(), picture, 8, batch=2)
    assert found.cell.tolist() == [4, 4] and len(found.rows) == 4 * 2 * 3
    torch.testing.assert_close(found.rows.norm(dim=1), torch.ones(24))
    # windows begin at rows 0 and 6 and at columns 0, 8 and 13; from 8 and 16 on places are new
    expected = {(x, y) for x in (2, 6, 10, 14, 19) for y in (2, 6, 8, 12)}
    places = found.places[found.fresh].tolist()
    assert {(x, y) for x, y in places} == expected and len(places) == len(expected)
    for row, (x, y) in zip(found.rows, found.places.long().tolist(), strict=True):
        alone = regions(Pixels(), picture[:, y - 2 : y + 2, x - 2 : x + 2], 4, batch=1)
        torch.testing.assert_close(row, alone.rows[0])


def test_a_small_picture_is_enlarged_and_keeps_its_pixels_as_unit() -> None:
    found = regions(Pixels(), noise(3, 10, 15).sigmoid(), 20, batch=8)
    assert found.cell.tolist() == [2, 2]
    assert found.places.amax(0).tolist() == [14, 9] and found.places.amin(0).tolist() == [1, 1]


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="stereo pair hold numbers that are not finite"):
        regions(Pixels(), torch.full((3, 8, 8), torch.nan), 8, batch=1)


def test_a_true_place_is_as_far_left_as_the_disparity() -> None:
    disparity = torch.full((4, 10), 3.0)
    disparity[2, 5] = torch.inf
    places = torch.tensor([[4.5, 1.0], [2.0, 0.0], [5.5, 2.5], [3.0, 3.0]])
    found = true_places(places, disparity)
    assert found[0].tolist() == [1.5, 1.0] and found[3].tolist() == [0.0, 3.0]
    assert found.isfinite().all(1).tolist() == [True, False, False, True]


def test_a_shifted_picture_is_found_where_it_went() -> None:
    """A right picture that is the left one, 8 pixels further left: pixels match exactly."""
    scene = noise(3, 16, 40).sigmoid()
    left, right = (regions(Pixels(), side, 8, batch=4) for side in (scene, scene.roll(-8, 2)))
    true = true_places(left.places, torch.full((16, 40), 8.0))
    asked = true.isfinite().all(1)
    assert int(asked.sum()) == 4 * 8, "two of the ten columns are beyond the border"
    found = matched(left.rows[asked], true[asked], right, 5)
    assert found == {"error": 0, "median error": 0, "within a cell": 100, "strongest": 100}
    anywhere, same = baselines(left.places[asked], true[asked], right)
    assert same["error"] == same["median error"] == 8 and same["within a cell"] == 0
    close = [
        (abs(x - u) <= 4 and abs(y - v) <= 4)
        for x, y in true[asked].tolist()
        for u, v in right.places.tolist()
    ]
    assert anywhere["within a cell"] == anywhere["strongest"] == pytest.approx(100 * np.mean(close))


def test_errors_are_those_of_the_nearest_region() -> None:
    """Three regions: found in place, one cell off, and far away; the first are the most alike."""
    rows = torch.eye(3)
    right = Regions(
        torch.tensor([[1.0, 0, 0], [0, 0.9, 0], [0, 0, 0.8], [0.1, 0.1, 0.1]]),
        torch.tensor([[2.0, 2.0], [6.0, 2.0], [30.0, 42.0], [50.0, 50.0]]),
        torch.ones(4, dtype=torch.bool),
        torch.tensor([4.0, 4.0]),
    )
    true = torch.tensor([[2.0, 2.0], [2.0, 2.0], [0.0, 2.0]])
    assert matched(rows, true, right, 2) == {
        "error": pytest.approx((0 + 4 + 50) / 3),
        "median error": 4,
        "within a cell": pytest.approx(200 / 3),
        "strongest": 100,
    }


def test_the_stereo_pair_s_disparity_is_that_of_its_pictures() -> None:
    """Where it is known, the right picture looks like the left one, and elsewhere less so."""
    left, right, disparity = stereo_pair()
    rows, columns = np.nonzero(np.isfinite(disparity))
    there = (columns - disparity[rows, columns]).round().astype(int)
    seen = there >= 0
    rows, columns, there = rows[seen], columns[seen], there[seen]
    off = np.abs(left[rows, columns].astype(float) - right[rows, there]).mean()
    unmoved = np.abs(left[rows, columns].astype(float) - right[rows, columns]).mean()
    assert off < unmoved / 3
