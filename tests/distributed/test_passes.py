"""Two processes come to the same where blocks are computed again or compiled."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from leanvit.config import SGDConfig, constant
from leanvit.core import compiling
from leanvit.core.distributed import rank, world_size
from leanvit.methods.catalogue import build_method
from leanvit.train.state import TrainState
from tests.distributed.launch import in_processes
from tests.tiny import CVT, SWIN, esvit, run_config, view_batch

NETWORKS = {"cvt": replace(CVT, drop_path=0.3), "swin": replace(SWIN, drop_path=0.3)}


def trained(name: str, **train: Any) -> dict[str, Tensor]:
    """Return what a run saves after three steps."""
    config = replace(
        run_config(batch=8, **train),
        method=esvit(),
        backbone=NETWORKS[name],
        optim=SGDConfig(lr=constant(1e-2), lr_rule="none"),
    )
    state = TrainState(build_method(config.method, config.backbone, 0), config, epoch_steps=5)
    for number in range(3):
        at = state.begin_step()
        state.backward(list(view_batch(8, seed=number).split(world_size()))[rank()], at, 1)
        state.update(at)
        state.require_sound()
    return {key: value.clone() for key, value in state.tensors().items()}


def differences() -> dict[str, tuple[bool, float]]:
    """Return whether bits are those of a plain run, and the largest difference."""
    torch.set_num_threads(1)
    compiling.BACKEND, found = "aot_eager", {}
    ways = {
        **{how: {"recompute": how} for how in ("selective", "full")},
        "compiled": {"compile": "blocks"},
        "both": {"compile": "blocks", "recompute": "full"},
        "both, selective": {"compile": "blocks", "recompute": "selective"},
    }
    for name in NETWORKS:
        plain = trained(name)
        for way, options in ways.items():
            if name == "cvt" and "compile" in options:
                continue  # half a minute
            other = trained(name, **options)
            assert plain.keys() == other.keys()
            apart = [float((plain[key] - other[key]).abs().max()) for key in plain]
            same = all(plain[key].equal(other[key]) for key in plain)
            found[f"{name} {way}"] = same, max(apart)
    return found


@pytest.mark.long
def test_two_processes_find_the_same() -> None:
    """Statistics of batch norm are shared once more in the backward pass, and move once."""
    both = in_processes(2, differences)
    for found in both:
        exact = [
            same for way, (same, _) in found.items() if way.split()[1] in ("selective", "full")
        ]
        assert exact == [True] * 4
        assert 0 <= max(apart for _, apart in found.values()) < 1e-5
        assert len(found) == 7
