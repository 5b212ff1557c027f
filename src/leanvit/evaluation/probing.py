"""Linear probes of what networks say of images: which batches train them, which rate is reported.

Letters: N images, B images of a batch, D columns of a description, L blocks of a network.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.config import CropConfig, DataConfig
from leanvit.config.evaluation import LayersConfig, LinearConfig, LinearProbeConfig
from leanvit.core import random
from leanvit.core.console import track
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import Source, hold_out
from leanvit.data.views import single_crop
from leanvit.evaluation.features import Described, Description, describe_network
from leanvit.evaluation.grid import Grid, block_dims, grid_of
from leanvit.evaluation.heads import Head, best_rate, best_strength
from leanvit.evaluation.inputs import Seen, protocols_of
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.linear import LinearProbe
from leanvit.evaluation.models import with_untrained
from leanvit.evaluation.result import Result, headline

PROBE_CROP = (0.08, 1.0)
"""Share of the image that the papers' linear probe trains on."""

BLOCK = ", block "
"""Between the name of a network and the number of its block."""

Batches = Iterator[tuple[Mapping[str, Tensor], Tensor]]
"""Rows [B, D] of each description, and classes [B]."""


def linear(
    config: LinearConfig,
    seen: Seen,
    model: str | Path,
    networks: Mapping[str, Backbone],
    learn: Source,
    test: Source,
) -> Result:
    """Probe the last blocks of networks, side by side; of several choices of features, the best."""
    shown = with_untrained(networks, model) if config.baselines else networks
    protocols, asked = protocols_of(config), (config.blocks, config.pooling)
    grid = grid_of(shown, protocols, *asked, baselines=config.baselines)
    kept, held = hold_out(learn, config.held_out)
    choosing = grid.cut_all(seen.describe(held, "images that choose", grid.ways))
    testing = grid.cut_all(seen.describe(test, "images to test on", grid.ways))
    heads = _heads(config, seen, grid, kept, choosing)
    table, notes = [], []
    for way in grid.ways:
        names = grid.names(way)
        best = max(names, key=lambda name: heads[name].held_out)
        choice = names[best]
        read = {
            "blocks": choice.blocks if choice else None,
            "pooling": choice.pooling if choice else None,
        }
        row, said = report(way, heads[best], testing.rows[best], testing.target, read)
        table.append(row)
        notes += said
    facts: dict[str, Any] = {"solver": config.solver}
    if config.solver == "sgd":
        facts |= {"epochs": config.epochs, "augment": config.augment}
    return Result("linear", facts, table, notes, headline=headline(table, "linear", "top1"))


def _heads(
    config: LinearConfig, seen: Seen, grid: Grid, kept: Source, choosing: Described
) -> dict[str, Head]:
    """Return the best classifier of every choice of features, by its name in the grid."""
    classes, batch = len(kept.classes), probe_batch(config, len(kept))
    if config.augment:
        batches = augmented_batches(config, seen, kept, grid, batch)
    else:
        stored = grid.cut_all(seen.describe(kept, "images to learn from", grid.ways))
        if config.solver == "lbfgs":
            names = track(list(stored.rows), "regression", len(stored.rows), quiet=seen.quiet)
            return {
                name: best_strength(stored.labelled(name), choosing.labelled(name), classes)
                for name in names
            }
        batches = stored_batches(config, stored, len(kept), batch)
    probes = train_probes(config, seen, batches, choosing, classes, len(kept))
    return {
        name: best_rate(probe, config.rates, choosing.labelled(name))
        for name, probe in probes.items()
    }


def layers(
    config: LayersConfig,
    seen: Seen,
    model: str | Path,
    networks: Mapping[str, Backbone],
    learn: Source,
    test: Source,
) -> Result:
    """Probe every block of networks by itself: a row for each, from the first.

    One network after the other: what all blocks of one say of all images is what memory holds,
    4 N times the sum of their channels in bytes, and twice that for a moment. Of the baselines,
    the network as it began has blocks.
    """
    table: list[dict[str, Any]] = []
    notes: list[str] = []
    shown = with_untrained(networks, model) if config.baselines else networks
    for protocol in protocols_of(config):
        for name, network in shown.items():
            way = {f"{protocol}/{name}": describe_network(network, protocol, network.depth)}
            rows, said = _blocks(config, seen, way, block_dims(network), learn, test)
            table += map(_with_block, rows)
            notes += said
    return Result("layers", {"probe": config.probe}, table, notes)


def _blocks(
    config: LayersConfig,
    seen: Seen,
    way: Mapping[str, Description],
    widths: Sequence[int],
    learn: Source,
    test: Source,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of one network's blocks, and notes."""

    def describe(source: Source, text: str) -> Described:
        return by_block(seen.describe(source, text, way), widths)

    knn = config.probe == "knn"
    kept, held = (learn, None) if knn else hold_out(learn, config.held_out)
    stored = describe(kept, "images to learn from")
    testing = describe(test, "images to test on")
    if held is None:
        return [_near(config, block, stored, testing) for block in stored.rows], []
    choosing = describe(held, "images that choose the rate")
    batches = stored_batches(config, stored, len(kept), probe_batch(config, len(kept)))
    probes = train_probes(config, seen, batches, choosing, len(learn.classes), len(kept))
    rows, notes = [], []
    for block, probe in probes.items():
        head = best_rate(probe, config.rates, choosing.labelled(block))
        row, said = report(block, head, testing.rows[block], testing.target, {})
        rows.append(row)
        notes += said
    return rows, notes


def by_block(found: Described, widths: Sequence[int]) -> Described:
    """Cut rows that hold all blocks side by side: NAME becomes `NAME, block 0` and so on."""
    rows = {
        f"{way}{BLOCK}{block}": part
        for way, values in found.rows.items()
        for block, part in enumerate(values.split(list(widths), 1))
    }
    return Described(rows, found.index, found.target, found.unreadable)


def _near(config: LayersConfig, way: str, bank: Described, queries: Described) -> dict[str, Any]:
    """Return the row of a block whose features vote among neighbours."""
    both = (bank.rows[way], bank.target, queries.rows[way], queries.target)
    protocol, _, name = way.partition("/")
    top1, top5 = knn_accuracy(*both, ks=(config.k,))[config.k]
    return {"protocol": protocol, "features": name, "top1": top1, "top5": top5}


def _with_block(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the number of its block, from 0, in a column of its own."""
    name, _, block = row["features"].rpartition(BLOCK)
    rest = {key: row[key] for key in row if key not in ("protocol", "features")}
    return {"protocol": row["protocol"], "features": name, "block": int(block), **rest}


def probe_batch(config: LinearProbeConfig, images: int) -> int:
    """Return how many of so many images a step of the probe takes."""
    return min(config.probe_batch, max(images // 4, 1))


def train_probes(
    config: LinearProbeConfig,
    seen: Seen,
    batches: Batches,
    choosing: Described,
    classes: int,
    images: int,
) -> dict[str, LinearProbe]:
    """Return a trained probe, of all rates, for each description.

    choosing: rows of any images, for their columns; images: how many there are to learn from.
    """
    batch = probe_batch(config, images)
    steps = config.epochs * (images // batch)
    scaled = tuple(rate * batch / 256 for rate in config.rates)
    probes = {
        way: LinearProbe(rows.shape[1], classes, scaled, steps=steps, seed=config.seed)
        for way, rows in choosing.rows.items()
    }
    for rows, target in track(batches, "linear probe", steps, quiet=seen.quiet):
        for way, probe in probes.items():
            probe.update(rows[way], target)
    return probes


def report(
    way: str, head: Head, rows: Tensor, target: Tensor, read: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the row of a classifier, measured on images that chose nothing, and notes.

    read: further columns.
    """
    protocol, _, name = way.partition("/")
    top1, top5 = head.accuracy(rows, target)
    row = {"protocol": protocol, "features": name, "top1": top1, "top5": top5, **read}
    row |= {**head.chosen, "held-out top1": head.held_out}
    return row, [f"{protocol}, {name}: {head.doubt}"] if head.doubt else []


def stored_batches(
    config: LinearProbeConfig, stored: Described, images: int, batch: int
) -> Batches:
    """Yield every epoch's batches of features that were computed once, of so many images."""
    for epoch in range(config.epochs):
        order = torch.from_numpy(
            random.permutation(config.seed, "probe order", epoch, count=len(stored.target))
        )
        for step in range(images // batch):
            chosen = order[(torch.arange(batch) + step * batch) % len(order)]
            yield {way: rows[chosen] for way, rows in stored.rows.items()}, stored.target[chosen]


def augmented_batches(
    config: LinearConfig, seen: Seen, source: Source, grid: Grid, batch: int
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
        seen_by = grid.ways.items()
        rows = {way: torch.cat([see(p).float().cpu() for p in parts]) for way, see in seen_by}
        yield grid.cut(rows), found.target
