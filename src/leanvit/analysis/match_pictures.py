"""Pictures of matched regions: two images side by side, and a line for each pair.

Letters: H, W height and width of an image in pixels, h, w those of its grid of regions; T_l, T_r
regions of a left and a right image, d channels, P pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from leanvit.analysis.pictures import BLUE, DPI, FAINT, INK, ORANGE, ROUND, save_figure
from leanvit.core.precision import full
from leanvit.losses.region import match_regions

BETWEEN = 0.08
"""Gap between two matched images, as a share of their height."""


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
    width = sum(image.shape[2] / image.shape[1] for image in (left, right)) + BETWEEN
    figure = Figure(figsize=(9, 9 / width + 1), dpi=DPI)
    axes = figure.add_axes((0.05, 0.1, 0.8, 0.8))
    lines = match_panel(axes, left, right, pairs, grids)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK, pad=8)
    if correct is not None:
        lines_by_truth(axes, lines, correct.bool().cpu().numpy())
    else:
        _lines_by_similarity(axes, lines, similarity)
    save_figure(figure, path)


def match_panel(
    axes: Axes,
    left: Tensor,
    right: Tensor,
    pairs: Tensor,
    grids: tuple[tuple[int, int], tuple[int, int]],
) -> NDArray[np.float64]:
    """Show two images [3, H, W] side by side; return the ends [P, 2, 2] of a line for each pair."""
    aspects = [image.shape[2] / image.shape[1] for image in (left, right)]
    starts = (0.0, aspects[0] + BETWEEN)
    width = starts[1] + aspects[1]
    for image, start, aspect in zip((left, right), starts, aspects, strict=True):
        pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        axes.imshow(pixels, extent=(start, start + aspect, 1, 0), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(1, 0), aspect="equal")
    axes.set_axis_off()
    ends = [
        _centers(pairs[:, side].cpu(), grids[side]) * [aspects[side], 1] + [starts[side], 0]
        for side in range(2)
    ]
    return np.stack(ends, axis=1)


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


def lines_by_truth(
    axes: Axes,
    lines: NDArray[np.float64],
    correct: NDArray[np.bool_],
    words: tuple[str, str] = ("correct", "wrong"),
) -> None:
    """Draw correct pairs solid and blue, wrong ones dashed and orange, and say how many."""
    _lines(axes, lines, [BLUE if each else ORANGE for each in correct], (~correct).tolist())
    right = int(correct.sum())
    handles = [
        Line2D([], [], color=BLUE, linestyle="-", label=f"{words[0]}: {right}"),
        Line2D([], [], color=ORANGE, linestyle="--", label=f"{words[1]}: {len(correct) - right}"),
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
