"""`leanvit convert`: weights of any known code in any known format, compared before they are kept.

Letters: B images, S their side in pixels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from leanvit.backbones.base import Backbone
from leanvit.config import BackboneConfig, CvTConfig, ViTConfig, replace_options, to_dict
from leanvit.config.names import unknown_name
from leanvit.config.weights import ConvertConfig, WeightsConfig
from leanvit.core.distributed import require_alone
from leanvit.core.errors import RunError
from leanvit.core.files import Replacing, require_writable, save_tensors, write_synced, writing
from leanvit.weights.card import CARD, card, read_run
from leanvit.weights.compare import OTHER_EPS, TOLERANCE, difference, images_for
from leanvit.weights.file import FILE, header
from leanvit.weights.graphs import METADATA, export_onnx, export_program
from leanvit.weights.layouts import LAYOUTS
from leanvit.weights.libraries import LIBRARIES, compare
from leanvit.weights.loading import load_backbone, open_weights
from leanvit.weights.model_folder import from_photograph
from leanvit.weights.official import CODES, OFFICIAL, write_official
from leanvit.weights.report import Report, build


@dataclass(frozen=True, slots=True)
class Job:
    """A backbone on its way to a format."""

    backbone: Backbone
    out: Path
    facts: Mapping[str, Any]
    """What the file says of its making."""
    config: ConvertConfig


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found when the written file was read again."""

    differences: Mapping[str, float]
    """What was compared -> largest difference of features, over the largest feature."""
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A format that backbones are written in."""

    what: str
    write: Callable[[Job], Checked]
    usage: Callable[[BackboneConfig, str], str]
    """Code that loads what has a name."""
    suffixes: tuple[str, ...] = ()
    """Of its file; none: it is a folder."""
    library: str = "leanvit"
    """What loads it, as Hugging Face calls it."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What `convert` read and wrote."""

    report: Report
    backbone: Backbone
    out: Path | None = None
    to: str = ""
    checked: Checked = Checked({})

    def __str__(self) -> str:
        lines = [str(self.report), self._described()]
        if self.out is not None:
            target = TARGETS[self.to]
            card = _card_place(self.out, target)
            lines += ["", f"Written to {self.out} ({target.what}); its card is {card}."]
        for what, value in self.checked.differences.items():
            apart = f"within {value:.1e} of the largest" if value else "to the last bit"
            if value <= TOLERANCE:  # of what is further apart a note says why
                lines.append(f"Read again, features are the same {apart}: {what}.")
        return "\n".join([*lines, *(f"note: {note}" for note in self.checked.notes)])

    def _described(self) -> str:
        """Return the network in two lines; what an option turns off is left out."""
        facts = to_dict(self.backbone.config)
        shown = (f"{n} {v}" for n, v in facts.items() if v and n not in ("kind", "drop_path"))
        mean, std = (", ".join(map(str, v)) for v in (self.backbone.mean, self.backbone.std))
        return (
            f"{facts['kind']} of {self._parameters():,} parameters: {', '.join(shown)}\n"
            f"images normalised by mean {mean} and deviation {std}"
        )

    def _parameters(self) -> int:
        return sum(value.numel() for value in self.backbone.parameters())

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "read": self.report.to_dict(),
            "backbone": to_dict(self.backbone.config),
            "parameters": self._parameters(),
            "mean": list(self.backbone.mean),
            "std": list(self.backbone.std),
            "written": None if self.out is None else str(self.out),
            "to": self.to or None,
            "differences": dict(self.checked.differences),
            "notes": list(self.checked.notes),
        }


def convert(
    model: str | Path, *, out: str | Path = "", options: Mapping[str, Any] | None = None
) -> Converted:
    """Write a backbone in another format; without `out`, say what its file holds.

    model: as for `load_backbone`; out: a file, or a folder for timm, torchvision and Hugging Face;
    options: fields of `ConvertConfig`, `to` among them. A model card lies in the folder or beside
    the file. What was written is read again, by its own library where there is one, and must give
    the same features. Raises ValueError for a mistake in the request and for networks that the
    format does not have, RunError, and keeps nothing, if the features differ.
    """
    require_alone("convert")
    config = replace_options(ConvertConfig(), options or {})
    if config.to not in TARGETS:
        raise unknown_name("format", config.to, TARGETS)
    _require_use(config, bool(str(out)), options or {})
    if str(out):
        _require_free(Path(out), TARGETS[config.to])
    asked = {field.name: getattr(config, field.name) for field in fields(WeightsConfig)}
    weights = open_weights(model, options=asked)
    backbone = build(weights)
    if not str(out):
        return Converted(weights.report, backbone)
    if weights.state is None:
        raise ValueError(
            f"{str(model)!r} names an untrained network: there are no weights to keep."
        )
    facts = {**weights.facts, "mean": weights.mean, "std": weights.std}
    if weights.report.layout != "leanvit":
        facts["converted_from"] = weights.report.layout
    checked = _write(Job(backbone, Path(out), facts, config), Path(model))
    return Converted(weights.report, backbone, Path(out), config.to, checked)


def _write(job: Job, model: Path) -> Checked:
    """Write a backbone and its card; say what was found when it was read again."""
    target = TARGETS[job.config.to]
    run, rows = _run_of(model)
    with writing(job.out):
        job.out.parent.mkdir(parents=True, exist_ok=True)
        checked = target.write(job)
        text = card(
            job.backbone,
            job.facts,
            usage=target.usage(job.backbone.config, job.out.name),
            run=run,
            rows=rows,
            notes=checked.notes,
            library=target.library,
        )
        write_synced(_card_place(job.out, target), text.encode())
    return checked


def _require_use(config: ConvertConfig, writes: bool, given: Collection[str]) -> None:
    """Raise ValueError for options that would have no effect."""
    if not writes and "to" in given:
        raise ValueError(f"--to {config.to} needs a place to write to: --out PATH.")
    if config.graph_size and config.to not in ("onnx", "export"):
        raise ValueError(
            f"graph_size is of --to onnx and --to export; {config.to} takes images of any size "
            f"that its network does: leave it out."
        )


def _require_free(out: Path, target: Target) -> None:
    """Raise ValueError if the place is taken, cannot be, or its name does not fit the format."""
    for place in (out, _card_place(out, target)):
        with writing(place):
            there = place.exists()
        if there:
            raise ValueError(f"{str(place)!r} is there already; remove it or name another (--out).")
    if target.suffixes and out.suffix not in target.suffixes:
        raise ValueError(
            f"--out is {str(out)!r}; name a file that ends in {' or '.join(target.suffixes)}."
        )
    require_writable(out)


def _card_place(out: Path, target: Target) -> Path:
    """Return where the model card lies: in a folder, or beside a file under its name and `.md`."""
    return out.with_name(f"{out.name}.md") if target.suffixes else out / CARD


def _run_of(model: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return what a run tells of its weights, by its folder or its file of them."""
    folder = model.parent if model.name == FILE else model
    return read_run(folder) if folder.is_dir() else (None, [])


# Formats


def _leanvit(job: Job) -> Checked:
    with Replacing(job.out) as beside:
        save_tensors(job.backbone.state_dict(), beside, header(job.backbone, job.facts))
        return _compared(job, load_backbone(beside))


def _official(layout: str, job: Job) -> Checked:
    config: Any = job.backbone.config
    notes = []
    with Replacing(job.out) as beside:
        write_official(job.backbone, layout, beside)
        unseen: dict[str, Any] = {"image_size": config.image_size}
        if isinstance(config, ViTConfig | CvTConfig):
            unseen["heads"] = config.heads if isinstance(config, CvTConfig) else (config.heads,)
        weights = open_weights(beside, options=unseen)
        found: Any = weights.config
        if isinstance(config, CvTConfig) and not config.position_bias:
            found = replace(found, window=config.window)
            notes.append(f"the file does not show that windows are {config.window} tokens a side")
        if isinstance(config, ViTConfig) and config.pool == "mean":
            found = replace(found, pool="mean")
            notes.append(
                f"the file does not show that the view feature is the mean of the regions: in "
                f"{layout} it is the class token's"
            )
        eps, there = getattr(config, "norm_eps", None), getattr(found, "norm_eps", None)
        limit = TOLERANCE if eps == there else OTHER_EPS
        checked = _compared(job, build(replace(weights, config=found)), notes, limit)
        if eps != there:
            worst = max(checked.differences.values())
            notes.append(
                f"norms of {layout} add {there:g} to the variance, here {eps:g}: features differ "
                f"by up to {worst:.1e} of the largest"
            )
        return checked


def _graph(export: Callable[..., Any], job: Job) -> Checked:
    size = job.config.graph_size or job.backbone.config.image_size
    found = export(job.backbone, job.out, job.facts, size)
    return Checked(
        {f"{name}, {size} x {size} pixels": value for name, value in found._asdict().items()}
    )


def _library(name: str, job: Job) -> Checked:
    config = job.backbone.config
    other = config.image_size + job.backbone.stride
    with Replacing(job.out) as beside:
        beside.mkdir()
        changed = LIBRARIES[name].write(job.backbone, beside)
        found = compare(job.backbone, beside, name, [(other, other)])
    if isinstance(found, str):
        return Checked({}, (*changed, f"NOT VERIFIED: {found}."))
    differences = {
        f"{found.package} {found.version}, {height} x {width} pixels": value
        for (height, width), value in found.apart.items()
    }
    return Checked(differences, (*changed, *found.notes))


def _compared(
    job: Job, again: Backbone, notes: Sequence[str] = (), limit: float = TOLERANCE
) -> Checked:
    """Compare the features of what was read again with those of the network."""
    size = job.backbone.config.image_size
    found = {}
    for side in (size, size + job.backbone.stride):
        with torch.no_grad():
            ours, theirs = (n.features(images_for(side)) for n in (job.backbone, again))
        found[f"{side} x {side} pixels"] = max(
            difference(theirs.pooled, ours.pooled), difference(theirs.grid, ours.grid)
        )
    if not max(found.values()) <= limit:
        raise RunError(
            f"The file does not give the features of the network (they differ by "
            f"{max(found.values()):.1e} of the largest), so it was not kept."
        )
    return Checked(found, notes)


# How they are loaded


def _use_leanvit(config: BackboneConfig, name: str) -> str:
    return f"""import leanvit
import torch
from torchvision.transforms import v2

backbone = leanvit.load_backbone("{name}")
{from_photograph(str(config.image_size), "backbone.mean", "backbone.std")}
with torch.no_grad():
    features = backbone.features(pixels)
pooled, grid = features.pooled, features.grid  # [1, D] and [1, h, w, D]"""


def _use_pickle(layout: str, config: BackboneConfig, name: str) -> str:
    key, _, inner = LAYOUTS[layout].writes[config.kind][1].partition(".")
    what = f"names begin with {inner!r}" if inner else "names are the network's own"
    held = f'checkpoint["{key}"]' if key else "checkpoint"
    return f"""import torch

checkpoint = torch.load("{name}", weights_only=True)
state = {held}  # what {CODES[layout]} loads; {what}"""


def _use_onnx(config: BackboneConfig, name: str) -> str:
    return f"""import json

import onnxruntime
import torch
from torchvision.transforms import v2

session = onnxruntime.InferenceSession("{name}")
said = session.get_modelmeta().custom_metadata_map
side, mean, std = (json.loads(said[word]) for word in ("image_size", "mean", "std"))
{from_photograph("side", "mean", "std")}
pooled, grid = session.run(["pooled", "grid"], {{"images": pixels.numpy()}})"""


def _use_program(config: BackboneConfig, name: str) -> str:
    return f"""import json

import torch
from torchvision.transforms import v2

extra = {{"{METADATA}": ""}}
network = torch.export.load("{name}", extra_files=extra).module()
said = json.loads(extra["{METADATA}"])
side, mean, std = (json.loads(said[word]) for word in ("image_size", "mean", "std"))
{from_photograph("side", "mean", "std")}
pooled, grid = network(pixels)  # [1, D] and [1, h, w, D]"""


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "leanvit": Target("one file of leanvit", _leanvit, _use_leanvit, (".safetensors",)),
        **{
            name: Target(library.what, partial(_library, name), library.usage, (), name)
            for name, library in LIBRARIES.items()
        },
        "onnx": Target(
            "an ONNX graph", partial(_graph, export_onnx), _use_onnx, (".onnx",), "onnx"
        ),
        "export": Target(
            "a program of torch.export",
            partial(_graph, export_program),
            _use_program,
            (".pt2",),
            "pytorch",
        ),
        **{
            name: Target(
                f"the layout of {name}",
                partial(_official, name),
                partial(_use_pickle, name),
                (".pth", ".pt"),
                "pytorch",
            )
            for name in OFFICIAL
        },
    }
)
"""Formats by name."""
