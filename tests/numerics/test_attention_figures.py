"""Figures of attention against plain loops, and where their values are known beforehand."""

import math

import pytest
import torch
from torch import Tensor

from leanvit.analysis.attention import (
    PAPER_STEP,
    Attention,
    attention_of,
    measure,
    uniform,
)
from leanvit.backbones.base import Ask, Logits, Tokens
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig
from tests.tiny import CVT, SWIN, VIL, VIT, VIT_FULL


def seen(logits: Tensor, h: int, w: int, prefix: int = 0) -> Attention:
    """Return attention among regions of logits [B, H, T, T] without windows."""
    tokens = Tokens(torch.zeros(len(logits), h, w, 1), torch.zeros(len(logits), prefix, 1))
    where = torch.arange(logits.shape[-1])[None, None]
    return attention_of(Logits(logits[:, None], where), tokens)


def by_hand(matrix: Tensor, h: int, w: int, step: tuple[float, float]) -> list[float]:
    """Return distance, entropy and mutual information of one head's attention [N, N]."""
    n = h * w
    distance = entropy = 0.0
    for q in range(n):
        for k in range(n):
            share = float(matrix[q, k])
            rows, columns = q // w - k // w, q % w - k % w
            distance += share * math.hypot(rows * step[0], columns * step[1]) / n
            entropy -= share * math.log(share + 1e-6) / n
    joint = matrix / n
    keys = joint.sum(0)
    shared = sum(
        float(joint[q, k]) * math.log(float(joint[q, k]) * n / float(keys[k]))
        for q in range(n)
        for k in range(n)
        if joint[q, k] > 0
    )
    among = -sum(float(p) * math.log(float(p)) for p in keys if p > 0)
    return [distance, entropy, shared / math.sqrt(among * math.log(n))]


@pytest.mark.parametrize("config", [VIT, VIT_FULL, SWIN, CVT, VIL], ids=lambda c: c.kind)
@pytest.mark.parametrize("size", [32, 24])
def test_figures_are_those_of_a_loop(config: BackboneConfig, size: int) -> None:
    backbone = build_backbone(config).eval().double()
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    every = tuple(range(backbone.depth))
    with torch.no_grad():
        (features,) = backbone([images], Ask(hidden=every, logits=every))
    for logits, tokens in zip(features.logits, features.hidden, strict=True):
        attention = attention_of(logits, tokens)
        matrix = attention.matrix()
        assert torch.allclose(matrix.sum(-1), torch.ones_like(matrix[..., 0]), atol=1e-6)
        h, w = attention.grid
        step = (size / h, size / w)
        found = measure(attention, step)
        assert found.shape == (2, logits.values.shape[2], 3)
        expected = torch.tensor(by_hand(matrix[1, -1], h, w, step))
        assert torch.allclose(found[1, -1].double(), expected.double(), atol=2e-4)
        for query in (0, h * w - 1):
            assert torch.allclose(attention.row(query), matrix[:, :, query])


def test_prefix_tokens_are_cut_before_the_softmax() -> None:
    logits = torch.randn(2, 3, 2 + 12, 2 + 12)
    alone = seen(logits[..., 2:, 2:], 3, 4)
    cut = seen(logits, 3, 4, prefix=2)
    assert torch.allclose(cut.matrix(), alone.matrix(), atol=1e-6)


def test_attention_that_goes_everywhere_alike_is_that_of_the_paper() -> None:
    step = (16.0, 16.0)
    distance, entropy, nmi = measure(seen(torch.zeros(1, 1, 196, 196), 14, 14), step)[0, 0].tolist()
    even = uniform((14, 14), step)
    assert entropy == pytest.approx(math.log(196), abs=1e-3) and nmi == pytest.approx(0, abs=1e-4)
    assert distance == pytest.approx(even["distance"], rel=1e-5) == pytest.approx(116.5, abs=0.05)
    paper = uniform((14, 14), (PAPER_STEP, PAPER_STEP))["distance"]
    assert paper == pytest.approx(101.93, abs=0.01)


def test_a_region_that_looks_at_itself_alone() -> None:
    logits = torch.full((1, 1, 12, 12), -torch.inf).diagonal_scatter(
        torch.zeros(1, 1, 12), dim1=-2, dim2=-1
    )
    distance, entropy, nmi = measure(seen(logits, 3, 4), (8.0, 8.0))[0, 0].tolist()
    assert distance == 0 and entropy == pytest.approx(0, abs=1e-5) and nmi == pytest.approx(1)


def test_all_that_look_at_one_region_share_nothing() -> None:
    logits = torch.zeros(1, 1, 12, 12)
    logits[..., 5] = 1e4
    distance, entropy, nmi = measure(seen(logits, 3, 4), (8.0, 8.0))[0, 0].tolist()
    assert distance > 0 and entropy == pytest.approx(0, abs=1e-5) and nmi == 0


def test_padding_of_windows_is_no_region() -> None:
    backbone = build_backbone(SWIN).eval()
    with torch.no_grad():  # 20 pixels: maps of 10 and 5 tokens in windows of 4
        (features,) = backbone([torch.randn(1, 3, 20, 20)], Ask(hidden=(0, 3), logits=(0, 3)))
    for logits, tokens in zip(features.logits, features.hidden, strict=True):
        assert (logits.where < 0).any()
        attention = attention_of(logits, tokens)
        matrix = attention.matrix()
        assert torch.allclose(matrix.sum(-1), torch.ones_like(matrix[..., 0]), atol=1e-6)
        assert measure(attention, (2.0, 2.0)).isfinite().all()
