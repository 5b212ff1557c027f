"""k-NN of what networks, and descriptions that need none, say of images."""

from collections.abc import Mapping
from pathlib import Path

import torch

from leanvit.backbones.base import Backbone
from leanvit.config.evaluation import KnnConfig
from leanvit.core.distributed import all_rows_of_any_number, rank
from leanvit.data.sources import Source
from leanvit.evaluation.features import shared
from leanvit.evaluation.inputs import Seen, ways_of
from leanvit.evaluation.knn import Bank, accuracy_of
from leanvit.evaluation.result import Result, headline


def knn(
    config: KnnConfig,
    seen: Seen,
    model: str | Path,
    networks: Mapping[str, Backbone],
    learn: Source,
    test: Source,
) -> Result:
    """Compare descriptions by their neighbours: those to learn from lie in shares."""
    ways = ways_of(config, model, networks)
    share = seen.describe_share(learn, "images to learn from", ways)
    if config.leave_one_out:
        queries = shared(share, ways)
    else:
        queries = seen.describe(test, "images to test on", ways)
    counts = all_rows_of_any_number(torch.tensor([len(share.index)]))
    first = int(counts[: rank()].sum()) if len(counts) > 1 else None
    target = all_rows_of_any_number(share.target)
    rows = []
    for way in ways:
        protocol, _, name = way.partition("/")
        asked = queries.rows[way]
        bank = Bank(share.rows.get(way, asked[:0]), target, first, config.leave_one_out)
        found = accuracy_of(
            bank, asked, queries.target, ks=config.k, temperature=config.temperature
        )
        top1 = {f"k={k}": accuracy[0] for k, accuracy in found.items()}
        rows.append({"protocol": protocol, "features": name, **top1})
    k = 20 if 20 in config.k else config.k[0]
    title = headline(rows, f"k-NN, k={k}", f"k={k}")
    few = _few(max(config.k), bank.voters, "other " if config.leave_one_out else "")
    if config.leave_one_out and (single := int((target.bincount() == 1).sum())):
        few.append(f"{single} classes have a single image, for which no other can vote.")
    return Result("knn", {"temperature": config.temperature}, rows, few, headline=title)


def _few(k: int, voters: int, what: str) -> list[str]:
    """Say that there are fewer images than neighbours asked for, if so."""
    if k <= voters:
        return []
    are, images = ("is", "image") if voters == 1 else ("are", "images")
    return [f"There {are} {voters} {what}{images} to learn from; a larger k means all of them."]
