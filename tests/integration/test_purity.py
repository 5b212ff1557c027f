"""A step is a function of the seed and its number: it draws from no generator that others share.

So a checkpoint needs no generator's state, and a run goes on exactly in a process that drew other
numbers before.
"""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import leanvit
from leanvit.backbones.timm_adapter import usual_size
from leanvit.config import MethodConfig, MixConfig, TimmConfig, compose
from leanvit.core.files import save_tensors
from leanvit.methods.catalogue import build_method
from leanvit.train.state import TrainState
from leanvit.weights.file import header
from tests.integration.test_methods import batch_of
from tests.integration.test_training import step
from tests.tiny import (
    FAMILIES,
    SWIN,
    VIT,
    build,
    d2mae,
    dino,
    dmae,
    draw_nothing,
    esvit,
    mae,
    mocov3,
    noise,
    run_config,
    simmim,
    supervised,
    view_batch,
    write_classes,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MIX = MixConfig(views=1, switch=0.5)
METHODS: dict[str, MethodConfig] = {
    "d2mae": d2mae(),
    "dino": dino(mix=MixConfig(views=2)),
    "dmae": dmae(),
    "esvit": esvit(mix=MixConfig(views=2)),
    "mae": mae(),
    "mocov3": mocov3(),
    "simmim": simmim(),
    "supervised": supervised(mix=MIX, average=0.9),
}
CONVOLUTIONS = "timm_convolutions"
HIDING = tuple(family for family in FAMILIES if not family.startswith("timm"))
FIT = {"d2mae": ("vit",), "dmae": ("vit",), "mae": HIDING, "simmim": HIDING}
"""The families of the methods that do not take all."""
PAIRS = [(name, family) for name in METHODS for family in FIT.get(name, FAMILIES)]


def global_states() -> tuple[object, ...]:
    """Return the states of the generators of torch, numpy and Python."""
    shared = np.random.get_state(legacy=False)["state"]
    return (
        torch.get_rng_state().tolist(),
        (shared["key"].tolist(), shared["pos"]),
        random.getstate(),
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = build(replace(VIT, dim=24, depth=4, heads=3))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_tensors(network.state_dict(), path, header(network, {}))
    return path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_a_step_draws_from_no_global_generator(name: str, family: str, teacher: Path) -> None:
    method, backbone = METHODS[name], replace(FAMILIES[family], drop_path=0.3)
    if name in ("dmae", "d2mae"):
        method = replace(method, teacher=str(teacher))  # type: ignore[call-arg]
    if (name, family) == ("mocov3", CONVOLUTIONS):  # it has no patches to embed
        method = mocov3(freeze_patch_embed=False)
    config = replace(run_config(), method=method, backbone=backbone)
    before = global_states()
    state = TrainState(build_method(method, backbone, 0), config, epoch_steps=5)
    views = state.method.views()
    assert views is not None
    for number in range(2):
        step(state, batch_of(4, number) if len(views.groups) == 1 else view_batch(seed=number))
    assert global_states() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_draws_from_no_global_generator(
    workers: int, tmp_path: Path, no_pictures: None
) -> None:
    """Looks at the features, checkpoints and what else surrounds the steps included."""
    images = write_classes(tmp_path / "images", cats=6, dogs=6)
    options = {"data.workers": workers, "train.duration": "4st", "watch.every": "2st"}
    config = compose(replace(run_config(), backbone=SWIN), data=str(images), options=options)
    before = global_states()
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    assert global_states() == before


@pytest.mark.parametrize("name", ["test_vit", "legacy_seresnet18"])
def test_dropout_of_timm_is_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that bring dropout, as modules or as a function in their head, lose it."""
    create = timm.create_model
    if name == "test_vit":
        monkeypatch.setattr(timm, "create_model", partial(create, proj_drop_rate=0.5))
    theirs, size = timm.create_model(name).train(), usual_size(name)
    image = noise(2, 3, size, size)
    ours = build(TimmConfig(name=name, image_size=size)).train()
    before = global_states()
    ours([image])
    assert global_states() == before
    theirs(image)
    assert global_states() != before, "timm's own network draws nothing"
