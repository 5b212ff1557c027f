"""`leanvit analyze report`: one page that opens from disk and needs nothing besides."""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from leanvit.analysis import attention, cka, pca, retrieval, spectrum
from leanvit.analysis.pairs import Matching, Pair, look_at_pairs, pairs_of
from leanvit.analysis.report import sections
from leanvit.analysis.report.explorer import explorer
from leanvit.analysis.subjects import Scene, open_scene
from leanvit.analysis.tell import (
    MAPS,
    keep,
    ready,
    tell_attention,
    tell_components,
    tell_likeness,
    tell_neighbors,
    tell_pairs,
    tell_space,
    with_scene,
)
from leanvit.config.analysis import (
    AnalysisConfig,
    AnyAnalysis,
    AttentionConfig,
    CkaConfig,
    CorrespondencePicturesConfig,
    PcaConfig,
    RankConfig,
    ReportConfig,
    RetrievalConfig,
)
from leanvit.core.files import Replacing, writing
from leanvit.evaluation.result import Result
from leanvit.weights.card import last_part

A = TypeVar("A", bound=AnalysisConfig)

PAGE = "report.html"
SCRIPTS = ("base.js", "sections.js", "explorer.js", "page.js")
"""What the page runs, in this order, in one function."""
MEGABYTE = 10**6
ROUND = 100_000
"""Bytes of the page itself."""
ASKED = 6
"""Images whose neighbours are shown."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What all analyses found."""

    heads: Sequence[attention.Heads]
    """Of the networks whose attention can be looked at."""
    likeness: Sequence[cka.Likeness]
    spaces: Sequence[spectrum.Space]
    few: Scene
    """The images of the gallery."""
    painted: pca.Painted | None
    """None of too few regions for components."""
    neighbors: retrieval.Found
    pairs: Sequence[Pair]
    matchings: Sequence[Sequence[Matching]]


def report_result(
    config: ReportConfig, models: Sequence[str | Path], folder: Path, quiet: bool
) -> Result:
    """Analyse networks; write the page and, beside it, every picture and number in it.

    Raises ValueError for a mistake in the request, or if plotly is not installed.
    """
    charts = _charts()
    scene = open_scene(config, models, quiet)
    notes: list[str] = []
    found = look(config, scene, notes)
    ready(folder)
    files = [PAGE, *(name for names in tell(config, found, scene, folder) for name in names)]
    room = config.megabytes * MEGABYTE - len(charts)
    shown = content(config, scene, found, notes, folder, room=room)
    page, path = assemble(shown, charts), folder / PAGE
    with writing(path), Replacing(path) as beside:
        beside.write_text(page)
    rows = [
        {
            "network": space.subject.name,
            "effective rank": space.figures["effective rank"],
            "uniformity": space.figures["uniformity"],
            "alignment": space.figures["alignment"],
            "matched rightly %": _percent(mine, "correct %"),
            "by chance %": _percent(mine, "chance %"),
        }
        for space, mine in zip(found.spaces, found.matchings, strict=True)
    ]
    size = round(len(page.encode()) / MEGABYTE, 1)
    facts = {**scene.facts(), "page": str(path), "megabytes": size, "files": files}
    digits = {"uniformity": 2, "alignment": 3}
    return Result("report", facts, rows, [*scene.seen.notes, *notes], digits=digits)


def _percent(matchings: Sequence[Matching], column: str) -> float | None:
    """Return the mean of a figure over pairs of pictures; None where nothing is known."""
    found = [value for value in (each.figures()[column] for each in matchings) if value is not None]
    return sum(found) / len(found) if found else None


def look(config: ReportConfig, scene: Scene, notes: list[str]) -> Findings:
    """Return what all analyses find. notes: what was left out is added there."""
    able = [subject for subject in scene.subjects if "logits" in subject.backbone.can]
    notes += [
        f"{subject.name}: its attention cannot be looked at, and is left out."
        for subject in scene.subjects
        if subject not in able
    ]
    seen_heads = replace(scene, subjects=able)
    enough = min(len(scene.source), config.batch) >= cka.LEAST
    if not enough:
        notes.append(f"CKA is left out: it needs {cka.LEAST} images at a time at least.")
    few = scene.few(config.gallery)
    pairs = pairs_of(CorrespondencePicturesConfig(images=config.pairs), scene)
    return Findings(
        attention.look_at_heads(AttentionConfig(), seen_heads) if able else [],
        cka.look_at_likeness(CkaConfig(batch=config.batch), scene) if enough else [],
        spectrum.look_at_space(RankConfig(), scene),
        few,
        _painted(few, notes),
        retrieval.look_at_neighbors(RetrievalConfig(queries=ASKED), scene),
        pairs,
        look_at_pairs(pairs, scene.subjects),
    )


def _painted(few: Scene, notes: list[str]) -> pca.Painted | None:
    """Return a few images and the colors of their regions; of few regions none are left out."""
    grids = [pca.grid_of(subject) for subject in few.subjects]
    if min(h * w for h, w in grids) * len(few.source) <= pca.SHADES:
        notes.append("Components of region features are left out: there are too few regions.")
        return None
    return pca.look_at_components(PcaConfig(), few)


def tell(
    config: ReportConfig, found: Findings, scene: Scene, folder: Path
) -> Iterator[Sequence[str]]:
    """Write the pictures and numbers of every analysis; yield the names of the files of each."""
    able = replace(scene, subjects=[each.subject for each in found.heads])
    told: list[tuple[AnyAnalysis, Scene, Result]] = []
    if found.heads:
        heads = like(config, AttentionConfig)
        told.append((heads, able, tell_attention(heads, able, found.heads, folder)))
    if found.likeness:
        asked = like(config, CkaConfig)
        told.append((asked, scene, tell_likeness(asked, scene, found.likeness, folder)))
    matched = like(config, CorrespondencePicturesConfig, images=config.pairs)
    pairs = tell_pairs(matched, scene, found.pairs, found.matchings, folder)
    if found.painted:
        few = like(config, PcaConfig, images=config.gallery)
        told.append((few, found.few, tell_components(found.painted, folder)))
    near = like(config, RetrievalConfig, queries=ASKED)
    told += [
        (like(config, RankConfig), scene, tell_space(found.spaces, folder)),
        (matched, scene, pairs),
        (near, scene, tell_neighbors(scene, found.neighbors, folder)),
    ]
    for options, seen, result in told:
        yield keep(with_scene(result, seen), options, folder).facts["files"]


def like(config: ReportConfig, kind: type[A], **more: Any) -> A:
    """Return the options of an analysis that looks at the images as the report does."""
    same = {field.name: getattr(config, field.name) for field in fields(AnalysisConfig)}
    return kind(**{**same, **more})


def content(
    config: ReportConfig,
    scene: Scene,
    found: Findings,
    notes: list[str],
    folder: Path,
    *,
    room: float,
) -> dict[str, Any]:
    """Return everything that the page shows, as plain values; maps of attention from `folder`.

    room: bytes that it may take, of which pictures and matches take what they need. notes: what was
    left out is added there.
    """
    subjects = scene.subjects
    trained = [subject.name for subject in subjects if subject.trained]
    shown: dict[str, Any] = {
        "title": ", ".join(trained or [subject.name for subject in subjects]),
        "made": datetime.now(UTC).date().isoformat(),
        "leanvit": version("leanvit"),
        "data": last_part(config.data) or config.data,
        "images": len(scene.source),
        "models": sections.models(subjects),
        "curves": sections.curves(subjects),
        "results": sections.results(subjects),
        "pictures": sections.run_pictures(subjects),
        **sections.gallery(found.few, found.painted),
        "attention": sections.heads(scene, found.heads, folder / MAPS) if found.heads else None,
        "cka": sections.likeness(scene, found.likeness),
        "rank": sections.spectra(found.spaces),
        "retrieval": sections.neighbors(scene, found.neighbors),
    }
    room -= len(json.dumps(shown)) + ROUND
    seen, left = explorer(subjects, found.pairs, most_bytes=room)
    if left:
        notes.append(
            f"For want of room ({config.megabytes:g} megabytes), attention cannot be explored in "
            f"{left} of the blocks that could be chosen."
        )
    return {**shown, "notes": [*scene.seen.notes, *notes], "explorer": seen}


def assemble(found: Mapping[str, Any], charts: str) -> str:
    """Return the page: a template, its style and script, the charts' script and what it shows.

    Nothing that is shown can end the script that holds it, or start another.
    """
    place = files("leanvit.analysis.report")
    data = json.dumps(found, allow_nan=False)
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    script = "".join(place.joinpath(name).read_text() for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();'
    parts = {
        "__TITLE__": html.escape(str(found["title"])),
        "/*CSS*/": place.joinpath("page.css").read_text(),
        "/*PLOTLY*/": charts,
        "/*JS*/": script,
        "__DATA__": data,
    }
    cut = re.split(
        "(" + "|".join(map(re.escape, parts)) + ")", place.joinpath("page.html").read_text()
    )
    return "".join(parts.get(part, part) for part in cut)


def _charts() -> str:
    """Return the script that draws charts."""
    if find_spec("plotly") is None:
        raise ValueError("The report draws its charts with plotly: pip install 'leanvit[report]'.")
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
