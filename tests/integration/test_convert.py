"""`leanvit convert`, as a user runs it: what is read, written, said and refused."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import leanvit
from leanvit.cli import main
from leanvit.config import BackboneConfig, ViTConfig
from leanvit.core.errors import RunError
from leanvit.core.files import Replacing, save_tensors
from leanvit.weights import converting, official
from leanvit.weights.converting import TARGETS, convert
from leanvit.weights.file import header, read_header
from leanvit.weights.layouts import LAYOUTS
from leanvit.weights.loading import load_backbone
from tests.tiny import CVT, SWIN, SWIN_SKIP, TIMM, VIL, VIT, VIT_FULL, build, noise
from tests.unit.test_libraries import picture

DOCUMENT = Path(__file__).parents[2] / "docs" / "weights.md"
FACTS = {"method": "esvit", "seed": 3, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


def saved(config: BackboneConfig, path: Path) -> Path:
    backbone = build(config)
    save_tensors(backbone.state_dict(), path, header(backbone, FACTS))
    return path


def name_of(to: str) -> str:
    return f"{to}{TARGETS[to].suffixes[0] if TARGETS[to].suffixes else ''}"


OFFICIAL: Mapping[str, tuple[BackboneConfig, ...]] = {
    "swin": (SWIN,),
    "esvit": (SWIN, CVT, VIL, VIT),
    "dinov2": (VIT,),
    "dino": (VIT,),
    "mae_lite": (VIT,),
    "moco_v3": (VIT,),
    "mae": (VIT,),
    "deit": (VIT,),
}


@pytest.mark.parametrize("to", ["leanvit", *OFFICIAL])
def test_there_and_back_is_the_same_state(to: str, tmp_path: Path) -> None:
    for number, config in enumerate(OFFICIAL.get(to, (SWIN, CVT, VIL, VIT, VIT_FULL, TIMM))):
        model = saved(config, tmp_path / f"{number}.safetensors")
        out = tmp_path / str(number) / name_of(to)
        converted = convert(model, out=out, options={"to": to})
        assert max(converted.checked.differences.values()) <= 1e-4
        options: dict[str, Any] = {}
        if to != "leanvit":  # its own files say all
            options = {"image_size": config.image_size}
            heads = {CVT: CVT.heads, VIT: (VIT.heads,)}.get(config)
            options |= {"heads": heads} if heads else {}
        again = load_backbone(out, options=options)
        before = load_backbone(model)
        for name, value in before.state_dict().items():
            assert again.state_dict()[name].equal(value), name
        assert out.with_name(f"{out.name}.md").read_text().startswith("---\n")
        assert not list(out.parent.glob(".*")), "nothing is left beside it"


def test_what_is_known_goes_along(tmp_path: Path) -> None:
    model = saved(SWIN, tmp_path / "a.safetensors")
    convert(model, out=tmp_path / "b.pth", options={"to": "esvit"})
    convert(tmp_path / "b.pth", out=tmp_path / "c.safetensors", options={"mean": (0.5, 0.5, 0.5)})
    facts = read_header(tmp_path / "c.safetensors")
    assert facts["converted_from"] == "esvit"
    assert facts["mean"] == [0.5] * 3 and facts["std"] == [0.229, 0.224, 0.225]
    convert(model, out=tmp_path / "d.safetensors")
    kept = read_header(tmp_path / "d.safetensors")
    assert kept["seed"] == 3 and kept["mean"] == [0.1, 0.2, 0.3]
    card = (tmp_path / "d.safetensors.md").read_text()
    assert "esvit" in card and 'load_backbone("d.safetensors")' in card


def test_the_command_explains_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(VIT, tmp_path / "a.safetensors")
    assert main(["convert", str(model), "--to", "dino", "--out", str(tmp_path / "b.pth")]) == 0
    said = capsys.readouterr().out
    assert "Written to" in said and "features are the same to the last bit: 32 x 32" in said
    assert main(["convert", str(tmp_path / "b.pth"), "--heads", str(VIT.heads)]) == 0
    said = capsys.readouterr().out
    assert "layout dino under 'teacher.backbone'" in said
    assert "blocks.*.attn.qkv.weight" in said and "-> layers.*.attn.qkv.weight" in said
    assert "Written" not in said
    assert main(["convert", str(model), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["read"]["layout"] == "leanvit" and plain["written"] is None
    assert main(["convert", "--help"]) == 0
    assert "--to" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path) -> None:
    model = saved(VIT_FULL, tmp_path / "a.safetensors")
    (tmp_path / "there.safetensors").touch()
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"to": "onx"}, "b", "Unknown format 'onx'; did you mean 'onnx'"),
        ({"to": "onnx"}, "b.pt", "a file that ends in .onnx"),
        ({}, "there.safetensors", "is there already"),
        ({"to": "dino"}, "b.pth", "dino has no ViT with registers and layer_scale"),
        (
            {"to": "swin"},
            "b.pth",
            "swin has no plain ViT; what can hold one: leanvit, esvit, .*, timm, .*onnx, export",
        ),
        ({"graph_size": -1}, "b.safetensors", "graph_size is -1"),
    ]
    for options, out, message in cases:
        with pytest.raises(ValueError, match=message):
            convert(model, out=tmp_path / out, options=options)
        assert not (tmp_path / out).exists() or out.startswith("there")
    with pytest.raises(ValueError, match="an untrained network: there are no weights"):
        convert("vit_tiny", out=tmp_path / "c.safetensors")
    skipping = saved(SWIN_SKIP, tmp_path / "s")
    with pytest.raises(ValueError, match="do not see padding"):
        convert(skipping, out=tmp_path / "d.pth", options={"to": "esvit"})


def test_nothing_is_overwritten_and_no_option_ignored(tmp_path: Path) -> None:
    model = saved(VIT, tmp_path / "a.safetensors")
    (tmp_path / "b.pth.md").write_text("mine")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("b.pth", {"to": "dino"}, r"b\.pth\.md' is there already"),
        ("", {"to": "dino"}, "--to dino needs a place to write to"),
        ("", {"to": "leanvit"}, "--to leanvit needs a place to write to"),
        ("c.pth", {"to": "dino", "graph_size": 64}, "graph_size is of --to onnx and --to export"),
        ("b.pth.md/c.pth", {"to": "dino"}, r"^Cannot write to '[^.]*b\.pth\.md/c\.pth': "),
    ]
    for out, options, message in cases:
        with pytest.raises(ValueError, match=message):
            convert(model, out=out and tmp_path / out, options=options)
    assert (tmp_path / "b.pth.md").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.pth.md"}


@pytest.mark.parametrize(
    "place", ["/proc/b.pth", "{}/a.safetensors/b.pth", "{}/a.safetensors/c/b.pth"]
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(VIT, tmp_path / "a.safetensors")
    monkeypatch.setattr(converting, "open_weights", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(ValueError, match=r"^Cannot write to .*b\.pth': "):
        convert(model, out=place.format(tmp_path), options={"to": "dino"})


@pytest.mark.parametrize(("package", "to"), [("transformers", "huggingface"), ("onnx", "onnx")])
def test_a_package_that_does_not_import_is_no_traceback(
    package: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "site" / package
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('numpy is too old')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    model = saved(VIT, tmp_path / "a.safetensors")
    why = f"{package} is installed, but cannot be imported (numpy is too old)"
    if to == "onnx":
        with pytest.raises(ValueError, match=re.escape(why)):
            convert(model, out=tmp_path / name_of(to), options={"to": to})
    else:
        told = convert(model, out=tmp_path / name_of(to), options={"to": to})
        assert f"NOT VERIFIED: {why}" in str(told)


def test_what_the_other_code_does_differently_is_said(tmp_path: Path) -> None:
    model = saved(replace(VIT, pool="mean", norm_eps=1e-5), tmp_path / "a.safetensors")
    told = convert(model, out=tmp_path / "b.pth", options={"to": "dino"})
    assert "in dino it is the class token's" in str(told)
    assert "norms of dino add 1e-06 to the variance, here 1e-05" in str(told)
    assert b"b.pth" not in (tmp_path / "b.pth").read_bytes(), "nor its name while it was written"
    card = (tmp_path / "b.pth.md").read_text()
    notes = told.checked.notes
    assert len(notes) == 2 and all(f"- {note}\n" in card for note in notes)
    plain = told.to_dict()
    assert plain["backbone"]["pool"] == "mean" and plain["mean"] == [0.1, 0.2, 0.3]


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    backbone = build(VIT)
    backbone.get_parameter("norm.bias").data[3] = float("nan")
    save_tensors(backbone.state_dict(), tmp_path / "a.safetensors", header(backbone, FACTS))
    for out in ("", tmp_path / "b.safetensors"):
        with pytest.raises(ValueError, match=r"an infinity or NaN stands in 'norm\.bias'"):
            convert(tmp_path / "a.safetensors", out=out)
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("to", ["leanvit", "onnx", "export"])
def test_the_code_on_the_card_runs(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a photograph to the features that the backbone gives of the same pixels."""
    model = saved(replace(VIT, depth=1), tmp_path / "a.safetensors")
    convert(model, out=tmp_path / name_of(to), options={"to": to})
    code = (tmp_path / f"{name_of(to)}.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"image": picture().convert("L")}
    exec(code, known)
    pixels = known["pixels"]
    assert pixels.shape == (1, 3, 32, 32)
    raw = pixels * torch.tensor(FACTS["std"]).view(3, 1, 1)
    raw += torch.tensor(FACTS["mean"]).view(3, 1, 1)
    assert raw.std(1).max() < 1e-5 and 0.4 < raw.mean() < 0.6, "a grey picture between 0 and 1"
    expected = load_backbone(model).features(pixels)
    for found, right in ((known["pooled"], expected.pooled), (known["grid"], expected.grid)):
        torch.testing.assert_close(torch.as_tensor(found), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("to", "key", "said"),
    [
        ("esvit", "teacher", "microsoft/esvit loads; names are the network's own"),
        ("dino", "teacher", "facebookresearch/dino loads; names begin with 'backbone.'"),
        ("dinov2", "", "facebookresearch/dinov2 loads"),
    ],
)
def test_the_card_of_an_official_file_says_what_loads_it(
    to: str, key: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(saved(VIT, tmp_path / "a"), out=tmp_path / "b.pth", options={"to": to})
    card = (tmp_path / "b.pth.md").read_text()
    assert said in card
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], known)
    assert known["state"] is (known["checkpoint"][key] if key else known["checkpoint"])
    assert all(isinstance(value, torch.Tensor) for value in known["state"].values())


def test_two_conversions_to_one_name_do_not_meet(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as alive:
        other, left = (tmp_path / f".x.{pid}.tmp" for pid in (alive.pid, 2**22 + 1))
        for path in (other, left):
            path.write_text("half")
        with Replacing(tmp_path / "x") as beside:
            beside.write_text("whole")
        assert other.read_text() == "half", "a process that still writes keeps its file"
        assert not left.exists(), "what a killed one left is removed"
        alive.kill()
    assert (tmp_path / "x").read_text() == "whole"


@pytest.mark.parametrize("to", ["huggingface", "swin"])
def test_where_eps_alone_differs_the_figure_is_said(to: str, tmp_path: Path) -> None:
    """With weak images of patches: far enough apart to be refused as another function."""
    backbone = build(SWIN)
    with torch.no_grad():
        for name, value in backbone.named_parameters():
            if name.startswith("patch_embed.proj"):
                value.mul_(0.3)
    save_tensors(backbone.state_dict(), tmp_path / "a.safetensors", header(backbone, FACTS))
    told = convert(tmp_path / "a.safetensors", out=tmp_path / name_of(to), options={"to": to})
    worst = max(told.checked.differences.values())
    assert 1e-4 < worst <= 1e-3
    assert re.search(r"variance.* features differ|features differ .*variance", str(told))
    assert any(f"{worst:.1e}" in note for note in told.checked.notes)


def test_heads_that_the_other_code_does_not_have(tmp_path: Path) -> None:
    """A ViT of 192 channels has 12 heads in MAE-Lite: 3 would load there and mean nothing."""
    tiny = ViTConfig(image_size=32, patch=8, dim=192, depth=1, heads=3)
    model = saved(tiny, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has 12 heads in mae_lite, this one has 3"):
        convert(model, out=tmp_path / "b.pth", options={"to": "mae_lite"})


def test_a_file_of_other_features_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(SWIN, tmp_path / "a.safetensors")
    write = official.write_official

    def faulty(backbone: Any, layout: str, path: Path) -> None:
        write(backbone, layout, path)
        tree = torch.load(path, weights_only=True)
        tree["teacher"]["norm.bias"] += 1
        torch.save(tree, path)

    monkeypatch.setattr(converting, "write_official", faulty)
    with pytest.raises(RunError, match="so it was not kept"):
        convert(model, out=tmp_path / "b.pth", options={"to": "esvit"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


def test_the_document_names_every_layout_and_format() -> None:
    text = DOCUMENT.read_text()
    read, written = text.split("## What is written")
    assert all(f"| `{name}` |" in read for name in LAYOUTS)
    assert all(f"`{name}`" in written for name in TARGETS)


def test_the_public_functions(tmp_path: Path) -> None:
    model = saved(SWIN, tmp_path / "a.safetensors")
    leanvit.convert(model, out=tmp_path / "b.pth", options={"to": "esvit"})
    backbone = leanvit.load_backbone(tmp_path / "b.pth", options={"image_size": SWIN.image_size})
    image = noise(1, 3, 32, 32)
    assert backbone.features(image).pooled.equal(load_backbone(model).features(image).pooled)
