"""Small networks, configurations and images that tests share."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import (
    AdamWConfig,
    BackboneConfig,
    CropConfig,
    CvTConfig,
    D2maeConfig,
    DecoderConfig,
    DinoConfig,
    DmaeConfig,
    EsViTConfig,
    FineTuneViewsConfig,
    HeadConfig,
    MaeConfig,
    MethodConfig,
    MocoV3Config,
    MultiCropConfig,
    RunConfig,
    SimMIMConfig,
    SupervisedConfig,
    SwinConfig,
    TimmConfig,
    TrainConfig,
    TwoViewsConfig,
    ViLConfig,
    ViTConfig,
    constant,
    steps,
)
from leanvit.core.files import save_tensors
from leanvit.core.random import seeded
from leanvit.data.batch import ViewBatch
from leanvit.methods.base import Method
from leanvit.methods.catalogue import build_method
from leanvit.weights.file import FILE, HEAD_FILE, header

M = TypeVar("M", bound=Method)
SWIN = SwinConfig(
    image_size=32, patch=2, dim=8, depths=(2, 2), heads=(1, 2), window=4, drop_path=0.0
)
CVT = CvTConfig(
    image_size=32, patch=2, dims=(8, 12), depths=(1, 2), heads=(1, 2), window=4, drop_path=0.0
)
SWIN_SKIP = replace(SWIN, skip_padding=True, window=3)
VIT = ViTConfig(image_size=32, patch=4, dim=16, depth=3, heads=2, drop_path=0.0)
VIT_FULL = replace(
    VIT, registers=2, layer_scale=0.5, positions="sincos", position_bias=True, image_size=24
)
VIL = ViLConfig(
    image_size=32,
    patch=2,
    dims=(8, 16, 24),
    depths=(2, 1, 1),
    heads=(1, 2, 3),
    global_tokens=(1, 2, 0),
    sparse_stages=1,
    window=3,
    drop_path=0.0,
)
VIEWS = MultiCropConfig(global_size=32, local_sizes=(16,), local_counts=(2,))
TIMM = TimmConfig(image_size=32, name="test_vit")
TIMM_CONVOLUTIONS = TimmConfig(image_size=32, name="test_mambaout")
FAMILIES: Mapping[str, BackboneConfig] = {
    "cvt": CVT,
    "swin": SWIN,
    "swin_skip": SWIN_SKIP,
    "timm": TIMM,
    "timm_convolutions": TIMM_CONVOLUTIONS,
    "vil": VIL,
    "vit": VIT,
    "vit_full": VIT_FULL,
}
"""A small network of every family: what holds for all is tested on each of them."""
CLASSES = 3
HEAD = HeadConfig(prototypes=24, hidden=16, bottleneck=8)


def build(config: BackboneConfig, dtype: torch.dtype = torch.float32) -> Backbone:
    """Return a network whose every number is random, so that none hides behind a zero."""
    with seeded(0, "test"):
        backbone = build_backbone(config)
        for parameter in backbone.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in backbone.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return backbone.to(dtype)


def random_method(kind: type[M], config: MethodConfig, backbone: BackboneConfig) -> M:
    """Return a method whose learning backbone has weights that are all random, in fp64."""
    found = build_method(config, backbone, 0)
    assert isinstance(found, kind)
    (found.learner() or found.encoder()).load_state_dict(build(backbone).state_dict())
    return found.double()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def esvit(**changes: object) -> EsViTConfig:
    """Return EsViT's options for the tiny networks, with resolved durations."""
    config = EsViTConfig(
        views=VIEWS,
        head=HEAD,
        teacher_temp=constant(0.05),
        teacher_momentum=constant(0.9),
        freeze_prototypes=steps(1),
        region_start=steps(0),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def dino(**changes: object) -> DinoConfig:
    """Return DINO's options for the tiny networks, with resolved durations."""
    config = DinoConfig(
        views=VIEWS,
        head=HEAD,
        teacher_temp=constant(0.05),
        teacher_momentum=constant(0.9),
        freeze_prototypes=steps(1),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def mocov3(**changes: object) -> MocoV3Config:
    """Return MoCo-v3's options for the tiny networks, with resolved durations."""
    config = MocoV3Config(
        views=TwoViewsConfig(size=32), hidden=16, output=8, momentum=constant(0.9)
    )
    return replace(config, **changes)  # type: ignore[arg-type]


DECODER = DecoderConfig(dim=8, depth=1, heads=2)


def mae(**changes: object) -> MaeConfig:
    """Return MAE's options for the tiny networks."""
    return replace(MaeConfig(views=CropConfig(size=32), decoder=DECODER), **changes)  # type: ignore[arg-type]


def dmae(**changes: object) -> DmaeConfig:
    """Return D-MAE's options for the tiny networks; the teacher is still to be named."""
    return replace(DmaeConfig(views=CropConfig(size=32), decoder=DECODER), **changes)  # type: ignore[arg-type]


def d2mae(**changes: object) -> D2maeConfig:
    """Return D2-MAE's options for the tiny networks; the teacher is still to be named."""
    config = D2maeConfig(views=CropConfig(size=32), decoder=DECODER, decode_from=2)
    return replace(config, **changes)  # type: ignore[arg-type]


def simmim(**changes: object) -> SimMIMConfig:
    """Return SimMIM's options for the tiny networks."""
    return replace(SimMIMConfig(views=CropConfig(size=32), mask_patch=8), **changes)  # type: ignore[arg-type]


def supervised(**changes: object) -> SupervisedConfig:
    """Return the options of supervised training for the tiny networks and `CLASSES` classes."""
    config = SupervisedConfig(views=FineTuneViewsConfig(size=32), classes=CLASSES)
    return replace(config, **changes)  # type: ignore[arg-type]


def run_config(**train: object) -> RunConfig:
    """Return a resolved run of EsViT on the tiny Swin."""
    settings: dict[str, object] = {
        "duration": steps(10),
        "batch": 4,
        "precision": "fp32",
        "device": "cpu",
        "save_every": steps(5),
        "log_every": steps(1),
    }
    return RunConfig(
        recipe="esvit",
        method=esvit(),
        backbone=SWIN,
        optim=AdamWConfig(lr=constant(1e-3), lr_rule="none", weight_decay=constant(0.04)),
        train=TrainConfig(**(settings | train)),  # type: ignore[arg-type]
    )


def view_batch(
    batch: int = 4,
    views: MultiCropConfig = VIEWS,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ViewBatch:
    """Return random views of `batch` images, of `CLASSES` classes in turn."""
    sizes = [(2, views.global_size), *zip(views.local_counts, views.local_sizes, strict=True)]
    groups = tuple(
        noise(count, batch, 3, side, side, seed=seed + number, dtype=dtype)
        for number, (count, side) in enumerate(sizes)
        if count
    )
    return ViewBatch(groups, torch.arange(batch), torch.arange(batch) % CLASSES)


def write_images(folder: Path, count: int, side: int = 40, seed: int = 0) -> Path:
    """Write small color pictures that differ from each other."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for number in range(count):
        coarse = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side + number % 7, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:03d}.png")
    return folder


def write_backbone(folder: Path, backbone: Backbone) -> Path:
    """Write a backbone as a run does: a teacher to imitate. Return its file."""
    facts = {"mean": backbone.mean, "std": backbone.std}
    save_tensors(backbone.state_dict(), folder / FILE, header(backbone, facts))
    return folder / FILE


def write_tuned(folder: Path, backbone: Backbone, *, classes: int) -> Path:
    """Write a backbone with a random head as fine-tuning does: a teacher that tells classes."""
    folder.mkdir()
    write_backbone(folder, backbone)
    head = {"weight": noise(classes, backbone.feature_dim), "bias": noise(classes)}
    save_tensors(head, folder / HEAD_FILE)
    return folder


def write_classes(folder: Path, **counts: int) -> Path:
    """Write so many pictures of each class, each class into a folder of its own."""
    for number, (name, count) in enumerate(counts.items()):
        write_images(folder / name, count, seed=number)
    return folder


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let runs draw no pictures: these take longer than the tiny runs themselves."""
    for name in ("run.view_grid", "run.loss_curves", "looks.matched_regions"):
        patch.setattr(f"leanvit.{name}", lambda *_, **__: None)
