"""`leanvit evaluate`: from a name to a table."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanvit.backbones.base import Backbone
from leanvit.config import look_up, replace_options
from leanvit.config.evaluation import (
    EVALUATION_CONFIGS,
    FinetuneConfig,
    KnnConfig,
    LayersConfig,
    LinearConfig,
    ProbeConfig,
)
from leanvit.core.distributed import require_alone
from leanvit.data.sources import Source
from leanvit.evaluation.features import (
    Description,
    describe_histogram,
    describe_network,
    describe_pixels,
)
from leanvit.evaluation.finetune import finetune
from leanvit.evaluation.inputs import Seen, open_both, prepare, protocols_of
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.models import before_training
from leanvit.evaluation.probing import layers, linear
from leanvit.evaluation.result import Result


def evaluate(
    name: str,
    model: str | Path,
    *,
    data: str = "",
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Result:
    """Evaluate a backbone on images with classes; return the table.

    name: of `EVALUATION_CONFIGS`, such as knn; model: the folder of a run, or what else
    `load_backbone` takes; data: what to learn from; options: fields of the evaluation's
    configuration, such as {"k": (20,)} of `KnnConfig`. Raises ValueError for a mistake in the
    request and NonFiniteError for a fine-tuning that diverged.
    """
    require_alone("evaluate")
    kind = look_up("evaluation", name, EVALUATION_CONFIGS)
    config = replace_options(kind(data=data), options or {})
    learn, test, notes = open_both(config)
    if isinstance(config, FinetuneConfig):
        result = finetune(config, model, learn, test, quiet=quiet)
    else:
        assert isinstance(config, ProbeConfig)
        result = _probe(config, model, learn, test, quiet)
    facts = {
        "model": str(model),
        "data": config.data,
        "classes": len(learn.classes),
        "train_images": len(learn),
        "val_images": len(test),
        **result.facts,
    }
    return Result(name, facts, result.rows, [*notes, *result.notes])


def _probe(
    config: ProbeConfig, model: str | Path, learn: Source, test: Source, quiet: bool
) -> Result:
    """Evaluate what frozen networks say of images."""
    seen, networks = prepare(config, model, learn, quiet)
    if isinstance(config, KnnConfig):
        result = _knn(config, seen, model, networks, learn, test)
    elif isinstance(config, LayersConfig):
        result = layers(config, seen, networks, learn, test)
    else:
        assert isinstance(config, LinearConfig)
        result = linear(config, seen, networks, learn, test)
    return replace(result, facts={"image_size": seen.size, "crop": seen.crop, **result.facts})


def _knn(
    config: KnnConfig,
    seen: Seen,
    model: str | Path,
    networks: Mapping[str, Backbone],
    learn: Source,
    test: Source,
) -> Result:
    protocols = protocols_of(config)
    shown = dict(networks)
    if config.baselines and "untrained" not in networks:
        first = next(iter(networks.values()))
        shown = {"untrained": before_training(model, first), **networks}
    ways: dict[str, Description] = {}
    for protocol in protocols:
        if config.baselines:
            ways[f"{protocol}/raw pixels"] = describe_pixels(protocol)
            ways[f"{protocol}/histogram"] = describe_histogram(protocol)
        for name, network in shown.items():
            ways[f"{protocol}/{name}"] = describe_network(network, protocol)
    bank = seen.describe(learn, "images to learn from", ways)
    queries = seen.describe(test, "images to test on", ways)
    rows = []
    for way in ways:
        protocol, _, name = way.partition("/")
        both = (bank.rows[way], bank.target, queries.rows[way], queries.target)
        found = knn_accuracy(*both, ks=config.k, temperature=config.temperature)
        top1 = {f"k={k}": accuracy[0] for k, accuracy in found.items()}
        rows.append({"protocol": protocol, "features": name, **top1})
    few = (
        []
        if max(config.k) <= len(bank.target)
        else [f"There are {len(bank.target)} images to learn from; a larger k means all of them."]
    )
    return Result("knn", {"temperature": config.temperature}, rows, few)
