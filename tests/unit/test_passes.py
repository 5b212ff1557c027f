"""What is computed again or compiled gives the same numbers, and leaves nothing behind a step."""

import copy
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._pytree import tree_leaves

from leanvit.backbones.base import Ask, Backbone, Manner, call_block
from leanvit.backbones.timm_adapter import TimmNetwork
from leanvit.backbones.timm_blocks import blocks_of
from leanvit.bench.machine import in_own_process
from leanvit.config import (
    BackboneConfig,
    DmaeConfig,
    MixConfig,
    RunConfig,
    SGDConfig,
    TimmConfig,
    constant,
)
from leanvit.config.run import settled
from leanvit.core import compiling
from leanvit.core.errors import RunError
from leanvit.core.memory import extra_bytes
from leanvit.core.recompute import block_again
from leanvit.kernels import branches
from leanvit.methods.catalogue import build_method
from leanvit.train.state import TrainState
from tests.tiny import (
    CVT,
    FAMILIES,
    HEAD,
    SWIN,
    TIMM,
    TIMM_CONVOLUTIONS,
    VIL,
    VIT,
    build,
    d2mae,
    dino,
    dmae,
    esvit,
    mae,
    mocov3,
    noise,
    run_config,
    simmim,
    supervised,
    view_batch,
    write_backbone,
)

AGAIN: Mapping[str, Manner] = {
    "full": Manner(partial(block_again, call_block)),
    "selective": Manner(mlps_again=True),
}
NETWORKS: Mapping[str, BackboneConfig] = {
    **FAMILIES,
    **{name: TimmConfig(image_size=32, name=f"test_{name}") for name in ("resnet", "convnext")},
    "efficientnet": TimmConfig(image_size=32, name="test_efficientnet"),
    "stages": TimmConfig(image_size=32, name="regnetz_005"),
}
WITHOUT_MLPS = ("timm_convolutions", "resnet", "efficientnet", "stages")
CASES = [(n, how) for n in NETWORKS for how in AGAIN if how == "full" or n not in WITHOUT_MLPS]


def dropping(config: BackboneConfig) -> BackboneConfig:
    """Return the network with stochastic depth, where it has any."""
    return config if config == NETWORKS["resnet"] else replace(config, drop_path=0.5)


def drop_of(network: Backbone, samples: int) -> Tensor | None:
    rates = network.drop_rates()
    return noise(len(rates), 2, samples, seed=3) > 0 if any(rates) else None


def learned(network: Backbone, views: list[Tensor], ask: Ask) -> list[Tensor]:
    """Return everything that a pass gives and changes, and the gradients of all parameters."""
    found = network(views, ask)
    given = [x for x in tree_leaves(found) if x.requires_grad]
    weights = [noise(*x.shape, seed=n).to(x.dtype) for n, x in enumerate(given)]
    finite = [torch.where(x.isfinite(), x, 0.0) for x in given]  # masked logits
    # as in a step, autocast is over when the gradients are made
    with torch.autocast("cpu", enabled=False):
        torch.autograd.backward(finite, weights)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [*(x.detach() for x in tree_leaves(found)), *gradients, *network.buffers()]


def same(ours: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all bits are the same."""
    return len(ours) == len(others) and all(map(torch.equal, ours, others))


# Recomputation


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "how"), CASES)
def test_every_bit_is_the_same(name: str, how: str, precision: str) -> None:
    """With stochastic depth, hidden states, logits and batch norm, whose statistics move once."""
    plain, thrifty = (build(dropping(NETWORKS[name])) for _ in range(2))
    thrifty.manner = AGAIN[how]
    views = [noise(3, 3, 32, 32), noise(2, 3, 48, 32)]
    ask = Ask(hidden=(0, -1), drop=drop_of(plain, 5))
    if "logits" in plain.can:
        ask = replace(ask, logits=(0, -1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours, others = learned(thrifty, views, ask), learned(plain, views, ask)
    assert same(ours, others)


@pytest.mark.parametrize("how", AGAIN)
@pytest.mark.parametrize("name", ["cvt", "swin", "vil", "vit", "vit_full"])
def test_hidden_patches_are_the_same(name: str, how: str) -> None:
    plain, thrifty = (build(dropping(FAMILIES[name])) for _ in range(2))
    thrifty.manner = AGAIN[how]
    side = 32 // plain.stage_strides[0]
    asks = [Ask(fill=(noise(2, side, side) > 0, noise(plain.stage_dims[0])))]
    if "keep" in plain.can:
        asks.append(Ask(keep=torch.tensor([[5, 0, 3], [1, 2, 9]]), drop=drop_of(plain, 2)))
    for ask in asks:
        views = [noise(2, 3, 32, 32)]
        assert same(learned(thrifty, views, ask), learned(plain, views, ask))


def kept(function: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps for itself of what a function does."""
    bytes_: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        bytes_[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function()
    return sum(bytes_.values())


@pytest.mark.parametrize("name", ["vit", "swin", "cvt", "vil", "timm", "convnext"])
def test_less_is_kept(name: str) -> None:
    network = build(NETWORKS[name])
    views, found = [noise(8, 3, 32, 32)], []
    for manner in (AGAIN["full"], AGAIN["selective"], Manner()):
        network.manner = manner
        found.append(kept(lambda: network(views)))
    assert found[0] < 0.6 * found[2] and found[1] < 0.9 * found[2]


def held_after_forward() -> list[int]:
    """Return the bytes that a ViT takes for its forward pass: plainly, without MLPs, by blocks."""
    torch.set_num_threads(1)
    branches.WIDE = 1  # what a wide network keeps
    config = replace(VIT, image_size=64, dim=64, depth=6)
    network, views, found = build(config), [noise(32, 3, 64, 64)], []
    network(views)
    for manner in (Manner(), AGAIN["selective"], AGAIN["full"]):
        network.manner = manner
        gc.collect()
        found.append(extra_bytes(lambda: network(views), "cpu"))
    return found


def test_less_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system sees it, in a process that gives back at once what it frees."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    plain, selective, full = in_own_process(held_after_forward)
    tokens = 4 * 32 * 257 * 64  # bytes of the tokens of all images
    assert plain > 6 * 11 * tokens  # of a single view; of several, another
    assert plain - selective > 6 * 4.5 * tokens - 10 * tokens  # but for the block at hand
    assert full < 6 * 2 * tokens + 13 * tokens


def test_without_gradients_nothing_is_done_twice() -> None:
    network, calls = build(VIT), [0]
    network.manner = AGAIN["full"]
    block = next(iter(network.blocks()))
    block.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    with torch.no_grad():
        network.features(noise(1, 3, 32, 32))
    assert calls == [1]
    network.features(noise(1, 3, 32, 32)).pooled.sum().backward()
    assert calls == [3]


def test_networks_of_timm_say_what_cannot_be_done() -> None:
    state_of("timm convolutions", recompute="full")
    with pytest.raises(ValueError, match=r"test_mambaout has no MLPs .*: set train.recompute to f"):
        state_of("timm convolutions", recompute="selective")
    flat = replace(TIMM_CONVOLUTIONS, name="vgg11")
    with pytest.raises(ValueError, match=r"vgg11 has no blocks: set train\.recompute and"):
        build(flat).require_manner(AGAIN["full"])
    network = build(TIMM)
    assert isinstance(network, TimmNetwork)
    network.network.blocks, network.manner = ("fc_norm",), AGAIN["full"]
    with pytest.raises(ValueError, match="does not run its blocks one by one"):
        network([noise(1, 3, 32, 32)])


def test_blocks_of_timm_hold_almost_everything() -> None:
    import timm

    for name, count in {
        "resnet50": 16,
        "swin_tiny_patch4_window7_224": 12,
        "convnext_tiny": 18,
    }.items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        blocks = blocks_of(model)
        held = sum(p.numel() for b in blocks for p in model.get_submodule(b).parameters())
        assert len(blocks) == count
        assert held > 0.9 * sum(p.numel() for p in model.parameters())


# In a step

METHODS: Mapping[str, Mapping[str, Any]] = {
    "esvit": {"method": esvit(), "backbone": replace(SWIN, depths=(4, 2), drop_path=0.3)},
    "dino": {"method": dino(), "backbone": replace(VIT, drop_path=0.3)},
    "cvt": {"method": esvit(), "backbone": replace(CVT, drop_path=0.3)},
    "vil": {"method": esvit(), "backbone": replace(VIL, drop_path=0.3, neighbors="one")},
    "timm": {"method": dino(), "backbone": replace(TIMM, drop_path=0.3)},
    "timm convolutions": {"method": dino(), "backbone": TIMM_CONVOLUTIONS},
    "batch norm": {"method": dino(), "backbone": NETWORKS["resnet"]},
    "batch norm in heads": {"method": esvit(head=replace(HEAD, batch_norm=True))},
    "micro-batches": {"method": esvit(), "accumulate": 2},
    "mae": {"method": mae(), "backbone": replace(VIT, drop_path=0.3)},
    "dmae": {"method": dmae(hidden_layers=(1,)), "backbone": VIT},
    "d2mae": {"method": d2mae(attention_layers=(1,)), "backbone": VIT},
    "simmim": {"method": simmim(), "backbone": replace(SWIN, drop_path=0.3)},
    "mocov3": {"method": mocov3(), "backbone": replace(VIT, drop_path=0.3)},
    "supervised": {
        "method": supervised(average=0.9, mix=MixConfig(views=1)),
        "backbone": replace(VIT, drop_path=0.3),
    },
}
ONLY_WHOLE = ("timm convolutions", "batch norm")
STEPPED = [(n, how) for n in METHODS for how in AGAIN if how == "full" or n not in ONLY_WHOLE]


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Write a teacher, and name it to the methods that have one."""
    path = write_backbone(tmp_path_factory.mktemp("teacher"), build(replace(VIT, heads=4)))
    TEACHER.append(str(path))


TEACHER: list[str] = []


def state_of(name: str, dtype: torch.dtype = torch.float32, **train: object) -> TrainState:
    """Return a method before its first step."""
    entry = dict(METHODS[name])
    train = {"accumulate": entry.pop("accumulate", 1), **train}
    config: RunConfig = replace(
        run_config(**train), optim=SGDConfig(lr=constant(0.01), lr_rule="none"), **entry
    )
    if isinstance(config.method, DmaeConfig):
        config = replace(config, method=replace(config.method, teacher=TEACHER[0]))
    method = build_method(config.method, config.backbone, seed=0).to(dtype)
    return TrainState(method, config, epoch_steps=5)


def stepped(state: TrainState, steps: int = 2) -> TrainState:
    """Do some steps."""
    parts, dtype = settled(state.config.train.accumulate), next(state.method.parameters()).dtype
    for _ in range(steps):
        at = state.begin_step()
        for micro in view_batch(seed=10 * state.step, dtype=dtype).split(parts):
            state.backward(micro, at, parts)
        state.update(at)
        state.require_sound()
    return state


@pytest.mark.parametrize(("name", "how"), STEPPED)
def test_a_step_changes_the_same(name: str, how: str) -> None:
    plain = stepped(state_of(name)).tensors()
    thrifty = stepped(state_of(name, recompute=how)).tensors()
    assert plain.keys() == thrifty.keys()
    assert same(list(plain.values()), list(thrifty.values()))


def test_only_the_learner_computes_again_and_only_in_a_step() -> None:
    state = state_of("esvit", recompute="full")
    learner, encoder = state.method.learner(), state.method.encoder()
    assert learner is not None
    calls = {learner: 0, encoder: 0}

    def count(network: Backbone, *_: object) -> None:
        calls[network] += 1

    for network in calls:
        next(iter(network.blocks())).register_forward_pre_hook(partial(count, network))
    stepped(state, 1)
    assert calls == {learner: 2, encoder: 1}
    assert {network.manner for network in calls} == {Manner()}
    learner.features(noise(1, 3, 32, 32)).pooled.sum().backward()
    assert calls[learner] == 3
    with state.passes.step():
        assert learner.manner != Manner()
        with pytest.raises(ZeroDivisionError), state.passes.step():
            raise ZeroDivisionError
        assert copy.deepcopy(state.method.encoder()).manner == Manner()
    assert learner.manner == Manner()


# Compilation


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Let torch compile without a compiler of machine code; return the graphs, as they come."""
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        found.append(graph)
        compiled: Callable[..., Any] = aot_eager(graph, inputs)
        return compiled

    monkeypatch.setattr(compiling, "BACKEND", backend)
    return found


KINDS = {
    "esvit": 5 + 4,
    "dino": 2 + 1,
    "cvt": 2 + 2,
    "vil": 4 + 3,
    "mae": 2,
    "dmae": 2 + 2,
    "timm": 2 * 2 + 2,
}
"""Blocks of a learner (with stochastic depth, which its first has not) and of a teacher, but twins.

What gives logits is another kind; networks of timm see views of one size at a time."""
BOTH = ("esvit", "dmae", "timm")
"""Methods that are compiled with all ways to compute again."""
COMPILED = [(n, how) for n in KINDS for how in ("none", *AGAIN) if how == "none" or n in BOTH]


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
@pytest.mark.parametrize(("name", "how"), COMPILED)
def test_equal_blocks_are_compiled_once(
    name: str, how: str, graphs: list[torch.fx.GraphModule]
) -> None:
    """And compute what they compute otherwise, with what is computed again too."""
    state = state_of(name, torch.float64, compile="blocks", recompute=how)
    stepped(state, 1)
    first = len(graphs)
    stepped(state, 1)
    assert len(graphs) == first == KINDS[name] == state.passes.row()["compiled"]
    assert 0 < state.passes.row()["compile_s"] < 60
    ours, others = state.tensors(), stepped(state_of(name, torch.float64)).tensors()
    assert ours.keys() == others.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, others[key], rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_compiled_outside_of_a_step(graphs: list[torch.fx.GraphModule]) -> None:
    state = stepped(state_of("dino", compile="blocks"), 1)
    names = list(state_of("dino").method.state_dict())
    assert list(state.method.state_dict()) == names
    before = len(graphs)
    learner = state.method.learner()
    assert learner is not None
    for network in (learner, state.method.encoder(), copy.deepcopy(state.method).encoder()):
        network.eval().features(noise(1, 3, 24, 24))
    assert len(graphs) == before > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", AGAIN)
def test_what_is_compiled_and_computed_again_is_the_same(
    how: str, precision: str, graphs: list[torch.fx.GraphModule]
) -> None:
    state = partial(state_of, "dino", compile="blocks", precision=precision)
    plain, thrifty = (stepped(state(recompute=word)).tensors() for word in ("none", how))
    assert same(list(plain.values()), list(thrifty.values()))


def cannot(_: torch.fx.GraphModule, __: list[Tensor]) -> Callable[..., Any]:
    raise OSError("no such compiler\nand more")


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_compiled_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", cannot)
    state = state_of("dino", compile="blocks")
    said = r"cannot compile .*\(OSError: no such compiler\).* --train.compile none"
    with pytest.raises(RunError, match=said):
        stepped(state)


@pytest.mark.filterwarnings("ignore")
def test_more_kinds_than_torch_takes_end_the_run(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than that they run without compilation."""
    monkeypatch.setattr(compiling, "VARIANTS", 2)
    with pytest.raises(RunError, match=r"--train\.compile none"):
        stepped(state_of("dino", compile="blocks"))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["none", *AGAIN])
def test_machine_code_computes_the_same(how: str) -> None:
    """But for rounding: in fp64, torch 2.11 cannot compile the gradient of its attention."""
    state = stepped(state_of("dino", compile="blocks", recompute=how))
    assert state.passes.row()["compiled"] == KINDS["dino"]
    ours, others = state.tensors(), stepped(state_of("dino")).tensors()
    for key, value in ours.items():
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)
