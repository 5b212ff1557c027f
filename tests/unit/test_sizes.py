"""Sizes of the named backbones, against closed forms and what the papers print."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import leanvit
from leanvit.backbones.sizes import BackboneSize, multiply_adds
from leanvit.config import BACKBONES, BackboneConfig, SwinConfig, ViTConfig
from tests.tiny import FAMILIES, build

TABLE = leanvit.describe_backbones()
SIZES: Mapping[str, BackboneSize] = {size.name: size for size in TABLE.backbones}
DOCUMENT = Path(__file__).parents[2] / "docs" / "backbones.md"


def vit_products(config: ViTConfig) -> int:
    """Return a ViT's multiply-adds for a square image: 12 D^2 a token, 2 D a pair of tokens."""
    patches = (config.image_size // config.patch) ** 2
    tokens, dim = patches + 1 + config.registers, config.dim
    block = 12 * tokens * dim**2 + 2 * tokens**2 * dim
    return 3 * config.patch**2 * patches * dim + config.depth * block


def swin_products(config: SwinConfig) -> int:
    """Return a Swin's multiply-adds for an image whose maps windows of 7 fill."""
    tokens, dim = (config.image_size // config.patch) ** 2, config.dim
    total = 3 * config.patch**2 * tokens * dim
    for stage, depth in enumerate(config.depths):
        if stage:
            tokens, dim = tokens // 4, 2 * dim
            total += tokens * 2 * dim * dim
        total += depth * tokens * (12 * dim**2 + 2 * 49 * dim)
    return total


def test_every_name_has_its_size() -> None:
    assert list(SIZES) == leanvit.list_backbones()
    for name, size in SIZES.items():
        assert (size.family, size.image_size) == (BACKBONES[name].kind, BACKBONES[name].image_size)
        assert size.regions == (size.image_size // size.stride,) * 2
    assert leanvit.describe_backbones(["vit_tiny"]).backbones == [SIZES["vit_tiny"]]


def test_closed_forms_give_the_same_multiply_adds() -> None:
    for name, config in BACKBONES.items():
        if isinstance(config, ViTConfig):
            assert SIZES[name].multiply_adds == vit_products(config)
        elif isinstance(config, SwinConfig) and config.window == 7:
            assert SIZES[name].multiply_adds == swin_products(config)


@pytest.mark.parametrize(
    ("name", "published"),
    [("swin_tiny", 4.5), ("swin_small", 8.7), ("swin_base", 15.4), ("swin_large", 34.5)],
)
def test_swins_have_the_papers_multiply_adds(name: str, published: float) -> None:
    assert round(SIZES[name].multiply_adds / 1e9, 1) == published


@pytest.mark.parametrize(
    ("name", "published"), [("vit_tiny_h12", 1.258), ("vit_small_h12", 4.608), ("vit_base", 17.58)]
)
def test_vits_have_the_lightweight_papers_multiply_adds(name: str, published: float) -> None:
    """Its counter adds five a normed channel and the 1000 classes."""
    config = BACKBONES[name]
    assert isinstance(config, ViTConfig)
    norms = 2 * config.depth * 197 * config.dim * 5
    counted = (SIZES[name].multiply_adds + norms + 1000 * config.dim) / 1e9
    assert counted == pytest.approx(published, abs=0.0005 if published < 10 else 0.005)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_equal_blocks_may_be_run_once(config: BackboneConfig) -> None:
    backbone = build(config).eval().to("meta")
    image = torch.empty(1, 3, 40, 28, device="meta")
    backbone.require_size(40, 28)  # for networks of timm a trial, which the counter would count
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        grid = backbone.features(image).grid
    assert multiply_adds(backbone, image) == (counter.get_total_flops() // 2, grid.shape[1:3])


def test_the_document_has_the_table() -> None:
    """Print it anew with `leanvit backbones`."""
    tables = re.findall(r"```text\n(backbone .*?)\n```", DOCUMENT.read_text(), re.DOTALL)
    assert tables == [str(TABLE)]
