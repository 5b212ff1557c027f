"""The sections of the report as plain values, each from what the analyses found."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from leanvit.analysis import attention, cka, pca, retrieval, spectrum
from leanvit.analysis.comparison import figures_of, titles_of
from leanvit.analysis.pictures import LOSSES, PANELS
from leanvit.analysis.report.pictures import from_file, photograph, small_map
from leanvit.analysis.sheets import colors_of, pictures_of
from leanvit.analysis.subjects import Scene, Subject
from leanvit.config.resume import RESOLVED
from leanvit.evaluation.record import place_of
from leanvit.weights.card import METRICS, name_of, objects, size_facts, training_facts
from leanvit.weights.file import FILE, read_header

PICTURES = {
    "views.png": ("What it was shown", "A few images and the views that were made of each."),
    "matches.png": (
        "Two pictures of one scene",
        "Regions of the left picture and those that it takes for the same; measured distances say "
        "which are right.",
    ),
    "reconstructions.png": ("What it fills in", "Hidden patches of a few images, as it sees them."),
}
"""Picture in the folder of a run -> title and words."""
MEASURES = (
    {"key": "distance", "title": "Attention distance", "unit": "pixels"},
    {"key": "entropy", "title": "Attention entropy", "unit": "nats"},
    {"key": "nmi", "title": "Mutual information of query and key", "unit": "share of the most"},
)


def models(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return who is looked at, with what is known of their size and training."""
    return [
        {
            "name": subject.name,
            "trained": subject.trained,
            "facts": [[name, str(value)] for name, value in facts_of(subject).items()],
        }
        for subject in subjects
    ]


def facts_of(subject: Subject) -> dict[str, Any]:
    """Return what is known of a network, by the name that a reader sees."""
    size = size_facts(subject.backbone, name_of(subject.backbone.config))
    found = {k: size[k] for k in ("architecture", "parameters", "multiply-adds of an image")}
    found |= {"regions": size["regions"], "sees": f"{subject.size} x {subject.size} pixels"}
    folder = Path(subject.model)
    if not subject.trained:
        return {"weights": "drawn at random, before any training", **found}
    path = folder / FILE if folder.is_dir() else folder
    run = objects(folder / RESOLVED, whole=True) if folder.is_dir() else []
    try:
        header = read_header(path)
    except ValueError:  # weights of another code say nothing of their training
        return {"weights": subject.model, **found}
    trained = training_facts(header, run[0] if run else None)
    return {name: value for name, value in trained.items() if name != "versions"} | found


def curves(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return what runs measured on the way, a panel for each kind."""
    found = []
    for number, subject in enumerate(subjects):
        path = Path(subject.model) / METRICS
        rows = objects(path) if subject.trained and path.is_file() else []
        panels = list(_panels(rows))
        if panels:
            found.append({"model": number, "panels": panels})
    return found


def _panels(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    losses = {name: "Loss" if name == "loss" else f"Loss, {name}" for name in LOSSES}
    for name, title in {**losses, **PANELS}.items():
        curve = _series(rows, name)
        if curve["x"]:
            words, _, unit = title.partition(" (")
            yield {"title": words, "unit": unit.rstrip(")"), "series": [curve]}


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    there = [row for row in rows if name in row]
    finite = [row[name] if math.isfinite(row[name]) else None for row in there]
    return {"name": name.replace("_", " "), "x": [row["step"] for row in there], "y": finite}


def results(subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """Return the newest figures of every network's evaluations, one column a question."""
    found: dict[str, Any] = {}
    for subject in subjects:
        place = place_of(subject.model, "")
        if subject.trained and place is not None and place.is_file():
            found[subject.name] = figures_of(subject.model, place)[0]
    columns = list(dict.fromkeys(key for figures in found.values() for key in figures))
    if not columns:
        return None
    titles = titles_of(columns)
    rows = [
        [name, *(figures.get(key) for key in columns)] for name, figures in found.items() if figures
    ]
    return {"columns": ["network", *(f"{titles[key]} (%)" for key in columns)], "rows": rows}


def run_pictures(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return the pictures that runs left."""
    return [
        {"model": number, "title": title, "text": text, "src": from_file(Path(s.model) / name)}
        for number, s in enumerate(subjects)
        if s.trained
        for name, (title, text) in PICTURES.items()
        if (Path(s.model) / name).is_file()
    ]


def gallery(scene: Scene, found: pca.Painted | None) -> dict[str, Any]:
    """Return images and, for each network, the colors of their regions."""
    if found is None:
        return {"gallery": [], "pca": []}
    source = scene.source
    shown = [
        {
            "name": source.name(index),
            "class": source.classes[source.targets[index]] if source.targets[index] >= 0 else None,
            "src": photograph(image),
        }
        for index, image in zip(found.index.tolist(), found.pixels, strict=True)
    ]
    painted = [
        {
            "model": number,
            "explained": list(each.explained),
            "foreground": float(each.foreground.double().mean()),
            "src": [small_map(colors_of(each, image)) for image in range(len(shown))],
        }
        for number, (_, each) in enumerate(found.networks)
    ]
    return {"gallery": shown, "pca": painted}


def heads(scene: Scene, found: Sequence[attention.Heads], maps: Path) -> dict[str, Any]:
    """Return the figures of all heads, and the picture of a few maps."""
    number = {subject.name: i for i, subject in enumerate(scene.subjects)}
    return {
        "measures": list(MEASURES),
        "maps": from_file(maps),
        "models": [
            {
                "model": number[each.subject.name],
                "blocks": [block.tolist() for block in each.values],
                "uniform": [dict(block) for block in each.even],
            }
            for each in found
        ],
    }


def likeness(scene: Scene, found: Sequence[cka.Likeness]) -> list[dict[str, Any]]:
    """Return CKA of every two networks."""
    number = {subject.name: i for i, subject in enumerate(scene.subjects)}
    return [
        {
            "left": number[pair.left],
            "right": number[pair.right],
            "left_layers": list(pair.layers[0]),
            "right_layers": list(pair.layers[1]),
            "values": pair.values.tolist(),
        }
        for pair in found
    ]


def spectra(found: Sequence[spectrum.Space]) -> list[dict[str, Any]]:
    """Return singular values as shares of the largest, and the figures of each space."""
    return [
        {
            "model": number,
            "values": (each.values / each.values[0].clamp_min(1e-300)).tolist(),
            "figures": dict(each.figures),
        }
        for number, each in enumerate(found)
    ]


def neighbors(scene: Scene, found: retrieval.Found) -> dict[str, Any]:
    """Return queries and neighbours; a picture that is needed twice is there once."""
    wanted = torch.cat([found.queries, *(each.images.flatten() for each in found.neighbors)])
    places = sorted(set(wanted.tolist()))
    pictures = pictures_of(scene, found.index[places].tolist())
    number = {place: i for i, place in enumerate(places)}
    classes = scene.source.classes
    return {
        "pictures": [
            {
                "name": scene.source.name(int(found.index[place])),
                "class": classes[int(found.target[place])] if found.target[place] >= 0 else None,
                "src": photograph(pictures[int(found.index[place])]),
            }
            for place in places
        ],
        "queries": [number[place] for place in found.queries.tolist()],
        "models": [
            {
                "model": model,
                "neighbors": [
                    [[number[place], value] for place, value in zip(row, cosines, strict=True)]
                    for row, cosines in zip(
                        each.images.tolist(), each.similarity.tolist(), strict=True
                    )
                ],
            }
            for model, each in enumerate(found.neighbors)
        ],
    }
