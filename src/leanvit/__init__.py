"""leanvit: turn a folder of unlabelled images into a small, strong vision backbone.

Importing this package does not import torch; the functions do when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leanvit.analysis.analyze import analyze
    from leanvit.analysis.comparison import compare
    from leanvit.backbones.catalogue import list_backbones
    from leanvit.backbones.sizes import describe_backbones
    from leanvit.evaluation.embedding import embed
    from leanvit.evaluation.evaluate import evaluate
    from leanvit.preflight import check
    from leanvit.pretraining import pretrain
    from leanvit.replaying import replay
    from leanvit.weights.converting import convert
    from leanvit.weights.loading import load_backbone

__version__ = "0.1.0"

_PUBLIC = {
    "analyze": "leanvit.analysis.analyze",
    "check": "leanvit.preflight",
    "compare": "leanvit.analysis.comparison",
    "convert": "leanvit.weights.converting",
    "describe_backbones": "leanvit.backbones.sizes",
    "embed": "leanvit.evaluation.embedding",
    "evaluate": "leanvit.evaluation.evaluate",
    "list_backbones": "leanvit.backbones.catalogue",
    "load_backbone": "leanvit.weights.loading",
    "pretrain": "leanvit.pretraining",
    "replay": "leanvit.replaying",
}

__all__ = [
    "analyze",
    "check",
    "compare",
    "convert",
    "describe_backbones",
    "embed",
    "evaluate",
    "list_backbones",
    "load_backbone",
    "pretrain",
    "replay",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'leanvit' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
