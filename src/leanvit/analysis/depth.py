"""Which blocks matter: what each knows of the classes, and what is lost without it.

The second study is that of arXiv 2205.14443 on lower and higher layers: the first blocks keep their
trained weights, the later ones begin anew, and all is fine-tuned.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from leanvit.analysis.subjects import names_of
from leanvit.config.analysis import DepthConfig
from leanvit.config.evaluation import ImagesConfig, LayersConfig
from leanvit.core.files import writing
from leanvit.evaluation.evaluate import evaluate
from leanvit.evaluation.inputs import device_of, open_both, prepare
from leanvit.evaluation.models import before_training, open_networks
from leanvit.evaluation.probing import layers
from leanvit.evaluation.result import Result
from leanvit.weights.file import weights_of

TRAININGS = "layers.jsonl"
"""Where finished fine-tunings are kept, so that a study that was cut off goes on."""


def depth_result(
    config: DepthConfig, models: Sequence[str | Path], out: Path, quiet: bool
) -> Result:
    """Return what the blocks of each model are worth, in one or both ways.

    Raises ValueError if there is no model, or a fine-tuning of an untrained one was asked for.
    """
    if not models:
        raise ValueError("Name a model or more: folders of runs, files of weights, or names.")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for model, name in zip(models, names_of(models), strict=True):
        if config.study != "reinit":
            found, said = _probed(config, model, name, quiet)
            rows += found
            notes += [note for note in said if note not in notes]
        if config.study != "probe":
            rows += _cut(config, model, name, out, quiet)
    facts = {"study": config.study, "probe": config.probe, "models": names_of(models)}
    return Result("layers", facts, rows, notes)


def _probed(
    config: DepthConfig, model: str | Path, name: str, quiet: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each block of a model, and before training if asked; and notes."""
    asked = LayersConfig(probe=config.probe, protocol="color", **_images(config))
    learn, test, notes = open_both(asked)
    seen, networks = prepare(asked, model, learn, quiet)
    backbone = next(iter(networks.values()))
    shown = {name: backbone}
    if config.untrained and "untrained" not in networks:
        shown = {f"{name}, untrained": before_training(model, backbone), name: backbone}
    found = layers(asked, seen, model, shown, learn, test)
    rows = [_row(row["features"], "probe", row["block"], row["top1"], None) for row in found.rows]
    return rows, [*notes, *seen.notes, *found.notes]


def _cut(
    config: DepthConfig, model: str | Path, name: str, out: Path, quiet: bool
) -> list[dict[str, Any]]:
    """Return a row for each number of blocks that were kept, and each seed."""
    network = next(iter(open_networks(model, device_of(config), quiet).values()))
    depth = network.depth
    keep = config.keep or sorted({round(depth * quarter / 4) for quarter in range(5)})
    place, rows = out / TRAININGS, []
    done = _finished(place)
    for blocks in keep:
        options = {
            **{"keep_blocks": blocks, "recipe": config.recipe, "seeds": config.seeds},
            **{"duration": config.duration, **_images(config)},
        }
        key = json.dumps([weights_of(model) or str(model), options], default=str, sort_keys=True)
        if key not in done:
            data = str(options.pop("data"))
            found = evaluate("finetune", model, data=data, options=options, quiet=quiet)
            kept = [(row["top1"], row["seed"]) for row in found.rows]
            done[key] = [_row(name, "reinit", blocks, top1, seed) for top1, seed in kept]
            with writing(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("a") as file:
                    file.write(json.dumps([key, done[key]]) + "\n")
        rows += [{**row, "network": name} for row in done[key]]
    return rows


def _images(config: DepthConfig) -> dict[str, Any]:
    """Return the options of images, which evaluations have too."""
    return {f.name: getattr(config, f.name) for f in fields(ImagesConfig)} | {"val": config.val}


def _row(network: str, study: str, blocks: int, top1: float, seed: int | None) -> dict[str, Any]:
    """Return a row; blocks: the block's number, or how many were kept."""
    return {"network": network, "study": study, "block": blocks, "top1": top1, "seed": seed}


def _finished(place: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of finished trainings by what decided them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in place.read_text().splitlines() if place.exists() else ():
        try:
            key, rows = json.loads(line)
        except ValueError:
            continue  # the end of a study that was cut off
        found[key] = rows
    return found


def curves_of(rows: Sequence[Mapping[str, Any]], study: str) -> dict[str, list[tuple[int, float]]]:
    """Return points (block, top-1) of each network in a study, the mean over seeds."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["study"] == study:
            found.setdefault(row["network"], {}).setdefault(row["block"], []).append(row["top1"])
    return {
        name: [(block, sum(values) / len(values)) for block, values in sorted(points.items())]
        for name, points in found.items()
    }
