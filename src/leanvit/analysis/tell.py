"""What analyses found, told: pictures and charts in a folder, and a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanvit.analysis import attention, cka, pairs, pca, retrieval, spectrum
from leanvit.analysis.attention_maps import draw_maps
from leanvit.analysis.charts import draw_heads, draw_likeness, draw_spectra
from leanvit.analysis.pair_pictures import draw_matchings
from leanvit.analysis.sheets import draw_components, draw_neighbors
from leanvit.analysis.subjects import Scene
from leanvit.config import to_dict
from leanvit.config.analysis import (
    AnyAnalysis,
    AttentionConfig,
    CkaConfig,
    CorrespondencePicturesConfig,
)
from leanvit.core.files import Replacing, writing
from leanvit.evaluation.result import Result

MAPS = "maps.png"
"""Where a few maps of attention are drawn."""


def ready(folder: Path) -> None:
    """Make the folder, now that there is something to write."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def tell_attention(
    config: AttentionConfig, scene: Scene, found: Sequence[attention.Heads], folder: Path
) -> Result:
    """Draw the figures of all heads, and maps of a few images."""
    ready(folder)
    files = draw_heads(found, folder / "attention.png", paper=config.distance == "paper")
    if config.maps:
        files += draw_maps(config, scene, folder / MAPS)
    facts: dict[str, Any] = {
        "measures": list(attention.MEASURES),
        "heads": {each.subject.name: [block.tolist() for block in each.values] for each in found},
        "uniform": {each.subject.name: list(each.even) for each in found},
        "files": files,
    }
    digits = {"entropy": 2, "uniform entropy": 2}
    return Result("attention", facts, attention.rows_of(found), digits=digits)


def tell_likeness(
    config: CkaConfig, scene: Scene, found: Sequence[cka.Likeness], folder: Path
) -> Result:
    """Draw CKA of every two networks."""
    ready(folder)
    images = found[0].images
    notes = [] if images == len(scene.source) else [f"CKA is of {images} images: full batches."]
    facts: dict[str, Any] = {
        "cka": [
            {
                "left": pair.left,
                "right": pair.right,
                "left_layers": list(pair.layers[0]),
                "right_layers": list(pair.layers[1]),
                "values": pair.values.tolist(),
            }
            for pair in found
        ],
        "files": draw_likeness(found, folder / "cka.png"),
    }
    return Result("cka", facts, cka.rows_of(found), notes)


def tell_space(found: Sequence[spectrum.Space], folder: Path) -> Result:
    """Draw the spectra of features."""
    ready(folder)
    facts: dict[str, Any] = {
        "singular_values": {each.subject.name: each.values.tolist() for each in found},
        "files": draw_spectra(found, folder / "rank.png"),
    }
    digits = {"uniformity": 2, "alignment": 3}
    return Result("rank", facts, spectrum.rows_of(found), spectrum.few(found), digits=digits)


def tell_components(found: pca.Painted, folder: Path) -> Result:
    """Draw images in the colors of their components."""
    ready(folder)
    facts = {"files": draw_components(found, folder / "pca.png")}
    return Result("pca", facts, pca.rows_of(found.networks))


def tell_pairs(
    config: CorrespondencePicturesConfig,
    scene: Scene,
    chosen: Sequence[pairs.Pair],
    found: Sequence[Sequence[pairs.Matching]],
    folder: Path,
) -> Result:
    """Draw pairs of pictures as every network matches them."""
    ready(folder)
    names = [subject.name for subject in scene.subjects]
    files = draw_matchings(names, chosen, found, folder / "matches.png", count=config.pairs)
    facts = {"between": config.between, "files": files}
    rows = pairs.rows_of(scene.subjects, chosen, found)
    notes = means_of(rows, ("correct %", "chance %", "matched back %"), "pairs")
    return Result("correspondence", facts, rows, notes)


def tell_neighbors(scene: Scene, found: retrieval.Found, folder: Path) -> Result:
    """Draw images beside their neighbours."""
    ready(folder)
    facts = {"files": draw_neighbors(scene, found, folder / "retrieval.png")}
    rows = retrieval.rows_of(scene, found)
    return Result("retrieval", facts, rows, means_of(rows, ("same class %",), "images"))


def means_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], what: str) -> list[str]:
    """Return the means of columns for each network, in words; of a column without figures none."""
    notes = []
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        figures = []
        for column in columns:
            values = [row[column] for row in mine if row[column] is not None]
            if values:
                figures.append(f"{column.removesuffix(' %')} {sum(values) / len(values):.1f} %")
        if figures:
            notes.append(f"{name}, mean of {len(mine)} {what}: {', '.join(figures)}.")
    return notes


def with_scene(result: Result, scene: Scene) -> Result:
    """Return a result with what was looked at, and what was left out of it."""
    notes = [*scene.seen.notes, *result.notes]
    return replace(result, facts={**scene.facts(), **result.facts}, notes=notes)


def keep(result: Result, config: AnyAnalysis, folder: Path) -> Result:
    """Write a result as NAME.json; return it with all options and the names of all files."""
    place = folder / f"{result.name}.json"
    files = [*result.facts.get("files", ()), place.name]
    facts = {"data": config.data, "out": str(folder), **result.facts, "files": files}
    result = replace(result, facts=facts, config=to_dict(config))
    with writing(place), Replacing(place) as beside:
        beside.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result
