"""The public loader: a name, a run, or a file of any code that is known becomes a backbone."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from leanvit.backbones.base import Backbone
from leanvit.config import BackboneConfig, from_dict, named_backbone, replace_options
from leanvit.config.backbones import TIMM
from leanvit.config.resume import RESOLVED
from leanvit.config.weights import WeightsConfig
from leanvit.weights.file import FILE, HEADER, facts_of
from leanvit.weights.foreign import understand
from leanvit.weights.reading import Contents, read_checkpoint
from leanvit.weights.report import Report, Row, Weights, build, require_numbers, skeleton


def load_backbone(
    path_or_name: str | Path, *, options: Mapping[str, Any] | None = None
) -> Backbone:
    """Return a backbone, in evaluation mode, on the CPU.

    path_or_name: the folder of a run, a backbone file, a checkpoint of another code
    (docs/weights.md lists them) or the folder that timm or Hugging Face keep one in; or
    `timm:NAME.TAG`, weights that timm downloads; or a name of `list_backbones()` or `timm:NAME`,
    which give untrained weights. options: fields of `WeightsConfig`, for what a file does not say,
    such as {"heads": (12,)}; our own files take `mean` and `std` alone. The backbone's `mean` and
    `std` are those it was trained with.
    Raises ValueError if it is none of these or does not fit exactly.
    """
    return build(open_weights(path_or_name, options=options))


def open_weights(path_or_name: str | Path, *, options: Mapping[str, Any] | None = None) -> Weights:
    """Return the weights that a path or a name means, as `load_backbone` takes them."""
    asked = replace_options(WeightsConfig(), options or {})
    path = Path(path_or_name)
    name = str(path_or_name)
    if (path / FILE).is_file():
        path = path / FILE
    if path.is_dir() and (path / RESOLVED).is_file():
        raise ValueError(
            f"The run in {name!r} has not saved a backbone yet; wait until it does, or continue "
            f"it: leanvit pretrain --out {name} --resume."
        )
    if path.exists():
        checkpoint = read_checkpoint(path)
        if HEADER in checkpoint.metadata:
            return _own(checkpoint, asked)
        return _foreign(checkpoint, asked)
    if name.startswith(TIMM) and "." in name:
        from leanvit.weights.timm_weights import trained_checkpoint  # here, as timm loads slowly

        return _foreign(trained_checkpoint(name.removeprefix(TIMM)), asked)
    if not name.startswith(TIMM) and (path.suffix or path.parent != Path()):
        raise ValueError(f"There is no file or folder {name!r} to take weights from.")
    config = named_backbone(name, "backbone file or name")
    _require_unsaid(name, asked)
    report = Report("leanvit", "", (), ("the weights are fresh",))
    mean, std = asked.mean or Backbone.mean, asked.std or Backbone.std
    return Weights(config, None, mean, std, report)


def _require_unsaid(name: str, asked: WeightsConfig) -> None:
    """Refuse options on how a file is to be read where nothing is left to say but mean and std."""
    usual = WeightsConfig()
    words = [n.name for n in fields(asked) if getattr(asked, n.name) != getattr(usual, n.name)]
    words = [word for word in words if word not in ("mean", "std")]
    if words:
        raise ValueError(
            f"{name!r} says itself which network it is; {' and '.join(words)} help to read "
            f"checkpoints of other codes: leave them out."
        )


def _foreign(checkpoint: Contents, asked: WeightsConfig) -> Weights:
    """Read a checkpoint of another code."""
    if "architecture" not in checkpoint.config:
        return understand(checkpoint, asked)
    from leanvit.weights.timm_weights import understand_timm  # here, as timm loads slowly

    return understand_timm(checkpoint, asked)


def _own(checkpoint: Contents, asked: WeightsConfig) -> Weights:
    """Read a file that leanvit wrote."""
    path = checkpoint.path
    _require_unsaid(str(path), asked)
    facts = facts_of(checkpoint.metadata, path)
    config = from_dict(BackboneConfig, facts["backbone"], "backbone")
    state = dict(checkpoint.tensors)
    depths: tuple[int, ...] = getattr(config, "depths", (getattr(config, "depth", 0),))
    few = sum(depths) > len(state)  # and a header of a few bytes would have us build them all
    expected = {} if few else skeleton(config)
    found, right = (
        {name: tuple(value.shape) for name, value in tensors.items()}
        for tensors in (state, expected)
    )
    if found != right:
        name = next((n for n in {**right, **found} if found.get(n) != right.get(n)), "")
        raise ValueError(
            f"The weights in {str(path)!r} do not fit its own header: {name!r} is "
            f"{found.get(name, 'missing')}; expected {right.get(name, 'no such tensor')}."
        )
    mean, std = (
        tuple(getattr(asked, n) or facts.get(n, getattr(Backbone, n))) for n in ("mean", "std")
    )
    rows = tuple(Row(name, "used", name) for name in state)
    require_numbers(path, expected, state, rows)
    return Weights(config, state, mean, std, Report("leanvit", "", rows), facts)
