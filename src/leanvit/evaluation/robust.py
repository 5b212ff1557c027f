"""Accuracy under common corruptions: what learned from clean images meets noise, blur and weather.

Letters: B images, K severities, S side in pixels, D columns of a description.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.config.evaluation import RobustConfig
from leanvit.data.corrupt import SMALLEST, Corruption, require_corruptions
from leanvit.data.sources import Source, hold_out
from leanvit.evaluation.features import Description, describe_classes, describe_network, digest
from leanvit.evaluation.inputs import Seen, open_both, prepare, protocols_of
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.models import with_untrained
from leanvit.evaluation.probing import probe_batch, stored_batches, train_probes
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.scores import top1
from leanvit.methods.class_head import load_head
from leanvit.weights.file import HEAD_FILE

Told = Callable[[str, Tensor, Tensor], float]
"""Name of a description, rows [N, D] and classes [N] -> accuracy in percent."""
MEAN = "mean"
"""The row of all corruptions together."""
HEAD = "trained, own head"
"""What the row of a fine-tuned network is called that tells classes by itself."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A description of images, and what tells their classes by it."""

    way: Description
    accuracy: Callable[[Tensor, Tensor], float]
    """Rows [N, D] and classes [N] -> percent."""


def robust_result(config: RobustConfig, model: str | Path, quiet: bool) -> Result:
    """Evaluate a model on corrupted images, by a probe of clean ones and by its own head."""
    require_corruptions()
    learn, test, notes = open_both(config)
    seen, networks = prepare(config, model, learn, quiet)
    if seen.size < SMALLEST:
        raise ValueError(
            f"Corruptions need images of {SMALLEST} pixels or more, and the network sees "
            f"{seen.size}; ask for more (image_size)."
        )
    shown = with_untrained(networks, model) if config.baselines else networks
    judges = {**_probes(config, seen, shown, learn), **_own_head(model, networks, learn)}
    rows = corrupted(config, seen, judges, test)
    facts = {
        "classes": len(learn.classes),
        "train_images": len(learn),
        "val_images": len(test),
        "image_size": seen.size,
        "crop": seen.crop,
        "probe": config.probe,
    }
    if config.probe == "knn" and config.k > len(learn):
        notes = [*notes, f"There are {len(learn)} images to learn from; a larger k means all."]
    means = [row for row in rows if row["corruption"] == MEAN]
    title = headline(means, f"corrupted, {config.probe}", "accuracy", of="network")
    return Result("robust", facts, rows, [*notes, *seen.notes], headline=title)


def corrupted(
    config: RobustConfig, seen: Seen, judges: Mapping[str, Judge], test: Source
) -> list[dict[str, Any]]:
    """Return the rows of each judge: clean images, the mean of all corruptions, each corruption."""
    clean = seen.describe(test, "clean images", {name: one.way for name, one in judges.items()})
    found: dict[str, dict[str, list[float]]] = {name: {} for name in judges}
    ways = {name: at_each_severity(judge.way) for name, judge in judges.items()}
    for corruption in config.corruptions:
        change = Corruption(corruption, config.severities, config.corruption_seed)
        described = seen.changing(change).describe(test, corruption.replace("_", " "), ways)
        for name, judge in judges.items():
            parts = described.rows[name].chunk(len(config.severities), 1)
            found[name][corruption] = [judge.accuracy(part, described.target) for part in parts]
    rows = []
    for name, judge in judges.items():
        levels = torch.tensor([*found[name].values()], dtype=torch.double)
        whole = judge.accuracy(clean.rows[name], clean.target)
        table: dict[str, Sequence[float | None]] = {
            "clean": [whole, *(None for _ in config.severities)],
            MEAN: [float(levels.mean()), *levels.mean(0).tolist()],
        }
        table |= {each: [sum(of) / len(of), *of] for each, of in found[name].items()}
        heads = ("accuracy", *(f"severity {level}" for level in config.severities))
        protocol, _, network = name.partition("/")
        about = {"protocol": protocol, "network": network}
        rows += [
            {**about, "corruption": each, **dict(zip(heads, values, strict=True))}
            for each, values in table.items()
        ]
    return rows


def at_each_severity(way: Description) -> Description:
    """Return what describes K corrupted images of each, 8-bit: [B, K, 3, S, S] -> [B, K * D]."""

    def rows(images: Tensor) -> Tensor:
        return torch.cat([way(level.float() / 255) for level in images.unbind(1)], 1)

    return Description(rows, way.key)


def _probes(
    config: RobustConfig, seen: Seen, networks: Mapping[str, Backbone], learn: Source
) -> dict[str, Judge]:
    """Return what tells classes by the features of clean images to learn from."""
    ways = {
        f"{protocol}/{name}": describe_network(network, protocol)
        for protocol in protocols_of(config)
        for name, network in networks.items()
    }
    learned = _nearest if config.probe == "knn" else _linear
    told = learned(config, seen, learn, ways)
    return {name: Judge(way, partial(told, name)) for name, way in ways.items()}


def _nearest(
    config: RobustConfig, seen: Seen, learn: Source, ways: Mapping[str, Description]
) -> Told:
    bank = seen.describe(learn, "images to learn from", ways)

    def told(name: str, rows: Tensor, target: Tensor) -> float:
        both = (bank.rows[name], bank.target, rows, target)
        return knn_accuracy(*both, ks=(config.k,))[config.k][0]

    return told


def _linear(
    config: RobustConfig, seen: Seen, learn: Source, ways: Mapping[str, Description]
) -> Told:
    kept, held = hold_out(learn, config.held_out)
    stored = seen.describe(kept, "images to learn from", ways)
    choosing = seen.describe(held, "images that choose the rate", ways)
    batches = stored_batches(config, stored, len(kept), probe_batch(config, len(kept)))
    probes = train_probes(config, seen, batches, choosing, len(learn.classes), len(kept))

    chosen = {
        name: int(probe.accuracy(choosing.rows[name], choosing.target)[:, 0].argmax())
        for name, probe in probes.items()
    }

    def told(name: str, rows: Tensor, target: Tensor) -> float:
        return float(probes[name].accuracy(rows, target)[chosen[name], 0])

    return told


def _own_head(
    model: str | Path, networks: Mapping[str, Backbone], learn: Source
) -> dict[str, Judge]:
    """Return what tells classes by the head of a fine-tuned model, if it is one.

    Raises ValueError if it tells other classes than the images have.
    """
    path = Path(model) / HEAD_FILE
    if not path.is_file():
        return {}
    backbone = next(iter(networks.values()))
    head, classes = load_head(path, backbone)
    if classes != learn.classes:
        raise ValueError(
            f"The head of {str(model)!r} tells {_few(classes)}, and the images are of "
            f"{_few(learn.classes)}; evaluate it on the classes that it learned."
        )
    see = describe_classes(backbone, head.to(next(backbone.parameters()).device).scores)
    mark = hashlib.sha256(path.read_bytes()).hexdigest()
    way = Description(see, lambda: f"head {mark} {digest(backbone)}")
    return {f"color/{HEAD}": Judge(way, top1)}


def _few(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:5])}{', ...' * (len(classes) > 5)})"
