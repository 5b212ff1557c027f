"""One file that is a backbone: safetensors whose header says what it is and how to feed it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.config import RunConfig, to_dict
from leanvit.core.files import Replacing, forget, refusals_named, save_tensors

FILE = "backbone.safetensors"
"""The weights that a run is for: a method's teacher, where it has one."""
STUDENT = "student.safetensors"
"""Beside it, the network that took the gradients."""
HEAD_FILE = "head.safetensors"
"""Beside a fine-tuned backbone, what tells classes: weight [C, D] and bias [C]."""
DENSE_FILE = "dense.safetensors"
"""Beside the backbone of a dense task, all that stands on it."""
HEADER = "leanvit"


def header(backbone: Backbone, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the file's header: the architecture, and facts such as mean, std and method."""
    return {HEADER: json.dumps({"backbone": to_dict(backbone.config), **facts})}


def facts_of_run(config: RunConfig, step: int) -> dict[str, Any]:
    """Return the facts that a header holds of the training that wrote it."""
    return {
        "method": config.method.kind,
        "recipe": config.recipe,
        "seed": config.train.seed,
        "step": step,
        "mean": config.data.mean,
        "std": config.data.std,
    }


def replace_file(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str]) -> None:
    """Write weights in place of what is there, whole or not at all.

    about: the file's metadata. Raises CheckpointError if the disk refuses.
    """
    with refusals_named(path), Replacing(path, inside=True) as beside:
        save_tensors(tensors, beside, about)
        forget(beside)


def read_header(path: Path) -> dict[str, Any]:
    """Return what a backbone file says of itself. Raises ValueError if it is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except PermissionError as error:
        raise ValueError(f"{path} may not be read.") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a backbone that leanvit wrote.") from error
    return facts_of(metadata, path)


def weights_of(model: str | Path) -> str:
    """Return a digest of the file that a model is, or that a run's folder holds; "" for a name."""
    path = Path(model) / FILE if (Path(model) / FILE).is_file() else Path(model)
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_of(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return what `header` put into a file's metadata. Raises ValueError if it is none of ours."""
    try:
        found = json.loads(metadata[HEADER])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a backbone that leanvit wrote.") from error
    if not (isinstance(found, dict) and isinstance(found.get("backbone"), dict)):
        raise ValueError(f"{path} is not a backbone that leanvit wrote: its header names none.")
    return found
