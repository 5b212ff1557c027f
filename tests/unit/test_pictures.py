"""Pictures show what they are given, where it belongs, and the same bytes for the same input."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from leanvit.analysis.match_pictures import matched_regions, strongest_matches
from leanvit.analysis.pictures import (
    BLUE,
    INK,
    ORANGE,
    loss_curves,
    view_grid,
)

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]
Row = dict[str, float]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREEN, YELLOW = (0, 255, 0), (255, 255, 0)
GRIDS = ((2, 2), (4, 3))


def color(name: str) -> Color:
    red, green, blue = bytes.fromhex(name.removeprefix("#"))
    return red, green, blue


def opened(path: Path) -> Pixels:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert "Software" not in image.info
        return np.asarray(image.convert("RGB"))


def having(pixels: Pixels, wanted: Color, tolerance: int = 0) -> NDArray[np.bool_]:
    """Return where [height, width] a picture has a color."""
    return abs(pixels.astype(int) - wanted).max(-1) <= tolerance


def box(pixels: Pixels, wanted: Color) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a color."""
    rows, columns = np.nonzero(having(pixels, wanted))
    assert len(rows), wanted
    top, left = rows.min(), columns.min()
    return int(top), int(left), int(rows.max() - top + 1), int(columns.max() - left + 1)


# curves


def metrics(count: int = 40, keys: tuple[str, ...] = ("loss", "view", "region")) -> list[Row]:
    rows = [
        {"step": 10.0 * i, "epoch": i / 10, "lr": 1e-4 * i, "images_per_s": 200.0, "data_wait": 0.1}
        | {"grad_norm/backbone": 4.0, "weight_decay": 0.04}
        | {key: 9.0 / i + place for place, key in enumerate(keys)}
        for i in range(1, count + 1)
    ]
    for row in rows[::5]:
        row |= {"knn": 10 + row["epoch"], "effective_rank": 50.0}
    return rows


def curve(path: Path, values: Sequence[float | None]) -> Pixels:
    """Return the picture of one blue curve; None stands for a row without the key."""
    rows: list[Row] = [
        {"step": float(i)} | ({} if value is None else {"view": value})
        for i, value in enumerate(values)
    ]
    loss_curves(rows, path)
    return opened(path)


def pieces(pixels: Pixels) -> int:
    """Return of how many pieces the level blue line is."""
    blue = having(pixels, color(BLUE), tolerance=8)
    level = blue[blue.sum(1).argmax()]
    edges = np.flatnonzero(np.diff(np.pad(level.astype(int), 1)))
    return int((np.diff(edges)[::2] > 50).sum())


def has_dot(pixels: Pixels, name: str) -> bool:
    """Whether there is a blot of a color, thicker than a line or a letter."""
    there = torch.from_numpy(having(pixels, color(name), tolerance=8)).float()
    return bool(functional.avg_pool2d(there[None], 5, 1).max() == 1)


def test_curves_are_a_picture(tmp_path: Path) -> None:
    keys = ("loss", "view", "region", "feature_std", "teacher_entropy", "distinct_matches")
    loss_curves(metrics(keys=keys), tmp_path / "curves.png")
    height, width, _ = opened(tmp_path / "curves.png").shape
    assert 1400 <= width <= 1600
    assert 1000 <= height <= 1300


def test_a_panel_for_what_there_is(tmp_path: Path) -> None:
    full = {
        "loss": 2.0,
        "lr": 1e-3,
        "knn": 30.0,
        "feature_std": 0.9,
        "effective_rank": 90.0,
        "teacher_entropy": 3.0,
        "distinct_matches": 30.0,
    }
    heights = []
    for count in (1, 2, 5, 7):
        rows = [{"step": step} | dict(list(full.items())[:count]) for step in (1.0, 2.0, 3.0)]
        loss_curves(rows, tmp_path / "curves.png")
        heights.append(len(opened(tmp_path / "curves.png")))
    assert heights[0] < heights[1] < heights[2] == heights[3]  # 4 and 6 small ones: two rows


@pytest.mark.parametrize(
    ("keys", "blue", "orange"),
    [
        (("loss",), False, False),
        (("view",), True, False),
        (("region",), False, True),
        (("loss", "view", "region"), True, True),
    ],
)
def test_a_curve_for_each_loss(
    keys: tuple[str, ...], blue: bool, orange: bool, tmp_path: Path
) -> None:
    rows = [{"step": i} | dict.fromkeys(keys, 3.0 / i) for i in range(1, 9)]
    rows = [{key: value + len(key) for key, value in row.items()} for row in rows]
    loss_curves(rows, tmp_path / "curves.png")
    pixels = opened(tmp_path / "curves.png")
    assert (has_dot(pixels, BLUE), has_dot(pixels, ORANGE)) == (blue, orange)


def test_the_only_term_is_the_loss(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1 / i, "view": 1 / i} for i in range(1, 9)]
    loss_curves(rows, tmp_path / "curves.png")
    pixels = opened(tmp_path / "curves.png")
    names = pixels[:, int(0.85 * pixels.shape[1]) :]
    assert having(names, color(BLUE)).any()
    assert not having(names, color(INK)).any()  # no name for a curve that would be hidden


def test_a_single_row_shows_its_point(tmp_path: Path) -> None:
    assert has_dot(curve(tmp_path / "curves.png", [3.0]), BLUE)


def test_many_points_are_a_line(tmp_path: Path) -> None:
    pixels = curve(tmp_path / "curves.png", [3.0] * 100)
    assert pieces(pixels) == 1
    assert not has_dot(pixels, BLUE)


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_gap(hole: float, tmp_path: Path) -> None:
    values = [3.0] * 40 + [hole] * 20 + [3.0] * 40
    assert pieces(curve(tmp_path / "curves.png", values)) == 2


def test_infinity_does_not_change_the_scale(tmp_path: Path) -> None:
    for name, hole in (("nan", math.nan), ("inf", math.inf)):
        rows = [{"step": i, "lr": hole if i == 4 else 1e-5 * i} for i in range(9)]
        loss_curves(rows, tmp_path / name)
    assert (tmp_path / "nan").read_bytes() == (tmp_path / "inf").read_bytes()


def test_what_was_not_measured_is_no_gap(tmp_path: Path) -> None:
    values = [3.0] * 40 + [None] * 20 + [3.0] * 40
    assert pieces(curve(tmp_path / "curves.png", values)) == 1


def test_a_point_between_gaps_is_seen(tmp_path: Path) -> None:
    values = [3.0] * 40 + [math.nan, 3.0, math.nan] + [3.0] * 40
    assert has_dot(curve(tmp_path / "curves.png", values), BLUE)


def test_a_run_without_one_finite_number_has_a_picture(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": math.nan, "lr": math.inf, "knn": math.nan} for i in range(3)]
    loss_curves(rows, tmp_path / "curves.png")
    assert not has_dot(opened(tmp_path / "curves.png"), BLUE)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9, 1e12])
def test_any_size_of_number_is_drawn(value: float, tmp_path: Path) -> None:
    rows = [{"step": i, "loss": value, "lr": value, "effective_rank": value} for i in (1, 2)]
    loss_curves(rows, tmp_path / "curves.png")
    assert has_dot(opened(tmp_path / "curves.png"), BLUE)


def test_a_row_needs_a_step_and_a_number() -> None:
    with pytest.raises(ValueError, match="no rows"):
        loss_curves([], Path("never.png"))
    with pytest.raises(ValueError, match=r"Row 1 .* no 'step'"):
        loss_curves([{"step": 1, "loss": 2.0}, {"loss": 2.0}], Path("never.png"))
    with pytest.raises(ValueError, match=r"expected some of loss, .* only \['epoch', 'step'\]"):
        loss_curves([{"step": 1, "epoch": 2.0}], Path("never.png"))


# views


def level(view: int, image: int) -> Color:
    """Return a color that says which view of which image it is."""
    return 40 * view + 20, 50 * image + 30, 100


def flat_views(first: int, count: int, images: int, side: int) -> Tensor:
    """Return normalised views [count, images, 3, side, side], each of its own color."""
    colors = [[level(first + v, b) for b in range(images)] for v in range(count)]
    values = (torch.tensor(colors) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values[..., None, None].expand(-1, -1, -1, side, side)


def test_every_view_has_its_place(tmp_path: Path) -> None:
    groups = [flat_views(0, 2, 3, 120), flat_views(2, 3, 3, 48)]
    view_grid(groups, MEAN, STD, tmp_path / "views.png")
    pixels = opened(tmp_path / "views.png")
    boxes = [[box(pixels, level(view, image)) for image in range(3)] for view in range(5)]
    for view, column in enumerate(boxes):
        side = 120 if view < 2 else 48
        assert {place[2:] for place in column} == {(side, side)}
        assert len({left for _, left, _, _ in column}) == 1
        for (top, left, _, _), (first, *_) in zip(column, boxes[0], strict=True):
            assert first <= top and top + side <= first + 120  # within the row
            assert (pixels[top : top + side, left : left + side] == pixels[top, left]).all()
    for before, after in pairwise(boxes):
        assert before[0][1] + before[0][3] < after[0][1]
    tops = [top for top, *_ in boxes[0]]
    assert tops[0] + 120 < tops[1] and tops[1] + 120 < tops[2]


def test_a_heading_stands_over_each_column(tmp_path: Path) -> None:
    view_grid([flat_views(0, 2, 1, 120), flat_views(2, 12, 1, 24)], MEAN, STD, tmp_path / "v.png")
    pixels = opened(tmp_path / "v.png")
    top, *_ = box(pixels, level(0, 0))
    ink = pixels[:top].max(-1) < 128
    assert not ink[[0, -1]].any() and not ink[:, [0, -1]].any()  # nothing is cut
    lefts = [box(pixels, level(view, 0))[1::2] for view in (0, 1, 2, 3)]
    for left, width in lefts:
        assert ink[:, max(0, left - 6) : left + width + 6].any()
    narrow = lefts[3][0] - lefts[2][0]
    assert narrow > 24 + 16  # a column is as wide as its heading


def test_pixels_are_enlarged_as_they_are(tmp_path: Path) -> None:
    view = torch.arange(48).view(1, 1, 3, 4, 4) * 5 / 255
    view_grid([view], (0, 0, 0), (1, 1, 1), tmp_path / "views.png")
    pixels = opened(tmp_path / "views.png")
    expected = (view[0, 0].permute(1, 2, 0) * 255).round().byte().numpy()
    _, _, height, width = box(pixels, tuple(expected[0, 0]))
    assert height == width > 10
    for y, x in np.ndindex(4, 4):
        assert box(pixels, tuple(expected[y, x]))[2:] == (height, width)


def test_values_beyond_the_range_are_clamped(tmp_path: Path) -> None:
    view = torch.tensor([-9.0, 9.0, 0.5]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 112, 112)
    view_grid([view], (0, 0, 0), (1, 1, 1), tmp_path / "views.png")
    assert box(opened(tmp_path / "views.png"), (0, 255, 128))[2:] == (112, 112)


@pytest.mark.parametrize("images", [1, 2, 3, 9])
def test_the_first_images_are_shown(images: int, tmp_path: Path) -> None:
    view_grid([flat_views(0, 2, 3, 112)], MEAN, STD, tmp_path / "views.png", images=images)
    pixels = opened(tmp_path / "views.png")
    shown = [bool(having(pixels, level(0, image)).any()) for image in range(3)]
    assert shown == [image < images for image in range(3)]


def test_half_precision_views_are_shown(tmp_path: Path) -> None:
    view = torch.full((1, 1, 3, 112, 112), 0.5, dtype=torch.bfloat16, requires_grad=True)
    view_grid([view], (0, 0, 0), (1, 1, 1), tmp_path / "views.png")
    assert box(opened(tmp_path / "views.png"), (128, 128, 128))[2:] == (112, 112)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([], "no views"),
        ([(2, 1, 3, 8)], "Group 0 has shape"),
        ([(2, 1, 3, 8, 8), (2, 1, 1, 8, 8)], "Group 1 has shape"),
        ([(2, 1, 3, 8, 4)], "Group 0 has shape"),
        ([(2, 0, 3, 8, 8)], "Group 0 has shape"),
        ([(2, 1, 3, 8, 8), (2, 2, 3, 4, 4)], "Group 1 has 2 images, but group 0 has 1"),
    ],
)
def test_views_have_a_shape(shapes: list[tuple[int, ...]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        view_grid([torch.zeros(shape) for shape in shapes], MEAN, STD, Path("never.png"))


def test_mean_std_and_images_are_checked() -> None:
    views = [torch.zeros(1, 1, 3, 8, 8)]
    with pytest.raises(ValueError, match="not 1 and 3"):
        view_grid(views, (0.5,), STD, Path("never.png"))
    with pytest.raises(ValueError, match="not 0"):
        view_grid(views, MEAN, STD, Path("never.png"), images=0)


# matches


def features(rows: int, seed: int) -> Tensor:
    draws = np.random.Generator(np.random.Philox(seed)).standard_normal((rows, 8))
    return torch.from_numpy(draws).float()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


@pytest.mark.parametrize("count", [1, 5, 12, 99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strongest_matches_are_those_of_a_loop(count: int, dtype: torch.dtype) -> None:
    left, right = features(12, 0).to(dtype), features(20, 1).to(dtype)
    found = []
    for i, row in enumerate(left):
        similarities = [cosine(row, other) for other in right]
        best = max(range(len(right)), key=similarities.__getitem__)
        found.append((similarities[best], i, best))
    found.sort(key=lambda match: (-match[0], match[1]))
    pairs, similarity = strongest_matches(left, right, count)
    assert pairs.tolist() == [[i, j] for _, i, j in found[:count]]
    assert similarity.dtype == torch.float32
    expected = torch.tensor([value for value, _, _ in found[:count]], dtype=torch.float32)
    torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-6)


def test_lengths_do_not_matter() -> None:
    left, right = features(12, 0), features(20, 1)
    longer = right * torch.linspace(0.01, 100, 20)[:, None]
    assert torch.equal(strongest_matches(left, right, 5)[0], strongest_matches(left, longer, 5)[0])


def test_equal_matches_keep_the_order_of_the_left() -> None:
    left = features(1, 0).expand(37, -1).clone()
    left[20] = -left[20]
    pairs, _ = strongest_matches(left, torch.cat([features(3, 1), left[:1]]), 36)
    assert pairs[:, 0].tolist() == [i for i in range(37) if i != 20]
    assert set(pairs[:, 1].tolist()) == {3}


def test_autocast_does_not_reach_the_matches() -> None:
    left, right = features(12, 0), features(20, 1)
    expected = strongest_matches(left, right, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = strongest_matches(left.requires_grad_(), right, 12)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert not found[1].requires_grad


def test_matches_need_regions_of_one_width() -> None:
    with pytest.raises(ValueError, match=r"not \[3, 4\] and \[3, 5\]"):
        strongest_matches(torch.zeros(3, 4), torch.zeros(3, 5), 1)
    with pytest.raises(ValueError, match=r"not \[3\] and \[3\]"):
        strongest_matches(torch.zeros(3), torch.zeros(3), 1)
    with pytest.raises(ValueError, match="not 0 and 3"):
        strongest_matches(torch.zeros(0, 4), torch.zeros(3, 4), 1)
    with pytest.raises(ValueError, match="not 0"):
        strongest_matches(torch.zeros(3, 4), torch.zeros(3, 4), 0)


def plain(wanted: Color, height: int, width: int) -> Tensor:
    return (torch.tensor(wanted) / 255).view(3, 1, 1).expand(3, height, width)


LEFT, RIGHT = plain(GREEN, 40, 60), plain(YELLOW, 80, 80)


def drawn(
    path: Path,
    pairs: list[list[int]],
    *,
    similarity: list[float] | None = None,
    correct: list[bool] | None = None,
    title: str = "",
) -> Pixels:
    matched_regions(
        LEFT,
        RIGHT,
        torch.tensor(pairs),
        path,
        grids=GRIDS,
        similarity=None if similarity is None else torch.tensor(similarity),
        correct=None if correct is None else torch.tensor(correct),
        title=title,
    )
    return opened(path)


def center(pixels: Pixels, side: int, region: int) -> tuple[int, int]:
    """Return y and x where the center of a region should be."""
    top, left, height, width = box(pixels, (GREEN, YELLOW)[side])
    row, column = divmod(region, GRIDS[side][1])
    y, x = (row + 0.5) / GRIDS[side][0], (column + 0.5) / GRIDS[side][1]
    return round(top + y * height), round(left + x * width)


def seen(pixels: Pixels, place: tuple[int, int], wanted: Color) -> bool:
    y, x = place
    return bool(having(pixels[y : y + 1, x : x + 1], wanted, tolerance=12).all())


def test_images_stand_side_by_side(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "matches.png", [[0, 0]])
    top, left, height, width = box(pixels, GREEN)
    other_top, other_left, other_height, other_width = box(pixels, YELLOW)
    assert abs(top - other_top) <= 1 and abs(height - other_height) <= 1
    assert abs(width / height - 60 / 40) < 0.01
    assert abs(other_width / other_height - 1) < 0.01
    assert left + width < other_left
    assert height > 250


def test_lines_join_the_centers_of_regions(tmp_path: Path) -> None:
    pairs = [[0, 1], [2, 11], [3, 6]]
    pixels = drawn(tmp_path / "matches.png", pairs)
    for left, right in pairs:
        ends = center(pixels, 0, left), center(pixels, 1, right)
        assert all(seen(pixels, end, color(BLUE)) for end in ends)
        for share in (0.2, 0.5, 0.8):
            y, x = ((1 - share) * a + share * b for a, b in zip(*ends, strict=True))
            assert seen(pixels, (round(y), round(x)), color(BLUE))
    assert seen(pixels, center(pixels, 0, 1), GREEN)
    assert seen(pixels, center(pixels, 1, 9), YELLOW)


def test_right_and_wrong_look_different(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "matches.png", [[0, 0], [2, 9]], correct=[True, False])
    for side, regions in enumerate(((0, 2), (0, 9))):
        for region, name in zip(regions, (BLUE, ORANGE), strict=True):
            assert seen(pixels, center(pixels, side, region), color(name))
    top, _, height, _ = box(pixels, GREEN)
    inside, below = pixels[: top + height], pixels[top + height :]
    blue, orange = (having(inside, color(name), 12).sum() for name in (BLUE, ORANGE))
    assert orange < 0.85 * blue  # the lines are about as long, but one is dashed
    for name in (BLUE, ORANGE):
        assert having(below, color(name), 12).any()  # the legend


def test_similar_pairs_are_bright(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "matches.png", [[0, 0], [2, 9]], similarity=[0.9, 0.2])
    for region, end in ((0, 1.0), (2, 0.0)):
        red, green, blue = (round(255 * part) for part in colormaps["viridis"](end)[:3])
        assert seen(pixels, center(pixels, 0, region), (red, green, blue))


def test_earlier_pairs_lie_on_top(tmp_path: Path) -> None:
    bright, dark = ((253, 231, 37), (68, 1, 84))  # the ends of the scale
    for pairs, wanted in (([[0, 9], [2, 0]], bright), ([[2, 0], [0, 9]], dark)):
        similarity = [0.9, 0.2] if wanted == bright else [0.2, 0.9]
        pixels = drawn(tmp_path / "matches.png", pairs, similarity=similarity)
        (y0, x0), (y1, x1) = center(pixels, 0, 0), center(pixels, 1, 9)
        (v0, _), (v1, _) = center(pixels, 0, 2), center(pixels, 1, 0)
        share = (v0 - y0) / ((v0 - y0) + (y1 - v1))
        y, x = round(y0 + share * (y1 - y0)), round(x0 + share * (x1 - x0))
        crossing = pixels[y - 1 : y + 2, x - 1 : x + 2]
        assert having(crossing, wanted, tolerance=12).any()
        other = dark if wanted == bright else bright
        assert not having(crossing, other, tolerance=12).any()


def test_a_title_is_shown_above(tmp_path: Path) -> None:
    without = drawn(tmp_path / "matches.png", [[0, 0]])
    with_title = drawn(tmp_path / "matches.png", [[0, 0]], title="Ten epochs")
    assert box(with_title, GREEN)[0] > box(without, GREEN)[0] + 15
    assert (with_title[: box(with_title, GREEN)[0]] < 80).all(-1).any()


@pytest.mark.parametrize("similarity", [[0.5], [1.0], [-1.0]])
def test_a_single_similarity_has_a_color(similarity: list[float], tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "matches.png", [[0, 0]], similarity=similarity)
    assert seen(pixels, center(pixels, 0, 0), (253, 231, 37))


def test_mistakes_in_matches_are_named() -> None:
    path = Path("never.png")
    with pytest.raises(ValueError, match="no pairs"):
        matched_regions(LEFT, RIGHT, torch.zeros(0, 2, dtype=torch.long), path, grids=GRIDS)
    with pytest.raises(ValueError, match=r"\[P, 2\], not torch.int64 \[1, 3\]"):
        drawn(path, [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"not torch.float32 \[1, 2\]"):
        matched_regions(LEFT, RIGHT, torch.zeros(1, 2), path, grids=GRIDS)
    with pytest.raises(ValueError, match=r"left grid of 2 x 2 has regions 0 to 3, .* name 4"):
        drawn(path, [[4, 0]])
    with pytest.raises(ValueError, match=r"right grid of 4 x 3 has regions 0 to 11, .* name -1"):
        drawn(path, [[3, -1]])
    with pytest.raises(ValueError, match=r"2 pairs need `correct` \[2\], not \[1\]"):
        drawn(path, [[0, 0], [1, 1]], correct=[True])
    with pytest.raises(ValueError, match=r"1 pairs need `similarity` \[1\], not \[2\]"):
        drawn(path, [[0, 0]], similarity=[0.1, 0.2])
    with pytest.raises(ValueError, match="finite"):
        drawn(path, [[0, 0]], similarity=[math.nan])
    with pytest.raises(ValueError, match=r"right image must be \[3, H, W\], not \[80, 80\]"):
        matched_regions(LEFT, RIGHT[0], torch.tensor([[0, 0]]), path, grids=GRIDS)


# all


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        loss_curves(metrics(), tmp_path / f"{name}-curves.png")
        view_grid([flat_views(0, 2, 2, 32)], MEAN, STD, tmp_path / f"{name}-views.png")
        drawn(tmp_path / f"{name}-matches.png", [[0, 0]], similarity=[0.5], title="t")
    for kind in ("curves", "views", "matches"):
        first, second = (tmp_path / f"{name}-{kind}.png" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_a_name_without_an_ending_is_a_png_too(tmp_path: Path) -> None:
    loss_curves(metrics(3), tmp_path / "curves")
    view_grid([flat_views(0, 1, 1, 32)], MEAN, STD, tmp_path / "views")
    drawn(tmp_path / "matches", [[0, 0]])
    for name in ("curves", "views", "matches"):
        opened(tmp_path / name)
