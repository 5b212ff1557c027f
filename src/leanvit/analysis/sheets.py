"""Sheets of pictures: region features in colors, and images beside their neighbours.

Letters: B images, S side in pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanvit.analysis.galleries import Cell, agrees, draw_gallery, pixels_of
from leanvit.analysis.pca import Components, Painted
from leanvit.analysis.retrieval import Found
from leanvit.analysis.subjects import Scene
from leanvit.data.images import load_images
from leanvit.data.sources import Subset

MOST_QUERIES = 12
"""Images that are drawn with their neighbours."""
GROUND = 0.12
"""Grey of what was left out as background."""


def colors_of(each: Components, image: int) -> Tensor:
    """Return the colors of an image's regions [3, h, w] in [0, 1]; background is dark grey."""
    colors = torch.where(each.foreground[image, ..., None], each.colors[image], GROUND)
    return colors.permute(2, 0, 1)


def draw_components(found: Painted, path: Path) -> list[str]:
    """Draw images in a column, and beside them what every network makes of them."""
    rows = [
        [
            Cell(pixels_of(image)),
            *(Cell(pixels_of(colors_of(each, number))) for _, each in found.networks),
        ]
        for number, image in enumerate(found.pixels)
    ]
    return draw_gallery(["image", *(subject.name for subject, _ in found.networks)], rows, path)


def pictures_of(scene: Scene, numbers: Sequence[int]) -> dict[int, Tensor]:
    """Return images [3, S, S] by their numbers in a scene's source."""
    chosen = sorted(set(numbers))
    part = Subset(scene.source, chosen)
    seen = scene.seen
    found = load_images(part, size=seen.size, crop=seen.crop, batch=64, workers=0)
    return {
        chosen[int(place)]: image
        for batch in found
        for place, image in zip(batch.index, batch.pixels, strict=True)
    }


def draw_neighbors(scene: Scene, found: Found, path: Path) -> list[str]:
    """Draw queries and their neighbours, a row a query and network; frames say if classes agree.

    The first few queries are drawn.
    """
    queries = found.queries[:MOST_QUERIES]
    wanted = [queries, *(each.images[:MOST_QUERIES].flatten() for each in found.neighbors)]
    images = pictures_of(scene, found.index[torch.cat(wanted)].tolist())
    rows = []
    for row, query in enumerate(queries.tolist()):
        own = int(found.target[query])
        for each in found.neighbors:
            cells = [Cell(pixels_of(images[int(found.index[query])]), each.subject.name)]
            for place, similarity in zip(
                each.images[row].tolist(), each.similarity[row].tolist(), strict=True
            ):
                same = bool(found.target[place] == own) if own >= 0 else None
                picture = pixels_of(images[int(found.index[place])])
                cells.append(Cell(picture, f"{similarity:.2f}", agrees(same)))
            rows.append(cells)
    count = found.neighbors[0].images.shape[1]
    return draw_gallery(["image", *(f"neighbour {n}" for n in range(1, count + 1))], rows, path)
