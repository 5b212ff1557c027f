"""MoCo-v3: a step written out plainly, its parts, what is drawn and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.vit import ViT
from leanvit.config import BACKBONES, BackboneConfig, MocoV3Config
from leanvit.core.random import seeded
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.kernels.linear import Linear
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.mocov3 import MoCoV3, mlp
from leanvit.train.optim import parameter_groups
from tests.tiny import (
    CVT,
    SWIN,
    TIMM,
    TIMM_CONVOLUTIONS,
    VIL,
    VIT,
    mocov3,
    random_method,
    view_batch,
)

AT = Moment(step=0, run=10, epoch=0, seed=0)


def method(backbone: BackboneConfig = VIT, **changes: object) -> MoCoV3:
    """Return the method with random weights, in fp64."""
    found = random_method(MoCoV3, mocov3(**changes), backbone)
    with seeded(1, "test"):
        for parameter in found.teacher.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return found


def plain_mlp(x: Tensor, layers: nn.Sequential) -> Tensor:
    """Linear, batch norm, ReLU and so on, from their weights; the last without ReLU."""
    places = [n for n, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    for place in places:
        linear, norm = layers[place], dict(layers[place + 1].named_parameters())
        assert isinstance(linear, nn.Linear) and list(linear.state_dict()) == ["weight"]
        x = x @ linear.weight.T
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        if place != places[-1]:
            x = (x * norm["weight"] + norm["bias"]).clamp_min(0)
    return x


def plain_step(found: MoCoV3, first: Tensor, second: Tensor) -> Tensor:
    """Return the paper's loss, from pixels of two views."""

    def features(network: nn.Module, view: Tensor) -> Tensor:
        pooled = network.backbone.features(view).pooled  # type: ignore[operator, union-attr]
        return plain_mlp(pooled, network.projector)  # type: ignore[arg-type]

    def contrast(query: Tensor, key: Tensor) -> Tensor:
        logits = functional.normalize(query) @ functional.normalize(key).T / 0.2
        return -2 * 0.2 * logits.log_softmax(1).diagonal().mean()

    queries = [
        plain_mlp(features(found.student, view), found.predictor) for view in (first, second)
    ]
    with torch.no_grad():
        keys = [features(found.teacher, view) for view in (first, second)]
    return contrast(queries[0], keys[1]) + contrast(queries[1], keys[0])


def test_a_step_is_that_of_the_paper() -> None:
    found, batch = method(), view_batch(6, dtype=torch.float64)
    out = found(batch, AT)
    expected = plain_step(found, *batch.groups[0])
    torch.testing.assert_close(out.total, expected, rtol=1e-9, atol=1e-9)
    trained = {n: p for n, p in found.named_parameters() if p.requires_grad}
    ours = torch.autograd.grad(out.total, list(trained.values()))
    theirs = torch.autograd.grad(expected, list(trained.values()))
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, msg=name)
    assert out.terms.keys() == {"contrast"} and out.stats.keys() == {"feature_std", "accuracy"}


def test_keys_follow_slowly() -> None:
    found = method()
    before = [p.clone() for p in found.teacher.parameters()]
    found.after_step(AT, torch.ones(()))
    for old, now, base in zip(
        before, found.teacher.parameters(), found.student.parameters(), strict=True
    ):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * base)
    assert not any(p.requires_grad for p in found.teacher.parameters())


def test_both_networks_begin_alike() -> None:
    found = build_method(mocov3(), VIT, 0)
    assert isinstance(found, MoCoV3)
    for one, other in zip(found.student.parameters(), found.teacher.parameters(), strict=True):
        assert one.equal(other)
    assert found.backbones() == [found.student.backbone, found.teacher.backbone]
    assert found.encoder() is found.student.backbone and found.learner() is None


def test_heads_are_those_of_the_official_checkpoint() -> None:
    """166 tensors of a ViT-Tiny with its projector, 26.2 million trained numbers in all."""
    backbone = replace(BACKBONES["vit_tiny_h12"], positions="sincos")  # type: ignore[call-arg]
    with torch.device("meta"):
        found = MoCoV3(MocoV3Config(freeze_patch_embed=False), backbone)
    assert len(found.student.state_dict()) == 166
    trained = [
        p for group in parameter_groups(found, decay_all_matrices=True) for p in group["params"]
    ]
    assert round(sum(p.numel() for p in trained) / 1e6, 1) == 26.2


def test_heads_begin_as_torch_draws_them() -> None:
    with seeded(0, "heads"):
        ours = [layer for layer in mlp(6, 5, 4) if isinstance(layer, Linear)]
    with seeded(0, "heads"):
        theirs = [nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False)]
    for one, other in zip(ours, theirs, strict=True):
        assert one.weight.equal(other.weight)
    norms = [layer for layer in mlp(6, 5, 4) if isinstance(layer, SyncBatchNorm)]
    assert [norm.affine for norm in norms] == [True, False]


@pytest.mark.parametrize("backbone", [VIT, SWIN, CVT, VIL, TIMM], ids=lambda b: b.kind)
def test_the_patch_embedding_is_frozen_if_asked(backbone: BackboneConfig) -> None:
    frozen, free = (
        build_method(mocov3(), backbone, 0),
        build_method(mocov3(freeze_patch_embed=False), backbone, 0),
    )
    still = {n for n, p in frozen.named_parameters() if not p.requires_grad}
    still -= {n for n, p in free.named_parameters() if not p.requires_grad}
    assert len(still) == 2 and all("embed.proj" in name for name in still)
    frozen(view_batch(), AT).total.backward()
    without = {n for n, p in frozen.named_parameters() if p.requires_grad and p.grad is None}
    assert not without, "other processes would wait for them"


def test_what_has_no_patches_cannot_freeze_their_embedding() -> None:
    with pytest.raises(ValueError, match=r"set method\.freeze_patch_embed to false"):
        build_method(mocov3(), TIMM_CONVOLUTIONS, 0)
    build_method(mocov3(freeze_patch_embed=False), TIMM_CONVOLUTIONS, 0)


def test_draws_belong_to_images() -> None:
    """With stochastic depth, an image's row is the same wherever it stands in the batch."""
    found = method(replace(VIT, drop_path=0.5)).eval()  # batch norm keeps images apart then
    assert isinstance(found.student.backbone, ViT)
    seen: list[Tensor] = []
    found.student.projector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    batch = view_batch(4, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    found(batch, AT)
    moved = replace(batch, groups=(batch.groups[0][:, order],), index=batch.index[order])
    found(moved, AT)
    for view in (0, 1):
        torch.testing.assert_close(seen[2 + view], seen[view][order])
    found(replace(batch, index=batch.index + 9), AT)
    assert not torch.allclose(seen[4], seen[0])
