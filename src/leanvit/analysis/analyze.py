"""`leanvit analyze`: from a name to figures, pictures and a table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leanvit.analysis import attention, cka, depth, pairs, pca, retrieval, spectrum
from leanvit.analysis.attention_maps import draw_maps
from leanvit.analysis.charts import draw_depth, draw_heads, draw_likeness, draw_spectra
from leanvit.analysis.pair_pictures import draw_matchings
from leanvit.analysis.report.build import report_result
from leanvit.analysis.sheets import draw_components, draw_neighbors
from leanvit.analysis.subjects import Scene, open_scene
from leanvit.config import look_up, replace_options, to_dict
from leanvit.config.analysis import (
    ANALYSIS_CONFIGS,
    AnalysisConfig,
    AttentionConfig,
    CkaConfig,
    CorrespondencePicturesConfig,
    DepthConfig,
    PcaConfig,
    RankConfig,
    ReportConfig,
    RetrievalConfig,
)
from leanvit.core.distributed import require_alone
from leanvit.core.files import Replacing, require_writable, writing
from leanvit.evaluation.result import Result

FOLDER = "analysis"
"""Where an analysis goes that is given no folder."""
Models = Sequence[str | Path]


def analyze(
    name: str,
    models: str | Path | Models,
    *,
    data: str = "",
    out: str | Path = FOLDER,
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Result:
    """Look into networks; write pictures and NAME.json into a folder, and return the table.

    name: of `ANALYSIS_CONFIGS`, such as attention; models: one or several, each the folder of a run
    or what else `load_backbone` takes; data: the images to look at; options: fields of the
    analysis's configuration. `facts["files"]` names what was written. Raises ValueError for a
    mistake in the request.
    """
    require_alone("analyze")
    kind = look_up("analysis", name, ANALYSIS_CONFIGS)
    config = replace_options(kind(data=data), options or {})
    named = [models] if isinstance(models, str | Path) else list(models)
    folder = Path(out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}.json"
    require_writable(place)
    if isinstance(config, DepthConfig):
        result = _depth(config, named, folder, quiet)
    elif isinstance(config, ReportConfig):
        result = report_result(config, named, folder, quiet)
    else:
        assert isinstance(config, AnalysisConfig)
        scene = open_scene(config, named, quiet)
        result = RUNNERS[name](config, scene, folder)
        notes = [*scene.seen.notes, *result.notes]
        result = replace(result, facts={**scene.facts(), **result.facts}, notes=notes)
    files = [*result.facts.get("files", ()), place.name]
    facts = {"data": config.data, "out": str(folder), **result.facts, "files": files}
    result = replace(result, facts=facts, config=to_dict(config))
    with writing(place), Replacing(place) as beside:
        beside.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _attention(config: AttentionConfig, scene: Scene, folder: Path) -> Result:
    found = attention.look_at_heads(config, scene)
    files = draw_heads(found, folder / "attention.png", paper=config.distance == "paper")
    if config.maps:
        files += draw_maps(config, scene, folder / "maps.png")
    facts: dict[str, Any] = {
        "measures": list(attention.MEASURES),
        "heads": {each.subject.name: [block.tolist() for block in each.values] for each in found},
        "uniform": {each.subject.name: list(each.even) for each in found},
        "files": files,
    }
    digits = {"entropy": 2, "uniform entropy": 2}
    return Result("attention", facts, attention.rows_of(found), digits=digits)


def _cka(config: CkaConfig, scene: Scene, folder: Path) -> Result:
    found, images = cka.look_at_likeness(config, scene)
    notes = [] if images == len(scene.source) else [f"CKA is of {images} images: full batches."]
    facts: dict[str, Any] = {
        "cka": [
            {
                "left": pair.left,
                "right": pair.right,
                "left_layers": list(pair.layers[0]),
                "right_layers": list(pair.layers[1]),
                "values": pair.values.tolist(),
            }
            for pair in found
        ],
        "files": draw_likeness(found, folder / "cka.png"),
    }
    return Result("cka", facts, cka.rows_of(found), notes)


def _rank(config: RankConfig, scene: Scene, folder: Path) -> Result:
    found = spectrum.look_at_space(config, scene)
    facts: dict[str, Any] = {
        "singular_values": {each.subject.name: each.values.tolist() for each in found},
        "files": draw_spectra(found, folder / "rank.png"),
    }
    digits = {"uniformity": 2, "alignment": 3}
    return Result("rank", facts, spectrum.rows_of(found), digits=digits)


def _pca(config: PcaConfig, scene: Scene, folder: Path) -> Result:
    found = pca.look_at_components(config, scene)
    facts = {"files": draw_components(found, folder / "pca.png")}
    return Result("pca", facts, pca.rows_of(found.networks))


def _correspondence(config: CorrespondencePicturesConfig, scene: Scene, folder: Path) -> Result:
    chosen = pairs.pairs_of(config, scene)
    found = pairs.look_at_pairs(chosen, scene.subjects)
    names = [subject.name for subject in scene.subjects]
    files = draw_matchings(names, chosen, found, folder / "matches.png", count=config.pairs)
    facts = {"between": config.between, "files": files}
    return Result("correspondence", facts, pairs.rows_of(scene.subjects, chosen, found))


def _retrieval(config: RetrievalConfig, scene: Scene, folder: Path) -> Result:
    found = retrieval.look_at_neighbors(config, scene)
    facts = {"files": draw_neighbors(scene, found, folder / "retrieval.png")}
    return Result("retrieval", facts, retrieval.rows_of(scene, found))


def _depth(config: DepthConfig, models: Models, folder: Path, quiet: bool) -> Result:
    result = depth.depth_result(config, models, folder, quiet)
    studies = ("probe", "reinit") if config.study == "both" else (config.study,)
    curves = {study: depth.curves_of(result.rows, study) for study in studies}
    files = draw_depth(curves, folder / "layers.png")
    return replace(result, facts={**result.facts, "curves": curves, "files": files})


RUNNERS: Mapping[str, Callable[[Any, Scene, Path], Result]] = MappingProxyType(
    {
        "attention": _attention,
        "cka": _cka,
        "rank": _rank,
        "pca": _pca,
        "correspondence": _correspondence,
        "retrieval": _retrieval,
    }
)
"""What does each analysis of networks and images: configuration, scene, folder -> result."""
