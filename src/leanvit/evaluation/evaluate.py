"""`leanvit evaluate`: from a name to a table."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leanvit.config import look_up, replace_options, to_dict
from leanvit.config.evaluation import (
    EVALUATION_CONFIGS,
    FinetuneConfig,
    KnnConfig,
    LayersConfig,
    LinearConfig,
    LowshotConfig,
    ProbeConfig,
)
from leanvit.core.distributed import joined, rank, require_alone
from leanvit.core.files import require_writable
from leanvit.data.sources import Source
from leanvit.evaluation.correspondence import correspondence_result
from leanvit.evaluation.detect import detect_result
from leanvit.evaluation.finetune import finetune
from leanvit.evaluation.inputs import (
    device_of,
    empty_classes,
    open_alone,
    open_both,
    prepare,
)
from leanvit.evaluation.lowshot import lowshot
from leanvit.evaluation.neighbors import knn
from leanvit.evaluation.probing import layers, linear
from leanvit.evaluation.record import place_of, record
from leanvit.evaluation.result import Result
from leanvit.evaluation.robust import robust_result
from leanvit.evaluation.segment import segment_result
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
    if kind is FinetuneConfig:
        require_alone("evaluate finetune")
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
            seconds = time.perf_counter() - began
            record(result, model, place, asked=options or {}, seconds=seconds)
    return result


def _finetune(config: FinetuneConfig, model: str | Path, quiet: bool) -> Result:
    """Evaluate a backbone by training all of it."""
    learn, test, notes = open_both(config)
    return _about_classes(finetune(config, model, learn, test, quiet=quiet), learn, test, notes)


def _lowshot(config: LowshotConfig, model: str | Path, quiet: bool) -> Result:
    """Evaluate what a backbone makes of few images."""
    learn, test, notes = open_both(config)
    return _about_classes(lowshot(config, model, learn, test, quiet=quiet), learn, test, notes)


def _probe(config: ProbeConfig, model: str | Path, quiet: bool) -> Result:
    """Evaluate what frozen networks say of images."""
    alone = isinstance(config, KnnConfig) and config.leave_one_out
    learn, test, notes = open_alone(config) if alone else open_both(config)
    seen, networks = prepare(config, model, learn, quiet)
    if isinstance(config, KnnConfig):
        result = knn(config, seen, model, networks, learn, test)
    elif isinstance(config, LayersConfig):
        result = layers(config, seen, model, networks, learn, test)
    else:
        assert isinstance(config, LinearConfig)
        result = linear(config, seen, model, networks, learn, test)
    result = replace(result, facts={"image_size": seen.size, "crop": seen.crop, **result.facts})
    return _about_classes(result, learn, test, [*notes, *seen.notes])


def _about_classes(result: Result, learn: Source, test: Source, notes: Sequence[str]) -> Result:
    """Return a result with what it was learned from and tested on, and which classes are empty."""
    notes = [*notes, *empty_classes(learn, test)]
    if learn is not test and learn.fingerprint() == test.fingerprint():
        notes.append("The images to test on have the names of those to learn from: the same ones?")
    facts = {"classes": len(learn.classes), "train_images": len(learn), "val_images": len(test)}
    return replace(result, facts={**facts, **result.facts}, notes=[*notes, *result.notes])


RUNNERS: Mapping[str, Callable[[Any, str | Path, bool], Result]] = MappingProxyType(
    {
        "correspondence": correspondence_result,
        "detect": detect_result,
        "finetune": _finetune,
        "knn": _probe,
        "layers": _probe,
        "linear": _probe,
        "lowshot": _lowshot,
        "robust": robust_result,
        "segment": segment_result,
        "transfer": transfer_result,
    }
)
"""What does each evaluation of `EVALUATION_CONFIGS`: configuration, model, quiet -> result."""
