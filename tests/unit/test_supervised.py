"""Supervised training: a step written out plainly, mixing, the average, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.config import BackboneConfig, MixConfig, TimmConfig
from leanvit.data.batch import ViewBatch
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.mixing import mix_views
from leanvit.methods.supervised import Supervised
from tests.tiny import CLASSES, SWIN, TIMM, VIT, noise, random_method, supervised, view_batch

AT = Moment(step=3, run=10, epoch=0, seed=0)
ONCE = MixConfig(views=1, switch=0.0)


def method(backbone: BackboneConfig = VIT, **changes: object) -> Supervised:
    """Return the method with random weights, in fp64."""
    found = random_method(Supervised, supervised(**changes), backbone)
    found.head.weight.data = noise(*found.head.weight.shape, seed=1, dtype=torch.float64)
    return found


@pytest.mark.parametrize("mix", [MixConfig(views=0), ONCE, MixConfig(views=1, switch=1.0)])
@pytest.mark.parametrize("backbone", [VIT, SWIN, TIMM], ids=lambda b: b.kind)
def test_a_step_is_that_of_the_paper(backbone: BackboneConfig, mix: MixConfig) -> None:
    found, batch = method(backbone, mix=mix), view_batch(6, dtype=torch.float64)
    out = found(batch, AT)
    (views,), mixing = mix_views(batch.groups[:1], mix, AT.seed, AT.step)
    share = 1.0 if mixing is None else float(mixing.own[0])
    hard = functional.one_hot(batch.target, CLASSES).double() * 0.9 + 0.1 / CLASSES
    target = share * hard + (1 - share) * hard[[1, 0, 3, 2, 5, 4]]
    logits = found.backbone.features(views[0]).pooled @ found.head.weight.T + found.head.bias
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(out.total, expected, rtol=1e-10, atol=1e-10)
    trained = dict(found.named_parameters())
    ours = torch.autograd.grad(out.total, list(trained.values()))
    theirs = torch.autograd.grad(expected, list(trained.values()))
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)
    assert out.stats.keys() == {"feature_std", "accuracy"}
    assert (share < 1) == bool(mix.views)


def test_mixing_belongs_to_the_step() -> None:
    """Every process and micro-batch mixes its part as the whole batch is mixed."""
    batch = view_batch(8, dtype=torch.float64)

    def mixed(step: int, parts: int) -> Tensor:
        found = [mix_views(part.groups[:1], ONCE, 0, step)[0][0] for part in batch.split(parts)]
        return torch.cat(found, 1)

    assert mixed(3, 2).equal(mixed(3, 1)) and mixed(3, 4).equal(mixed(3, 1))
    assert not mixed(4, 1).equal(mixed(3, 1))


def test_the_average_is_what_remains() -> None:
    found = method(average=0.9)
    assert found.average is not None
    assert found.encoder() is found.average and found.learner() is found.backbone
    before = [p.clone() for p in found.average.parameters()]
    found.after_step(AT, torch.ones(()))
    for old, now, learner in zip(
        before, found.average.parameters(), found.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * learner)
    assert found.classifiers() == {
        "": (found.backbone, found.head),
        "averaged": (found.average, found.average_head),
    }
    assert found.backbones() == [found.average, found.backbone]
    plain = method()
    assert plain.encoder() is plain.backbone and plain.learner() is None
    assert plain.classifiers() == {"": (plain.backbone, plain.head)}


def test_the_head_is_averaged_beside_its_backbone() -> None:
    found = method(average=0.9)
    assert found.average_head is not None and not found.average_head.weight.requires_grad
    before = found.average_head.weight.clone()
    found.after_step(AT, torch.ones(()))
    torch.testing.assert_close(found.average_head.weight, 0.9 * before + 0.1 * found.head.weight)
    assert not found.head.weight.equal(before)


def test_the_average_knows_what_batch_norms_saw() -> None:
    """It never runs in training, so statistics of its own would stay as they were drawn."""
    found = method(TimmConfig(image_size=64, name="test_resnet"), average=0.5)
    found.train()
    found(view_batch(8, dtype=torch.float64), AT)
    found.after_step(AT, torch.ones(()))
    assert found.average is not None
    ours, theirs = dict(found.average.named_buffers()), dict(found.backbone.named_buffers())
    fresh = dict(build_method(supervised(average=0.5), found.backbone.config, 0).named_buffers())
    assert any(name.endswith("running_var") for name in ours)
    for name, value in ours.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, 0.5 * theirs[name] + 0.5 * fresh[f"average.{name}"].double()
            )
        else:
            assert value == theirs[name] == 1


def test_stochastic_depth_is_drawn_by_image() -> None:
    backbone = replace(VIT, drop_path=0.5)
    found, batch = method(backbone, mix=MixConfig(views=0)), view_batch(4, dtype=torch.float64)
    seen: list[Tensor] = []
    found.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    order = torch.tensor([2, 0, 3, 1])
    found(batch, AT)
    groups = (batch.groups[0][:, order],)
    found(replace(batch, groups=groups, index=batch.index[order]), AT)
    found(replace(batch, index=batch.index + 9), AT)
    torch.testing.assert_close(seen[1], seen[0][order])
    assert not torch.allclose(seen[2], seen[0])


def test_stochastic_depth_is_drawn_for_every_place_of_an_image() -> None:
    """The same pixels at eight places: the first draws as it does alone, parts as the whole."""
    found = method(replace(VIT, drop_path=0.5), mix=MixConfig(views=0))
    one = view_batch(1, dtype=torch.float64)
    same = torch.zeros(8, dtype=torch.long)
    often = ViewBatch((one.groups[0].repeat(1, 8, 1, 1, 1),), same, same, copy=torch.arange(8))
    seen: list[Tensor] = []
    found.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for batch in (one, replace(often, copy=None), often, *often.split(4)):
        found(batch, AT)
    alone, unnumbered, together, *parts = seen
    torch.testing.assert_close(unnumbered, alone.expand(8, -1))
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(together, torch.cat(parts))
    assert sum(not row.allclose(alone[0]) for row in together) > 2


def test_classes_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"set method\.classes"):
        build_method(supervised(classes="auto"), VIT, 0)
