"""EsViT on real photographs: the loss falls and the features keep their dimensions."""

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

import leanvit
from leanvit.analysis.rank import effective_rank
from leanvit.backbones.base import Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import compose
from leanvit.core.random import seeded
from leanvit.data.decode import to_pixels
from leanvit.data.sources import open_source
from leanvit.recipes import recipe

PHOTOGRAPHS = Path(os.environ.get("LEANVIT_TEST_DATA", "")) / "imagenet-sample-256.tar"
SIDE = 64
OPTIONS = {
    "backbone.image_size": SIDE,
    "backbone.window": 4,
    "backbone.dim": 24,
    "backbone.depths": (2, 2, 2),
    "backbone.heads": (1, 2, 4),
    "method.head.prototypes": 256,
    "method.head.hidden": 256,
    "method.head.bottleneck": 64,
    "method.views.global_size": SIDE,
    "method.views.local_sizes": (32,),
    "method.views.local_counts": (2,),
    "method.teacher_temp.peak": 0.04,
    "method.teacher_temp.end": 0.04,
    "method.teacher_momentum.start": 0.996,  # sixty steps are too few for a teacher that moves
    "method.teacher_momentum.peak": 0.996,
    "optim.lr.peak": 5e-4,
    "optim.lr_rule": "none",
    "train.batch": 25,
    "train.duration": "60st",
    "train.log_every": "10st",
    "train.save_every": "30st",
    "watch.images": 0,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PHOTOGRAPHS.is_file():
        pytest.skip("set LEANVIT_TEST_DATA to a folder with imagenet-sample-256.tar")
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(PHOTOGRAPHS) as archive:
        archive.extractall(folder, filter="data")
    return folder


def pixels(folder: Path, count: int = 128) -> Tensor:
    source, images = open_source(str(folder)), []
    for number in range(count):
        image = tv.resize(to_pixels(source[number].image) / 255, [SIDE], antialias=True)
        images.append(tv.center_crop(image, [SIDE]))
    return tv.normalize(torch.stack(images), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@torch.no_grad()
def rank(backbone: Backbone, images: Tensor) -> float:
    features = backbone.eval().features(images).pooled
    return effective_rank(features - features.mean(0))


@pytest.mark.long
def test_esvit_learns_on_photographs(photographs: Path, tmp_path: Path) -> None:
    config = compose(recipe("esvit"), data=str(photographs), options=OPTIONS)
    backbone = leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, *_, last = [row for row in map(json.loads, lines) if "loss" in row]
    assert last["loss"] < 0.94 * first["loss"]
    assert last["region"] < 0.94 * first["region"]
    assert last["view"] < first["view"]
    assert last["feature_std"] > 0.5
    with seeded(0, "weights"):
        untrained = build_backbone(config.backbone)
    images = pixels(photographs)
    assert rank(leanvit.load_backbone(backbone), images) > 0.75 * rank(untrained, images)

    newest = tmp_path / "run" / "checkpoints" / "step-00000060"
    before = (newest / "state.safetensors").read_bytes()
    newest.rename(tmp_path / "moved")
    leanvit.pretrain(config, out=tmp_path / "run", resume=True, quiet=True)
    assert (newest / "state.safetensors").read_bytes() == before
