"""Pictures of pairs as several networks match them.

Letters: P pairs of regions.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from leanvit.analysis.match_pictures import lines_by_truth, match_panel
from leanvit.analysis.pairs import Matching, Pair
from leanvit.analysis.pictures import DPI, INK, as_text, save_figure

MOST_PAIRS = 12
"""Pairs of pictures that are drawn."""


def draw_matchings(
    names: Sequence[str],
    pairs: Sequence[Pair],
    found: Sequence[Sequence[Matching]],
    path: Path,
    *,
    count: int,
) -> list[str]:
    """Draw each pair of pictures as every network matches it: a row a pair, a column a network.

    The first few pairs are drawn, and of each the `count` most similar pairs of regions; lines say
    whether they are right where that is known, else whether they are matched back.
    """
    pairs = pairs[:MOST_PAIRS]
    figure = Figure(figsize=(5.6 * len(names), 3.1 * len(pairs)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(pairs), len(names), squeeze=False)
    for column, (name, mine) in enumerate(zip(names, found, strict=True)):
        for row, (pair, each) in enumerate(zip(pairs, mine, strict=False)):
            axes = panels[row, column]
            chosen = each.strongest(count)
            matched = torch.stack([chosen, each.match[chosen]], 1)
            lines = match_panel(axes, pair.left, pair.right, matched, (each.grid, each.grid))
            if not each.known.any():
                words = ("of these matched back", "not")
                lines_by_truth(axes, lines, each.cycle[chosen].numpy(), words)
            else:
                words = ("of these correct", "wrong")
                lines_by_truth(axes, lines, each.correct[chosen].numpy(), words)
            if not row:
                axes.set_title(as_text(name), loc="left", fontsize=11, color=INK, pad=8)
    save_figure(figure, path)
    return [path.name]
