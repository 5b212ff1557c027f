"""Branches of blocks in chunks, against the same modules one after another."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend

from leanvit.backbones.base import Packed
from leanvit.backbones.catalogue import build_backbone
from leanvit.backbones.layers import LayerNorm, Mlp, mlp_of
from leanvit.backbones.swin import SwinBlock
from leanvit.config import BackboneConfig, SwinConfig, ViTConfig
from leanvit.kernels import branches, linear
from leanvit.kernels.branches import fits
from leanvit.kernels.window_branch import chunks
from leanvit.kernels.windows import window_layout
from tests.tiny import SWIN, build, noise

CONFIG = SwinConfig(image_size=32, patch=4, dim=12, depths=(2,), heads=(3,), window=4)
NOTHING = Packed(torch.zeros(0), ())
"""How blocks usually run."""
SHAPES = ((2, 8, 8), (3, 5, 6))
"""Maps that fill their windows, and maps that are padded."""


@pytest.fixture(params=["oneDNN", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_onednn", lambda: request.param == "oneDNN")


@pytest.fixture(params=[8, 50, 10_000], ids="chunks of {}".format)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "CHUNK", request.param)


@pytest.fixture(params=[1, 10_000], ids=["kept", "again"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the layer in is kept for the backward pass, or done again."""
    monkeypatch.setattr(branches, "WIDE", request.param)


def spread(module: nn.Module) -> None:
    """Give every parameter a value of its own."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=number) / parameter.shape[-1] ** 0.5)


def graded(out: Tensor, module: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    given = [x, *module.parameters()]
    return [out, *torch.autograd.grad(out, given, gradient.to(out.dtype))]


def close(found: list[Tensor], wanted: list[Tensor], share: float) -> None:
    for mine, right in zip(found, wanted, strict=True):
        assert mine.shape == right.shape
        assert (mine.double() - right.double()).norm() <= share * right.double().norm()


# An MLP


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = LayerNorm(6), Mlp(6, 4)
        spread(self)


@pytest.mark.usefixtures("library", "chunk", "kept")
@pytest.mark.parametrize("tokens", [1, 30, 0])
def test_an_mlp(tokens: int) -> None:
    """Values with and without gradients, and gradients, against fp64; bf16 against the same."""
    branch, exact = Branch(), Branch().double()
    x, gradient = noise(tokens, 6).requires_grad_(), noise(tokens, 6, seed=1)
    wide = x.detach().double().requires_grad_()
    right = exact.mlp.fc2(functional.gelu(exact.mlp.fc1(exact.norm(wide))))
    wanted = graded(right, exact, wide, gradient)
    out = mlp_of(NOTHING, x, branch.norm, branch.mlp)
    assert "_Branch" in type(out.grad_fn).__name__
    close(graded(out, branch, x, gradient), wanted, 1e-5)
    with torch.no_grad():
        close([mlp_of(NOTHING, x, branch.norm, branch.mlp)], [right], 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = mlp_of(NOTHING, x, branch.norm, branch.mlp)
    assert rough.dtype == torch.bfloat16
    found = graded(rough, branch, x, gradient)
    assert all(each.dtype == torch.float32 for each in found[1:])
    close(found, wanted, 2e-2)


@pytest.mark.usefixtures("chunk")
def test_hidden_rows_made_again_are_the_same() -> None:
    branch, x, gradient = Branch(), noise(30, 6).requires_grad_(), noise(30, 6, seed=1)
    found = []
    for again in (False, True):
        packed = replace(NOTHING, mlps_again=again)
        out = mlp_of(packed, x, branch.norm, branch.mlp)
        if again:
            assert len(out.grad_fn.saved_tensors) == 1  # type: ignore[union-attr]
        found.append(graded(out, branch, x, gradient))
    assert all(one.equal(other) for one, other in zip(*found, strict=True))


def test_a_frozen_branch_passes_gradients_on() -> None:
    branch, x = Branch().requires_grad_(False), noise(3, 6).requires_grad_()
    (mine,) = torch.autograd.grad(mlp_of(NOTHING, x, branch.norm, branch.mlp).sum(), x)
    (right,) = torch.autograd.grad(branch.mlp(branch.norm(x)).sum(), x)
    torch.testing.assert_close(mine, right)


def test_a_second_derivative_is_refused() -> None:
    branch, x = Branch(), noise(3, 6).requires_grad_()
    out = mlp_of(NOTHING, x, branch.norm, branch.mlp)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(gradient.sum(), x)


def test_what_stands_in_place_of_a_layer_is_called() -> None:
    class Doubled(linear.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    branch, x = Branch(), noise(3, 6)
    plain = mlp_of(NOTHING, x, branch.norm, branch.mlp)
    doubled = Doubled(24, 6)
    doubled.load_state_dict(branch.mlp.fc2.state_dict())
    own, branch.mlp.fc2 = branch.mlp.fc2, doubled
    torch.testing.assert_close(mlp_of(NOTHING, x, branch.norm, branch.mlp), 2 * plain)
    branch.mlp.fc2 = own
    for module in (branch.norm, branch.mlp, branch.mlp.fc1, own):
        seen: list[Any] = []
        hook = module.register_forward_hook(lambda *given, seen=seen: seen.append(given))
        torch.testing.assert_close(mlp_of(NOTHING, x, branch.norm, branch.mlp), plain)
        hook.remove()
        assert len(seen) == 1, module
    bare = linear.Linear(24, 6, bias=False)
    branch.mlp.fc2 = bare
    assert not fits(x, branch.mlp, branch.norm, branch.mlp.fc1, bare)
    assert mlp_of(NOTHING, x, branch.norm, branch.mlp).shape == (3, 6)


# Attention within windows


def swin(shift: int, skip: bool, dtype: torch.dtype) -> tuple[SwinBlock, Packed]:
    block = SwinBlock(CONFIG, 0, 4, shift)
    spread(block)
    layouts = tuple(
        window_layout(SHAPES, 4, moved, torch.device("cpu"), skip) for moved in (0, shift)
    )
    tokens = sum(b * h * w for b, h, w in SHAPES)
    return block.to(dtype), Packed(noise(tokens, 12).to(dtype), SHAPES, plan=layouts)


def attention(block: SwinBlock, packed: Packed) -> Tensor:
    """Module after module."""
    out, _ = block.attn(packed.with_(block.norm1(packed.x)), False)
    return out


@pytest.mark.usefixtures("library", "chunk", "kept")
@pytest.mark.parametrize("skip", [False, True], ids=["padding seen", "skipped"])
@pytest.mark.parametrize("shift", [0, 2])
def test_attention_within_windows(shift: int, skip: bool) -> None:
    (block, packed), (exact, wide) = (swin(shift, skip, d) for d in (torch.float32, torch.float64))
    for each in (packed, wide):
        each.x.requires_grad_()
    gradient = noise(len(packed.x), 12, seed=5)
    own, right = (nn.ModuleList([each.norm1, each.attn]) for each in (block, exact))
    wanted = graded(attention(exact, wide), right, wide.x, gradient)
    out, logits = block.attend(packed, False)
    assert "_Branch" in type(out.grad_fn).__name__ and not logits
    close(graded(out, own, packed.x, gradient), wanted, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = block.attend(packed, False)
    assert rough.dtype == torch.bfloat16
    close(graded(rough, own, packed.x, gradient), wanted, 3e-2)


def test_logits_are_those_of_the_modules() -> None:
    block, packed = swin(2, False, torch.float32)
    found, logits = block.attend(packed, True)
    assert len(logits) == len(SHAPES)
    torch.testing.assert_close(found, block.attend(packed, False)[0])


def test_a_hook_on_a_layer_is_called() -> None:
    block, packed = swin(0, False, torch.float32)
    for module in (block.attn, block.attn.qkv, block.norm1):
        seen: list[Any] = []
        hook = module.register_forward_hook(lambda *given, seen=seen: seen.append(given))
        block.attend(packed, False)
        hook.remove()
        assert len(seen) == 1, module


@pytest.mark.usefixtures("chunk")
def test_every_token_is_in_one_piece() -> None:
    tables = window_layout(SHAPES, 4, 2, torch.device("cpu")).tables
    assert tables is not None
    seen = []
    for tokens, pieces in chunks(tables, 3):
        assert sum(piece.rows.stop - piece.rows.start for piece in pieces) == len(tokens)
        seen.append(tokens)
    assert torch.cat(seen).equal(tables.tokens_by_run)


def test_nothing_but_the_input_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "CHUNK", 50)  # of less than all tokens
    block, packed = swin(2, False, torch.float32)
    packed.x.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        out, _ = block.attend(packed, False)
    of_tokens = {x.data_ptr() for x in kept if len(x) == len(packed.x)}
    assert of_tokens == {packed.x.data_ptr()} and out.requires_grad


# Listening


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [SWIN, SwinConfig(), ViTConfig()], ids=["4", "Swin-T", "ViT"])
def test_who_listens_sees_the_same_numbers(config: BackboneConfig, dtype: torch.dtype) -> None:
    """Hooks turn chunks off; `leanvit replay` listens, and does a step again to the last bit."""
    network = build_backbone(config)
    for parameter in network.parameters():
        parameter.data.add_(noise(*parameter.shape) * 0.02)
    side = config.image_size
    views = [noise(2, 3, side, side), noise(3, 3, side // 2 + 16, side // 2 + 16)]
    found = []
    for listens in (False, True):
        if listens:
            for module in network.modules():
                module.register_forward_hook(lambda *_: None)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            found.append(network(views))
    for alone, heard in zip(*found, strict=True):
        assert alone.pooled.equal(heard.pooled) and alone.grid.equal(heard.grid)


def test_no_logits_are_written_out_to_attend(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would, for a bias with a gradient: a third of the speed, and slow where it masks."""
    chosen, ask = [], functional.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        chosen.append(SDPBackend(torch._fused_sdp_choice(q, k, v, bias)))
        return ask(q, k, v, bias)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noted)
    (found,) = build(SWIN)([noise(2, 3, 40, 32)])
    assert found.grid.requires_grad
    assert len(chosen) >= 4 and set(chosen) == {SDPBackend.FLASH_ATTENTION}
