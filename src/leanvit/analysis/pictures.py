"""Pictures of a run: its curves, its views, its matches. PNG files, equal for equal input.

Letters: V_g views of one size, B images, S side of a view in pixels; H, W height and width of an
image in pixels, h, w those of its grid of regions; T_l, T_r regions of a left and a right image,
d channels, P pairs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from leanvit.core.files import Replacing
from leanvit.core.precision import full
from leanvit.losses.region import match_regions

INK, FAINT, EDGE, RULE = "#222222", "#6b6b6b", "#b0b0b0", "#e6e6e6"
BLUE, ORANGE = "#0072b2", "#d55e00"
"""Two colors that every kind of color vision tells apart (Okabe and Ito)."""
LOSSES = {"loss": INK, "view": BLUE, "region": ORANGE}
"""The curves of the first panel and their colors; others are blue."""
PANELS = {
    "lr": "Learning rate",
    "knn": "Online k-NN (%)",
    "feature_std": "Feature standard deviation",
    "effective_rank": "Effective rank",
    "teacher_entropy": "Teacher entropy",
    "distinct_matches": "Distinct matches",
    "correct_matches": "Correct matches (%)",
}
"""The small panels, in their order."""
FEW = 30
"""Up to so many points are marked each, since a line between few hides where they are."""
DPI = 150
ROUND = (1, 2, 5, 10)
"""Digits that numbers on axes count in."""
APART = 0.11
"""Least distance between names at the ends of curves, as a share of the panel's height."""
LEGIBLE = 112
"""Smaller views are enlarged by a whole number until the largest has this side."""
BETWEEN = 0.08
"""Gap between two matched images, as a share of their height."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def loss_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw a run's metrics over its steps, one panel for each kind that some row has.

    rows: as written to metrics.jsonl, each with `step`; `knn` in percent. A row without a key
    counts as not measured, and the line goes on; a number that is not finite is left as a gap.
    Raises ValueError if there are no rows, a row has no step, or no row has anything to draw.
    """
    curves = _curves(rows)
    losses = _losses(curves)
    small = [key for key in PANELS if key in curves]
    across = 2 if len(small) in (2, 4) else min(3, max(1, len(small)))
    heights = [1.5] * bool(losses) + [1.0] * math.ceil(len(small) / across)
    figure = Figure(
        figsize=(10, 0.4 + 2.1 * sum(heights)),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12),
    )
    grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
    steps = [row["step"] for row in rows]
    if losses:
        axes = _panel(figure.add_subplot(grid[0, :]), "Loss", steps, ticks=10)
        _draw(axes, losses)
    for place, key in enumerate(small):
        row, column = divmod(place, across)
        title, curve = _readable(PANELS[key], curves[key])
        axes = _panel(figure.add_subplot(grid[row + bool(losses), column]), title, steps)
        _draw(axes, {"": curve}, from_zero=True)  # to see how far a collapse is, which is at 0
    figure.supxlabel("step", fontsize=9, color=FAINT)
    save_figure(figure, path)


def _curves(rows: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    """Return steps and values of every key that is drawn, NaN where a value is not finite."""
    if not rows:
        raise ValueError("There are no rows of metrics to draw; at least one is needed.")
    for number, row in enumerate(rows):
        if "step" not in row:
            raise ValueError(f"Row {number} of the metrics has no 'step', only {sorted(row)}.")
    curves: dict[str, Curve] = {}
    for key in (*LOSSES, *PANELS):
        having = [row for row in rows if key in row]
        if having:
            values = np.array([row[key] for row in having], dtype=np.float64)
            values[~np.isfinite(values)] = np.nan
            curves[key] = np.array([row["step"] for row in having], dtype=np.float64), values
    if not curves:
        raise ValueError(
            f"No row of metrics has anything to draw: expected some of "
            f"{', '.join((*LOSSES, *PANELS))}, found only {sorted(set().union(*rows))}."
        )
    return curves


def _losses(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return the losses; the only term of a sum shares a curve with it instead of hiding it."""
    losses = {key: curves[key] for key in LOSSES if key in curves}
    if list(losses) == ["loss", "view"] and np.array_equal(
        losses["loss"], losses["view"], equal_nan=True
    ):
        return {"loss = view": losses["loss"]}
    return losses


def _readable(title: str, curve: Curve) -> tuple[str, Curve]:
    """Return title and curve with tiny values as multiples of a power of ten in the title."""
    steps, values = curve
    top = float(np.nanmax(np.abs(values), initial=0))
    if not 0 < top < 0.01:
        return title, curve
    exponent = math.floor(math.log10(top))
    return f"{title} ($\\times 10^{{{exponent}}}$)", (steps, values / 10.0**exponent)


def _panel(axes: Axes, title: str, steps: Sequence[float], *, ticks: int = 5) -> Axes:
    """Give an empty panel its title, a quiet frame and the steps that every panel shows."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(EDGE)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", labelcolor=FAINT, labelsize=8, length=0)
    axes.tick_params(axis="x", labelcolor=FAINT, labelsize=8, length=3, color=EDGE)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=ROUND, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    margin = 0.02 * (max(steps) - min(steps)) or 1.0
    axes.set_xlim(min(steps) - margin, max(steps) + margin)
    return axes


def _draw(axes: Axes, curves: Mapping[str, Curve], *, from_zero: bool = False) -> None:
    """Draw curves, each with its name and last value at its end.

    A point is marked if there are few, or if gaps leave it without a line.
    """
    ends: dict[str, float] = {}
    for name, (steps, values) in curves.items():
        there = np.isfinite(values)
        if not there.any():
            continue
        around = np.pad(there, 1)
        marked = there if there.sum() <= FEW else there & ~around[:-2] & ~around[2:]
        axes.plot(
            steps,
            values,
            color=LOSSES.get(name, BLUE),
            linewidth=1.6,
            solid_capstyle="round",
            marker="o",
            markersize=3.5,
            markevery=np.flatnonzero(marked).tolist(),
            clip_on=False,
            zorder=3,  # on top of the axis, where a learning rate ends
        )
        ends[name] = float(values[there][-1])
    if from_zero and axes.dataLim.ymin >= 0:
        axes.set_ylim(bottom=0)
    if ends:
        _name_ends(axes, ends)
    else:
        axes.set_yticks([])
        axes.annotate(
            "no finite value",
            (0.5, 0.5),
            xycoords="axes fraction",
            ha="center",
            fontsize=9,
            color=FAINT,
        )


def _name_ends(axes: Axes, ends: Mapping[str, float]) -> None:
    """Write names and last values to the right of a panel, moved apart where they would touch."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda name: ends[name])
    heights = [(ends[name] - low) / (high - low) for name in order]
    for _ in range(20):  # enough for the few names there are to come to rest
        for i in range(1, len(heights)):
            push = max(0.0, APART - heights[i] + heights[i - 1]) / 2
            heights[i - 1], heights[i] = heights[i - 1] - push, heights[i] + push
    raised = max(0.0, APART / 2 - heights[0])  # clear of the numbers of the axis
    for name, height in zip(order, heights, strict=True):
        axes.annotate(
            f"{name} {_number(ends[name])}".strip(),
            (1, height + raised),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=LOSSES.get(name, BLUE),
            annotation_clip=False,
        )


def _number(value: float) -> str:
    """Return three digits of a number, or all that stand before the point."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def view_grid(
    groups: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    *,
    images: int = 8,
) -> None:
    """Draw the views of the first images of a batch, a row for each image, a column for each view.

    groups: as in ViewBatch, one [V_g, B, 3, S, S] for each size, global views first; mean and std
    of each color channel, as they were normalised. The first group is named global, the others
    local. Views keep their relative sizes; a pixel of a view is a square of whole pixels. Raises
    ValueError for no groups, other shapes, different B, or images below 1.
    """
    _check_views(groups, mean, std, images)
    rows = min(images, groups[0].shape[1])
    columns = [(name, view[:rows]) for name, view in _columns(groups, mean, std)]
    largest = max(view.shape[1] for _, view in columns)
    zoom = math.ceil(LEGIBLE / largest)
    cell, gap = zoom * largest, max(4, zoom * largest // 28)
    size = max(13, cell // 14)
    fonts = [font(size), font(round(0.85 * size))]
    words = [(name, f"{view.shape[1]} px") for name, view in columns]
    widths = [
        max(zoom * view.shape[1], math.ceil(max(fonts[0].getlength(word) for word in pair)))
        for (_, view), pair in zip(columns, words, strict=True)
    ]
    top = gap + 3 * size
    canvas = Image.new(
        "RGB", (sum(widths) + gap * (len(widths) + 1), top + rows * (cell + gap)), "white"
    )
    pen = ImageDraw.Draw(canvas)
    left = gap
    for (_, view), pair, width in zip(columns, words, widths, strict=True):
        side = zoom * view.shape[1]
        middle = left + width // 2
        pen.text((middle, top - 1.9 * size), pair[0], INK, fonts[0], "ms")
        pen.text((middle, top - 0.65 * size), pair[1], FAINT, fonts[1], "ms")
        for row in range(rows):
            shown = Image.fromarray(view[row]).resize((side, side), Image.Resampling.NEAREST)
            above = top + row * (cell + gap) + (cell - side) // 2
            canvas.paste(shown, (left + (width - side) // 2, above))
        left += width + gap
    with Replacing(path) as beside:
        canvas.save(beside, format="PNG")


def _check_views(
    groups: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], images: int
) -> None:
    if not groups:
        raise ValueError("There are no views to draw; expected a tensor for each view size.")
    for number, group in enumerate(groups):
        shape = tuple(group.shape)
        if group.ndim != 5 or shape[2] != 3 or shape[3] != shape[4] or 0 in shape:
            raise ValueError(f"Group {number} has shape {shape}, expected [V_g, B, 3, S, S].")
        if shape[1] != groups[0].shape[1]:
            raise ValueError(
                f"Group {number} has {shape[1]} images, but group 0 has {groups[0].shape[1]}."
            )
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(
            f"Mean and std need one number for each of 3 channels, not {len(mean)} and {len(std)}."
        )
    if images < 1:
        raise ValueError(f"At least one image must be drawn, not {images}.")


def _columns(
    groups: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield name and pixels [B, S, S, 3] of every view."""
    shift, scale = (torch.tensor(numbers).view(3, 1, 1) for numbers in (mean, std))
    local = 0
    for number, group in enumerate(groups):
        pixels = group.detach().float().cpu() * scale + shift
        pixels = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).contiguous()
        for place, view in enumerate(pixels.numpy(), 1):
            local += number > 0
            yield f"local {local}" if number else f"global {place}", view


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the letters of the other pictures, which come with matplotlib, in pixels."""
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


@torch.no_grad()
def strongest_matches(left: Tensor, right: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the most similar pairs of regions, as the region loss matches them.

    left [T_l, d], right [T_r, d] region features of two images. Every left region has one pair,
    with the right region of highest cosine similarity. Of them the `count` most similar, or all
    if there are fewer, come back as pairs [P, 2] of region numbers (left, right) and similarities
    [P] in fp32 (fp64 for fp64), most similar first; of equal ones the lower left number comes
    first. Raises ValueError for no regions, features of different widths, or count below 1.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(
            f"Region features must be [T_l, d] and [T_r, d] of the same d, not "
            f"{list(left.shape)} and {list(right.shape)}."
        )
    if not len(left) or not len(right):
        raise ValueError(f"Both images need regions, not {len(left)} and {len(right)}.")
    if count < 1:
        raise ValueError(f"At least one match must be asked for, not {count}.")
    best = match_regions(left[None, None], right[None, None]).flatten()
    # row by row, so that equal regions have equal similarities, to the last bit
    similarity = functional.cosine_similarity(full(left), full(right)[best], dim=1)
    similarity, order = similarity.sort(descending=True, stable=True)
    order = order[:count]
    return torch.stack([order, best[order]], dim=1), similarity[:count]


def matched_regions(
    left: Tensor,
    right: Tensor,
    pairs: Tensor,
    path: Path,
    *,
    grids: tuple[tuple[int, int], tuple[int, int]],
    similarity: Tensor | None = None,
    correct: Tensor | None = None,
    title: str = "",
) -> None:
    """Draw two images side by side, at equal heights, and a line for each pair of regions.

    left, right [3, H, W] in [0, 1], of any two sizes; pairs [P, 2] of region numbers (left,
    right), row by row in grids of (h, w) regions. Lines join the regions' centers; of crossing
    ones that of the earlier pair lies on top. They show whether a pair is `correct` [P] if that
    is given, else its `similarity` [P] if that is. Raises ValueError for no pairs, other shapes,
    or numbers beyond the grids.
    """
    _check_matches((left, right), pairs, grids, similarity, correct)
    aspects = [image.shape[2] / image.shape[1] for image in (left, right)]
    starts = (0.0, aspects[0] + BETWEEN)
    width = starts[1] + aspects[1]
    figure = Figure(figsize=(9, 9 / width + 1), dpi=DPI)
    axes = figure.add_axes((0.05, 0.1, 0.8, 0.8))
    for image, start, aspect in zip((left, right), starts, aspects, strict=True):
        pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        axes.imshow(pixels, extent=(start, start + aspect, 1, 0), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(1, 0), aspect="equal")
    axes.set_axis_off()
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK, pad=8)
    ends = [
        _centers(pairs[:, side].cpu(), grids[side]) * [aspects[side], 1] + [starts[side], 0]
        for side in range(2)
    ]
    lines = np.stack(ends, axis=1)
    if correct is not None:
        _lines_by_truth(axes, lines, correct.bool().cpu().numpy())
    else:
        _lines_by_similarity(axes, lines, similarity)
    save_figure(figure, path)


def _check_matches(
    images: tuple[Tensor, Tensor],
    pairs: Tensor,
    grids: tuple[tuple[int, int], tuple[int, int]],
    similarity: Tensor | None,
    correct: Tensor | None,
) -> None:
    for side, image in zip(("left", "right"), images, strict=True):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"The {side} image must be [3, H, W], not {list(image.shape)}.")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point():
        raise ValueError(
            f"Pairs must be region numbers [P, 2], not {pairs.dtype} {list(pairs.shape)}."
        )
    if not len(pairs):
        raise ValueError("There are no pairs to draw; at least one is needed.")
    for number, (side, (h, w)) in enumerate(zip(("left", "right"), grids, strict=True)):
        low, high = int(pairs[:, number].min()), int(pairs[:, number].max())
        if low < 0 or high >= h * w:
            raise ValueError(
                f"The {side} grid of {h} x {w} has regions 0 to {h * w - 1}, "
                f"but pairs name {low if low < 0 else high}."
            )
    if similarity is not None and not similarity.isfinite().all():
        raise ValueError("Similarities must be finite to have a color.")
    for name, given in (("similarity", similarity), ("correct", correct)):
        if given is not None and given.shape != pairs.shape[:1]:
            raise ValueError(
                f"{len(pairs)} pairs need `{name}` [{len(pairs)}], not {list(given.shape)}."
            )


def _centers(regions: Tensor, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Return x and y [P, 2] of regions' centers as shares of the image's width and height."""
    row, column = np.divmod(regions.numpy(), grid[1])
    return np.stack([(column + 0.5) / grid[1], (row + 0.5) / grid[0]], axis=1)


def _lines_by_truth(axes: Axes, lines: NDArray[np.float64], correct: NDArray[np.bool_]) -> None:
    """Draw correct pairs solid and blue, wrong ones dashed and orange, and say how many."""
    _lines(axes, lines, [BLUE if each else ORANGE for each in correct], (~correct).tolist())
    right = int(correct.sum())
    handles = [
        Line2D([], [], color=BLUE, linestyle="-", label=f"correct: {right}"),
        Line2D([], [], color=ORANGE, linestyle="--", label=f"wrong: {len(correct) - right}"),
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.03),
        borderaxespad=0,
        borderpad=0,
        ncols=2,
        frameon=False,
        fontsize=10,
        handlelength=3,
        labelcolor=INK,
    )


def _lines_by_similarity(axes: Axes, lines: NDArray[np.float64], similarity: Tensor | None) -> None:
    """Draw pairs in one color, or in the colors of a scale from the least to the most similar."""
    if similarity is None:
        _lines(axes, lines, [BLUE] * len(lines))
        return
    values = similarity.detach().double().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    scale = ScalarMappable(Normalize(min(low, high - 0.01), high), "viridis")
    _lines(axes, lines, [to_hex(color) for color in scale.to_rgba(values)])
    beside = axes.inset_axes((1.02, 0, 0.018, 1))
    bar = axes.figure.colorbar(scale, cax=beside)
    bar.set_label("cosine similarity", fontsize=10, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, labelcolor=FAINT, length=0)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))


def _lines(
    axes: Axes, lines: NDArray[np.float64], colors: Sequence[str], dashed: Sequence[bool] = ()
) -> None:
    """Draw lines [P, 2 ends, x and y], the first on top, each with a light edge and two dots."""
    for number, ((x, y), color) in enumerate(zip(lines.swapaxes(1, 2), colors, strict=True)):
        above = 3 - number / len(lines)
        style: Literal["-", "--"] = "--" if dashed and dashed[number] else "-"
        axes.plot(x, y, color="white", linewidth=3.2, alpha=0.75, zorder=above)
        axes.plot(x, y, color=color, linestyle=style, linewidth=1.6, zorder=above)
        axes.plot(x, y, "o", color=color, markersize=6, markeredgecolor="white", zorder=above + 1)


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure, no more than there is of it, and without the name of its maker."""
    with Replacing(path) as beside:
        figure.savefig(
            beside,
            format="png",
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.15,
            metadata={"Software": None},
        )
