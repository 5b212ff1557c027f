"""Matched regions are held against the truth: boxes of views, measured disparities."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.analysis import matches
from leanvit.analysis.matches import Matches, Truth, between, match, match_stereo, match_views
from leanvit.backbones.base import Ask, Backbone, Features
from leanvit.data.render import render
from leanvit.data.sample import stereo_pair
from leanvit.data.views import Plan, View
from tests.tiny import VIT, noise

PLAN = Plan(size=16, box=(0, 0, 16, 16), flip=False, jitter=(), gray=False, sigma=0, solarize=False)
VIEW = View(
    size=32,
    scale=(0.3, 0.8),
    flip=0.5,
    jitter=0.0,
    jitter_strength=(0.0, 0.0, 0.0, 0.0),
    gray=0.0,
    blur=0.0,
    solarize=0.0,
)


Look = Callable[[Tensor], Tensor]
"""Mean normalised colors [B, h, w, 3] of patches -> features [B, h, w, D]."""


class Looks(Backbone):
    """A network whose region features say what color a patch has, in some way."""

    def __init__(self, patch: int, look: Look = lambda colors: colors) -> None:
        super().__init__(VIT)
        self.patch, self.look = patch, look
        self.weight = nn.Parameter(torch.zeros(1))
        self.mean, self.std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

    def forward(self, views: Sequence[Tensor], ask: Ask = Ask()) -> list[Features]:
        found = []
        for view in views:
            grid = self.look(functional.avg_pool2d(view, self.patch).permute(0, 2, 3, 1))
            found.append(Features(grid.mean((1, 2)), grid, None))
        return found


def one_to_one(points: Tensor) -> Tensor:
    return points.clone()


def numbered(h: int, w: int, patch: int = 4) -> Tensor:
    """Return a picture whose normalised red channel is the number of each patch, row by row."""
    numbers = torch.arange(h * w).float().reshape(h, w)
    red = numbers.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    return torch.stack([red * 0.2 + 0.5, torch.zeros_like(red), torch.zeros_like(red)])


def lookup(table: Tensor | None = None) -> Looks:
    """Return a network that gives each number of `numbered` its own direction."""
    table = functional.normalize(noise(200, 32), dim=1) if table is None else table
    return Looks(4, lambda colors: table[colors[..., 0].round().long()])


# Boxes of views


def pixel_of(plan: Plan, x: float, y: float) -> tuple[float, float]:
    """Return where in the image a point of a view comes from, by cutting and turning a picture."""
    top, left, height, width = plan.box
    columns = [left + (i + 0.5) * width / 1000 for i in range(1000)]
    if plan.flip:
        columns.reverse()
    rows = [top + (i + 0.5) * height / 1000 for i in range(1000)]
    return columns[min(int(x * 1000), 999)], rows[min(int(y * 1000), 999)]


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_points_of_one_view_are_found_in_the_other(flips: tuple[bool, bool]) -> None:
    """For every point on the left, look through the whole right view for the same pixel."""
    left = replace(PLAN, box=(3, 5, 20, 30), flip=flips[0])
    right = replace(PLAN, box=(10, 0, 26, 18), flip=flips[1])
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    found = between(left, right)(points)
    steps = [(i + 0.5) / 200 for i in range(200)]
    seen = [pixel_of(right, unit, unit) for unit in steps]
    known = 0
    for (x, y), there in zip(points.tolist(), found, strict=True):
        column, row = pixel_of(left, x, y)
        if not (0 <= column < 18 and 10 <= row < 36):
            assert there.isnan().all()
            continue
        known += 1
        nearest_x = min(range(200), key=lambda i: abs(seen[i][0] - column))
        nearest_y = min(range(200), key=lambda i: abs(seen[i][1] - row))
        assert there.tolist() == pytest.approx([steps[nearest_x], steps[nearest_y]], abs=0.006)
    assert 5 <= known <= 35


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_rendered_views_agree_with_the_truth(flips: tuple[bool, bool]) -> None:
    """The picture states each pixel's place in itself, so both views must show the same there."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    picture = (torch.stack([x, y, x * 0]) * 4).to(torch.uint8)
    left = replace(PLAN, size=24, box=(8, 16, 40, 32), flip=flips[0])
    right = replace(PLAN, size=24, box=(16, 8, 40, 48), flip=flips[1])
    views = [render(plan, picture) * 255 / 4 for plan in (left, right)]
    rows, columns = torch.meshgrid(torch.arange(4, 20), torch.arange(4, 20), indexing="ij")
    points = torch.stack([columns.flatten() + 0.5, rows.flatten() + 0.5], 1) / 24
    found = between(left, right)(points)
    inside = ((found > 0.1) & (found < 0.9)).all(1)
    assert inside.sum() > 100
    grid = (2 * found[inside] - 1)[None, None]
    there = functional.grid_sample(views[1][None], grid, align_corners=False)[0, :, 0]
    here = views[0][:, rows.flatten()[inside], columns.flatten()[inside]]
    assert (here - there)[:2].abs().max() < 0.8, "pixels of the picture"


def test_a_view_knows_itself() -> None:
    for flip in (False, True):
        plan = replace(PLAN, box=(3, 4, 7, 9), flip=flip)
        points = torch.tensor([[0.0, 0.0], [0.25, 0.75], [0.5, 0.5]])
        mirrored = replace(plan, flip=not flip)
        torch.testing.assert_close(between(plan, plan)(points), points)
        other = torch.stack([1 - points[1:, 0], points[1:, 1]], 1)
        torch.testing.assert_close(between(plan, mirrored)(points[1:]), other)


def test_views_without_a_common_pixel_know_nothing() -> None:
    left, right = replace(PLAN, box=(0, 0, 8, 8)), replace(PLAN, box=(0, 8, 8, 8))
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    assert between(left, right)(points).isnan().all()


# Matches


def test_the_same_picture_matches_itself() -> None:
    picture = numbered(5, 7)
    found = match(lookup(), picture, picture, one_to_one, 10)
    assert found.accuracy == 100.0
    assert found.grids == ((5, 7), (5, 7))
    assert found.pairs.shape == (10, 2) and found.similarity.shape == (10,)
    assert torch.equal(found.pairs[:, 0], found.pairs[:, 1])
    assert found.correct.all()
    torch.testing.assert_close(found.similarity, torch.ones(10))
    assert torch.equal(found.left, picture) and torch.equal(found.right, picture)


def test_pictures_are_normalised_as_the_network_wants() -> None:
    """Cosines of colors depend on the mean that is subtracted."""
    left, right = (torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    network = Looks(1)
    found = match(network, left, right, one_to_one, 16)
    rows = []
    for side in (left, right):
        mean, std = (torch.tensor(values)[:, None, None] for values in (network.mean, network.std))
        rows.append(functional.normalize(((side - mean) / std).flatten(1).T, dim=1))
    cosines = rows[0] @ rows[1].T
    best, partner = cosines.max(1)
    order = best.argsort(descending=True)
    assert found.pairs.tolist() == torch.stack([order, partner[order]], 1).tolist()
    torch.testing.assert_close(found.similarity, best[order])


def shift(pixels: float, w: int, patch: int = 4) -> Truth:
    """Return the truth of a picture that moved to the right by so many pixels."""
    return lambda points: points + torch.tensor([pixels / (w * patch), 0.0])


@pytest.mark.parametrize(
    ("moved", "accuracy"),
    [(0, 100.0), (2, 100.0), (3.9, 100.0), (-3.9, 100.0), (4.1, 0), (-4.1, 0)],
)
def test_a_match_within_one_region_is_right(moved: float, accuracy: float) -> None:
    """The truth lies `moved` pixels beside the matched region, whose side is 4."""
    picture = numbered(3, 5)
    assert match(lookup(), picture, picture, shift(moved, 5), 5).accuracy == accuracy


def test_height_and_width_count_in_regions_of_the_right_picture() -> None:
    """A region is 1/8 of the height and 1/2 of the width there."""
    left, right = numbered(2, 2), numbered(8, 2)
    for off, accuracy in ((0.124, 100.0), (0.126, 0.0)):
        found = match(lookup(), left, right, partial(near, off=off), 4)
        assert found.grids == ((2, 2), (8, 2))
        assert found.accuracy == accuracy


def near(points: Tensor, off: float) -> Tensor:
    """Return the middle of the region of the same number in a grid of 8 x 2, and `off` below."""
    number = (points * 2).long()
    number = 2 * number[:, 1] + number[:, 0]
    return torch.stack([(number % 2 + 0.5) / 2, (number // 2 + 0.5) / 8 + off], 1)


def test_wrong_matches_are_wrong() -> None:
    """The right picture holds the left one's regions in reverse order."""
    left = numbered(4, 6)
    right = left.flip(1, 2)
    found = match(lookup(), left, right, one_to_one, 24)
    assert (found.pairs.sum(1) == 23).all()
    assert not found.correct.any() or found.accuracy < 20
    turned = match(lookup(), left, right, lambda points: 1 - points, 24)
    assert torch.equal(turned.pairs, found.pairs)
    assert turned.accuracy == 100.0


def test_regions_without_a_known_place_take_no_part() -> None:
    """Half of the picture is known; the other half would be wrong, two rows away."""
    picture, other = numbered(4, 6), numbered(4, 6)
    other[:, :, 12:] = picture[:, :, 12:].roll(8, 1)

    def truth(points: Tensor) -> Tensor:
        return points.where((points[:, :1] < 0.5), torch.nan)

    found = match(lookup(), picture, other, truth, 100)
    assert found.accuracy == 100.0
    assert sorted(found.pairs[:, 0].tolist()) == [6 * y + x for y in range(4) for x in range(3)]
    assert len(found.pairs) == len(found.similarity) == len(found.correct) == 12
    assert match(lookup(), picture, other, one_to_one, 100).accuracy == pytest.approx(50.0)


def test_one_unknown_coordinate_makes_a_place_unknown() -> None:
    def truth(points: Tensor) -> Tensor:
        found = points.clone()
        found[0, 0], found[1, 1], found[2] = torch.nan, torch.nan, torch.inf
        return found

    picture = numbered(2, 4)
    assert sorted(match(lookup(), picture, picture, truth, 9).pairs[:, 0].tolist()) == [
        3,
        4,
        5,
        6,
        7,
    ]


def test_when_nothing_is_known_nothing_is_matched() -> None:
    picture = numbered(2, 2)
    with pytest.raises(ValueError, match="No region of the left picture can be seen on the right"):
        match(lookup(), picture, picture, lambda points: points * torch.nan, 3)


def test_accuracy_counts_all_and_pairs_the_strongest() -> None:
    """A few strong pairs are right, the many others wrong."""
    picture, other = numbered(4, 6), numbered(4, 6)
    table = functional.normalize(noise(200, 32), dim=1)
    strong, weak = torch.arange(4), torch.arange(4, 24)
    other[0, 4:] += 24 * 0.2  # rows 1 to 3 hold other numbers, whose features are made alike
    table[weak + 24] = functional.normalize(table[weak].flip(0) + 0.05 * noise(20, 32), dim=1)
    other[0, :4, 16:] += 24 * 0.2
    found = match(lookup(table), picture, other, one_to_one, 4)
    assert sorted(found.pairs[:, 0].tolist()) == strong.tolist()
    assert found.correct.all()
    whole = match(lookup(table), picture, other, one_to_one, 24)
    assert (
        whole.accuracy == found.accuracy == pytest.approx(100 * float(whole.correct.float().mean()))
    )
    assert found.accuracy < 50


# Two views of an image


def place_of(found: Matches, side: Tensor, regions: Tensor) -> Tensor:
    """Return the colors in the middle of regions, which are places in the image."""
    return functional.avg_pool2d(side, 4).flatten(1)[:, regions]


@pytest.mark.parametrize("height_width", [(64, 64), (40, 100)])
def test_views_of_an_image_match_where_their_boxes_say(height_width: tuple[int, int]) -> None:
    """Colors are places, and the network says them, so it matches what is in the same place."""
    height, width = height_width
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = (torch.stack([x, y, 1 - x]) * 255).to(torch.uint8)
    network = Looks(4, lambda colors: torch.cat([colors.sin(), colors.cos()], -1))
    network.mean, network.std = (0.0, 0.0, 0.0), (0.5, 0.5, 0.5)
    found = match_views(network, picture, VIEW, count=7)
    assert found.left.shape == found.right.shape == (3, 32, 32)
    assert found.grids == ((8, 8), (8, 8)) and len(found.pairs) == 7
    assert found.accuracy > 95
    best = (
        place_of(found, found.left, found.pairs[found.correct, 0])
        - place_of(found, found.right, found.pairs[found.correct, 1])
    ).abs()
    assert best.max() < 0.12
    again = match_views(network, picture, VIEW, count=7)
    assert torch.equal(again.left, found.left) and torch.equal(again.pairs, found.pairs)
    changed = replace(VIEW, interpolation="random", randaugment=9.0, erase=1.0)
    plain = match_views(network, picture, changed, count=7)
    assert torch.equal(plain.left, found.left) and torch.equal(plain.pairs, found.pairs)


def test_views_that_show_nothing_in_common_are_drawn_again() -> None:
    """Of tiny crops hardly two meet; those that are taken do."""
    picture = (torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0)) * 255).byte()
    for scale in (0.01, 0.02, 0.05, 0.1):
        found = match_views(Looks(4), picture, replace(VIEW, scale=(scale, scale)), count=100)
        assert 16 <= len(found.pairs) <= 64


# The stereo pair


def test_a_stereo_pair_is_held_against_its_disparities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right picture is the left one moved by 8 of 64 columns: what is at x is at x - 8."""
    draw = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    left = draw.repeat(4, 0).repeat(4, 1)
    right = np.roll(left, -8, 1)
    disparity = np.full((32, 64), 8, dtype=np.float32)
    disparity[16:] = np.inf
    monkeypatch.setattr(matches, "stereo_pair", lambda: (left, right, disparity))
    found = match_stereo(Looks(4), width=64, count=200)
    assert found.left.shape == found.right.shape == (3, 32, 64)
    torch.testing.assert_close(found.left, torch.from_numpy(left).permute(2, 0, 1) / 255)
    assert found.accuracy == 100.0
    rows, columns = found.pairs[:, 0] // 16, found.pairs[:, 0] % 16
    assert rows.max() == 3, "below, nothing is known"
    assert columns.min() == 2, "what would lie beyond the edge is not there"
    assert len(found.pairs) == 4 * 14
    assert torch.equal(found.pairs[:, 1], found.pairs[:, 0] - 2)
    for wrong in (-8, 0):
        disparity[:16] = wrong
        assert match_stereo(Looks(4), width=64).accuracy < 50


def test_the_motorcycle_is_made_smaller() -> None:
    found = match_stereo(Looks(8), width=128, count=30)
    assert found.left.shape == found.right.shape == (3, 86, 128)
    assert found.grids == ((10, 16), (10, 16))
    assert found.left.min() >= 0 and found.left.max() <= 1
    assert len(found.pairs) == 30
    assert found.accuracy > 15, "colors alone find some of the places"
    whole = torch.from_numpy(stereo_pair()[0].copy()).permute(2, 0, 1) / 255
    small = functional.interpolate(whole[None], (86, 128), mode="bilinear", antialias=True)[0]
    assert (found.left - small).abs().mean() < 0.01
