"""What holds for every family of backbones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from leanvit.backbones.base import Ask, Backbone, Features
from leanvit.config import BackboneConfig, TimmConfig
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from tests.tiny import FAMILIES, TIMM, build, esvit, noise, view_batch

UNSEEN_BY_REGIONS: Mapping[str, set[str]] = {}
"""Parameters that region features do not depend on, by kind."""

OURS = {name: config for name, config in FAMILIES.items() if not isinstance(config, TimmConfig)}
"""Families that are written here, block by block."""


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_logits_are_the_attention_and_say_where_tokens_lie(config: BackboneConfig) -> None:
    backbone = build(config).eval()
    image = noise(2, 3, 28, 40)
    (found,) = backbone([image], Ask(hidden=(0,), logits=(0, -1)))
    for logits in found.logits:
        attention = logits.values.softmax(-1)
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    first = found.logits[0]
    tokens = found.hidden[0].sequence().shape[1]
    where = first.where[0]
    assert first.values.shape[-1] == where.shape[-1] and where.shape[0] == first.values.shape[1]
    assert sorted(where[where >= 0].tolist()) == list(range(tokens))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_bf16_stays_near_fp32(config: BackboneConfig) -> None:
    backbone, image = build(config).eval(), noise(2, 3, 32, 32)
    with torch.no_grad():
        exact = backbone.features(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = backbone.features(image)
    assert rough.pooled.dtype == torch.float32
    assert (rough.grid - exact.grid).norm() < 0.03 * exact.grid.norm()


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_extreme_images_stay_finite(config: BackboneConfig) -> None:
    backbone = build(config)
    plain = noise(1, 3, 32, 32)
    for image in (torch.zeros_like(plain), torch.full_like(plain, 1e4), 1e6 * plain):
        (found,) = backbone([image])
        total = found.grid.sum() + found.pooled.sum()
        gradients = torch.autograd.grad(total, list(backbone.parameters()))
        assert found.grid.isfinite().all() and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_every_parameter_has_a_depth(config: BackboneConfig) -> None:
    backbone = build(config)
    layers = dict(backbone.param_layers())
    assert layers.keys() == dict(backbone.named_parameters()).keys()
    assert set(layers.values()) <= set(range(backbone.depth + 2))


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_depths_follow_the_blocks(config: BackboneConfig) -> None:
    backbone = build(config)
    layers = dict(backbone.param_layers())
    assert set(layers.values()) == set(range(backbone.depth + 2))
    assert layers["norm.weight"] == backbone.depth + 1 and next(iter(layers.values())) == 0
    last = [name for name, depth in layers.items() if depth == backbone.depth]
    assert len(list(backbone.blocks())) == backbone.depth
    assert set(last) >= {n for n in layers if n.startswith(last[0].rsplit(".norm1", 1)[0])}


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_logits_are_full_precision_under_bf16(config: BackboneConfig) -> None:
    backbone = build(config).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = backbone([noise(2, 3, 32, 32)], Ask(logits=(0, -1), hidden=(-1,)))
    assert found.hidden[0].grid.dtype == torch.float32
    for logits in found.logits:
        values = logits.values
        assert values.dtype == torch.float32 and not values.equal(values.bfloat16().float())


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_graph_can_be_exported(config: BackboneConfig) -> None:
    """Several views and an `Ask` go in, `Features` come out, for any number of images a view."""
    backbone, views = build(config).eval(), [noise(3, 3, 40, 24), noise(2, 3, 16, 16)]
    ask = Ask(hidden=(0, -1), logits=(0, -1) if "logits" in backbone.can else ())
    shapes = torch.export.ShapesCollection()
    for name, view in zip(("many", "few"), views, strict=True):
        shapes[view] = {0: torch.export.Dim(name, min=1)}
    exported = torch.export.export(
        backbone,
        (views, ask),
        dynamic_shapes=shapes.dynamic_shapes(backbone, (views, ask)),
        strict=False,
    )
    for counts in ((3, 2), (1, 1), (1, 4)):
        views = [noise(b, *v.shape[1:], seed=7) for b, v in zip(counts, views, strict=True)]
        found = exported.module()(views, ask)
        for one, other in zip(found, backbone(views, ask), strict=True):
            assert isinstance(one, Features)
            torch.testing.assert_close(tree_leaves(one), tree_leaves(other))


COMPILED = {
    **{f"{name}, whole": (c, False) for name, c in FAMILIES.items() if name != "swin_skip"},
    **{f"{name}, blocks": (OURS[name], True) for name in ("cvt", "swin", "vil", "vit_full")},
}
"""Networks, and whether their blocks are compiled one by one."""
COMPILING = [
    pytest.param(*case, marks=() if name in ("vit, whole", "swin, blocks") else pytest.mark.long)
    for name, case in COMPILED.items()
]
"""Some take half a minute to compile."""


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
@pytest.mark.parametrize(("config", "blocks"), COMPILING, ids=COMPILED)
def test_compilation_breaks_no_graph(config: BackboneConfig, blocks: bool) -> None:
    """And changes neither features nor gradients, with stochastic depth."""
    plain, backbone = (build(replace(config, drop_path=0.5), torch.float64) for _ in range(2))
    ask = Ask(drop=noise(len(backbone.drop_rates()), 2, 3, seed=9) > -0.5)
    torch.compiler.reset()
    for part in backbone.blocks() if blocks else [backbone]:
        # torch 2.11 traces the gradient of timm's antialiased resizing for fixed sizes alone
        part.compile(backend="aot_eager", fullgraph=True, dynamic=False if config is TIMM else None)

    def run(network: Backbone, sizes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        found = network([noise(b, 3, h, w, dtype=torch.float64) for b, h, w in sizes], ask)
        total = sum((f.grid.square().sum() + f.pooled.sum() for f in found), torch.zeros(()))
        gradients = torch.autograd.grad(total, list(network.parameters()))
        return [f.grid for f in found] + list(gradients)

    for sizes in [((2, 32, 32), (1, 16, 24)), ((1, 48, 32), (2, 16, 24))]:  # then other ones
        torch.testing.assert_close(run(backbone, sizes), run(plain, sizes))


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_stand_ins_for_tensors_do_not_stay(config: BackboneConfig) -> None:
    """What is worked out from sizes is kept, but never from a pass that computes nothing."""
    backbone = build(config).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone.features(torch.empty(1, 3, 36, 28))
    found = backbone.features(noise(1, 3, 36, 28))
    assert type(found.grid) is Tensor and found.grid.isfinite().all()


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_the_region_task_trains_every_family(config: BackboneConfig) -> None:
    """A step of EsViT reaches every parameter of the student that lies before its heads."""
    method = build_method(esvit(), config, seed=0)
    output = method(view_batch(), Moment(step=0, run=10, epoch=0, seed=0))
    output.terms["region"].backward()
    assert output.total.isfinite()
    learner = method.learner()
    assert learner is not None
    untouched = {name for name, p in learner.named_parameters() if p.grad is None}
    assert untouched <= UNSEEN_BY_REGIONS.get(config.kind, set())
