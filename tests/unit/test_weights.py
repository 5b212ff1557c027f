"""One file that is a backbone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import leanvit
from leanvit.config import BackboneConfig
from leanvit.core.files import save_tensors
from leanvit.weights.file import FILE, header, read_header
from tests.tiny import FAMILIES, SWIN, build, noise


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_file_loads_alone(config: BackboneConfig, tmp_path: Path) -> None:
    backbone = build(config).eval()
    facts = {"mean": [0.5] * 3, "method": "esvit"}
    save_tensors(backbone.state_dict(), tmp_path / FILE, header(backbone, facts))
    assert read_header(tmp_path / FILE)["method"] == "esvit"
    for place in (tmp_path, tmp_path / FILE, str(tmp_path / FILE)):
        loaded = leanvit.load_backbone(place)
        assert loaded.config == config and not loaded.training
        image = noise(1, 3, 36, 28)
        assert loaded.features(image).grid.equal(backbone.features(image).grid)


def test_a_name_gives_untrained_weights() -> None:
    first, second = leanvit.load_backbone("vit_tiny"), leanvit.load_backbone("vit_tiny")
    assert "vit_tiny" in leanvit.list_backbones()
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_is_no_backbone_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    backbone = build(SWIN)
    state = dict(backbone.state_dict())
    state.pop("norm.weight")
    save_tensors(state, tmp_path / "cut.safetensors", header(backbone, {}))
    cases: list[tuple[str | Path, str]] = [
        (tmp_path / "missing.safetensors", "no file or folder"),
        (tmp_path, "a folder without model.safetensors"),
        (tmp_path / "text.safetensors", "is text that begins with 'hello'"),
        (tmp_path / "other.safetensors", "none of the layouts that leanvit knows"),
        (tmp_path / "cut.safetensors", "do not fit its own header"),
        ("swin_tinny", "did you mean 'swin_tiny'"),
    ]
    for name, message in cases:
        with pytest.raises(ValueError, match=message):
            leanvit.load_backbone(name)


def test_a_file_is_readable_as_any_other(tmp_path: Path) -> None:
    save_tensors({"x": torch.zeros(1)}, tmp_path / "weights")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode
