"""The whole vocabulary of options: torch-free dataclasses and their strict conversion."""

from leanvit.config.backbones import (
    BACKBONES,
    BackboneConfig,
    CvTConfig,
    SwinConfig,
    TimmConfig,
    ViLConfig,
    ViTConfig,
    named_backbone,
)
from leanvit.config.convert import (
    compose,
    from_dict,
    load_config,
    replace_options,
    save_config,
    to_dict,
)
from leanvit.config.duration import Duration, Schedule, constant, steps
from leanvit.config.methods import (
    DinoConfig,
    EsViTConfig,
    HeadConfig,
    MethodConfig,
    MixConfig,
)
from leanvit.config.names import look_up, unknown_name
from leanvit.config.resolve import Facts, Resolved, epoch_steps, resolve
from leanvit.config.run import (
    AdamWConfig,
    DataConfig,
    LARSConfig,
    OptimConfig,
    RunConfig,
    SGDConfig,
    TrainConfig,
    WatchConfig,
)
from leanvit.config.views import (
    CropConfig,
    FineTuneViewsConfig,
    MultiCropConfig,
    TwoViewsConfig,
)

__all__ = [
    "BACKBONES",
    "AdamWConfig",
    "BackboneConfig",
    "CropConfig",
    "CvTConfig",
    "DataConfig",
    "DinoConfig",
    "Duration",
    "EsViTConfig",
    "Facts",
    "FineTuneViewsConfig",
    "HeadConfig",
    "LARSConfig",
    "MethodConfig",
    "MixConfig",
    "MultiCropConfig",
    "OptimConfig",
    "Resolved",
    "RunConfig",
    "SGDConfig",
    "Schedule",
    "SwinConfig",
    "TimmConfig",
    "TrainConfig",
    "TwoViewsConfig",
    "ViLConfig",
    "ViTConfig",
    "WatchConfig",
    "compose",
    "constant",
    "epoch_steps",
    "from_dict",
    "load_config",
    "look_up",
    "named_backbone",
    "replace_options",
    "resolve",
    "save_config",
    "steps",
    "to_dict",
    "unknown_name",
]
