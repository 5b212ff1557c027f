"""`leanvit analyze`: from a name to figures, pictures and a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leanvit.analysis import attention, cka, depth, pairs, pca, retrieval, spectrum
from leanvit.analysis.charts import draw_depth
from leanvit.analysis.report.build import report_result
from leanvit.analysis.subjects import Scene, open_scene
from leanvit.analysis.tell import (
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
from leanvit.config import look_up, replace_options
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
from leanvit.core.files import require_writable
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
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; pictures go to a folder: name another (out).")
    require_writable(folder / f"{name}.json")
    if isinstance(config, DepthConfig):
        result = _depth(config, named, folder, quiet)
    elif isinstance(config, ReportConfig):
        result = report_result(config, named, folder, quiet)
    else:
        assert isinstance(config, AnalysisConfig)
        scene = open_scene(config, named, quiet)
        result = with_scene(RUNNERS[name](config, scene, folder), scene)
    return keep(result, config, folder)


def _attention(config: AttentionConfig, scene: Scene, folder: Path) -> Result:
    return tell_attention(config, scene, attention.look_at_heads(config, scene), folder)


def _cka(config: CkaConfig, scene: Scene, folder: Path) -> Result:
    return tell_likeness(config, scene, cka.look_at_likeness(config, scene), folder)


def _rank(config: RankConfig, scene: Scene, folder: Path) -> Result:
    return tell_space(spectrum.look_at_space(config, scene), folder)


def _pca(config: PcaConfig, scene: Scene, folder: Path) -> Result:
    return tell_components(pca.look_at_components(config, scene), folder)


def _correspondence(config: CorrespondencePicturesConfig, scene: Scene, folder: Path) -> Result:
    chosen = pairs.pairs_of(config, scene)
    return tell_pairs(config, scene, chosen, pairs.look_at_pairs(chosen, scene.subjects), folder)


def _retrieval(config: RetrievalConfig, scene: Scene, folder: Path) -> Result:
    return tell_neighbors(scene, retrieval.look_at_neighbors(config, scene), folder)


def _depth(config: DepthConfig, models: Models, folder: Path, quiet: bool) -> Result:
    result = depth.depth_result(config, models, folder, quiet)
    ready(folder)
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
