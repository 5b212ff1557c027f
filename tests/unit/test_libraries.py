"""Our networks in timm and torchvision, and theirs here: the same features both ways.

Those of transformers, which takes long to import, have a file of their own.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor, nn

import leanvit
from leanvit.config import BackboneConfig, TimmConfig, ViTConfig
from leanvit.core.errors import RunError
from leanvit.core.files import save_tensors
from leanvit.core.random import seeded
from leanvit.weights import libraries
from leanvit.weights.libraries import LIBRARIES, Comparison, compare
from leanvit.weights.model_folder import WEIGHTS
from tests.tiny import CVT, SWIN, SWIN_SKIP, TIMM, TIMM_CONVOLUTIONS, VIL, VIT, build, noise

RESNET = TimmConfig(image_size=64, name="resnet50")
SWIN_FIVE = replace(SWIN, norm_eps=1e-5)
ADDED = replace(VIT, registers=2, layer_scale=0.5)
BIASED = replace(VIT, position_bias=True)


def write(config: BackboneConfig, library: str, folder: Path) -> list[str]:
    return LIBRARIES[library].write(build(config).eval(), folder)


def changed(config: BackboneConfig, folder: Path) -> tuple[set[str], BackboneConfig]:
    """Return the tensors that are not bit for bit those that were written, and what was read."""
    ours, back = build(config).state_dict(), leanvit.load_backbone(folder)
    found = back.state_dict()
    assert found.keys() == ours.keys()
    return {name for name, value in ours.items() if not found[name].equal(value)}, back.config


# Ours in timm and torchvision

WRITTEN: dict[str, tuple[str, BackboneConfig, set[str]]] = {
    # library, network, parts of the names of tensors that are not written as they are
    "timm swin": ("timm", SWIN, set()),
    "timm swin, its own eps": ("timm", SWIN_FIVE, set()),
    "timm vit": ("timm", VIT, set()),
    "timm vit, another eps": ("timm", replace(VIT, norm_eps=1e-3), set()),
    "timm vit, another eps, mean_norm": (
        "timm",
        replace(VIT, norm_eps=1e-3, pool="mean_norm"),
        set(),
    ),
    "timm vit, mean": ("timm", replace(VIT, pool="mean"), set()),
    "timm vit, mean_norm": ("timm", replace(VIT, pool="mean_norm"), set()),
    "timm vit, all additions": ("timm", ADDED, {"cls_token", "pos_embed"}),
    "timm beit": ("timm", BIASED, {"qkv.bias"}),
    "timm beit, all additions": (
        "timm",
        replace(BIASED, layer_scale=0.5, pool="mean_norm", positions="sincos"),
        {"qkv.bias"},
    ),
    "timm resnet50": ("timm", RESNET, set()),
    "torchvision swin": ("torchvision", SWIN, set()),
    "torchvision swin that pads": ("torchvision", replace(SWIN, image_size=36), set()),
    "torchvision vit": ("torchvision", replace(VIT, norm_eps=1e-5), set()),
    "torchvision vit, mean": ("torchvision", replace(VIT, pool="mean"), set()),
    "torchvision resnet50": ("torchvision", RESNET, set()),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_library_gives_our_features_and_gives_them_back(case: str, tmp_path: Path) -> None:
    library, config, parts = WRITTEN[case]
    ours = build(config).eval()
    ours.mean, ours.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    notes = LIBRARIES[library].write(ours, tmp_path)
    found = compare(ours, tmp_path, library)
    assert isinstance(found, Comparison) and found.apart[(config.image_size,) * 2] < 1e-5
    names, back = changed(config, tmp_path)
    assert {part for part in parts if any(part in name for name in names)} == parts
    assert all(any(part in name for part in parts) for name in names)
    said = sum("norm_layer" in note or "class token; the view" in note for note in notes)
    assert any("class token; the view" in n for n in notes) == (case == "torchvision vit, mean")
    assert len(notes) == bool(parts) + said, "what is changed is said, and nothing else"
    assert back == config
    loaded = leanvit.load_backbone(tmp_path)
    assert (loaded.mean, loaded.std) == (ours.mean, ours.std)


def test_any_network_of_timm_that_is_whole(tmp_path: Path) -> None:
    assert not write(TIMM, "timm", tmp_path)
    ours = build(TIMM).eval()
    found = compare(ours, tmp_path, "timm", [(48, 40)])
    assert isinstance(found, Comparison) and set(found.apart.values()) == {0.0} and not found.notes
    back = leanvit.load_backbone(tmp_path)
    assert isinstance(back.config, ViTConfig), "a plain ViT of timm is one of ours"
    image = noise(1, 3, 32, 32)
    with torch.no_grad():
        assert_near(back.features(image).grid, ours.features(image).grid)


REFUSED: list[tuple[str, BackboneConfig, str]] = [
    ("timm", CVT, "has no CvT; what can hold one: leanvit, esvit, onnx, export"),
    ("torchvision", VIL, "has no Vision Longformer; .* esvit"),
    ("timm", SWIN_SKIP, "do not see the padding"),
    ("torchvision", SWIN_SKIP, "do not see the padding"),
    ("timm", replace(SWIN, image_size=33), "33 pixels .* no multiple of 2"),
    ("timm", replace(BIASED, registers=1), "position_bias without registers"),
    ("timm", TIMM_CONVOLUTIONS, "makes its features wider"),
    ("torchvision", ADDED, "no plain ViT with registers and layer_scale"),
    ("torchvision", BIASED, "no plain ViT with position_bias"),
    ("torchvision", replace(VIT, pool="mean_norm"), "no plain ViT with mean_norm"),
    ("torchvision", replace(VIT, image_size=34), "34 pixels .* no multiple of 4"),
    ("torchvision", replace(SWIN, window=10), r"of 10 tokens shrink to 8"),
    ("torchvision", TIMM, "takes resnet50 .* not test_vit"),
]


@pytest.mark.parametrize(("library", "config", "said"), REFUSED)
def test_what_a_library_does_not_have(
    library: str, config: BackboneConfig, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        write(config, library, tmp_path)
    assert not list(tmp_path.iterdir())


# Verification


@pytest.mark.parametrize(
    ("library", "config", "side", "said"),
    [
        ("timm", SWIN, 36, "at 36 x 36 pixels features differ by .* rolls a map before it pads"),
        ("timm", VIT, 48, "at 48 x 48 pixels features differ by .*antialias"),
        ("timm", VIT, 33, "timm cannot take 33 x 33 pixels .Input height .33."),
        ("timm", BIASED, 48, "timm cannot take 48 x 48 pixels .*: .* its own size alone"),
        ("torchvision", SWIN, 16, "at 16 x 16 pixels features differ by .* shifts windows"),
        ("torchvision", VIT, 48, "torchvision cannot take 48 x 48 .*Wrong image height"),
        ("timm", SWIN, 48, ""),
        ("torchvision", SWIN, 36, ""),
    ],
)
def test_other_sizes_are_measured(
    library: str, config: BackboneConfig, side: int, said: str, tmp_path: Path
) -> None:
    write(config, library, tmp_path)
    found = compare(build(config), tmp_path, library, [(side, side)])
    assert isinstance(found, Comparison) and found.apart[32, 32] < 1e-5
    if not said:
        assert not found.notes and found.apart[side, side] < 1e-5
    else:
        (note,) = found.notes
        assert re.search(said, note), note


def tamper(folder: Path, change: Callable[[Tensor], Tensor]) -> None:
    state = load_file(folder / WEIGHTS)
    name = next(name for name in state if name.endswith("mlp.fc1.weight"))
    save_tensors(state | {name: change(state[name])}, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("change", [lambda x: x * 1.1, lambda x: x * torch.nan])
def test_another_function_is_not_kept(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    write(VIT, "timm", tmp_path)
    tamper(tmp_path, change)
    with pytest.raises(RunError, match="timm gives other features for images of 32 x 32"):
        compare(build(VIT), tmp_path, "timm")


def test_maps_that_timm_pads_are_no_network_of_timm(tmp_path: Path) -> None:
    config = replace(SWIN, image_size=36)
    write(config, "timm", tmp_path)
    with pytest.raises(RunError, match="rolls a map before it pads"):
        compare(build(config), tmp_path, "timm")


def test_without_the_library_nothing_is_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(libraries, "missing", lambda *_: "it is not installed")
    assert compare(build(VIT), tmp_path, "huggingface") == "it is not installed"
    with pytest.raises(ValueError, match="Unknown library 'tim'; did you mean 'timm'"):
        compare(build(VIT), tmp_path, "tim")


# In the hands of a user


def picture() -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize(
    "config",
    [SWIN, VIT, replace(VIT, pool="mean"), RESNET],
    ids=["swin", "vit", "vit of a mean", "resnet50"],
)
def test_the_code_on_the_card_runs(library: str, config: BackboneConfig, tmp_path: Path) -> None:
    ours = build(config).eval()
    ours.mean, ours.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    LIBRARIES[library].write(ours, tmp_path)
    known: dict[str, Any] = {"image": picture()}
    with torch.no_grad(), seeded(0, "classifier"):
        exec(LIBRARIES[library].usage(config, str(tmp_path)), known)
        pixels = known["transform"](picture())[None]
        assert pixels.shape == (1, 3, config.image_size, config.image_size)
        expected = ours.features(pixels)
    assert_near(known["pooled"], expected.pooled)
    raw = pixels * torch.tensor(ours.std).view(3, 1, 1) + torch.tensor(ours.mean).view(3, 1, 1)
    assert raw.min() > -0.5 and raw.max() < 1.5 and 0.4 < raw.mean() < 0.6
    if library == "timm":
        body, other = (known[n].state_dict() for n in ("network", "classifier"))
        assert all(other[name].equal(value) for name, value in body.items())
        assert known["classifier"].eval()(pixels).shape == (1, 10)


# Theirs here


def shaken(model: nn.Module) -> nn.Module:
    """Return a network whose every number says something."""
    draw = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.mul_(0.5 + torch.rand(value.shape, generator=draw))
        elif value.is_floating_point():
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
    return model.eval()


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Compare within 1e-5 of the largest."""
    atol = float(1e-5 * expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def timm_swin(**options: Any) -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(1, 2),
        window_size=4,
        **options,
    )


def timm_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model(name, **sizes | options)


def torchvision_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 8, [2, 2], [1, 2], [4, 4])


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 4, 2, 2, 16, 64)


SIZE, HEADS = {"image_size": 32}, {"heads": (2,)}
READ: dict[str, tuple[Callable[[], nn.Module], BackboneConfig | None, dict[str, Any]]] = {
    "timm swin": (timm_swin, SWIN_FIVE, SIZE),
    "timm vit": (timm_vit, None, HEADS),
    "timm vit without head": (lambda: timm_vit(num_classes=0), None, HEADS),
    "timm vit, class token without position": (
        lambda: timm_vit(no_embed_class=True, reg_tokens=4, init_values=0.1),
        None,
        HEADS,
    ),
    "timm deit, distilled": (
        lambda: timm_vit("deit_tiny_distilled_patch16_224"),
        None,
        HEADS,
    ),
    "timm beit": (
        lambda: timm_vit("beit_base_patch16_224", use_abs_pos_emb=True, global_pool="token"),
        None,
        {},
    ),
    "timm resnet50": (lambda: timm.create_model("resnet50"), None, {}),
    "torchvision swin": (torchvision_swin, SWIN_FIVE, SIZE | {"layout": "torchvision"}),
    "torchvision vit": (torchvision_vit, None, HEADS),
    "torchvision resnet50": (torchvision.models.resnet50, None, {}),
}


@pytest.mark.parametrize("case", READ)
def test_networks_of_a_library_are_read(case: str, tmp_path: Path) -> None:
    make, expected, options = READ[case]
    with seeded(0, "reference"):
        model = shaken(make())
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    ours = leanvit.load_backbone(tmp_path / "weights.pth", options=options)
    assert expected is None or ours.config == expected
    images = noise(2, 3, 32, 32)
    library = LIBRARIES[case.split()[0]]
    for end in ("head", "heads", "fc"):
        if library.package == "torchvision" and hasattr(model, end):
            setattr(model, end, nn.Identity())
    with torch.no_grad():
        found = ours.features(images)
        regions, pooled = library.features(ours.config, model, images)
    theirs = regions[:, -found.grid[0, ..., 0].numel() :]
    assert_near(found.grid.flatten(1, 2), theirs)
    if "distilled" not in case:  # whose head takes both tokens
        assert pooled is not None
        assert_near(found.pooled, pooled)


@pytest.mark.parametrize("name", ["test_vit", "resnet50"])
def test_folders_of_timm_say_what_weights_do_not(name: str, tmp_path: Path) -> None:
    """A folder as on the hub: heads of the architecture, mean and deviation."""
    with seeded(0, "reference"):
        model: Any = shaken(timm.create_model(name))
    model.pretrained_cfg["mean"] = (0.5, 0.25, 0.125)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    ours = leanvit.load_backbone(tmp_path)
    assert ours.mean == (0.5, 0.25, 0.125)
    side = ours.config.image_size
    images = noise(1, 3, side, side)
    with torch.no_grad():
        found, tokens = ours.features(images), model.forward_features(images)
    expected = tokens[:, 1:] if tokens.ndim == 3 else tokens.flatten(2).mT
    assert_near(found.grid.flatten(1, 2), expected)
