"""A model card: what a backbone is, where it comes from and how it is used, in Markdown.

Hugging Face reads the lines between `---` as YAML. What is not known is left out, and of a path
only the last part is told.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leanvit.backbones.base import Backbone
from leanvit.backbones.sizes import backbone_size
from leanvit.config import BACKBONES, BackboneConfig, TimmConfig
from leanvit.config.backbones import TIMM
from leanvit.config.convert import leaves
from leanvit.config.resume import RESOLVED, RESUMED
from leanvit.data.sources import TORCHVISION
from leanvit.weights.file import weights_of

METRICS, RESULTS = "metrics.jsonl", "results.jsonl"
"""What a run measured on the way, and evaluations of it, one JSON object a line."""
CARD = "README.md"
"""Name under which Hugging Face looks for a card."""

Plain = Mapping[str, Any]
"""An object of JSON."""

_LIGHTWEIGHT = ("A Closer Look at Self-Supervised Lightweight Vision Transformers", "2205.14443")
PAPERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "cvt": ("CvT: Introducing Convolutions to Vision Transformers", "2103.15808"),
        "deit": (
            "Training data-efficient image transformers & distillation through attention",
            "2012.12877",
        ),
        "dino": ("Emerging Properties in Self-Supervised Vision Transformers", "2104.14294"),
        "dinov2": ("DINOv2: Learning Robust Visual Features without Supervision", "2304.07193"),
        "dmae": _LIGHTWEIGHT,
        "esvit": (
            "Efficient Self-supervised Vision Transformers for Representation Learning",
            "2106.09785",
        ),
        "mae": ("Masked Autoencoders Are Scalable Vision Learners", "2111.06377"),
        "mae_lite": _LIGHTWEIGHT,
        "mocov3": (
            "An Empirical Study of Training Self-Supervised Vision Transformers",
            "2104.02057",
        ),
        "swin": (
            "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
            "2103.14030",
        ),
        "vil": (
            "Multi-Scale Vision Longformer: A New Vision Transformer for High-Resolution Image "
            "Encoding",
            "2103.15358",
        ),
        "vit": (
            "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
            "2010.11929",
        ),
        "vit_tiny_h12": _LIGHTWEIGHT,
        "vit_tiny_h12_rpe": _LIGHTWEIGHT,
    }
)
"""Title and arXiv number of what methods, families and single backbones come from."""


def read_run(folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return what a run was resolved to and rows of its evaluations, for `card`.

    The first and the last look at the features while it trained, and what `results.jsonl` holds of
    these weights: lines of `Result.to_dict`, of those that asked the same the newest. Files that
    are not there are passed over. Raises ValueError for one that is damaged.
    """
    found = objects(folder / RESOLVED, whole=True)
    run = found[0] if found else None
    k = _at(run, "config.watch.k")
    names = {
        "knn": "k-NN accuracy, %" if k is None else f"k-NN accuracy, k = {k}, %",
        "effective_rank": "effective rank",
        "correct_matches": "regions matched rightly, %",
    }
    looks = [row for row in objects(folder / METRICS) if row.keys() & names.keys()]
    rows = [
        {"evaluation": "while training", "step": row["step"]}
        | {title: row[name] for name, title in names.items() if name in row}
        for row in (looks[:1] + looks[1:][-1:])
    ]
    present = weights_of(folder)
    newest: dict[str, dict[str, Any]] = {}  # what was asked -> the result that came last
    for result in objects(folder / RESULTS):
        if result.get("weights", present) == present:
            newest[json.dumps([result["name"], result.get("config")])] = result
    for result in newest.values():
        data = last_part(str(_at(result, "facts.data") or ""))
        asked = ", ".join(f"{name} {value}" for name, value in result.get("asked", {}).items())
        about = {"evaluation": result["name"]} | ({"data": data} if data else {})
        about |= {"options": asked} if asked else {}
        rows += [about | row for row in result["rows"]]
    return run, rows


def objects(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """Return the objects of a file, one a line or one in all; nothing if there is no file."""
    if not path.is_file():
        return []
    text = path.read_text()
    lines = [text] if whole else text.splitlines()
    if not whole and not text.endswith("\n"):
        lines = lines[:-1]  # half-written, when the run was killed
    try:
        return [dict(json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({error}); mend or remove it to write a card without it."
        ) from error


def card(
    backbone: Backbone,
    facts: Plain,
    *,
    usage: str,
    run: Plain | None = None,
    rows: Sequence[Plain] = (),
    notes: Sequence[str] = (),
    library: str = "leanvit",
) -> str:
    """Return a model card in Markdown.

    facts: the header of a backbone file, `license` among them if the owner chose one; usage: code
    in Python that loads what the card lies beside; run: the content of `resolved.json`; rows:
    results, each with `evaluation` and columns of its own; notes: what a user should know of the
    file; library: what loads it, as Hugging Face calls it.
    """
    config = backbone.config
    method = str(facts.get("method") or _at(run, "config.method.kind") or "")
    name = name_of(config)
    license_ = str(facts.get("license") or "")
    parts = [
        _front_matter(license_, library, config.kind, method),
        f"# {name}{f', pre-trained with {method}' if method else ''}",
        "A vision backbone: it turns an image into one view feature and a grid of region features.",
        _table(size_facts(backbone, name)),
        "## Usage",
        f"```python\n{usage.strip()}\n```",
    ]
    if notes:
        parts.append("\n".join(f"- {' '.join(note.split())}" for note in notes))
    trained = training_facts(facts, run)
    if trained:
        parts += ["## Training", _table(trained)]
    options = dict(_options(run))
    if options:
        parts += ["<details><summary>Options</summary>", _table(options), "</details>"]
    if rows:
        parts += ["## Evaluation", *_results(rows)]
    papers = dict.fromkeys(PAPERS[key] for key in (method, name, config.kind) if key in PAPERS)
    if papers:
        links = [f"- {title}, [arXiv {n}](https://arxiv.org/abs/{n})" for title, n in papers]
        parts += ["## References", "\n".join(links)]
    if not license_:
        parts += [
            "## Licence",
            "These weights belong to whoever trained them, who has not said yet on which terms "
            "others may use them: a line `license:` above says so.",
        ]
    return "\n\n".join(parts) + "\n"


def _front_matter(license_: str, library: str, kind: str, method: str) -> str:
    """Return the lines that Hugging Face reads."""
    tags = [tag for tag in ("image-feature-extraction", kind, method) if tag]
    lines = [f"license: {_word(license_)}"] if license_ else []
    lines += [f"library_name: {_word(library)}", "pipeline_tag: image-feature-extraction", "tags:"]
    return "\n".join(["---", *lines, *(f"- {_word(tag)}" for tag in tags), "---"])


def _word(text: str) -> str:
    """Return a word as YAML has it: in quotes, as in JSON, where it is not plain."""
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else json.dumps(text)


def name_of(config: BackboneConfig) -> str:
    """Return what the catalogue calls a network, of any image size; otherwise its family."""
    if isinstance(config, TimmConfig):
        return f"{TIMM}{config.name}"
    for name, known in BACKBONES.items():
        same = {"drop_path": known.drop_path, "image_size": known.image_size}
        if type(known) is type(config) and replace(config, **same) == known:  # type: ignore[arg-type]
            return name
    return config.kind


def size_facts(backbone: Backbone, name: str) -> dict[str, Any]:
    """Return what is known of a network's size, by the name that a reader sees."""
    size = backbone_size(backbone.config)
    rows, columns = size.regions
    return {
        "architecture": name if name == size.family else f"{name} ({size.family})",
        "parameters": f"{size.parameters:,}",
        "multiply-adds of an image": f"{size.multiply_adds:,}",
        "input": f"{size.image_size} x {size.image_size} pixels, RGB from 0 to 1, normalised",
        "mean": ", ".join(map(_number, backbone.mean)),
        "standard deviation": ", ".join(map(_number, backbone.std)),
        "width of a feature": size.width,
        "stride": f"{size.stride} pixels",
        "regions": f"{rows} x {columns}",
    }


def training_facts(facts: Plain, run: Plain | None) -> dict[str, Any]:
    """Return what is known of how the weights came to be, by the name that a reader sees."""
    planned = str(_at(run, "config.train.duration") or "")
    end = int(planned.removesuffix("st")) if re.fullmatch(r"\d+st", planned) else None
    step, batch = facts.get("step", end), _at(run, "config.train.batch")
    count, source = _at(run, "images.count"), last_part(str(_at(run, "config.data.source") or ""))
    versions = _at(run, "versions") or {"leanvit": facts.get("version")}
    decay = [_at(run, f"config.optim.weight_decay.{at}") for at in ("peak", "end")]
    found = {
        "method": facts.get("method", _at(run, "config.method.kind")),
        "recipe": facts.get("recipe", _at(run, "config.recipe")),
        "data": source,
        "images": None if count is None else f"{count:,}",
        "steps": step if end in (None, step) else f"{step} of {end}",
        "batch": batch,
        "images seen": None if step is None or batch is None else f"{step * batch:,}",
        "optimizer": _at(run, "config.optim.kind"),
        "peak learning rate": _at(run, "config.optim.lr.peak"),
        "weight decay": None if None in decay else " to ".join(map(_number, dict.fromkeys(decay))),
        "precision": _at(run, "config.train.precision"),
        "seed": facts.get("seed", _at(run, "config.train.seed")),
        "initial weights": last_part(str(_at(run, "config.init") or "")),
        "started": _at(run, "started"),
        "changed on the way": "; ".join(
            f"{', '.join(entry['changes'])} at step {entry['step']}"
            for entry in _at(run, RESUMED) or []
        ),
        "versions": ", ".join(f"{what} {word}" for what, word in versions.items() if word),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _options(run: Plain | None) -> Iterator[tuple[str, Any]]:
    """Yield the options of the method, the optimiser and the loop by their dotted names."""
    for section in ("method", "optim", "train"):
        for name, value in leaves(_at(run, f"config.{section}") or {}, section):
            path = isinstance(value, str) and "/" in value
            yield name, last_part(value) if path else value


def _results(rows: Sequence[Plain]) -> Iterator[str]:
    """Yield a table for each kind of row: those with the same columns."""
    kinds: dict[tuple[str, ...], list[Plain]] = {}
    for row in rows:
        kinds.setdefault(tuple(row), []).append(row)
    for heads, same in kinds.items():
        yield _lines(heads, [[row[head] for head in heads] for row in same])


def _table(facts: Plain) -> str:
    """Return names and values, a line each."""
    return _lines(("", ""), [[name, value] for name, value in facts.items()])


def _lines(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in cells)


def _cell(value: Any) -> str:
    """Return a value as a cell of a table holds it: on one line, without the sign of columns."""
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = _number(value) if isinstance(value, float) else "-" if value is None else str(value)
    return " ".join(text.split()).replace("|", r"\|")


def _number(value: float) -> str:
    return f"{value:.4g}"


def _at(plain: Plain | None, dotted: str) -> Any:
    """Return what lies at a place of nested objects, or None."""
    found: Any = plain
    for key in dotted.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def last_part(name: str) -> str:
    """Return what may be told of a data set or a file: its name without the folders above.

    Of `torchvision:NAME@FOLDER` the folder goes; of what has no name of its own nothing stays.
    """
    if name.startswith(TORCHVISION):
        return name.partition("@")[0]
    last = Path(name).name
    return "" if last == ".." else last
