"""One file that is a backbone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import leanvit
from leanvit.config import BackboneConfig, to_dict
from leanvit.core.files import save_tensors
from leanvit.weights.file import FILE, header, read_header
from leanvit.weights.names import NAMINGS
from tests.tiny import CVT, FAMILIES, SWIN, VIT, build, noise


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
        (tmp_path / "other.safetensors", "leanvit knows no layout with the names 'x'"),
        (tmp_path / "cut.safetensors", "do not fit its own header"),
        ("swin_tinny", "did you mean 'swin_tiny'"),
    ]
    for name, message in cases:
        with pytest.raises(ValueError, match=message):
            leanvit.load_backbone(name)


def test_a_run_that_has_saved_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has not saved a backbone yet; .* --resume"):
        leanvit.load_backbone(tmp_path)


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    """None of them is worth building a network for."""
    state, usual = {"x": torch.zeros(1)}, to_dict(VIT)
    for number, (facts, match) in enumerate(
        [
            ("[]", "its header names none"),
            ("5", "its header names none"),
            ("{", "not a backbone that leanvit wrote"),
            (json.dumps({"backbone": usual | {"depth": 10**9}}), "do not fit its own header"),
            (json.dumps({"backbone": usual | {"dim": 10**9, "depth": 1}}), "has such sizes"),
            (json.dumps({"backbone": usual | {"depth": 1}}), "'cls_token' is missing"),
        ]
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file(state, path, {"leanvit": facts})
        with pytest.raises(ValueError, match=match):
            leanvit.load_backbone(path)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    backbone = build(CVT)
    state = backbone.state_dict()
    state["stages.0.blocks.0.norm1.bias"][1] = value
    save_tensors(state, tmp_path / FILE, header(backbone, {}))
    theirs = NAMINGS["cvt"].theirs(state)
    torch.save({"teacher": theirs}, tmp_path / "official.pth")
    for path, name in (
        (tmp_path / FILE, "stages.0.blocks.0.norm1.bias"),
        (tmp_path / "official.pth", "teacher.stage0.1.layers.0.0.norm.bias"),
    ):
        with pytest.raises(ValueError, match=f"infinity or NaN stands in '{name}'"):
            leanvit.load_backbone(path, options={} if path.name == FILE else {"heads": CVT.heads})


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_whole_numbers_stand_only_where_something_is_counted(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    backbone = build(CVT)  # its batch norms count batches
    state = NAMINGS["cvt"].theirs(backbone.state_dict())
    torch.save(state, tmp_path / "good.pth")
    leanvit.load_backbone(tmp_path / "good.pth", options={"heads": CVT.heads})
    name = "stage1.1.layers.0.0.fn.proj_out.weight"
    torch.save(state | {name: state[name].to(dtype)}, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=f"'{name}' holds whole numbers .* quantized"):
        leanvit.load_backbone(tmp_path / "whole.pth", options={"heads": CVT.heads})


def test_options_have_an_effect_or_are_refused(tmp_path: Path) -> None:
    backbone = build(VIT)
    path = tmp_path / "model.safetensors"  # as Hugging Face would have it called
    save_tensors(backbone.half().state_dict(), path, header(backbone, {"mean": [0.5] * 3}))
    for place in (path, tmp_path, "vit_tiny"):
        found = leanvit.load_backbone(place, options={"std": (0.1, 0.2, 0.3)})
        assert found.std == (0.1, 0.2, 0.3)
        assert found.mean == ((0.5,) * 3 if place != "vit_tiny" else (0.485, 0.456, 0.406))
        with pytest.raises(ValueError, match=r"says itself .*; layout and heads help to read"):
            leanvit.load_backbone(place, options={"heads": (1,), "layout": "dino"})


def test_a_file_is_readable_as_any_other(tmp_path: Path) -> None:
    save_tensors({"x": torch.zeros(1)}, tmp_path / "weights")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode
