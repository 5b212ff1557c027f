"""A run that starts from an official checkpoint has its student, teacher, heads and centers."""

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leanvit.config import DinoConfig, EsViTConfig, RunConfig
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.methods.esvit import EsViT
from leanvit.train.start import start_method
from leanvit.weights.whole import strip
from tests.golden.fill import fill
from tests.golden.test_golden import FOLDER, Golden, training, weights_of

State = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    found: Golden = json.loads((FOLDER / "train_swin_w7_free.json").read_text())
    return found


def write(golden: Golden, path: Path, drop: str = "none", center: str = "center_grid") -> DINO:
    """Write an official checkpoint; return the method that it holds, put together otherwise.

    Golden training, which is compared with the official code, puts weights into one network.
    """
    other = {**golden, "seed": golden["seed"] + 1}
    methods = {"student": training(golden).method, "teacher": training(other).method}
    student, teacher = (
        {name: value for name, value in weights_of(file).items() if not name.startswith(drop)}
        for file in (golden, other)
    )
    centers = {
        name: fill(name, 1, golden["prototypes"], seed=golden["seed"])
        for name in ("center", center)
    }
    checkpoint = {
        "student": {f"module.{name}": value for name, value in student.items()},
        "teacher": teacher,
        "dino_loss": centers,
        "optimizer": {"state": {0: {"step": 7, "exp_avg": torch.ones(2)}}, "param_groups": []},
        "epoch": 200,
        "args": Namespace(arch="swin_tiny"),
    }
    torch.save(checkpoint, path)
    method = methods["student"]
    assert isinstance(method, DINO) and isinstance(methods["teacher"], DINO)
    method.teacher = methods["teacher"].teacher
    method.center.value.copy_(centers["center"][0])
    if isinstance(method, EsViT) and "center_grid" in centers:
        method.region_center.value.copy_(centers["center_grid"][0])
    return method


def asked(golden: Golden, path: Path, *, regions: bool = True) -> RunConfig:
    """Return the official run, which starts from a file."""
    config = training(golden).config
    method = config.method
    assert isinstance(method, EsViTConfig)
    if not regions:
        method = DinoConfig(**{f.name: getattr(method, f.name) for f in fields(DinoConfig)})
    return replace(config, method=method, init=str(path), init_from="method")


def fresh(config: RunConfig) -> DINO:
    method = build_method(config.method, config.backbone, seed=3)
    assert isinstance(method, DINO)
    return method


def require_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        assert found[name].equal(value), name


def test_a_checkpoint_of_esvit_goes_on_as_esvit(golden: Golden, tmp_path: Path) -> None:
    expected = write(golden, tmp_path / "checkpoint.pth").state_dict()
    config = asked(golden, tmp_path / "checkpoint.pth")
    method = fresh(config)
    start = start_method(method, config)
    require_same(method.state_dict(), expected)
    names = ("student.backbone.norm.weight", "student.head.mlp.0.weight")
    for name in names:  # so that networks that were exchanged would be seen
        assert not expected[name].equal(expected[name.replace("student", "teacher")])
    assert not expected["center.value"].equal(expected["region_center.value"])
    assert str(start) == (
        f"Starts from {config.init} (student and teacher: backbone, head, region_head, center, "
        f"region_center, layout esvit); fresh: optimizer, schedules."
    )


def test_regions_of_a_checkpoint_are_left_out_of_dino(golden: Golden, tmp_path: Path) -> None:
    expected = write(golden, tmp_path / "checkpoint.pth").state_dict()
    config = asked(golden, tmp_path / "checkpoint.pth", regions=False)
    method = fresh(config)
    start = start_method(method, config)
    kept = {name: value for name, value in expected.items() if "region" not in name}
    require_same(method.state_dict(), kept)
    assert start is not None and start.fresh == ("optimizer", "schedules")
    heads = sum("region_head" in name for name in expected)
    assert start.left_out == {"region_head": heads, "region_center": 1} and heads > 2


def test_regions_begin_fresh_after_a_view_only_checkpoint(golden: Golden, tmp_path: Path) -> None:
    written = write(golden, tmp_path / "v.pth", drop="head_dense", center="center").state_dict()
    config = asked(golden, tmp_path / "v.pth")
    method, untouched = fresh(config), fresh(config).state_dict()
    start = start_method(method, config)
    expected = {n: untouched[n] if "region" in n else value for n, value in written.items()}
    require_same(method.state_dict(), expected)
    heads = [strip(method.state_dict(), f"{n}.region_head.") for n in ("student", "teacher")]
    require_same(*heads)
    assert start is not None
    assert start.fresh == ("region_head", "region_center", "optimizer", "schedules")


def test_heads_of_other_sizes_are_refused(golden: Golden, tmp_path: Path) -> None:
    write(golden, tmp_path / "checkpoint.pth")
    config = asked(golden, tmp_path / "checkpoint.pth")
    assert isinstance(config.method, EsViTConfig)
    head = replace(config.method.head, prototypes=16, batch_norm=True)
    config = replace(config, method=replace(config.method, head=head))
    method = fresh(config)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        start_method(method, config)
    assert str(caught.value) == (
        f"The student.head in {config.init!r} has other sizes: prototypes 384 (run: 16), "
        f"batch_norm False (run: True). Give the run the same: --method.head.prototypes 384 "
        f"--method.head.batch-norm false; or start from its backbone alone: --init-from backbone."
    )
    require_same(method.state_dict(), before)
