"""Groups, clipping, optimisers, against plain forms."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from leanvit.config import AdamWConfig, LARSConfig, OptimConfig, SGDConfig
from leanvit.core.ema import ema_update
from leanvit.methods.esvit import EsViT
from leanvit.train.optim import (
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_rates,
    skip_if,
)
from tests.tiny import SWIN, esvit, noise


def decayed_names(decay_all_matrices: bool) -> set[str]:
    groups = parameter_groups(EsViT(esvit(), SWIN), decay_all_matrices=decay_all_matrices)
    return {name for group in groups if group["decayed"] for name in group["names"]}


def test_the_official_rule_decays_every_matrix() -> None:
    official, better = decayed_names(True), decayed_names(False)
    spared = official - better
    assert any(name.endswith("relative_position_bias_table") for name in spared)
    assert any(name.endswith("last_layer.weight_g") for name in spared)
    assert better < official and "student.head.last_layer.weight_v" in better
    assert not any(name.endswith((".bias", "norm1.weight")) for name in official)


def test_the_teacher_is_not_optimised() -> None:
    groups = parameter_groups(EsViT(esvit(), SWIN), decay_all_matrices=True)
    assert all(name.startswith("student.") for group in groups for name in group["names"])


def parts() -> Mapping[str, nn.Module]:
    modules = {"backbone": nn.Linear(4, 3), "head": nn.Linear(3, 2), "idle": nn.Linear(1, 1)}
    for number, name in enumerate(("backbone", "head")):
        for parameter in modules[name].parameters():
            parameter.grad = (number + 1) * noise(*parameter.shape, seed=number)
    return modules


def parameters(modules: Mapping[str, nn.Module]) -> dict[str, list[Tensor]]:
    return {name: list(module.parameters()) for name, module in modules.items()}


@pytest.mark.parametrize("by", ["tensor", "module", "global"])
def test_clipping_limits_what_it_says(by: str) -> None:
    clipped, before = parts(), parts()
    norms, whole = clip_gradients(parameters(clipped), 0.5, by)
    trained = ("backbone", "head")
    gradients = {n: [p.grad for p in before[n].parameters() if p.grad is not None] for n in trained}
    module_norms = {n: torch.stack([g.norm() for g in gradients[n]]).norm() for n in trained}
    total = torch.stack(list(module_norms.values())).norm()
    assert set(norms) == set(trained)
    torch.testing.assert_close(whole, total)
    for name in trained:
        torch.testing.assert_close(norms[name], module_norms[name])
        found = [p.grad for p in clipped[name].parameters()]
        for mine, original in zip(found, gradients[name], strict=True):
            norm = {"tensor": original.norm(), "module": module_norms[name], "global": total}[by]
            scale = min(1.0, 0.5 / (norm.item() + 1e-6))
            torch.testing.assert_close(mine, original * scale)


def test_no_limit_only_measures() -> None:
    free, before = parts(), parts()
    clip_gradients(parameters(free), 0.0, "tensor")
    for one, other in zip(free["head"].parameters(), before["head"].parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.equal(other.grad)


def plain_lars(p: Tensor, g: Tensor, mu: Tensor, lr: float, decay: float) -> tuple[Tensor, Tensor]:
    if p.ndim > 1:
        g = g + decay * p
        g = g * (1e-3 * p.norm() / g.norm())
    mu = 0.9 * mu + g
    return p - lr * mu, mu


def test_lars_is_its_definition() -> None:
    layer = nn.Linear(4, 3)
    groups = parameter_groups(layer, decay_all_matrices=False)
    optimizer = build_optimizer(groups, LARSConfig())
    expected = {n: (p.detach().clone(), torch.zeros_like(p)) for n, p in layer.named_parameters()}
    for step in range(3):
        set_rates(optimizer, 0.5, 0.1)
        for name, parameter in layer.named_parameters():
            parameter.grad = noise(*parameter.shape, seed=step)
            decay = 0.1 if parameter.ndim > 1 else 0.0
            expected[name] = plain_lars(*_first(expected[name], parameter.grad), 0.5, decay)
        optimizer.step()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name][0])


def _first(state: tuple[Tensor, Tensor], gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return state[0], gradient, state[1]


@pytest.mark.parametrize("config", [AdamWConfig(), SGDConfig(), LARSConfig()])
def test_the_flag_stops_a_step_on_the_device(config: OptimConfig) -> None:
    layer = nn.Linear(4, 3)
    groups = parameter_groups(layer, decay_all_matrices=False)
    optimizer = build_optimizer(groups, config)
    set_rates(optimizer, 0.1, 0.1)

    def step(flag: float, value: float) -> list[Tensor]:
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value)
        skip_if(optimizer, torch.tensor(flag))
        optimizer.step()
        return [p.detach().clone() for p in layer.parameters()]

    first = step(0.0, 1.0)
    stopped = step(1.0, float("nan"))
    assert all(a.equal(b) for a, b in zip(first, stopped, strict=True))
    moved = step(0.0, 1.0)
    assert all(not a.equal(b) and b.isfinite().all() for a, b in zip(stopped, moved, strict=True))


def test_ema_is_its_definition() -> None:
    average, network = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    before = [p.detach().clone() for p in average.parameters()]
    ema_update(average, network, 0.9)
    for old, mine, new in zip(before, average.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), 0.9 * old + 0.1 * new.detach())
