"""`leanvit evaluate compare`: one table of several backbones, and accuracy against speed and size.

The figure is that of EsViT (arXiv 2106.09785, figure 1): a mark for each backbone, accuracy against
images a second and against parameters.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from leanvit.analysis.pictures import BLUE, EDGE, FAINT, INK, RULE, as_text, save_figure
from leanvit.backbones.base import Backbone
from leanvit.backbones.sizes import backbone_size
from leanvit.config import replace_options
from leanvit.config.evaluation import CompareConfig
from leanvit.core.console import track
from leanvit.core.distributed import require_alone
from leanvit.core.files import require_writable, writing
from leanvit.evaluation.inputs import device_of
from leanvit.evaluation.models import open_networks
from leanvit.evaluation.record import place_of, read_results
from leanvit.evaluation.result import Result
from leanvit.weights.card import last_part
from leanvit.weights.file import weights_of

PICTURE = "efficiency.png"
NONE = "-"
"""What stands where nothing was found."""
UNASKED = frozenset(
    {
        *("results", "keep_features", "workers", "device", "batch", "max_unreadable"),
        *("baselines", "k", "out", "resume", "every", "untrained"),
    }
)
"""Options that leave what is compared as it is: k stands in the name of the figure."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a figure answers: the same question has the same column."""

    title: str
    asked: tuple[tuple[str, str], ...]
    """Every option that could change the answer, data and val among them."""


Figures = Mapping[Question, float]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A backbone and what is known of it."""

    name: str
    parameters: float
    """Millions."""
    figures: Figures
    network: Backbone


def compare(
    models: Sequence[str | Path],
    *,
    out: str | Path = "",
    results: str | Path = "",
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Result:
    """Put what was found of several backbones side by side; return the table.

    models: folders of runs, or what else `evaluate` takes; out: folder for the picture, none for
    no picture; results: the file that results of models without a folder were written to; options:
    fields of `CompareConfig`. Of each question the newest result counts; speed is
    measured here and now, in turns, without a head, by the median. Figures stand in one column only
    if they answer the same question: all options that matter are the same. Raises ValueError if
    nothing was found of a model.
    """
    require_alone("evaluate compare")
    config = replace_options(CompareConfig(), options or {})
    twice = [str(model) for model in models if list(models).count(model) > 1]
    if twice or not models:
        raise ValueError(f"{twice[0]!r} is named twice." if twice else "Name a model or more.")
    if out:
        require_writable(Path(out) / PICTURE)
    notes: list[str] = []
    entries = [_entry(model, str(results), config, notes, quiet) for model in models]
    speed = _speeds(entries, config, quiet) if config.rounds else {}
    columns = list(dict.fromkeys(key for entry in entries for key in entry.figures))
    titles = titles_of(columns)
    rows = [
        {"backbone": entry.name, "M parameters": entry.parameters}
        | ({"images/s": speed[entry.name]} if speed else {})
        | {titles[key]: entry.figures.get(key, NONE) for key in columns}
        for entry in entries
    ]
    facts: dict[str, Any] = {"models": [str(model) for model in models]}
    if speed:
        facts |= {"batch": config.batch, "device": device_of(config).type}
    if out:
        with writing(Path(out)):
            Path(out).mkdir(parents=True, exist_ok=True)
            draw_efficiency(rows, Path(out) / PICTURE)
        facts["picture"] = str(Path(out) / PICTURE)
    return Result("compare", facts, rows, notes, asdict(config))


def _entry(
    model: str | Path, results: str, config: CompareConfig, notes: list[str], quiet: bool
) -> _Entry:
    """Return a backbone with the newest figures of each evaluation and data set."""
    place = place_of(model, "") or (Path(results) if results else None)
    if place is None or not place.is_file():
        where = f"{str(place)!r} is not there" if place else "it is no run: name --results FILE"
        raise ValueError(
            f"Nothing was found of {str(model)!r} yet ({where}): evaluate it first, such as by "
            f"leanvit evaluate knn."
        )
    figures, left = figures_of(model, place)
    if left:
        notes.append(
            f"{model}: {', '.join(sorted(left))} of other weights than are there now: left out."
        )
    if not figures:
        raise ValueError(f"{str(place)!r} holds no figure of {str(model)!r}: evaluate it first.")
    network = next(iter(open_networks(model, device_of(config), quiet).values()))
    return _Entry(str(model), backbone_size(network.config).parameters / 1e6, figures, network)


def figures_of(model: str | Path, place: Path) -> tuple[Figures, set[str]]:
    """Return the newest figures of a model in a file of results, by what they answer.

    And the evaluations that are left out because they are of other weights than are there now.
    """
    weights, figures, left = weights_of(model), dict[Question, float](), set[str]()
    for entry in read_results(place):
        if weights and entry.get("weights") != weights:
            left |= {entry["name"]} if place_of(model, "") else set()
        elif weights or entry["facts"].get("model") == str(model):
            asked = _asked(entry.get("config", {}))
            titles = entry.get("headline", {}).items()
            figures |= {Question(title, asked): value for title, value in titles}
    return figures, left


def _asked(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(config[name])) for name in sorted({*config} - UNASKED))


def titles_of(columns: Sequence[Question]) -> dict[Question, str]:
    """Return the head of each column: with what it was asked where several have its title."""
    found = {}
    for column in columns:
        like = [dict(other.asked) for other in columns if other.title == column.title]
        apart = [name for name, value in column.asked if {e.get(name) for e in like} != {value}]
        words = [_word(name, value) for name, value in column.asked if name in apart]
        found[column] = f"{column.title} ({', '.join(words)})" if words else column.title
    return found


def _word(name: str, value: str) -> str:
    return value if name == "data" else f"{name} {value or 'none'}"


@torch.inference_mode()
def _speeds(entries: Sequence[_Entry], config: CompareConfig, quiet: bool) -> dict[str, float]:
    """Return images a second of each backbone, timed in turns after a first time."""
    device = device_of(config)
    times: dict[str, list[float]] = {entry.name: [] for entry in entries}
    images: dict[int, Tensor] = {}
    for entry in entries:
        side = entry.network.config.image_size
        images[side] = torch.zeros(config.batch, 3, side, side, device=device)
    turns = [entry for _ in range(config.rounds + 1) for entry in entries]
    for entry in track(turns, "images a second", len(turns), quiet=quiet):
        began = time.perf_counter()
        entry.network.features(images[entry.network.config.image_size])
        if device.type == "cuda":
            torch.cuda.synchronize()
        times[entry.name].append(time.perf_counter() - began)
    return {name: config.batch / statistics.median(found[1:]) for name, found in times.items()}


def draw_efficiency(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy against images a second, if they were measured, and against parameters.

    A row of panels for each kind of accuracy that two backbones or more have, or the first.
    """
    across = [name for name in ("images/s", "M parameters") if name in rows[0]]
    kinds = [name for name in rows[0] if name not in ("backbone", *across)]
    shared = [kind for kind in kinds if sum(row[kind] != NONE for row in rows) > 1]
    shown = shared or kinds[:1]
    figure = Figure(figsize=(4.6 * len(across), 3.4 * len(shown)), dpi=150, layout="constrained")
    panels = figure.subplots(len(shown), len(across), squeeze=False)
    for kind, line in zip(shown, panels, strict=True):
        for name, axes in zip(across, line, strict=True):
            there = [row for row in rows if row[kind] != NONE]
            axes.scatter([row[name] for row in there], [row[kind] for row in there], color=BLUE)
            for row in there:
                axes.annotate(
                    as_text(last_part(row["backbone"])),
                    (row[name], row[kind]),
                    xytext=(5, 4),
                    textcoords="offset points",
                    fontsize=8,
                    color=INK,
                )
            axes.set_xscale("log")
            for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                axis(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.margins(0.25)
            axes.set_xlabel(name, color=FAINT)
            axes.set_ylabel(f"{kind} (%)", color=FAINT)
            axes.grid(color=RULE, which="both")
            axes.set_axisbelow(True)
            axes.tick_params(colors=FAINT, which="both", labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(EDGE)
    save_figure(figure, path)
