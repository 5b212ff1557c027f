"""Pictures of where one region of an image looks, head by head.

Letters: B images, H heads, h and w rows and columns of regions.
"""

from pathlib import Path

from torch import Tensor

from leanvit.analysis.attention import attention_of
from leanvit.analysis.galleries import Cell, draw_gallery, pixels_of, washed
from leanvit.analysis.subjects import Scene, Subject
from leanvit.backbones.base import Ask
from leanvit.config.analysis import AttentionConfig

MOST_HEADS = 8
"""Heads that are drawn of a block, and their mean."""


def maps_of(
    subject: Subject, pixels: Tensor, block: int, query: tuple[float, float]
) -> tuple[Tensor, tuple[int, int]]:
    """Return where a region of images [B, 3, S, S] looks, [B, H, h, w], and its row and column.

    query: where it lies, as shares of height and width. Raises ValueError for a block that is not
    there.
    """
    depth = subject.backbone.depth
    if not -depth <= block < depth:
        raise ValueError(f"{subject.name!r} has {depth} blocks, from 0; there is no block {block}.")
    features = subject.says(pixels, Ask(hidden=(block,), logits=(block,)))
    attention = attention_of(features.logits[0], features.hidden[0])
    h, w = attention.grid
    row, column = (min(int(share * n), n - 1) for share, n in zip(query, (h, w), strict=True))
    return attention.row(row * w + column).unflatten(-1, (h, w)).cpu(), (row, column)


def draw_maps(config: AttentionConfig, scene: Scene, path: Path) -> list[str]:
    """Draw where the query of a few images looks: a row an image and network, a column a head."""
    images = scene.few(config.maps).pixels()
    found = [maps_of(subject, images, config.block, config.query) for subject in scene.subjects]
    most = max(min(maps.shape[1], MOST_HEADS) for maps, _ in found)
    rows = []
    for number, image in enumerate(images):
        picture = pixels_of(image)
        for subject, (maps, query) in zip(scene.subjects, found, strict=True):
            heads = maps[number, :MOST_HEADS]
            mean = washed(picture, maps[number].mean(0), query)
            each = [Cell(washed(picture, head, query)) for head in heads]
            rows.append([Cell(picture, subject.name), Cell(mean), *each])
    where = f"block {config.block}" if config.block != -1 else "last block"
    columns = [where, "mean of heads", *(f"head {head}" for head in range(most))]
    return draw_gallery(columns, rows, path)
