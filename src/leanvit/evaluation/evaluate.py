"""`leanvit evaluate`: from a name to a table."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.config import CropConfig, DataConfig, look_up, replace_options
from leanvit.config.evaluation import (
    EVALUATION_CONFIGS,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    ProbeConfig,
)
from leanvit.core import random
from leanvit.core.console import track
from leanvit.core.distributed import require_alone
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import Source, hold_out
from leanvit.data.views import single_crop
from leanvit.evaluation.features import (
    Described,
    Description,
    describe_histogram,
    describe_network,
    describe_pixels,
)
from leanvit.evaluation.finetune import finetune
from leanvit.evaluation.inputs import Seen, open_both, prepare, protocols_of
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.linear import LinearProbe
from leanvit.evaluation.models import before_training
from leanvit.evaluation.result import Result

PROBE_CROP = (0.08, 1.0)
"""Share of the image that the papers' linear probe trains on."""


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
    else:
        assert isinstance(config, LinearConfig)
        result = _linear(config, seen, networks, learn, test)
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


def _linear(
    config: LinearConfig,
    seen: Seen,
    networks: Mapping[str, Backbone],
    learn: Source,
    test: Source,
) -> Result:
    ways = {
        f"{protocol}/{name}": describe_network(network, protocol, config.blocks)
        for protocol in protocols_of(config)
        for name, network in networks.items()
    }
    kept, held = hold_out(learn, config.held_out)
    choosing = seen.describe(held, "images that choose the rate", ways)
    testing = seen.describe(test, "images to test on", ways)
    batch = min(config.probe_batch, max(len(kept) // 4, 1))
    make = _augmented_batches if config.augment else _stored_batches
    steps = config.epochs * (len(kept) // batch)
    scaled = tuple(rate * batch / 256 for rate in config.rates)
    probes = {
        way: LinearProbe(
            choosing.rows[way].shape[1], len(learn.classes), scaled, steps=steps, seed=config.seed
        )
        for way in ways
    }
    batches = make(config, seen, kept, ways, batch)
    for rows, target in track(batches, "linear probe", steps, quiet=seen.quiet):
        for way, probe in probes.items():
            probe.update(rows[way], target)
    return _choose(config, probes, choosing, testing)


def _choose(
    config: LinearConfig, probes: Mapping[str, LinearProbe], choosing: Described, testing: Described
) -> Result:
    """Report each description's best rate on `choosing`, with its accuracy on `testing`."""
    table, notes = [], []
    for way, probe in probes.items():
        protocol, _, name = way.partition("/")
        held_out = probe.accuracy(choosing.rows[way], choosing.target)[:, 0]
        best = int(held_out.argmax())
        top1, top5 = probe.accuracy(testing.rows[way], testing.target)[best].tolist()
        table.append(
            {
                "protocol": protocol,
                "features": name,
                "top1": top1,
                "top5": top5,
                "rate": f"{config.rates[best]:g}",
                "held-out top1": float(held_out[best]),
            }
        )
        if len(config.rates) > 1 and best in (0, len(config.rates) - 1):
            notes.append(
                f"{protocol}, {name}: the best rate {config.rates[best]:g} is the "
                f"{'lowest' if best == 0 else 'highest'} that was tried; try more with --rates."
            )
    facts = {"blocks": config.blocks, "epochs": config.epochs, "augment": config.augment}
    return Result("linear", facts, table, notes)


Batches = Iterator[tuple[Mapping[str, Tensor], Tensor]]
"""Rows [B, D] of each description, and classes [B]."""


def _stored_batches(
    config: LinearConfig, seen: Seen, source: Source, ways: Mapping[str, Description], batch: int
) -> Batches:
    """Yield every epoch's batches of features that are computed once."""
    stored = seen.describe(source, "images to learn from", ways)
    for epoch in range(config.epochs):
        order = torch.from_numpy(
            random.permutation(config.seed, "probe order", epoch, count=len(stored.target))
        )
        for step in range(len(source) // batch):
            chosen = order[(torch.arange(batch) + step * batch) % len(order)]
            yield {way: rows[chosen] for way, rows in stored.rows.items()}, stored.target[chosen]


def _augmented_batches(
    config: LinearConfig, seen: Seen, source: Source, ways: Mapping[str, Description], batch: int
) -> Batches:
    """Yield every epoch's batches of features of random crops and flips."""
    crop = single_crop(CropConfig(size=seen.size, scale=PROBE_CROP))
    plain = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    views = Views(source, crop, plain, config.seed)
    order = Order(len(source), batch, config.seed)
    steps = config.epochs * order.epoch_steps
    cpu = torch.device("cpu")
    for found in load_views(views, order, 0, steps, workers=seen.workers, device=cpu):
        parts = found.groups[0][0].split(config.batch)
        rows = {way: torch.cat([see(p).float().cpu() for p in parts]) for way, see in ways.items()}
        yield rows, found.target
