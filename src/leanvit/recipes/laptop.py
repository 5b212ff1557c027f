"""Recipes for minutes on a CPU: a Swin of 0.6 million parameters and two views of 60 pixels.

Short runs on small images differ from the published ones in more than size: batch norm in the
heads, a faster teacher and Muon's orthogonal steps make the first thousand steps count, little
blur leaves small views something to see, and the time that local crops would take goes into more
steps.
"""

from leanvit.config import (
    BACKBONES,
    DinoConfig,
    Duration,
    EsViTConfig,
    HeadConfig,
    MethodConfig,
    MultiCropConfig,
    MuonConfig,
    RunConfig,
    Schedule,
    TrainConfig,
    WatchConfig,
)
from leanvit.recipes.sizes import SCALE, SHARP, SWIN, TEACHER

VIEWS = MultiCropConfig(
    global_size=60,
    global_scale=(0.25, 0.6),
    local_sizes=(),
    local_counts=(),
    blur=(0.2, 0.1, 0.1),
)
HEAD = HeadConfig(prototypes=256, hidden=256, bottleneck=64, batch_norm=True)
MOMENTUM = Schedule(start=0.97, peak=0.97, end=1.0)


def esvit_laptop() -> RunConfig:
    """EsViT on images or tiles of about 100 pixels, 900 steps of 32 images.

    Paper: no figure at this setting; ours: on the sample k-NN of 77.0 in color and 50.4 in grey,
    untrained 47.1 and 19.6 (benchmarks/learning/sample.md).
    """
    return _laptop("esvit_laptop", EsViTConfig(views=VIEWS, head=HEAD, teacher_momentum=MOMENTUM))


def dino_laptop() -> RunConfig:
    """The same with the view loss alone, and a sharper teacher: at 0.07 it turns uniform.

    Paper: no figure at this setting; ours: on CIFAR-10 after ten minutes of one core k-NN of 41.1
    and a linear layer of 46.9, untrained 26.4 and 31.6 (docs/results.md).
    """
    sharp = Schedule(start=0.04, peak=0.04, end=0.04)
    method = DinoConfig(views=VIEWS, head=HEAD, teacher_momentum=MOMENTUM, teacher_temp=sharp)
    return _laptop("dino_laptop", method)


def _laptop(name: str, method: MethodConfig) -> RunConfig:
    return RunConfig(
        recipe=name,
        method=method,
        backbone=BACKBONES["swin_nano"],
        optim=MuonConfig(
            lr=Schedule(peak=1e-3, end=1e-6, warmup=Duration(10, "%")),
            lr_rule="none",
            weight_decay=Schedule(start=0.04, peak=0.04, end=0.1),
        ),
        train=TrainConfig(
            duration=Duration(900, "st"),
            batch=32,
            log_every=Duration(2, "%"),
            save_every=Duration(20, "%"),
        ),
        watch=WatchConfig(every=Duration(20, "%"), images=640),
        fit=(*SWIN, "method.views.global_size", SCALE, *SHARP, *TEACHER),
    )
