"""Groups, clipping, optimisers, against plain forms."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leanvit.config import (
    AdamWConfig,
    BackboneConfig,
    LARSConfig,
    MixConfig,
    MuonConfig,
    OptimConfig,
    SGDConfig,
    ViTConfig,
    constant,
    named_backbone,
)
from leanvit.core.ema import ema_update
from leanvit.methods.catalogue import build_method
from leanvit.methods.esvit import EsViT
from leanvit.train.muon import orthogonal
from leanvit.train.optim import (
    block_matrices,
    build_optimizer,
    clip_gradients,
    layer_scales,
    parameter_groups,
    set_rates,
    skip_if,
)
from leanvit.train.state import TrainState
from tests.tiny import (
    FAMILIES,
    SWIN,
    VIT,
    build,
    dino,
    esvit,
    noise,
    run_config,
    supervised,
    view_batch,
)


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


def test_the_ladder_of_the_paper() -> None:
    """ViT-Tiny of 12 blocks with 0.85: 14 rungs, 0.1209 at the embedding, 1 at norm and head."""
    tiny = named_backbone("vit_tiny_h12")
    assert isinstance(tiny, ViTConfig)
    method = build_method(supervised(), replace(tiny, dim=24, image_size=32), 0)
    scales = layer_scales(method, 0.85)
    rungs = [0.1209, 0.1422, 0.1673, 0.1969, 0.2316, 0.2725, 0.3206]
    rungs += [0.3771, 0.4437, 0.522, 0.6141, 0.7225, 0.85, 1.0]
    assert sorted({round(scale, 4) for scale in scales.values()}) == rungs
    embedding = ("cls_token", "pos_embed", "patch_embed.proj.weight")
    assert {round(scales[f"backbone.{name}"], 4) for name in embedding} == {0.1209}
    assert scales["backbone.layers.0.norm1.weight"] == 0.85**12
    assert scales["backbone.layers.11.attn.qkv.weight"] == 0.85
    assert scales["backbone.norm.weight"] == 1.0 and "head.weight" not in scales


@pytest.mark.parametrize("backbone", FAMILIES.values(), ids=FAMILIES)
def test_every_rate_is_that_of_its_layer(backbone: BackboneConfig) -> None:
    """One optimised tensor, one rate: the schedule's, scaled by depth; the head's is its own."""
    method = build_method(supervised(), backbone, 0)
    scales = layer_scales(method, 0.5)
    groups = parameter_groups(method, decay_all_matrices=False, scales=scales)
    optimizer = build_optimizer(groups, AdamWConfig())
    set_rates(optimizer, 0.1, 0.3)
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["names"]}
    assert rates.keys() == dict(method.named_parameters()).keys()
    network = build(backbone)
    for name, depth in network.param_layers():
        assert rates[f"backbone.{name}"] == pytest.approx(0.1 * 0.5 ** (network.depth + 1 - depth))
    assert rates["head.weight"] == rates["head.bias"] == 0.1
    decays = {g["decayed"]: g["weight_decay"] for g in optimizer.param_groups}
    assert decays == {True: 0.3, False: 0.0}


def test_the_layers_are_those_of_the_network_that_learns() -> None:
    assert all(name.startswith("student.") for name in layer_scales(EsViT(esvit(), SWIN), 0.5))
    averaged = build_method(supervised(average=0.9), VIT, 0)
    assert all(name.startswith("backbone.") for name in layer_scales(averaged, 0.5))


def after_steps(optim: OptimConfig) -> dict[str, Tensor]:
    """Return weights after two steps."""
    method = build_method(supervised(mix=MixConfig(views=0)), VIT, 0)
    state = TrainState(method, replace(run_config(), optim=optim), epoch_steps=2)
    for seed in range(2):
        at = state.begin_step()
        state.backward(view_batch(seed=seed), at, 1)
        state.update(at)
    assert state.row()["lr"] == optim.lr.peak
    return {name: value.detach().clone() for name, value in method.named_parameters()}


def test_layers_move_by_their_rates() -> None:
    """With SGD and no momentum, the first step of a layer is as long as its scale."""
    base = SGDConfig(lr=constant(1e-3), momentum=0.0, weight_decay=constant(0.0), clip=0.0)
    method = build_method(supervised(mix=MixConfig(views=0)), VIT, 0)
    moved = []
    for decay in (1.0, 0.5):
        fresh = copy.deepcopy(method)
        optim = replace(base, layer_decay=decay)
        state = TrainState(fresh, replace(run_config(), optim=optim), epoch_steps=2)
        state.backward(view_batch(), at := state.begin_step(), 1)
        state.update(at)
        after = dict(fresh.named_parameters())
        moved.append({n: after[n].detach() - p.detach() for n, p in method.named_parameters()})
    for name, scale in {"cls_token": 1 / 16, "layers.2.mlp.fc2.bias": 0.5, "norm.bias": 1}.items():
        one, other = (found[f"backbone.{name}"] for found in moved)
        torch.testing.assert_close(other, scale * one, rtol=1e-2, atol=1e-9)
        assert one.abs().max() > 0


def test_no_decay_of_layers_changes_no_bit() -> None:
    """One group with weight decay and one without, as ever, in the order of the parameters."""
    method = build_method(supervised(), VIT, 0)
    groups = parameter_groups(method, decay_all_matrices=False, scales=layer_scales(method, 1.0))
    names = [name for name, _ in method.named_parameters()]
    assert [group["decayed"] for group in groups] == [True, False]
    for group in groups:
        assert group["names"] == [name for name in names if name in group["names"]]
        assert group["scale"] == 1.0
    plain = AdamWConfig(lr=constant(1e-3), weight_decay=constant(0.04))
    first, again = after_steps(plain), after_steps(replace(plain, layer_decay=0.5))
    assert any(not first[name].equal(again[name]) for name in first)


def test_nesterov_is_torch_s_own() -> None:
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    groups = parameter_groups(ours, decay_all_matrices=False)
    optimizer = build_optimizer(groups, SGDConfig(nesterov=True))
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for seed in range(3):
        set_rates(optimizer, 0.1, 0.0)
        for layer in (ours, theirs):
            for parameter in layer.parameters():
                parameter.grad = noise(*parameter.shape, seed=seed)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    with pytest.raises(ValueError, match="momentum, which is 0"):
        SGDConfig(nesterov=True, momentum=0.0)


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


def plain_muon(p: Tensor, g: Tensor, mu: Tensor, lr: float, decay: float) -> tuple[Tensor, Tensor]:
    mu = 0.95 * mu + 0.05 * g
    x = 0.05 * g + 0.95 * mu
    x = x / x.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return (1 - lr * decay) * p - lr * 0.2 * max(p.shape) ** 0.5 * x, mu


def test_muon_is_its_definition_and_that_of_torch() -> None:
    """torch rounds the rounds of Newton and Schulz to bf16."""
    shapes = ((6, 4), (4, 6), (6, 4), (5, 5))
    ours = nn.ParameterList(nn.Parameter(noise(*shape, seed=1)) for shape in shapes)
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    groups = parameter_groups(ours, decay_all_matrices=False, turned=[*ours])
    optimizer = build_optimizer(groups, MuonConfig())
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    plain = [(p.detach().double(), torch.zeros_like(p).double()) for p in ours]
    set_rates(optimizer, 0.1, 0.3)
    for step in range(4):
        for number, (mine, foreign) in enumerate(zip(ours, theirs, strict=True)):
            mine.grad = noise(*mine.shape, seed=10 * step + number)
            foreign.grad = mine.grad.clone()
            of_plain = _first(plain[number], mine.grad.double())
            plain[number] = plain_muon(*of_plain, 0.1, 0.3)
        optimizer.step()
        other.step()
    for mine, foreign, (right, _) in zip(ours, theirs, plain, strict=True):
        torch.testing.assert_close(mine.detach().double(), right, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.detach(), foreign.detach(), rtol=2e-2, atol=2e-2)


def test_the_rest_takes_the_steps_of_adamw() -> None:
    both = [nn.Linear(4, 3), nn.Linear(4, 3)]
    both[1].load_state_dict(both[0].state_dict())
    turned = [both[0].weight]
    groups = parameter_groups(both[0], decay_all_matrices=False, turned=turned)
    muon = build_optimizer(groups, MuonConfig())
    adamw = build_optimizer(parameter_groups(both[1], decay_all_matrices=False), AdamWConfig())
    for step in range(3):
        for optimizer, layer in ((muon, both[0]), (adamw, both[1])):
            set_rates(optimizer, 0.1, 0.1)
            for parameter in layer.parameters():
                parameter.grad = noise(*parameter.shape, seed=step)
            optimizer.step()
    assert both[0].bias.equal(both[1].bias) and not both[0].weight.equal(both[1].weight)
    assert {*muon.state[both[0].weight]} == {"momentum_buffer"}


def test_directions_count_alike() -> None:
    for shape in ((3, 20, 8), (2, 8, 20), (1, 1, 7)):
        values = torch.linalg.svdvals(orthogonal(noise(*shape)))
        assert values.min() > 0.3 and values.max() < 1.3
    assert orthogonal(torch.zeros(2, 3, 4)).equal(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("backbone", [VIT, SWIN], ids=["vit", "swin"])
def test_muon_takes_the_layers_of_the_blocks(backbone: BackboneConfig) -> None:
    method = build_method(dino(), backbone, 0)
    learner = method.learner()
    assert learner is not None
    matrices = {id(matrix) for matrix in block_matrices(method)}
    for name, parameter in learner.named_parameters():
        layer = name.endswith((".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight"))
        assert (id(parameter) in matrices) == (layer and "patch_embed" not in name), name
    assert len(matrices) == 4 * learner.depth


@pytest.mark.parametrize("config", [AdamWConfig(), SGDConfig(), LARSConfig(), MuonConfig()])
def test_the_flag_stops_a_step_on_the_device(config: OptimConfig) -> None:
    layer = nn.Linear(4, 3)
    groups = parameter_groups(layer, decay_all_matrices=False, turned=[layer.weight])
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
    ema_update(average, network, 0.9, torch.ones(()))
    for old, mine, new in zip(before, average.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), 0.9 * old + 0.1 * new.detach())
