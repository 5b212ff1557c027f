"""Window attention on the CPU against torch's operators, for windows of several sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from leanvit.kernels import chunk_products
from leanvit.kernels.window_attention import _attend, window_attention
from leanvit.kernels.windows import Shapes, WindowLayout, window_layout
from tests.tiny import noise

CPU = torch.device("cpu")
CASES: dict[str, tuple[Shapes, int, int, bool]] = {
    "whole windows": (((2, 14, 7),), 7, 0, False),
    "padded": (((2, 12, 12), (3, 3, 3)), 7, 0, False),
    "shifted and padded": (((2, 14, 14), (2, 6, 13)), 7, 3, False),
    "padding skipped": (((2, 14, 14), (2, 6, 13)), 7, 3, True),
    "window of 14": (((1, 28, 28), (1, 24, 24)), 14, 7, False),
    "one token": (((1, 1, 1),), 4, 2, False),
}


def inputs(shapes: Shapes, window: int, heads: int = 3, width: int = 8) -> list[Tensor]:
    """Return qkv [N, 3C], fill [3C], bias [H, T, T] and the gradient of outputs [N, C], in fp64."""
    tokens, channels = sum(b * h * w for b, h, w in shapes), heads * width
    sizes = ((tokens, 3 * channels), (3 * channels,), (heads, window**2, window**2))
    return [noise(*s, seed=n).double() for n, s in enumerate((*sizes, (tokens, channels)))]


def results(attend: Any, given: list[Tensor], *rest: Any) -> list[Tensor]:
    """Return outputs and the gradients of qkv, fill (zeros without padding) and bias."""
    leaves = [x.detach().requires_grad_() for x in given[:3]]
    out, _ = attend(*leaves, *rest)
    return [out.detach(), *torch.autograd.grad(out, leaves, given[3], materialize_grads=True)]


@pytest.mark.parametrize("chunk", [1, 2**18], ids=["a window at a time", "all at once"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_chunks_equal_the_operators_of_torch(
    case: tuple[Shapes, int, int, bool], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is one key there, and many here."""
    monkeypatch.setattr(chunk_products, "_LOGITS", chunk)
    shapes, window, shift, skip = case
    layout = window_layout(shapes, window, shift, CPU, skip)
    exact = inputs(shapes, window)
    wanted = results(_attend, exact, layout, False)
    torch.testing.assert_close(results(window_attention, exact, layout), wanted)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        qkv, fill, bias, gradient = exact
        given = [qkv.to(dtype), fill.float(), bias.float(), gradient.to(dtype)]
        rounded = [given[0], fill.to(dtype), given[2], given[3]]
        right = results(_attend, [x.double() for x in rounded], layout, False)
        for mine, other in zip(results(window_attention, given, layout), right, strict=True):
            assert (mine.double() - other).norm() <= bound * other.norm() + 1e-12


def test_autocast_leaves_logits_alone() -> None:
    """Under autocast the same bits come out: inside, nothing is rounded again."""
    layout = window_layout(((1, 9, 9),), 7, 3, CPU)
    given = [x.float() for x in inputs(((1, 9, 9),), 7)]
    plain = results(window_attention, given, layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = results(window_attention, given, layout)
    assert all(one.equal(other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize("size", [1e3, 1e15])
def test_huge_logits_choose_one_key(size: float) -> None:
    shapes = ((2, 9, 10),)
    layout = window_layout(shapes, 7, 3, CPU)
    qkv, fill, bias, gradient = inputs(shapes, 7)
    given = [size * qkv, fill, bias, gradient]
    found = results(window_attention, given, layout)
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found, results(_attend, given, layout, False))


def test_masked_tokens_are_seen_where_their_logits_are_larger() -> None:
    """-100 is a number, as in the published networks."""
    shapes = ((1, 14, 14),)
    layout = window_layout(shapes, 7, 3, CPU)
    qkv, fill, bias, gradient = inputs(shapes, 7, heads=1, width=4)
    far = qkv.clone()
    far[:, 4:8] = 0
    far[0, 4:8] = 1e4 * qkv[100, :4]
    given = [far, fill, bias, gradient]
    torch.testing.assert_close(
        results(window_attention, given, layout), results(_attend, given, layout, False)
    )


def test_nothing_of_the_size_of_all_logits_is_kept() -> None:
    """What the backward pass keeps is the rows that came in and small tables."""
    shapes = ((8, 28, 28),)
    layout: WindowLayout = window_layout(shapes, 7, 3, CPU)
    qkv, fill, bias, _ = (x.float().requires_grad_() for x in inputs(shapes, 7))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        window_attention(qkv, fill, bias, layout)
    sizes = {x.data_ptr(): x.numel() for x in kept}.values()
    assert qkv.numel() <= sum(sizes) < 1.2 * qkv.numel()
