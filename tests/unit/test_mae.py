"""Masked autoencoders: what is hidden, what is seen, what a teacher adds, what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.backbones.base import Ask
from leanvit.backbones.vit import ViT
from leanvit.config import (
    BackboneConfig,
    CropConfig,
    D2maeConfig,
    DecoderConfig,
    DmaeConfig,
    MaeConfig,
    ViTConfig,
)
from leanvit.core.files import save_tensors
from leanvit.data.batch import ViewBatch
from leanvit.losses.attention_distil import attention_distillation, hidden_distillation
from leanvit.losses.masked import images_of, patch_moments, patches_of, pixel_targets
from leanvit.methods.base import Moment, learner_ask
from leanvit.methods.catalogue import build_method
from leanvit.methods.d2mae import D2MAE
from leanvit.methods.dmae import DMAE
from leanvit.methods.mae import MAE
from leanvit.methods.masking import mask_noise, visible_count, visible_patches
from leanvit.weights.file import header
from tests.tiny import CVT, SWIN, TIMM, VIL, VIT, build, noise

SIZE = 32
DECODER = DecoderConfig(dim=8, depth=1, heads=2)
SHARED: dict[str, Any] = {"views": CropConfig(size=SIZE), "decoder": DECODER}
TEACHER = ViTConfig(image_size=SIZE, patch=4, dim=24, depth=5, heads=3, drop_path=0.0)
AT = Moment(step=0, run=10, epoch=0, seed=0)


def saved(config: BackboneConfig, folder: Path) -> str:
    backbone = build(config)
    path = folder / "teacher.safetensors"
    save_tensors(backbone.state_dict(), path, header(backbone, {}))
    return str(path)


def batch(count: int = 3) -> ViewBatch:
    index = torch.arange(count)
    return ViewBatch((noise(1, count, 3, SIZE, SIZE),), index, torch.zeros(count))


# Pixels and masks


def test_patches_are_rows_columns_channels() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    patches = patches_of(images, 4)
    assert patches.shape == (2, 4, 48)
    assert patches[1, 1, (2 * 4 + 3) * 3 + 1] == images[1, 1, 2, 4 + 3]
    assert images_of(patches, 4).equal(images)


def test_targets_have_unbiased_deviation_one() -> None:
    images = noise(2, 3, 8, 8)
    target = pixel_targets(images, 4, normalize=True)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.var(-1, correction=1), torch.ones(2, 4), atol=1e-5, rtol=0)
    mean, deviation = patch_moments(patches_of(images, 4))
    torch.testing.assert_close(target * deviation + mean, patches_of(images, 4))
    some = torch.tensor([[3, 0], [1, 2]])
    of_some = pixel_targets(images, 4, normalize=True, hidden=some)
    assert of_some.equal(torch.stack([target[0, [3, 0]], target[1, [1, 2]]]))
    plain = pixel_targets(torch.full((1, 3, 8, 8), 7.0), 4, normalize=True)
    assert plain.abs().max() == 0, "a patch of one color is no division by zero"


def test_masks_follow_the_image_alone() -> None:
    first = mask_noise(torch.tensor([3, 5]), 16, AT)
    assert mask_noise(torch.tensor([5]), 16, AT)[0].equal(first[1]), "whatever the batch"
    for other in (replace(AT, epoch=1), replace(AT, seed=1)):
        assert not mask_noise(torch.tensor([3, 5]), 16, other).equal(first)
    assert mask_noise(torch.tensor([3, 5]), 16, replace(AT, step=7)).equal(first)
    kept, hidden, mask = visible_patches(first, 4)
    assert (mask.sum(1) == 12).all()
    for row in range(2):
        assert torch.cat([kept[row], hidden[row]]).equal(first[row].argsort())
        assert mask[row, hidden[row]].all()
        assert not mask[row, kept[row]].any()
        assert first[row, kept[row]].max() <= first[row][mask[row]].min()


@pytest.mark.parametrize(("ratio", "left"), [(1.0, "none is left"), (0.0, "is hidden")])
def test_ratios_that_leave_nothing(ratio: float, left: str) -> None:
    with pytest.raises(ValueError, match=left):
        visible_count(16, ratio, "patches")
    assert visible_count(196, 0.75, "patches") == 49
    assert visible_count(100, 0.9, "patches") == 10, "though 100 * (1 - 0.9) is a little less"


# What the encoder sees


def test_the_encoder_sees_no_hidden_patch() -> None:
    method = MAE(MaeConfig(**SHARED), VIT).eval()
    images = noise(2, 3, SIZE, SIZE)
    seen = method.hide(mask_noise(torch.arange(2), 64, AT))
    assert seen.kept is not None and seen.kept.shape == (2, 16)
    other = patches_of(images, 4)
    other = torch.where(seen.mask[..., None], other + 100, other)
    with torch.no_grad():
        tokens, changed = (
            method.backbone([x], seen.ask)[0].grid for x in (images, images_of(other, 4))
        )
    assert tokens.shape == (2, 1, 16, VIT.dim), "a quarter of the tokens"
    assert tokens.equal(changed)


@pytest.mark.parametrize("config", [SWIN, CVT, VIL], ids=["swin", "cvt", "vil"])
def test_multi_stage_backbones_see_a_token_in_its_place(config: BackboneConfig) -> None:
    method = MAE(MaeConfig(**SHARED), config).train()
    assert method.fill_token is not None
    found = method(batch(), AT)
    found.total.backward()
    assert method.fill_token.grad is not None and method.fill_token.grad.abs().max() > 0
    images = noise(2, 3, SIZE, SIZE)
    side = method.patch
    seen = method.hide(mask_noise(torch.arange(2), method.rows**2, AT))
    hidden = torch.where(seen.mask[..., None], 100.0, patches_of(images, side))
    with torch.no_grad():
        method.eval()
        first, second = (method.predict(x, seen) for x in (images, images_of(hidden, side)))
    if config is not CVT and config is not VIL:  # whose first convolution sees beyond its patch
        assert first.equal(second)


def test_what_a_learner_draws_is_asked_for() -> None:
    """Stochastic depth and the neighbour of a chunk, as for every other method."""
    config = replace(VIL, neighbors="one", drop_path=0.3)
    method = MAE(MaeConfig(**SHARED), config)
    asked: list[Ask] = []
    method.backbone.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[1]))
    seen = batch()
    method(seen, AT)
    drawn = learner_ask(method.backbone, 1, seen.index, AT, torch.device("cpu"))
    assert drawn.neighbors is not None and drawn.drop is not None
    assert asked[0].neighbors is not None and asked[0].neighbors.equal(drawn.neighbors)
    assert asked[0].drop is not None and asked[0].drop.equal(drawn.drop)


def test_the_loss_is_that_of_hidden_patches() -> None:
    """Written plainly: [B, N, C] errors, a mean over the channels and the hidden patches."""
    method = MAE(MaeConfig(**SHARED, normalize=False), VIT)
    images, drawn = noise(2, 3, SIZE, SIZE), torch.rand(2, 64)
    seen = method.hide(drawn)
    with torch.no_grad():
        prediction = method.predict(images, seen)
        errors = (prediction - patches_of(images, 4)).square().mean(-1)
        expected = torch.stack([errors[b][seen.mask[b]].sum() for b in range(2)]).sum()
        expected = expected / seen.mask.sum()
        found = method.learn(images, drawn).total
    torch.testing.assert_close(found, expected)


def test_bf16_stays_near() -> None:
    method = MAE(MaeConfig(**SHARED), VIT)
    exact = method(batch(), AT).total
    with torch.autocast("cpu", torch.bfloat16):
        rough = method(batch(), AT).total
    assert abs(float(rough.detach() - exact.detach())) < 0.02 * float(exact.detach())


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_images(scale: float) -> None:
    method = MAE(MaeConfig(**SHARED), VIT)
    found = method(replace(batch(), groups=(noise(1, 3, 3, SIZE, SIZE) * scale,)), AT)
    found.total.backward()
    assert found.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


# A teacher


def test_distillation_is_written_as_in_the_paper() -> None:
    student, teacher, adapter = noise(2, 3, 5, 5), noise(2, 4, 5, 5, seed=1), noise(4, 3, seed=2)
    mapped = functional.conv2d(student, adapter[..., None, None])
    expected = (mapped - teacher).square().mean()
    torch.testing.assert_close(attention_distillation(student, teacher, adapter), expected)
    same = attention_distillation(student, student.clone(), None)
    assert same == 0
    tokens, known, matrix = noise(2, 5, 3), noise(2, 5, 4, seed=1), noise(4, 3, seed=2)
    expected = (tokens @ matrix.T - known).square().mean()
    torch.testing.assert_close(hidden_distillation(tokens, known, matrix), expected)


def test_distillation_is_not_rounded() -> None:
    """What a network under autocast gives is compared in fp32, and a huge logit stays finite."""
    logits, maps = (noise(2, 3, 5, 5), noise(2, 4, 5, 5, seed=1)), noise(4, 3, seed=2)
    tokens = noise(2, 5, 3), noise(2, 5, 4, seed=1)
    for loss, (ours, theirs) in (
        (attention_distillation, logits),
        (hidden_distillation, tokens),
    ):
        exact = loss(ours, theirs, maps)
        with torch.autocast("cpu", torch.bfloat16):
            assert loss(ours, theirs, maps).equal(exact)
        rough = loss(ours.bfloat16(), theirs.bfloat16(), maps)
        assert abs(float(rough - exact)) < 0.02 * float(exact)
        assert loss(1e12 * ours, theirs, maps).isfinite()


def distilled(folder: Path, **changes: Any) -> DMAE:
    config = DmaeConfig(**SHARED, teacher=saved(TEACHER, folder), **changes)
    method = build_method(config, VIT, seed=0)
    assert isinstance(method, DMAE)
    return method


def test_teacher_and_student_see_the_same_tokens(tmp_path: Path) -> None:
    """Depth, width and heads differ; logits are those of the visible patches in one order."""
    method = distilled(
        tmp_path,
        attention_layers=(0, -1),
        teacher_attention_layers=(1, -1),
        hidden_layers=(0, 2),
        teacher_hidden_layers=(3, 4),
        attention_weight=0.5,
        hidden_weight=2.0,
    )
    images, drawn = noise(2, 3, SIZE, SIZE), torch.rand(2, 64)
    found = method.learn(images, drawn)
    seen = method.hide(drawn)
    student, teacher = method.backbone, method.teacher.backbone
    (ours,) = student([images], Ask(keep=seen.kept, logits=(0, 2), hidden=(0, 2)))
    (theirs,) = teacher([images], Ask(keep=seen.kept, logits=(1, 4), hidden=(3, 4)))
    attention = sum(
        (torch.einsum("gh,bhts->bgts", m, a.values[:, 0]) - b.values[:, 0]).square().mean()
        for m, a, b in zip(method.head_adapters, ours.logits, theirs.logits, strict=True)
    )
    blocks: list[Any] = list(student.blocks())
    known: list[Any] = list(teacher.blocks())
    pairs = [
        (blocks[1].norm1(ours.hidden[0].sequence()), known[4].norm1(theirs.hidden[0].sequence())),
        (student.norm(ours.hidden[1].sequence()), teacher.norm(theirs.hidden[1].sequence())),
    ]
    hidden = sum(
        (a @ w.T - b).square().mean()
        for w, (a, b) in zip(method.width_adapters, pairs, strict=True)
    )
    torch.testing.assert_close(found.terms["attention"], attention)
    torch.testing.assert_close(found.terms["hidden"], hidden)
    total = found.terms["reconstruction"] + 0.5 * attention + 2.0 * hidden
    torch.testing.assert_close(found.total, total)


def test_a_teacher_is_in_no_checkpoint_and_stays_as_it_is(tmp_path: Path) -> None:
    method = distilled(tmp_path)
    assert not any("backbone" in n for n in method.state_dict() if n.startswith("teacher."))
    before = {n: v.clone() for n, v in method.teacher.backbone.state_dict().items()}
    method.train()
    found = method(batch(), AT)
    found.total.backward()
    assert not method.teacher.backbone.training
    assert all(p.grad is None for p in method.teacher.backbone.parameters())
    assert all(v.equal(before[n]) for n, v in method.teacher.backbone.state_dict().items())
    assert next(method.to(torch.float64).teacher.backbone.parameters()).dtype == torch.float64


def test_a_run_goes_on_with_its_own_teacher_alone(tmp_path: Path) -> None:
    method = distilled(tmp_path)
    state = method.state_dict()
    method.load_state_dict(state)
    (tmp_path / "b").mkdir()
    other = build(replace(TEACHER, dim=48))
    path = tmp_path / "b" / "x.safetensors"
    save_tensors(other.state_dict(), path, header(other, {}))
    config = DmaeConfig(**SHARED, teacher=str(path))
    with pytest.raises(ValueError, match="trained with another teacher"):
        build_method(config, VIT, seed=0).load_state_dict(state)


def test_d2mae_trains_the_lower_blocks_by_pixels_and_all_by_the_teacher(tmp_path: Path) -> None:
    config = D2maeConfig(**SHARED, teacher=saved(TEACHER, tmp_path), decode_from=2)
    method = build_method(config, VIT, seed=0)
    assert isinstance(method, D2MAE)
    images, drawn = noise(2, 3, SIZE, SIZE), torch.rand(2, 64)

    def trained(loss: Callable[[], Tensor]) -> list[bool]:
        method.zero_grad()
        loss().backward()
        layers = method.backbone.layers
        return [layer.mlp.fc1.weight.grad is not None for layer in layers]  # type: ignore[union-attr]

    terms = lambda: method.learn(images, drawn).terms  # noqa: E731
    assert trained(lambda: terms()["reconstruction"]) == [True, True, False]
    further = method.logit_block.qk
    assert further.weight.grad is None
    assert trained(lambda: terms()["attention"]) == [True, True, True]
    assert any(p.grad is not None for p in further.parameters())
    tokens = noise(2, 5, VIT.dim)
    q, k = method.logit_block.qk(method.logit_block.norm1(tokens)).chunk(2, -1)
    heads = [x.view(2, 5, VIT.heads, -1).transpose(1, 2) for x in (q, k)]
    expected = heads[0] @ heads[1].mT / math.sqrt(VIT.dim // VIT.heads)
    torch.testing.assert_close(method.logit_block(tokens), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rough = method.logit_block(tokens)
    assert rough.dtype == torch.float32, "as the logits of every other block"
    torch.testing.assert_close(rough, expected, rtol=0.05, atol=0.02)
    assert isinstance(method.encoder(), ViT) and method.encoder().depth == VIT.depth


def test_hidden_states_of_d2mae_are_those_of_the_backbone(tmp_path: Path) -> None:
    """The further block has logits and nothing else, so -1 means another block here than there."""
    options = {**SHARED, "hidden_layers": (-1,), "decode_from": 2}
    method = build_method(D2maeConfig(**options, teacher=saved(TEACHER, tmp_path)), VIT, seed=0)
    assert isinstance(method, D2MAE)
    assert method.compared == [(VIT.depth - 1, TEACHER.depth - 1)]
    assert method.attention == [(VIT.depth, TEACHER.depth - 1)]
    images, drawn = noise(2, 3, SIZE, SIZE), torch.rand(2, 64)
    kept = method.hide(drawn).kept
    (ours,), (theirs,) = (
        network([images], Ask(keep=kept)) for network in (method.backbone, method.teacher.backbone)
    )
    expected = hidden_distillation(
        torch.cat([ours.prefix, ours.grid.flatten(1, 2)], 1),
        torch.cat([theirs.prefix, theirs.grid.flatten(1, 2)], 1),
        method.width_adapters[0],
    )
    torch.testing.assert_close(method.learn(images, drawn).terms["hidden"], expected)


# What is refused


def test_mistakes_are_named_before_training(tmp_path: Path) -> None:
    teacher = saved(TEACHER, tmp_path)
    cases: list[tuple[MaeConfig, BackboneConfig, str]] = [
        (MaeConfig(**SHARED), TIMM, "hides patches, which TimmNetwork cannot"),
        (MaeConfig(**SHARED | {"views": CropConfig(size=30)}), VIT, "nearest sizes are 28 and 32"),
        (MaeConfig(**SHARED, mask_ratio=0.999), VIT, "none is left to see"),
        (DmaeConfig(**SHARED), VIT, "Name the teacher"),
        (DmaeConfig(**SHARED, teacher="nowhere.pth"), VIT, "no file or folder"),
        (DmaeConfig(**SHARED, teacher=teacher), SWIN, "the student is to be a plain ViT"),
        (DmaeConfig(**SHARED, teacher=teacher), replace(VIT, patch=8), "--backbone.patch 4"),
        (DmaeConfig(**SHARED, teacher=teacher), replace(VIT, registers=2), "registers 0"),
        (DmaeConfig(**SHARED, teacher=teacher, adapt_heads=False), VIT, "adapt_heads to true"),
        (DmaeConfig(**SHARED, teacher=teacher, attention_layers=(3,)), VIT, "no block 3"),
        (D2maeConfig(**SHARED, teacher=teacher, decode_from=4), VIT, "cannot read block 4"),
    ]
    for config, backbone, message in cases:
        with pytest.raises(ValueError, match=message):
            build_method(config, backbone, seed=0)
    with pytest.raises(ValueError, match="Nothing is distilled"):
        DmaeConfig(attention_layers=())
    with pytest.raises(ValueError, match="differ in length"):
        DmaeConfig(teacher_attention_layers=(1, 2))
    with pytest.raises(ValueError, match="divided by 4"):
        DecoderConfig(dim=30)


def test_it_learns_sixteen_images() -> None:
    method = build_method(MaeConfig(**SHARED), VIT, seed=0)
    ramps = torch.linspace(-1, 1, SIZE).view(1, 1, -1) * noise(16, 3, 1, 1).abs()
    images = ramps.expand(16, 3, SIZE, SIZE)[None]
    seen = ViewBatch((images,), torch.arange(16), torch.zeros(16))
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = []
    for step in range(130):
        optimizer.zero_grad()
        found = method(seen, replace(AT, step=step, epoch=step))
        found.total.backward()
        optimizer.step()
        losses.append(float(found.total.detach()))
    assert losses[-1] < 0.5 * losses[0]
