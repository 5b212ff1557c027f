"""Recipes for minutes on a CPU: a Swin of 0.6 million parameters and views of 40 pixels.

Short runs on small images differ from the published ones in more than size: batch norm in the
heads and a faster teacher make the first thousand steps count, and larger local crops of fewer
pixels keep something to see.
"""

from leanvit.config import (
    BACKBONES,
    AdamWConfig,
    DinoConfig,
    Duration,
    EsViTConfig,
    HeadConfig,
    MethodConfig,
    MultiCropConfig,
    RunConfig,
    Schedule,
    TrainConfig,
    WatchConfig,
)

VIEWS = MultiCropConfig(
    global_size=40,
    global_scale=(0.25, 1.0),
    local_sizes=(20,),
    local_counts=(4,),
    local_scale=(0.06, 0.25),
)
HEAD = HeadConfig(prototypes=1024, hidden=512, bottleneck=128, batch_norm=True)
MOMENTUM = Schedule(start=0.97, peak=0.97, end=1.0)


def esvit_laptop() -> RunConfig:
    """EsViT on images or tiles of about 64 pixels, 1,500 steps of 32 images.

    Paper: no figure at this setting; ours: not run.
    """
    return _laptop("esvit_laptop", EsViTConfig(views=VIEWS, head=HEAD, teacher_momentum=MOMENTUM))


def dino_laptop() -> RunConfig:
    """The same with the view loss alone.

    Paper: no figure at this setting; ours: not run.
    """
    return _laptop("dino_laptop", DinoConfig(views=VIEWS, head=HEAD, teacher_momentum=MOMENTUM))


def _laptop(name: str, method: MethodConfig) -> RunConfig:
    return RunConfig(
        recipe=name,
        method=method,
        backbone=BACKBONES["swin_nano"],
        optim=AdamWConfig(
            lr=Schedule(peak=1e-3, end=1e-6, warmup=Duration(10, "%")),
            lr_rule="none",
            weight_decay=Schedule(start=0.04, peak=0.04, end=0.1),
        ),
        train=TrainConfig(
            duration=Duration(1500, "st"),
            batch=32,
            log_every=Duration(50, "st"),
            save_every=Duration(20, "%"),
        ),
        watch=WatchConfig(every=Duration(20, "%"), images=640),
    )
