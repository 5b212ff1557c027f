"""Region features as colors: their first three principal components, the same over all images.

Letters: B images, h and w rows and columns of regions, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.analysis.subjects import Scene, Subject
from leanvit.config.analysis import PcaConfig

SHADES = 3
"""Components that make a color."""
FINE = 7
"""Rows and columns of regions from which foreground is told from background by itself."""
LIMITS = (0.02, 0.98)
"""Quantiles of a component that become the darkest and the brightest shade."""
FEWEST = 0.05
"""Least share of regions that is a foreground."""


@dataclass(frozen=True, slots=True)
class Components:
    """Regions in the colors of their first three components."""

    colors: Tensor
    """[B, h, w, 3] from 0 to 1; background is 0."""
    foreground: Tensor
    """[B, h, w] bool; all of it where nothing was left out."""
    explained: tuple[float, float, float]
    """Share of the variance that each component holds, of what is colored."""


def components(grid: Tensor, *, foreground: bool) -> Components:
    """Return the colors of region features [B, h, w, D], found for all images together.

    With foreground, regions on one side of 0 of the first component are left out, and the
    components of the rest are found anew (as in DINOv2, arXiv 2304.07193, figure 1). Background is
    the side that has more of the images' borders than of their middles. Signs are fixed so that
    equal features give equal colors: the largest weight of a component is positive. Raises
    ValueError if the features have no three directions.
    """
    b, h, w, d = grid.shape
    rows = grid.reshape(-1, d).double()
    inside = torch.ones(b, h, w, dtype=torch.bool)
    if foreground:
        first = _project(rows, 1)[0][:, 0].view(b, h, w)
        inside = _away_from_border(first)
    chosen = rows[inside.flatten()]
    values, explained = _project(chosen, SHADES)
    low, high = (torch.quantile(values, share, dim=0) for share in LIMITS)
    shades = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colors = torch.zeros(b * h * w, 3, dtype=shades.dtype)
    colors[inside.flatten()] = shades
    a, second, third = explained.tolist()
    return Components(colors.view(b, h, w, 3).float(), inside, (a, second, third))


def _project(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return rows [N, D] along their first directions [N, count], and the share of each."""
    centered = rows - rows.mean(0)
    if len(rows) <= count or rows.shape[1] < count:
        raise ValueError(
            f"{len(rows)} regions of {rows.shape[1]} numbers have no {count} principal components; "
            f"look at more images."
        )
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    directions = vectors.flip(1)[:, :count]
    largest = directions.abs().argmax(0)
    directions = directions * directions[largest, torch.arange(count)].sign()
    share = values.flip(0)[:count].clamp_min(0) / values.clamp_min(0).sum().clamp_min(1e-300)
    return centered @ directions, share


def _away_from_border(first: Tensor) -> Tensor:
    """Return which regions [B, h, w] are foreground, by a component that is 0 on average.

    Where one side is next to nothing, or no region lies inside, all is foreground.
    """
    _, h, w = first.shape
    border = torch.ones(h, w, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    positive = first > 0
    everything = torch.ones_like(positive)
    if border.all() or not FEWEST <= float(positive.double().mean()) <= 1 - FEWEST:
        return everything
    outer = float(positive[:, border].double().mean())
    inner = float(positive[:, ~border].double().mean())
    return positive if inner > outer else ~positive


@dataclass(frozen=True, slots=True)
class Painted:
    """Images and the colors of their regions for every network."""

    pixels: Tensor
    """[B, 3, S, S] in [0, 1]."""
    index: Tensor
    """[B] numbers of the images in the scene's source."""
    networks: Sequence[tuple[Subject, Components]]


def grid_of(subject: Subject) -> tuple[int, int]:
    """Return the rows and columns of regions that a network has."""
    h, w = subject.says(torch.zeros(1, 3, subject.size, subject.size)).grid.shape[1:3]
    return h, w


def look_at_components(config: PcaConfig, scene: Scene) -> Painted:
    """Return the images that can be read, and their colors for every network."""
    pixels: list[Tensor] = []
    index: list[Tensor] = []
    grids: dict[str, list[Tensor]] = {subject.name: [] for subject in scene.subjects}
    for batch in scene.batches("regions"):
        pixels.append(batch.pixels)
        index.append(batch.index)
        for subject in scene.subjects:
            grids[subject.name].append(subject.says(batch.pixels).grid.float().cpu())
    wanted = config.foreground
    if wanted == "auto":
        wanted = min(side for subject in scene.subjects for side in grid_of(subject)) >= FINE
    found = [
        (subject, components(torch.cat(grids[subject.name]), foreground=wanted))
        for subject in scene.subjects
    ]
    return Painted(torch.cat(pixels), torch.cat(index), found)


def rows_of(found: Sequence[tuple[Subject, Components]]) -> list[dict[str, object]]:
    """Return a table: a row for each network."""
    return [
        {
            "network": subject.name,
            "regions": list(each.foreground.shape[1:]),
            "foreground %": 100 * float(each.foreground.double().mean()),
            **{f"component {i} %": 100 * share for i, share in enumerate(each.explained, 1)},
        }
        for subject, each in found
    ]
