"""`leanvit embed`: features of images, out."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanvit.backbones.base import Backbone
from leanvit.config import replace_options, to_dict
from leanvit.config.evaluation import FEATURE_FILES, EmbedConfig
from leanvit.core.distributed import require_alone
from leanvit.core.files import Replacing, require_writable, sync, writing
from leanvit.core.packages import missing
from leanvit.data.sources import Source, open_source
from leanvit.evaluation.features import Described, describe_grid, describe_network
from leanvit.evaluation.formats import FORMATS, NAMES_BYTES, Facts, Part
from leanvit.evaluation.inputs import Seen, prepare
from leanvit.weights.card import last_part

FEATURES = "features"


def embed(
    model: str | Path,
    *,
    out: str | Path,
    data: str = "",
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Path:
    """Write the features of every image to a file; return its path.

    out: ends in .npz or .safetensors (features [N, D] or [N, h, w, D], targets [N], names and
    classes), .parquet (a row an image or a region) or .csv (a line an image); it is whole or not
    there. All but the .csv hold the facts: backbone, mean, std, image size, crop, kind of features.
    model, data: as for `evaluate`, but images need no classes, and of a run the teacher is taken;
    options: fields of `EmbedConfig`. Memory holds a few batches, however many images there are.
    Raises ValueError for a mistake in the request and for a disk that refuses.
    """
    require_alone("embed")
    config, out = replace_options(EmbedConfig(data=data), options or {}), Path(out)
    _require_format(out, config)
    source = open_source(config.data)
    if out.suffix == ".safetensors":
        _require_names(source)
    seen, networks = prepare(config, model, source, quiet)
    network = next(iter(networks.values()))
    way = (
        describe_grid(network)
        if config.features == "grid"
        else describe_network(network, blocks=4 if config.features == "last4" else 0)
    )
    parts = _parts(seen.batches(source, "embedding", {FEATURES: way}), source, config.dtype)
    facts = _facts(model, network, seen, config, source)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with Replacing(out) as beside:
            FORMATS[out.suffix].write(beside, _with_room(parts, len(source), out), facts)
            sync(beside)
    return out


def _require_format(out: Path, config: EmbedConfig) -> None:
    """Raise ValueError if no such file can be written, before anything is read."""
    if out.suffix not in FORMATS:
        *others, last = FEATURE_FILES
        raise ValueError(
            f"--out is {str(out)!r}; name a file that ends in {', '.join(others)} or {last}."
        )
    if out.suffix == ".csv" and config.features == "grid":
        raise ValueError(
            "Region features have more dimensions than a .csv holds; use .npz, .parquet or "
            ".safetensors."
        )
    if out.suffix == ".parquet" and (why := missing("pyarrow")):
        raise ValueError(f"Writing {str(out)!r} needs pyarrow: {why}: pip install 'leanvit[web]'.")
    if out.exists():
        raise ValueError(f"The file {str(out)!r} is there already; remove it or name another.")
    require_writable(out)


def _require_names(source: Source) -> None:
    """Raise ValueError if the names of all images are too long for the header of safetensors."""
    names = [*source.classes, *(source.name(index) for index in range(len(source)))]
    size = len(json.dumps(json.dumps(names)))  # the header is JSON, which holds them as a word
    if size > NAMES_BYTES:
        raise ValueError(
            f"The names of the {len(source):,} images take {size / 1e6:.0f} MB, and the header of "
            f"a .safetensors holds 100; use .parquet or .npz."
        )


def _parts(batches: Iterable[Described], source: Source, dtype: str) -> Iterator[Part]:
    """Yield the images that could be read, by batches, as they are written."""
    for batch in batches:
        if not len(batch.index):
            continue
        names = [source.name(index) for index in batch.index.tolist()]
        rows = _as(batch.rows[FEATURES].numpy(), dtype)
        yield Part(names, batch.target.numpy(), rows)


def _as(rows: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Return features in a precision. Raises ValueError if one of them is beyond its range."""
    largest = float(np.finfo(dtype).max)
    beyond = np.abs(rows[np.isfinite(rows)]).max(initial=0)
    if beyond > largest:
        raise ValueError(
            f"A feature is {beyond:g}, and the largest {dtype} is {largest:g}; use float32 (dtype)."
        )
    return rows.astype(dtype, copy=False)


def _with_room(parts: Iterator[Part], images: int, out: Path) -> Iterator[Part]:
    """Pass parts on. Raises ValueError at the first if the disk cannot take so many images."""
    for number, part in enumerate(parts):
        if number == 0:
            needed = images * part.features[0].nbytes * FORMATS[out.suffix].room
            free = shutil.disk_usage(out.parent).free
            if needed > free:
                raise ValueError(
                    f"The features of {images:,} images need about {needed / 1e9:.1f} GB on the "
                    f"disk of {str(out)!r} until they are written, and {free / 1e9:.1f} GB are "
                    f"free. A .parquet needs the least, dtype float16 half of it, pooled features "
                    f"less than those of regions."
                )
        yield part


def _facts(
    model: str | Path, network: Backbone, seen: Seen, config: EmbedConfig, source: Source
) -> Facts:
    """Return what the features are: all that is needed to make the same of other images."""
    return {
        FEATURES: config.features,
        "dtype": config.dtype,
        "model": last_part(str(model)),
        "backbone": to_dict(network.config),
        "mean": list(network.mean),
        "std": list(network.std),
        "image_size": seen.size,
        "crop": seen.crop,
        "data": last_part(config.data),
        "classes": list(source.classes),
    }
