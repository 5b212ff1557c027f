"""The published step, which ours is measured against, is the same step."""

from dataclasses import replace

import pytest
import torch

from leanvit.bench.plain_step import PlainStep
from leanvit.bench.step import OurStep
from leanvit.config import Facts, RunConfig, compose, resolve
from leanvit.data.batch import ViewBatch
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.recipes import recipe
from tests.tiny import SWIN, noise

AT = 100
OPTIONS = {
    "train.batch": 3,
    "train.duration": "1000st",
    "train.precision": "fp32",
    "train.device": "cpu",
    "method.head.prototypes": 96,
    "method.head.hidden": 24,
    "method.head.bottleneck": 16,
    "method.views.global_size": 32,
    "method.views.local_sizes": (18,),
    "method.views.local_counts": (3,),
}


def resolved(name: str) -> RunConfig:
    asked = replace(recipe(name), backbone=replace(SWIN, drop_path=0.0))
    facts = Facts(images=100, cores=1, device="cpu", bf16=False)
    return resolve(compose(asked, options=OPTIONS), facts).config


def batch() -> ViewBatch:
    groups = noise(2, 3, 3, 32, 32), noise(3, 3, 3, 18, 18)
    return ViewBatch(groups, torch.arange(3), torch.zeros(3))


@pytest.mark.parametrize("name", ["esvit", "dino"])
def test_plain_and_ours_train_alike(name: str) -> None:
    config, views = resolved(name), batch()
    ours = OurStep(build_method(config.method, config.backbone, config.train.seed), config)
    method = build_method(config.method, config.backbone, config.train.seed)
    assert isinstance(method, DINO)
    plain = PlainStep(method, config, Moment(AT, 1000, 0, 0))
    for step in range(3):
        ours.state.step = AT  # the plain step stays at one moment
        loss = plain.step(views)
        ours.step(views)
        told = ours.state.row()["loss"]
        assert loss == pytest.approx(told, rel=1e-5), step
    trained = ours.state.method
    assert isinstance(trained, DINO)
    for network in ("student", "teacher"):
        mine, theirs = (
            dict(getattr(each, network).named_parameters()) for each in (trained, plain)
        )
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=2e-3, atol=2e-4, msg=key)
    torch.testing.assert_close(trained.center.value, plain.center[0], rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_the_plain_step() -> None:
    config, views = resolved("esvit"), batch()
    ours = OurStep(build_method(config.method, config.backbone, config.train.seed), config)
    method = build_method(config.method, config.backbone, config.train.seed)
    assert isinstance(method, DINO)
    plain = PlainStep(method, config, Moment(AT, 1000, 0, 0))
    at = ours.state.begin_step()
    ours.state.backward(views, at, 1)
    every = [view for group in views.groups for view in group]
    plain._loss(plain.student(every), plain.teacher(every[:2]), len(every)).backward()
    trained = ours.state.method
    assert isinstance(trained, DINO)
    mine = dict(trained.student.named_parameters())
    for key, value in plain.student.named_parameters():
        found, expected = mine[key].grad, value.grad
        assert found is not None and expected is not None
        scale = float(expected.abs().max())
        if key.endswith("qkv.bias"):  # the keys' third has no gradient but rounding
            found, expected = (x.unflatten(0, (3, -1))[[0, 2]] for x in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale, msg=key)
