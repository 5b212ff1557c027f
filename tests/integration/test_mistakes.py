"""Mistakes in a request that only methods can tell: named before a step, with nothing written."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import leanvit
from leanvit.config import BackboneConfig, CropConfig, MethodConfig, compose
from leanvit.train.state import TrainState
from tests.tiny import (
    SWIN,
    VIT,
    build,
    d2mae,
    dmae,
    mae,
    mocov3,
    run_config,
    simmim,
    write_backbone,
    write_classes,
)

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 12
ODD = CropConfig(size=30)
TEACHER = replace(VIT, patch=8)
CASES: Mapping[str, tuple[MethodConfig, BackboneConfig, Mapping[str, Any], str]] = {
    "dmae, a teacher of other patches": (
        *(dmae(), VIT, {"method.teacher": "TEACHER"}),
        r"patches are 8 pixels a side, the student's 4: .* or --backbone\.patch 8",
    ),
    "d2mae, a teacher of other patches": (
        *(d2mae(), VIT, {"method.teacher": "TEACHER"}),
        r"patches are 8 pixels a side, the student's 4: .* or --backbone\.patch 8",
    ),
    "mae, nothing left": (
        *(mae(), VIT, {"method.mask_ratio": 0.99}),
        "mask_ratio 0.99 of 64 patches: none is left to see; choose a ratio",
    ),
    "simmim, nothing left": (
        *(simmim(), SWIN, {"method.mask_ratio": 0.95}),
        "mask_ratio 0.95 of 16 squares .method.mask_patch.: none is left to see; choose a ratio",
    ),
    "mae, half a patch": (
        *(mae(views=ODD), VIT, {}),
        "not made of whole patches of 4; the nearest sizes are 28 and 32",
    ),
    "simmim, half a square": (
        *(simmim(views=ODD), SWIN, {}),
        "not made of whole squares .method.mask_patch. of 8; the nearest sizes are 24 and 32",
    ),
    "mocov3, no negatives": (
        *(mocov3(), VIT, {"train.batch": 1}),
        r"a batch of 1 has none: raise train\.batch to 2",
    ),
    "mocov3, fewer images than a batch": (
        *(mocov3(), VIT, {"train.batch": 16}),
        r"12 images, fewer than one batch of 16; lower train\.batch or add images",
    ),
    "mocov3, negatives in micro-batches": (
        *(mocov3(), VIT, {"train.accumulate": 2}),
        r"a step cannot be split: set train\.accumulate to 1",
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("images"), cats=IMAGES // 2, dogs=IMAGES // 2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("teacher"), build(TEACHER))


@pytest.mark.parametrize("name", CASES)
def test_it_is_named_before_anything_happens(
    name: str, images: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, backbone, options, message = CASES[name]
    options = {k: str(teacher) if v == "TEACHER" else v for k, v in options.items()}
    config = replace(run_config(), method=method, backbone=backbone)
    config = compose(config, data=str(images), options={"data.workers": 0})
    monkeypatch.setattr(TrainState, "begin_step", lambda _: pytest.fail("a step began"))
    with pytest.raises(ValueError, match=message):
        leanvit.pretrain(config, out=tmp_path / "run", options=options, quiet=True)
    assert not (tmp_path / "run").exists()
