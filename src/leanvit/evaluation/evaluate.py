"""`leanvit evaluate`: from a name to a table."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leanvit.backbones.base import Backbone
from leanvit.config import look_up, replace_options, to_dict
from leanvit.config.evaluation import (
    EVALUATION_CONFIGS,
    FinetuneConfig,
    KnnConfig,
    LayersConfig,
    LinearConfig,
    ProbeConfig,
)
from leanvit.core.distributed import joined, rank, require_alone
from leanvit.core.files import require_writable
from leanvit.data.sources import Source
from leanvit.evaluation.correspondence import correspondence_result
from leanvit.evaluation.features import (
    Description,
    describe_histogram,
    describe_network,
    describe_pixels,
)
from leanvit.evaluation.finetune import finetune
from leanvit.evaluation.inputs import Seen, device_of, open_both, prepare, protocols_of
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.models import with_untrained
from leanvit.evaluation.probing import layers, linear
from leanvit.evaluation.record import place_of, record
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.robust import robust_result
from leanvit.evaluation.transfer import transfer_result


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
    kind = look_up("evaluation", name, EVALUATION_CONFIGS)
    config = replace_options(kind(data=data), options or {})
    place = place_of(model, config.results)
    if place is not None:
        require_writable(place)
    began = time.perf_counter()
    with joined(device_of(config).type, patient=True):
        result = RUNNERS[name](config, model, quiet or rank() > 0)
        result = replace(
            result,
            facts={"model": str(model), "data": config.data, **result.facts},
            config=to_dict(config),
        )
        if place is not None and rank() == 0:
            record(result, model, place, time.perf_counter() - began)
    return result


def _finetune(config: FinetuneConfig, model: str | Path, quiet: bool) -> Result:
    """Evaluate a backbone by training all of it."""
    require_alone("evaluate finetune")
    learn, test, notes = open_both(config)
    return _about_classes(finetune(config, model, learn, test, quiet=quiet), learn, test, notes)


def _probe(config: ProbeConfig, model: str | Path, quiet: bool) -> Result:
    """Evaluate what frozen networks say of images."""
    learn, test, notes = open_both(config)
    seen, networks = prepare(config, model, learn, quiet)
    if isinstance(config, KnnConfig):
        result = _knn(config, seen, model, networks, learn, test)
    elif isinstance(config, LayersConfig):
        result = layers(config, seen, networks, learn, test)
    else:
        assert isinstance(config, LinearConfig)
        result = linear(config, seen, networks, learn, test)
    result = replace(result, facts={"image_size": seen.size, "crop": seen.crop, **result.facts})
    return _about_classes(result, learn, test, notes)


def _about_classes(result: Result, learn: Source, test: Source, notes: Sequence[str]) -> Result:
    """Return a result with what it was learned from and tested on."""
    facts = {"classes": len(learn.classes), "train_images": len(learn), "val_images": len(test)}
    return replace(result, facts={**facts, **result.facts}, notes=[*notes, *result.notes])


def _knn(
    config: KnnConfig,
    seen: Seen,
    model: str | Path,
    networks: Mapping[str, Backbone],
    learn: Source,
    test: Source,
) -> Result:
    protocols = protocols_of(config)
    shown = with_untrained(networks, model) if config.baselines else networks
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
    k = 20 if 20 in config.k else config.k[0]
    title = headline(rows, f"k-NN, k={k}", f"k={k}")
    return Result("knn", {"temperature": config.temperature}, rows, few, headline=title)


RUNNERS: Mapping[str, Callable[[Any, str | Path, bool], Result]] = MappingProxyType(
    {
        "correspondence": correspondence_result,
        "finetune": _finetune,
        "knn": _probe,
        "layers": _probe,
        "linear": _probe,
        "robust": robust_result,
        "transfer": transfer_result,
    }
)
"""What does each evaluation of `EVALUATION_CONFIGS`: configuration, model, quiet -> result."""
