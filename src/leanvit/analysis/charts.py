"""Charts of analyses: box plots over heads, heat maps of similarity, spectra, curves over depth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from leanvit.analysis.attention import MEASURES, Heads
from leanvit.analysis.cka import Likeness
from leanvit.analysis.pictures import EDGE, FAINT, INK, RULE, as_text, save_figure
from leanvit.analysis.spectrum import Space
from leanvit.core.files import Replacing

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
"""Told apart by every kind of color vision (Okabe and Ito)."""
MARKS = "osD^vPX"
"""A mark beside each color, so that color alone says nothing."""
AXES = {
    "distance": "attention distance (pixels)",
    "entropy": "attention entropy (nats)",
    "nmi": "normalised mutual information",
}
PAPER_AXIS = "attention distance (14 a step)"


def color_of(number: int) -> str:
    """Return the color of a network."""
    return COLORS[number % len(COLORS)]


def save_chart(figure: Figure, path: Path) -> list[str]:
    """Write a figure as PNG and, beside it, as SVG; return the names. Equal input, equal files."""
    save_figure(figure, path)
    vector = path.with_suffix(".svg")
    with matplotlib.rc_context({"svg.hashsalt": "leanvit"}), Replacing(vector) as beside:
        figure.savefig(
            beside,
            format="svg",
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.15,
            metadata={"Date": None, "Creator": None},
        )
    return [path.name, vector.name]


def draw_heads(found: Sequence[Heads], path: Path, *, paper: bool) -> list[str]:
    """Draw each measure by depth, a box over the heads of every block and network.

    Dashed lines are attention that goes everywhere alike; networks of one shape share theirs.
    """
    figure = Figure(figsize=(10, 9), dpi=150, layout="constrained")
    for axes, (place, name) in zip(figure.subplots(3, 1), enumerate(MEASURES), strict=True):
        _boxes(axes, found, place)
        shapes = {tuple(block.get(name, 0.0) for block in each.even) for each in found}
        for even in sorted(shapes) if name in found[0].even[0] else ():
            blocks = np.arange(len(even))
            axes.step(blocks, even, where="mid", color=FAINT, linestyle="--", linewidth=1)
        label = PAPER_AXIS if paper and name == "distance" else AXES[name]
        _plain(axes, "block, from 0" if place == 2 else "", label)
        axes.set_ylim(bottom=0)
    legend = [_key(number, as_text(each.subject.name)) for number, each in enumerate(found)]
    legend.append(Line2D([], [], color=FAINT, linestyle="--", label="everywhere alike"))
    figure.legend(handles=legend, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return save_chart(figure, path)


def _boxes(axes: Axes, found: Sequence[Heads], place: int) -> None:
    width = 0.8 / len(found)
    for number, each in enumerate(found):
        blocks = range(len(each.values))
        middle = [block + (number - (len(found) - 1) / 2) * width for block in blocks]
        values = [block[:, place].numpy() for block in each.values]
        color = color_of(number)
        beyond = {"marker": MARKS[number % len(MARKS)], "markersize": 3, "markeredgecolor": color}
        axes.boxplot(
            values,
            positions=middle,
            widths=0.8 * width,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": color, "alpha": 0.35, "edgecolor": color},
            medianprops={"color": color, "linewidth": 1.6},
            whiskerprops={"color": color},
            capprops={"color": color},
            flierprops=beyond,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_likeness(found: Sequence[Likeness], path: Path) -> list[str]:
    """Draw a heat map for each two networks: layers of the first upwards, of the second across."""
    across = min(len(found), 3)
    down = -(-len(found) // across)
    figure = Figure(figsize=(4.6 * across + 0.8, 4.4 * down), dpi=150, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    shown = None
    for axes, pair in zip(panels.flat, found, strict=False):
        values = pair.values.numpy()
        shown = axes.imshow(values, origin="lower", cmap="magma", vmin=0, vmax=1, aspect="auto")
        for axis, names in ((axes.yaxis, pair.layers[0]), (axes.xaxis, pair.layers[1])):
            every = max(len(names) // 6, 1)
            ticks = [*range(0, len(names) - 1, every), len(names) - 1]
            axis.set_ticks(ticks, [names[tick].removeprefix("block ") for tick in ticks])
        axes.set_ylabel(f"layer of {as_text(pair.left)}", color=FAINT)
        axes.set_xlabel(f"layer of {as_text(pair.right)}", color=FAINT)
        axes.tick_params(colors=FAINT, labelsize=8)
        axes.tick_params(axis="x", rotation=45)
    for axes in list(panels.flat)[len(found) :]:
        axes.set_axis_off()
    assert shown is not None
    bar = figure.colorbar(shown, ax=panels, shrink=0.8)
    bar.set_label("CKA", color=INK)
    return save_chart(figure, path)


def draw_spectra(found: Sequence[Space], path: Path) -> list[str]:
    """Draw the singular values of every network's features, as shares of the largest one."""
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, space in enumerate(found):
        values = space.values.numpy()
        share = values / max(float(values[0]), 1e-300)
        rank = space.figures["effective rank"]
        label = f"{as_text(space.subject.name)}: effective rank {rank:.1f} of {len(values)}"
        axes.plot(
            np.arange(1, len(values) + 1),
            np.maximum(share, 1e-8),
            color=color_of(number),
            marker=MARKS[number % len(MARKS)],
            markevery=max(len(values) // 12, 1),
            markersize=4,
            label=label,
        )
    axes.set_yscale("log")
    _plain(axes, "singular value", "share of the largest")
    axes.legend(frameon=False, fontsize=9)
    return save_chart(figure, path)


def draw_depth(
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path
) -> list[str]:
    """Draw accuracy by depth: a panel for each study, a curve for each network."""
    titles = {
        "probe": ("block that is probed, from 0", "top-1 of a probe (%)"),
        "reinit": ("first blocks that keep their weights", "top-1, fine-tuned (%)"),
    }
    figure = Figure(figsize=(5.4 * len(curves), 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (study, networks) in zip(panels, curves.items(), strict=True):
        for number, (name, points) in enumerate(networks.items()):
            blocks, values = zip(*points, strict=True)
            mark, color = MARKS[number % len(MARKS)], color_of(number)
            axes.plot(blocks, values, color=color, marker=mark, markersize=5, label=as_text(name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes, *titles[study])
        axes.legend(frameon=False, fontsize=9)
    return save_chart(figure, path)


def _key(number: int, name: str) -> Line2D:
    color = color_of(number)
    return Line2D([], [], color=color, linewidth=6, alpha=0.5, label=name)


def _plain(axes: Axes, across: str, up: str) -> None:
    """Give axes their names and the look of the other pictures."""
    axes.set_xlabel(across, color=FAINT)
    axes.set_ylabel(up, color=FAINT)
    axes.grid(color=RULE)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(EDGE)
