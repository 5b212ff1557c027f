"""Two processes that share a batch train as one does: every method, and what changes on the way."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from leanvit.config import (
    AdamWConfig,
    DmaeConfig,
    MixConfig,
    RunConfig,
    SGDConfig,
    constant,
    settled,
    steps,
)
from leanvit.core.distributed import rank, world_size
from leanvit.data.batch import ViewBatch
from leanvit.methods.catalogue import METHODS as CATALOGUE
from leanvit.methods.catalogue import build_method
from leanvit.methods.esvit import EsViT
from leanvit.train.state import TrainState
from tests.distributed.launch import in_processes
from tests.tiny import (
    CVT,
    HEAD,
    SWIN,
    VIT,
    build,
    d2mae,
    dino,
    dmae,
    esvit,
    mae,
    mocov3,
    run_config,
    simmim,
    supervised,
    view_batch,
    write_backbone,
)

STEPS, BATCH = 5, 8
METHODS: dict[str, dict[str, Any]] = {
    "esvit": {"method": esvit()},
    "dino": {"method": dino()},
    "vit": {"method": dino(), "backbone": replace(VIT, drop_path=0.3)},
    "cvt": {
        "method": esvit(),
        "backbone": replace(CVT, drop_path=0.3),
        "optim": SGDConfig(lr=constant(1e-2), lr_rule="none"),  # as below
    },
    "late regions": {"method": esvit(region_start=steps(2), freeze_prototypes=steps(3))},
    "drop path": {"method": esvit(), "backbone": replace(SWIN, drop_path=0.3)},
    "batch norm in heads": {
        "method": esvit(head=replace(HEAD, batch_norm=True)),
        "optim": SGDConfig(lr=constant(1e-2), lr_rule="none"),  # it has directions without gradient
    },
    "frozen gain": {"method": esvit(head=replace(HEAD, train_gain=False))},
    "mixing": {"method": esvit(mix=MixConfig(views=3))},
    "sinkhorn": {"method": esvit(targets="sinkhorn")},
    "koleo": {"method": esvit(koleo=0.1)},
    "token dropout": {"method": esvit(token_dropout=0.5), "backbone": VIT},
    "transport": {"method": esvit(matching="transport")},
    "mse": {"method": esvit(region_loss="mse")},
    "flash": {"method": esvit(attention="flash")},
    "micro-batches": {"method": esvit(), "accumulate": 2},
    "mocov3": {
        "method": mocov3(),
        "backbone": replace(SWIN, drop_path=0.3),
        "optim": SGDConfig(lr=constant(1e-2), lr_rule="none"),  # as above
    },
    "mae": {"method": mae(), "backbone": replace(VIT, drop_path=0.3)},
    "dmae": {"method": dmae(), "backbone": VIT},
    "d2mae": {"method": d2mae(attention_layers=(1,)), "backbone": VIT},  # with idle blocks
    "simmim": {"method": simmim(), "backbone": replace(SWIN, drop_path=0.3)},
    "an idle norm": {"method": simmim(), "backbone": replace(VIT, pool="mean_norm")},
    "an idle norm in micro-batches": {
        "method": simmim(),
        "backbone": replace(VIT, pool="mean_norm"),
        "accumulate": 2,
    },
    "supervised": {"method": supervised(average=0.9), "backbone": replace(VIT, drop_path=0.3)},
    "supervised in micro-batches": {
        "method": supervised(mix=MixConfig(views=1, switch=0.0)),
        "accumulate": 2,
    },
}
DTYPES = {"fp64": (torch.float64, 1e-9), "fp32": (torch.float32, 1e-5)}


def config_of(name: str) -> RunConfig:
    """Return a tiny run of a method."""
    optim = AdamWConfig(lr=constant(2e-4), lr_rule="none")
    entry = {"optim": optim, **METHODS[name]}
    accumulate = entry.pop("accumulate", 1)
    return replace(run_config(batch=BATCH, accumulate=accumulate), **entry)


def mine(batch: ViewBatch) -> ViewBatch:
    """Return this process's part of a batch, as `Order` gives it."""
    return list(batch.split(world_size()))[rank()]


def train(
    name: str, dtype: torch.dtype, teacher: str
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return everything that a run would save after five steps, and its rows."""
    config = config_of(name)
    if isinstance(config.method, DmaeConfig):
        config = replace(config, method=replace(config.method, teacher=teacher))
    method = build_method(config.method, config.backbone, seed=0).to(dtype)
    state = TrainState(method, config, epoch_steps=5)
    rows = []
    for number in range(STEPS):
        at = state.begin_step()
        parts = settled(config.train.accumulate)
        for micro in mine(view_batch(BATCH, seed=10 * number, dtype=dtype)).split(parts):
            state.backward(micro, at, parts)
        state.update(at)
        state.require_sound()
        rows.append(state.meter.read())
    return {key: value.clone() for key, value in state.tensors().items()}, rows


def train_all(
    teacher: str,
) -> dict[tuple[str, str], tuple[dict[str, Tensor], list[dict[str, float]]]]:
    """Train every method in both precisions."""
    return {
        (name, precision): train(name, dtype, teacher)
        for name in METHODS
        for precision, (dtype, _) in DTYPES.items()
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """What one process finds, and what each of two finds."""
    teacher = write_backbone(tmp_path_factory.mktemp("teacher"), build(replace(VIT, heads=4)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = train_all(str(teacher))
    torch.set_num_threads(threads)
    return one, in_processes(2, train_all, str(teacher))


ROUNDING = {"sinkhorn": 5.0, "mocov3": 50.0}
"""How much more gradients, their norms and moments may differ in fp32; weights may not.

Those of the tiny MoCo-v3 have norms up to 150, and its batch norms make much of rounding; in fp64
one process and two agree to 1e-11."""
LOCAL = ("feature_std", "teacher_entropy", "teacher_information")
"""Numbers of a process's own images: their mean is not that of the whole batch."""


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(name: str, precision: str, both: tuple[Any, list[Any]]) -> None:
    one, two = both
    weights, rows = one[name, precision]
    tolerance = DTYPES[precision][1]
    loose = tolerance * (ROUNDING.get(name, 1.0) if precision == "fp32" else 1.0)
    for found, shown in (process[name, precision] for process in two):
        assert found.keys() == weights.keys()
        for key, value in weights.items():
            error = (found[key] - value).abs()
            if "attn.qkv.bias" in key and error.ndim and precision == "fp32":
                error = torch.cat(error.chunk(3)[::2])  # the keys' bias has no gradient but noise
            assert float(error.max()) < (loose if key.startswith("optimizer") else tolerance), key
        for ours, theirs in zip(shown, rows, strict=True):
            expected = {k: v for k, v in theirs.items() if k not in LOCAL}
            assert {k: ours[k] for k in expected} == pytest.approx(expected, rel=loose, abs=loose)
    first, second = (process[name, precision][0] for process in two)
    assert all(first[key].equal(second[key]) for key in first), "the processes drift apart"


def test_the_region_head_waits_for_its_start(both: tuple[Any, list[Any]]) -> None:
    """Until it starts it has no gradient anywhere, so nobody waits for one."""
    _, rows = both[0]["late regions", "fp64"]
    assert [("region" in row, "grad_norm/region_head" in row) for row in rows] == [
        *[(False, False)] * 2,
        *[(True, True)] * 3,
    ]
    config = config_of("late regions")
    method = build_method(config.method, config.backbone, seed=0)
    assert isinstance(method, EsViT) and method.student.region_head is not None
    state = TrainState(method, config, epoch_steps=5)
    state.begin_step()
    assert not any(p.requires_grad for p in method.student.region_head.parameters())
    state.step = 2
    state.begin_step()
    trained = {n for n, p in method.student.region_head.named_parameters() if p.requires_grad}
    assert trained and not any("last_layer" in name for name in trained)
    state.step = 3
    state.begin_step()
    assert all(p.requires_grad for p in method.student.region_head.parameters())


def test_every_method_is_trained() -> None:
    """A new one belongs into the table above."""
    assert {type(entry["method"]) for entry in METHODS.values()} == set(CATALOGUE)


def test_idle_parameters_stay_as_they_began(both: tuple[Any, list[Any]]) -> None:
    for found in (both[0], *both[1]):
        weights, _ = found["an idle norm", "fp64"]
        assert weights["method.backbone.fc_norm.weight"].eq(1).all()
        assert not any("fc_norm" in name for name in weights if name.startswith("optimizer"))
