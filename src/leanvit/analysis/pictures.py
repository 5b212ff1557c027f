"""Pictures of a run: its curves and its views. PNG files, equal for equal input.

Letters: V_g views of one size, B images, S side of a view in pixels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from leanvit.core.files import Replacing

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
    "teacher_information": "Teacher information",
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


def as_text(name: str) -> str:
    """Return a name as matplotlib shows it letter by letter, dollars included."""
    return name.replace("$", r"\$")


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
