"""Our networks in transformers, and its networks here: the same features both ways."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import layer_norm

import leanvit
from leanvit.backbones.base import Ask
from leanvit.config import BackboneConfig, TimmConfig
from leanvit.core.errors import RunError
from leanvit.core.files import save_tensors
from leanvit.core.random import seeded
from leanvit.weights.huggingface_format import features, network, usage, write
from leanvit.weights.libraries import Comparison, compare
from leanvit.weights.model_folder import WEIGHTS
from tests.tiny import CVT, SWIN, SWIN_SKIP, VIT, VIT_FULL, build, noise
from tests.unit.test_libraries import SWIN_FIVE, assert_near, picture, shaken

RESNET = TimmConfig(image_size=64, name="resnet50")
ADDED = replace(VIT, registers=2, layer_scale=0.5, norm_eps=1e-12, positions="sincos")
SCALED = replace(VIT, layer_scale=0.5, pool="mean")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of a hub: that would wait for a network that tests do not have."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)


# Ours in transformers

WRITTEN: dict[str, tuple[BackboneConfig, set[str], bool]] = {
    # network, parts of the names of tensors that are not as they were, whether that is said
    "swin": (SWIN, set(), True),
    "swin, its own eps": (SWIN_FIVE, set(), False),
    "swin that pads": (replace(SWIN_FIVE, image_size=36), set(), False),
    "vit": (VIT, {"gamma"}, True),
    "vit, scaled, mean": (SCALED, set(), True),
    "vit, all additions": (ADDED, set(), False),
    "resnet50": (RESNET, set(), False),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_transformers_gives_our_features_and_gives_them_back(case: str, tmp_path: Path) -> None:
    config, parts, said = WRITTEN[case]
    ours = build(config).eval()
    ours.mean, ours.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert bool(write(ours, tmp_path)) == said
    found = compare(ours, tmp_path, "huggingface", [(48, 40)])
    near = 1e-4 if config is SWIN else 1e-5  # some norms add more to the variance
    assert isinstance(found, Comparison) and found.apart[(config.image_size,) * 2] < near
    back = leanvit.load_backbone(tmp_path)
    assert (back.mean, back.std) == (ours.mean, ours.std)
    before, after = ours.state_dict(), back.state_dict()
    changed = {n for n, v in after.items() if n not in before or not before[n].equal(v)}
    assert before.keys() <= after.keys()
    assert {part for part in parts if any(part in name for name in changed)} == parts
    assert all(any(part in name for part in parts) for name in changed)
    if config is VIT:
        config = replace(VIT, layer_scale=1.0)
    assert back.config == config


def test_other_sizes_are_measured(tmp_path: Path) -> None:
    write(build(ADDED), tmp_path)
    found = compare(build(ADDED), tmp_path, "huggingface", [(48, 40)])
    assert isinstance(found, Comparison) and "antialias" in found.notes[0]
    write(build(SWIN), tmp_path)
    found = compare(build(SWIN), tmp_path, "huggingface", [(48, 40), (67, 32), (16, 16), (8, 8)])
    assert isinstance(found, Comparison)
    assert [note.split(":")[0].partition(" pixels")[0] for note in found.notes] == [
        "at 67 x 32",
        "at 16 x 16",
        "transformers cannot take 8 x 8",
    ]


def test_what_transformers_does_not_have(tmp_path: Path) -> None:
    for config, said in (
        (CVT, "huggingface has no CvT"),
        (SWIN_SKIP, "do not see the padding"),
        (replace(SWIN, window=10), "of 10 tokens shrink to 8"),
        (VIT_FULL, "no plain ViT with position_bias"),
        (replace(VIT, pool="mean_norm"), "no plain ViT with mean_norm"),
        (replace(VIT, mlp_ratio=2.5), "whole multiple of its channels, not 2.5"),
        (TimmConfig(image_size=32, name="test_vit"), "takes resnet50"),
    ):
        with pytest.raises(ValueError, match=said):
            write(build(config), tmp_path)


def test_weights_that_are_missing_or_unknown_are_no_success(tmp_path: Path) -> None:
    state = {"x": torch.zeros(1)}
    write(build(VIT), tmp_path)
    save_tensors(state, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(RunError, match=r"'missing_keys': .*'unexpected_keys': \['x'\]"):
        network(tmp_path)


@pytest.mark.parametrize(
    "config", [SWIN_FIVE, ADDED, SCALED, RESNET], ids=["swin", "vit", "mean", "rn"]
)
def test_the_code_on_the_card_runs(config: BackboneConfig, tmp_path: Path) -> None:
    ours = build(config).eval()
    ours.mean, ours.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    write(ours, tmp_path)
    known: dict[str, Any] = {"image": picture()}
    with torch.no_grad(), seeded(0, "pyramid"):
        exec(usage(config, str(tmp_path)), known)
        pixels = known["processor"](picture(), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, config.image_size, config.image_size)
        expected = ours([pixels], Ask(hidden=(1,)))[0]
        maps = known["pyramid"](pixels).feature_maps
    assert_near(known["pooled"], expected.pooled)
    assert len(maps) == 2
    raw = pixels * torch.tensor(ours.std).view(3, 1, 1) + torch.tensor(ours.mean).view(3, 1, 1)
    assert raw.min() > -0.5 and raw.max() < 1.5 and 0.4 < raw.mean() < 0.6


def test_stages_of_its_backbones_are_ours(tmp_path: Path) -> None:
    """Swin's pass norms of transformers' own, which begin as they are; DINOv2's the final one."""
    for config, name in ((SWIN_FIVE, "SwinBackbone"), (ADDED, "Dinov2WithRegistersBackbone")):
        ours = build(config).eval()
        write(ours, tmp_path)
        images = noise(1, 3, 32, 32)
        kind = getattr(transformers, name)
        with seeded(0, "pyramid"), torch.no_grad():
            theirs = kind.from_pretrained(tmp_path, out_features=["stage1", "stage2"]).eval()
            maps = theirs(images).feature_maps
            found = ours([images], Ask(hidden=(ours.stage_ends[0], 1)))[0].hidden
        first = found[0] if config is SWIN_FIVE else found[1]
        expected = first.grid
        if config is SWIN_FIVE:
            expected = layer_norm(expected, expected.shape[-1:], eps=1e-5)
        else:
            expected = ours.norm(expected)
        got = maps[0] if config is SWIN_FIVE else maps[1]
        assert_near(got.permute(0, 2, 3, 1), expected.detach())


# Its networks here

PLAIN = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WIDE = PLAIN | {"intermediate_size": 64}
DECODER = {
    "decoder_hidden_size": 8,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 16,
}
STAGES = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}
SAID = {"heads": (2,)}
READ: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    # network, and what a file without config.json does not say
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(**WIDE)), SAID),
    "ViT, classifier": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**WIDE)),
        SAID,
    ),
    "DeiT": (lambda: transformers.DeiTModel(transformers.DeiTConfig(**WIDE)), SAID),
    "DeiT, classifiers": (
        lambda: transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**WIDE)),
        SAID,
    ),
    "ViT-MAE": (
        lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**WIDE, mask_ratio=0.0)),
        SAID,
    ),
    "ViT-MAE, decoder": (
        lambda: transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**WIDE, **DECODER, mask_ratio=0.0)
        ),
        SAID,
    ),
    "DINOv2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**PLAIN)), SAID),
    "DINOv2, classifier": (
        lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**PLAIN)),
        SAID,
    ),
    "DINOv2, registers": (
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**PLAIN, num_register_tokens=3)
        ),
        SAID,
    ),
    "Swin": (lambda: transformers.SwinModel(transformers.SwinConfig(**STAGES)), {"image_size": 32}),
    "Swin, classifier": (
        lambda: transformers.SwinForImageClassification(transformers.SwinConfig(**STAGES)),
        {"image_size": 32},
    ),
    "Swin, decoder": (
        lambda: transformers.SwinForMaskedImageModeling(transformers.SwinConfig(**STAGES)),
        {"image_size": 32},
    ),
    "ResNet": (lambda: transformers.ResNetModel(transformers.ResNetConfig()), {}),
    "ResNet, classifier": (
        lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig()),
        {},
    ),
}


def described(model: Any, images: Tensor) -> Tensor:
    """Return region features [B, h * w, D] of a network without its head."""
    base = model.base_model
    more = {}
    if "MAE" in type(model).__name__:  # in the order of the picture
        more["noise"] = torch.arange(64.0).expand(len(images), -1)
    tokens: Tensor = base(pixel_values=images, **more).last_hidden_state
    return tokens.flatten(2).mT if tokens.ndim == 4 else tokens


@pytest.mark.parametrize("case", READ)
def test_networks_of_transformers_are_read(case: str, tmp_path: Path) -> None:
    """Out of its own folders, and out of the names that it has in memory."""
    make, said = READ[case]
    with seeded(0, "reference"):
        model: Any = shaken(make())
    model.save_pretrained(tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        expected = described(model, images)
        for path, options in ((tmp_path / "folder", {}), (tmp_path / "weights.pth", said)):
            found = leanvit.load_backbone(path, options=options).features(images)
            assert_near(found.grid.flatten(1, 2), expected[:, -found.grid[0, ..., 0].numel() :])
            if found.prefix is not None:
                assert_near(found.prefix, expected[:, : found.prefix.shape[1]])


@pytest.mark.parametrize(
    ("case", "word", "value"),
    [
        ("Swin", "qkv_bias", False),
        ("Swin", "use_absolute_embeddings", True),
        ("DeiT", "hidden_act", "relu"),
        ("ResNet", "downsample_in_first_stage", True),
        ("ResNet", "downsample_in_bottleneck", True),
        ("ResNet", "hidden_act", "gelu"),
    ],
)
def test_what_makes_another_function_is_refused(
    case: str, word: str, value: object, tmp_path: Path
) -> None:
    """The weights are the usual ones: the word alone tells."""
    with seeded(0, "reference"):
        READ[case][0]().save_pretrained(tmp_path)  # type: ignore[operator]
    leanvit.load_backbone(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(plain | {word: value}))
    with pytest.raises(ValueError, match=f"{word} is {value!r}, which leaves no trace"):
        leanvit.load_backbone(tmp_path)


def test_a_swin_of_two_epsilons_is_refused(tmp_path: Path) -> None:
    with seeded(0, "reference"):
        config = transformers.SwinConfig(**STAGES, layer_norm_eps=1e-3)
        transformers.SwinModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1e-05 to the variance and the others 0\.001"):
        leanvit.load_backbone(tmp_path)


def test_published_eps_differ_between_its_plain_vits(tmp_path: Path) -> None:
    """Without config.json: 1e-12 in its ViT, 1e-6 in its DINOv2."""
    for case, eps in (("ViT", 1e-12), ("DINOv2", 1e-6)):
        with seeded(0, "reference"):
            torch.save(READ[case][0]().state_dict(), tmp_path / "weights.pth")
        found = leanvit.load_backbone(tmp_path / "weights.pth", options=SAID)
        assert found.config.norm_eps == eps  # type: ignore[attr-defined]


def test_features_leave_out_prefixes() -> None:
    with seeded(0, "reference"):
        model = READ["DINOv2, registers"][0]().eval()
    with torch.no_grad():
        regions, pooled = features(replace(VIT, registers=3), model, noise(1, 3, 32, 32))
        mean = features(replace(VIT, registers=3, pool="mean"), model, noise(1, 3, 32, 32))[1]
    assert regions.shape == (1, 64, 16) and pooled is not None and mean is None
