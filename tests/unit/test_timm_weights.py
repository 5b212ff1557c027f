"""Weights that timm made: by name from the cache of Hugging Face, state files of any network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import leanvit
from leanvit.backbones.timm_adapter import TimmNetwork
from leanvit.backbones.vit import ViT
from leanvit.core.random import seeded
from leanvit.weights.loading import open_weights
from leanvit.weights.timm_weights import trained_tags
from tests.tiny import noise

SHOW = """
import sys, torch, leanvit
found = {}
for name in sys.argv[2:]:
    try:
        backbone = leanvit.load_backbone(name)
    except ValueError as error:
        found[name] = str(error)
        continue
    side = backbone.config.image_size
    image = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
    with torch.no_grad():
        pooled = backbone.features(image).pooled
    found[name] = (type(backbone).__name__, side, backbone.mean, backbone.std, pooled)
torch.save(found, sys.argv[1])
"""
"""What a process of its own makes of names: the cache's place is read when it begins."""


def network(name: str, **options: Any) -> Any:
    """Return timm's network with weights that are all random, and its classifier."""
    with seeded(0, "test"):
        model: Any = timm.create_model(name, **options)
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return model.eval()


def write(model: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def pooled(model: Any, image: torch.Tensor) -> torch.Tensor:
    """Return what timm's head pools, before its classifier."""
    with torch.no_grad():
        found: torch.Tensor = model.forward_head(model.forward_features(image), pre_logits=True)
    return found


def put_into_cache(cache: Path, name: str) -> Any:
    model = network(name)
    place = cache / f"models--timm--{name}"
    write(model, place / "snapshots" / "abc" / "model.safetensors")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    return model


def test_trained_weights_come_from_the_cache_by_name(tmp_path: Path) -> None:
    """Ours where it computes the same, timm's network otherwise."""
    kinds = {"test_vit": "ViT", "test_convnext": "TimmNetwork"}
    kinds["deit_tiny_distilled_patch16_224"] = "TimmNetwork"  # pools two tokens, our ViT one
    known = [f"{name}.{trained_tags(name)[0]}" for name in kinds]
    models = {name: put_into_cache(tmp_path, name) for name in known}
    names = [*models, "test_resnet.r160_in1k", "test_vit.r160", "test_vitt.r160", "test_vit4.x"]
    words = [f"timm:{name}" for name in names]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SHOW, str(tmp_path / "found.pt"), *words]
    subprocess.run(command, env=environment, check=True)
    found = torch.load(tmp_path / "found.pt")
    for name, model in models.items():
        kind, side, mean, std, features = found[f"timm:{name}"]
        assert kind == kinds[name.partition(".")[0]]
        assert (3, side, side) == tuple(model.pretrained_cfg["input_size"])
        assert (mean, std) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        image = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
        torch.testing.assert_close(features, pooled(model, image), rtol=1e-4, atol=1e-5)
    said = [found[word] for word in words[len(models) :]]
    assert "timm:test_resnet.r160_in1k are not in the cache" in said[0]
    assert "offline mode is enabled" in said[0] and "Traceback" not in said[0]
    assert said[1:] == [
        "Unknown trained weights of timm's test_vit 'r160'; did you mean 'r160_in1k'? Known: "
        "r160_in1k.",
        f"timm {timm.__version__} has no network 'test_vitt'; did you mean 'test_vit' or "
        f"'test_vit4' or 'test_vit3'? timm.list_models() lists them.",
        "timm has no trained weights of test_vit4; timm:test_vit4 is untrained.",
    ]


FILES = {
    "convnext_atto": {"head.fc.weight", "head.fc.bias"},  # its head's norm belongs to the network
    "resnet18": {"fc.weight", "fc.bias"},  # whose blocks have the names of its stem
    "efficientvit_b0": set(),
    "mobilenetv3_small_050": {"conv_head.weight", "conv_head.bias", "classifier.weight"},
}


@pytest.mark.parametrize("name", FILES)
def test_a_state_file_of_any_network(name: str, tmp_path: Path) -> None:
    model, file = network(name), tmp_path / "some.safetensors"
    write(model, file)
    options = {"network": f"timm:{name}"}
    weights = open_weights(file, options=options)
    backbone = leanvit.load_backbone(file, options=options)
    assert isinstance(backbone, TimmNetwork) and backbone.config.name == name
    dropped = {row.theirs for row in weights.report.rows if row.fate == "dropped"}
    assert dropped and FILES[name] <= dropped
    assert {row.why for row in weights.report.rows if row.fate == "dropped"} == {"head"}
    image = noise(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_features(image)
        found = backbone.features(image)
    if name in ("convnext_atto", "resnet18"):  # the others' heads widen features, ours has none
        torch.testing.assert_close(found.pooled, pooled(model, image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.grid.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)


def test_a_cut_state_file_is_refused(tmp_path: Path) -> None:
    model, file = network("resnet18"), tmp_path / "some.safetensors"
    state = dict(model.state_dict())
    del state["layer4.1.conv2.weight"]
    save_file(state, file)
    with pytest.raises(ValueError, match=r"1 of .* tensors is missing: 'layer4.1.conv2.weight"):
        leanvit.load_backbone(file, options={"network": "timm:resnet18"})


def folder(model: Any, path: Path, **config: object) -> Path:
    """Write a folder as timm does."""
    write(model, path / "model.safetensors")
    usual = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 160, 160]}
    (path / "config.json").write_text(json.dumps({"pretrained_cfg": usual, **config}))
    return path


@pytest.mark.parametrize(
    ("name", "kind"), [("test_vit", ViT), ("test_vit2", TimmNetwork), ("test_resnet", TimmNetwork)]
)
def test_a_folder_of_timm(name: str, kind: type, tmp_path: Path) -> None:
    model = network(name)
    backbone = leanvit.load_backbone(folder(model, tmp_path / "x", architecture=name))
    assert isinstance(backbone, kind)
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    image = noise(1, 3, 160, 160)
    with torch.no_grad():
        found = backbone.features(image).pooled
    torch.testing.assert_close(found, pooled(model, image), rtol=1e-4, atol=1e-5)


def test_heads_that_a_folder_says_are_those_of_its_network(tmp_path: Path) -> None:
    """The same tensors fit a ViT of timm's usual heads, which gives other features."""
    model = network("test_vit", num_heads=4)
    place = folder(model, tmp_path / "x", architecture="test_vit", model_args={"num_heads": 4})
    backbone, image = leanvit.load_backbone(place), noise(1, 3, 160, 160)
    assert isinstance(backbone, ViT) and backbone.config.heads == 4
    with torch.no_grad():
        found = backbone.features(image).pooled
    torch.testing.assert_close(found, pooled(model, image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("test_resnet", {"act_layer": "gelu"}, "act_layer='gelu'.*other features.*use it in timm"),
        ("test_resnet", {"output_stride": 8}, "output_stride=8.*other features"),
        ("test_vit", {"act_layer": "relu"}, "act_layer='relu'.*other features"),
        ("test_vit", {"global_pool": ""}, "global_pool=''"),
        ("test_vit", {"checkpoint_path": "x.pth"}, "'checkpoint_path'; expected arguments of timm"),
        ("test_vit", {"depth": 10**9}, "1000000000 blocks; expected those that the file has"),
        ("test_vit", {"embed_dim": 96}, "cannot be made of it as its config.json says"),
    ],
)
def test_arguments_that_leanvit_cannot_hold_are_refused(
    name: str, given: dict[str, Any], match: str, tmp_path: Path
) -> None:
    place = folder(network(name), tmp_path, architecture=name, model_args=given)
    for options in ({}, {"network": f"timm:{name}"}):
        with pytest.raises(ValueError, match=match):
            leanvit.load_backbone(place, options=options)
