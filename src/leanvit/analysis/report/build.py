"""`leanvit analyze report`: one page that opens from disk and needs nothing besides."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leanvit.analysis import attention, cka, pca, retrieval, spectrum
from leanvit.analysis.pairs import pairs_of
from leanvit.analysis.report import sections
from leanvit.analysis.report.explorer import FINAL, explorer
from leanvit.analysis.subjects import Scene, open_scene
from leanvit.config.analysis import (
    AttentionConfig,
    CkaConfig,
    CorrespondencePicturesConfig,
    PcaConfig,
    RankConfig,
    ReportConfig,
    RetrievalConfig,
)
from leanvit.core.files import Replacing, writing
from leanvit.data.sources import at_most
from leanvit.evaluation.result import Result
from leanvit.weights.card import last_part

PAGE = "report.html"
MEGABYTE = 10**6
ASKED = 6
"""Images whose neighbours are shown."""


def report_result(
    config: ReportConfig, models: Sequence[str | Path], folder: Path, quiet: bool
) -> Result:
    """Analyse networks and write the page; return a table of what stands in it.

    Raises ValueError for a mistake in the request, or if plotly is not installed.
    """
    charts = _charts()
    scene = open_scene(config, models, quiet)
    notes: list[str] = []
    found = content(config, scene, notes, room=config.megabytes * MEGABYTE - len(charts))
    page = assemble(found, charts)
    path = folder / PAGE
    with writing(path), Replacing(path) as beside:
        beside.write_text(page)
    rows = [
        {
            "network": subject.name,
            "effective rank": space["figures"]["effective rank"],
            "uniformity": space["figures"]["uniformity"],
            "alignment": space["figures"]["alignment"],
            "matched rightly %": _right(found["explorer"]["matches"], number),
        }
        for number, (subject, space) in enumerate(zip(scene.subjects, found["rank"], strict=True))
    ]
    size = len(page.encode()) / MEGABYTE
    facts = {**scene.facts(), "page": str(path), "megabytes": round(size, 1), "files": [PAGE]}
    digits = {"uniformity": 2, "alignment": 3}
    return Result("report", facts, rows, [*scene.seen.notes, *notes], digits=digits)


def _right(matches: Sequence[Mapping[str, Any]], model: int) -> float | None:
    """Return percent of regions with a known place that a network's final features find."""
    known = right = 0
    for entry in matches:
        if entry["model"] == model and entry["layer"] == FINAL and entry["truth"] is not None:
            known += sum(place >= 0 for place in entry["truth"])
            right += sum(entry["correct"])
    return 100 * right / known if known else None


def content(config: ReportConfig, scene: Scene, notes: list[str], *, room: float) -> dict[str, Any]:
    """Return everything that the page shows, as plain values. notes: what to say is added there.

    room: bytes that it may take, of which pictures and matches take what they need.
    """
    found: dict[str, Any] = {
        "title": ", ".join(subject.name for subject in scene.subjects if subject.trained)
        or ", ".join(subject.name for subject in scene.subjects),
        "made": datetime.now(UTC).date().isoformat(),
        "leanvit": version("leanvit"),
        "data": last_part(config.data) or config.data,
        "images": len(scene.source),
        "models": sections.models(scene.subjects),
        "curves": sections.curves(scene.subjects),
        "results": sections.results(scene.subjects),
        "pictures": sections.run_pictures(scene.subjects),
    }
    few = replace(scene, source=at_most(scene.source, config.gallery))
    found |= sections.gallery(few, pca.look_at_components(PcaConfig(), few))
    found["attention"] = _attention(AttentionConfig(), scene, notes)
    found["cka"] = _likeness(scene, config, notes)
    found["rank"] = sections.spectra(spectrum.look_at_space(RankConfig(), scene))
    asked = RetrievalConfig(queries=ASKED)
    found["retrieval"] = sections.neighbors(scene, retrieval.look_at_neighbors(asked, scene))
    used = len(json.dumps(found))
    pairs = pairs_of(CorrespondencePicturesConfig(images=config.pairs), scene)
    found["explorer"] = explorer(scene.subjects, pairs, most_bytes=room - used)
    found["notes"] = [*scene.seen.notes, *notes]
    return found


def _attention(config: AttentionConfig, scene: Scene, notes: list[str]) -> dict[str, Any] | None:
    able = [subject for subject in scene.subjects if "logits" in subject.backbone.can]
    notes += [
        f"{subject.name}: its attention cannot be looked at, and is left out."
        for subject in scene.subjects
        if subject not in able
    ]
    if not able:
        return None
    return sections.heads(scene, attention.look_at_heads(config, replace(scene, subjects=able)))


def _likeness(scene: Scene, config: ReportConfig, notes: list[str]) -> list[dict[str, Any]]:
    if len(scene.source) < cka.LEAST or config.batch < cka.LEAST:
        notes.append(f"CKA is left out: it needs {cka.LEAST} images at a time at least.")
        return []
    asked = CkaConfig(batch=config.batch)
    return sections.likeness(scene, cka.look_at_likeness(asked, scene)[0])


def assemble(found: Mapping[str, Any], charts: str) -> str:
    """Return the page: a template, its style and script, the charts' script and what it shows.

    Nothing that is shown can end the script that holds it, or start another.
    """
    place = files("leanvit.analysis.report")
    data = json.dumps(found, allow_nan=False)
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    parts = {
        "__TITLE__": html.escape(str(found["title"])),
        "/*CSS*/": place.joinpath("page.css").read_text(),
        "/*PLOTLY*/": charts,
        "/*JS*/": place.joinpath("page.js").read_text(),
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
