"""The public loader: a name, a run, or a file of any code that is known becomes a backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig, from_dict, named_backbone, replace_options
from leanvit.config.backbones import TIMM
from leanvit.config.weights import WeightsConfig
from leanvit.core.random import seeded
from leanvit.weights.file import FILE, HEADER, read_header
from leanvit.weights.foreign import understand
from leanvit.weights.reading import Contents, read_checkpoint
from leanvit.weights.report import Report, Row, Weights, build


def load_backbone(
    path_or_name: str | Path, *, options: Mapping[str, Any] | None = None
) -> Backbone:
    """Return a backbone, in evaluation mode, on the CPU.

    path_or_name: the folder of a run, a backbone file, a checkpoint of another code
    (docs/weights.md lists them) or the folder that timm or Hugging Face keep one in; or
    `timm:NAME.TAG`, weights that timm downloads; or a name of `list_backbones()` or `timm:NAME`,
    which give untrained weights. options: fields of `WeightsConfig`, for what a file does not say,
    such as {"heads": (12,)}. Its `mean` and `std` are those it was trained with.
    Raises ValueError if it is none of these or does not fit exactly.
    """
    return build(open_weights(path_or_name, options=options))


def open_weights(path_or_name: str | Path, *, options: Mapping[str, Any] | None = None) -> Weights:
    """Return the weights that a path or a name means, as `load_backbone` takes them."""
    asked = replace_options(WeightsConfig(), options or {})
    path = Path(path_or_name)
    if (path / FILE).is_file():
        path = path / FILE
    name = str(path_or_name)
    if path.exists():
        checkpoint = read_checkpoint(path)
        if HEADER in checkpoint.metadata:
            return _own(path)
        return _foreign(checkpoint, asked)
    if name.startswith(TIMM) and "." in name:
        from leanvit.weights.timm_weights import trained_checkpoint  # here, as timm loads slowly

        return _foreign(trained_checkpoint(name.removeprefix(TIMM)), asked)
    if not name.startswith(TIMM) and (path.suffix or path.parent != Path()):
        raise ValueError(f"There is no file or folder {name!r} to take weights from.")
    config = named_backbone(name, "backbone file or name")
    report = Report("leanvit", "", (), ("the weights are fresh",))
    return Weights(config, None, Backbone.mean, Backbone.std, report)


def _foreign(checkpoint: Contents, asked: WeightsConfig) -> Weights:
    """Read a checkpoint of another code."""
    if asked.network or "architecture" not in checkpoint.config:
        return understand(checkpoint, asked)
    from leanvit.weights.timm_weights import understand_timm  # here, as timm loads slowly

    return understand_timm(checkpoint, asked)


def _own(path: Path) -> Weights:
    """Read a file that leanvit wrote."""
    facts = read_header(path)
    config = from_dict(BackboneConfig, facts["backbone"], "backbone")
    state = load_file(path)
    with seeded(0, "weights"):
        skeleton = build_backbone(config)
    try:
        skeleton.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"The weights in {path} do not fit its own header: {error}") from error
    mean, std = (tuple(facts.get(n, getattr(Backbone, n))) for n in ("mean", "std"))
    rows = tuple(Row(name, "used", name) for name in state)
    return Weights(config, state, mean, std, Report("leanvit", "", rows), facts)
