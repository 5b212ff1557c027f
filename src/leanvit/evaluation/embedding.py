"""`leanvit embed`: features of images, out."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leanvit.config import replace_options
from leanvit.config.evaluation import EmbedConfig
from leanvit.core.distributed import require_alone
from leanvit.data.sources import Source, open_source
from leanvit.evaluation.features import Described, describe_grid, describe_network
from leanvit.evaluation.inputs import prepare


def embed(
    model: str | Path,
    *,
    out: str | Path,
    data: str = "",
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Path:
    """Write the features of every image to a file; return its path.

    out: ends in .npz (features [N, D] or [N, h, w, D], names [N], targets [N], classes) or in .csv
    (a line an image). model, data: as for `evaluate`, but images need no classes, and of a run the
    teacher is taken; options: fields of `EmbedConfig`. Raises ValueError for a mistake in the
    request.
    """
    require_alone("embed")
    config, out = replace_options(EmbedConfig(data=data), options or {}), Path(out)
    if out.suffix not in (".npz", ".csv"):
        raise ValueError(f"--out is {str(out)!r}; name a file that ends in .npz or .csv.")
    if out.suffix == ".csv" and config.features == "grid":
        raise ValueError("Region features have more dimensions than a .csv holds; use .npz.")
    if out.exists():
        raise ValueError(f"The file {str(out)!r} is there already; remove it or name another.")
    source = open_source(config.data)
    seen, networks = prepare(config, model, source, quiet)
    network = next(iter(networks.values()))
    way = (
        describe_grid(network)
        if config.features == "grid"
        else describe_network(network, blocks=4 if config.features == "last4" else 0)
    )
    found = seen.describe(source, "embedding", {"features": way})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(out, found, source)
    except OSError as error:
        raise ValueError(f"Cannot write to {str(out)!r}: {error.strerror}.") from error
    return out


def _write(out: Path, found: Described, source: Source) -> None:
    names = [source.name(index) for index in found.index.tolist()]
    rows = found.rows["features"].numpy()
    if out.suffix == ".npz":
        np.savez_compressed(
            out,
            features=rows,
            names=np.array(names),
            targets=found.target.numpy(),
            classes=np.array(source.classes, dtype=np.str_),
        )
        return
    with out.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "class", *(f"f{column}" for column in range(rows.shape[1]))])
        for name, target, row in zip(names, found.target.tolist(), rows, strict=True):
            label = source.classes[target] if target >= 0 else ""
            writer.writerow([name, label, *(f"{value:.7g}" for value in row)])
