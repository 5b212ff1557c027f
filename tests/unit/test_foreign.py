"""Checkpoints of the official codes: what is in them, what is told, and what is refused."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

import leanvit
from leanvit.backbones.base import Backbone
from leanvit.backbones.vit import sincos_positions
from leanvit.config import SwinConfig, ViTConfig
from leanvit.core.files import save_tensors
from leanvit.core.random import seeded
from leanvit.evaluation.models import open_networks
from leanvit.weights.loading import open_weights
from leanvit.weights.names import NAMINGS
from leanvit.weights.shapes import vit_config
from tests.tiny import CVT, SWIN, VIL, VIT, build, noise

DIM, HEADS, SIDE, PATCH = 192, 12, 32, 8
State = dict[str, Tensor]
timm_vit = partial(
    timm.create_model,
    "vit_tiny_patch16_224",
    img_size=SIDE,
    patch_size=PATCH,
    embed_dim=DIM,
    depth=2,
    num_classes=0,
)


def network(**options: Any) -> nn.Module:
    """Return timm's plain ViT, an independent reference, with weights that say something."""
    with seeded(0, "reference"):
        model: nn.Module = timm_vit(**options).eval()
        for value in model.parameters():
            nn.init.normal_(value, std=0.1)
    return model


def saved(tree: Mapping[str, Any], path: Path) -> Path:
    torch.save(tree, path)
    return path


def put(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    return {f"{place}{name}": value for name, value in state.items()}


def images(count: int = 2) -> Tensor:
    return noise(count, 3, SIDE, SIDE)


def require_same(found: Backbone, model: nn.Module) -> None:
    """Compare class token and regions with timm's."""
    with torch.no_grad():
        tokens = model.forward_features(images())  # type: ignore[operator]
        (ours,) = found([images()])
    assert ours.prefix is not None
    sequence = torch.cat([ours.prefix, ours.grid.flatten(1, 2)], 1)
    torch.testing.assert_close(sequence, tokens, rtol=1e-4, atol=1e-5)


# Layouts


def head(place: str) -> State:
    return {
        f"{place}mlp.0.weight": torch.ones(4, DIM),
        f"{place}last_layer.weight_v": torch.ones(3),
    }


FILES: dict[str, tuple[int, Callable[[State], Mapping[str, Any]], str, dict[str, Any]]] = {
    # layout: heads, file made of a state in timm's names, place that is found, options
    "dino": (
        3,
        lambda s: {
            "student": put(put(s, "backbone.") | head("head."), "module."),
            "teacher": put(s, "backbone.") | head("head."),
            "epoch": 100,
        },
        "teacher.backbone.",
        {},
    ),
    "dino bare": (3, lambda s: s, "", {"layout": "timm"}),
    "deit": (3, lambda s: {"model": s | {"head.weight": torch.ones(5, DIM)}}, "model.", {}),
    "moco_v3": (
        12,
        lambda s: {
            "arch": "vit_small",
            "state_dict": put(
                put(s | {"head.0.weight": torch.ones(4, DIM)}, "base_encoder.")
                | put(s, "momentum_encoder.")
                | {"predictor.0.weight": torch.ones(4, 4)},
                "module.",
            ),
        },
        "state_dict.base_encoder.",
        {},
    ),
    "mae_lite": (12, lambda s: {"model": put(s, "module.model.")}, "model.model.", {}),
    "mae_lite moco": (
        12,
        lambda s: {"model": put(s, "module.base_encoder.")},
        "model.base_encoder.",
        {},
    ),
    "esvit": (3, lambda s: {"teacher": s | head("head."), "student": {}}, "teacher.", {}),
    "timm trainer": (3, lambda s: {"state_dict": s, "state_dict_ema": s}, "state_dict_ema.", {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_official_files(kind: str, tmp_path: Path) -> None:
    heads, tree, place, options = FILES[kind]
    model = network(num_heads=heads)
    path = saved(tree(dict(model.state_dict())), tmp_path / "file")
    found = open_weights(path, options=options)
    assert found.report.place == place
    assert found.report.layout == (
        "timm" if " bare" in kind or kind[:4] == "timm" else kind.split()[0]
    )
    for assumed in (f"{heads} heads", "mean and deviation of ImageNet"):
        assert any(assumed in note for note in found.report.notes), "what was assumed is said"
    require_same(leanvit.load_backbone(path, options=options), model)


def test_dinov2_with_chunks_registers_and_a_mask_token(tmp_path: Path) -> None:
    with seeded(0, "reference"):
        model = timm.create_model(
            "vit_small_patch14_reg4_dinov2",
            img_size=SIDE,
            patch_size=PATCH,
            embed_dim=DIM,
            depth=3,
            num_heads=3,
        ).eval()
        for value in model.parameters():
            nn.init.normal_(value, std=0.1)
    official = {n.replace("reg_token", "register_tokens"): v for n, v in model.state_dict().items()}
    token = torch.full((1, 1, DIM), 0.25)
    official["pos_embed"] = torch.cat([token, official["pos_embed"]], 1)
    official["mask_token"] = torch.zeros(1, DIM)
    reference = checkpoint_filter_fn(dict(official), model)  # type: ignore[arg-type]
    model.load_state_dict(reference)
    chunked = {
        n.replace("blocks.", f"blocks.{int(n.split('.')[1]) // 2}.") if "blocks." in n else n: v
        for n, v in official.items()
    }
    for state in (official, chunked):
        found = leanvit.load_backbone(saved({"teacher": put(state, "backbone.")}, tmp_path / "x"))
        assert isinstance(found.config, ViTConfig) and found.config.registers == 4
        require_same(found, model)
        assert open_weights(tmp_path / "x").report.layout == "dinov2"


def test_distilled_deit(tmp_path: Path) -> None:
    with seeded(0, "reference"):
        model = timm.create_model(
            "deit_tiny_distilled_patch16_224", img_size=SIDE, patch_size=PATCH, depth=2
        ).eval()
        for value in model.parameters():
            nn.init.normal_(value, std=0.1)
    path = saved({"model": model.state_dict()}, tmp_path / "file")
    found = open_weights(path)
    assert found.report.layout == "deit" and "distillation token" in str(found.report)
    require_same(leanvit.load_backbone(path), model)


def test_fine_tuned_networks_norm_the_mean(tmp_path: Path) -> None:
    model = network(num_heads=12, global_pool="avg")
    state = put(model.state_dict(), "module.model.") | {"module.model.head.weight": torch.ones(5)}
    found = leanvit.load_backbone(saved({"model": state}, tmp_path / "file"))
    with torch.no_grad():
        pooled = model(images())
        torch.testing.assert_close(found.features(images()).pooled, pooled, rtol=1e-4, atol=1e-5)


def test_the_position_bias_of_mae_lite(tmp_path: Path) -> None:
    """Biases of queries and values are one of three with keys'; the table shows the heads."""
    ours = build(replace(VIT, position_bias=True, layer_scale=0.5)).eval()
    state: State = {}
    for name, value in ours.state_dict().items():
        name = name.replace("layers.", "blocks.")
        if name.endswith("qkv.bias"):
            value.view(3, -1)[1] = 0
            q, _, v = value.chunk(3)
            owner = name.removesuffix("qkv.bias")
            state |= {f"{owner}q_bias": q, f"{owner}v_bias": v}
        else:
            state[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    state["blocks.0.attn.relative_position_index"] = torch.zeros(2, 2)
    found = leanvit.load_backbone(saved({"model": put(state, "model.")}, tmp_path / "file"))
    assert isinstance(found.config, ViTConfig) and found.config.heads == VIT.heads
    image = noise(1, 3, VIT.image_size, VIT.image_size)
    assert found.features(image).grid.equal(ours.features(image).grid)


def test_the_thirteenth_block_of_d2_mae_is_left_out(tmp_path: Path) -> None:
    state = dict(network(num_heads=12).state_dict())
    half = {n.replace("blocks.1.", "blocks.2."): v for n, v in state.items() if "blocks.1." in n}
    kept = {n: v for n, v in half.items() if "norm1" in n or "qkv" in n}
    path = saved({"model": put(state | kept, "model.")}, tmp_path / "file")
    found = open_weights(path)
    assert isinstance(found.config, ViTConfig) and found.config.depth == 2
    assert "makes logits for distillation" in str(found.report)


# Swin of its authors, and files of half precision


def test_supervised_swin_has_masks_and_another_eps(tmp_path: Path) -> None:
    swin = build(replace(SWIN, norm_eps=1e-5)).eval()
    state = dict(swin.state_dict()) | {
        "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(2, 2),
        "head.weight": torch.zeros(5, 5),
    }
    found = leanvit.load_backbone(saved({"model": state}, tmp_path / "file"))
    assert isinstance(found.config, SwinConfig) and found.config.norm_eps == 1e-5
    image = noise(1, 3, 32, 32)
    assert found.features(image).grid.equal(swin.features(image).grid)
    # without masks nothing shows that the second stage's windows are shifted, too
    bare = saved({"model": swin.state_dict()}, tmp_path / "bare")
    assert "weights do not show it (--image-size)" in str(open_weights(bare).report)
    assert not leanvit.load_backbone(bare).features(image).grid.equal(swin.features(image).grid)
    said = leanvit.load_backbone(bare, options={"image_size": 32})
    assert said.features(image).grid.equal(swin.features(image).grid)


def test_a_bare_swin_says_what_it_does_not_show(tmp_path: Path) -> None:
    state = dict(build(SWIN).state_dict())
    assert "norms add 1e-06" in str(open_weights(saved(state, tmp_path / "bare")).report)
    named = saved({"teacher": state, "student": state}, tmp_path / "named")
    assert "norms add" not in str(open_weights(named).report)
    refused(named, r"its heads are \(1, 2\), not \(3, 6\)", heads=(3, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in network().state_dict().items()}
    found = leanvit.load_backbone(saved({"model": state}, tmp_path / "file"))
    for name, value in found.state_dict().items():
        assert value.dtype == torch.float32
        assert value.equal(state[name.replace("layers.", "blocks.")].float())


# What is refused


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        leanvit.load_backbone(path, options=options)


def test_three_heads_for_weights_of_twelve(tmp_path: Path) -> None:
    """The same tensors fit a network of 3 heads, and mean something else."""
    path = saved(FILES["mae_lite"][1](dict(network().state_dict())), tmp_path / "file")
    refused(path, "192 channels has in mae_lite 12 heads, not 3: .* other features", heads=(3,))
    refused(path, r"not vit_tiny: it has heads 12 \(there: 3\)", network="vit_tiny")
    refused(path, "in mae_lite 12 heads, not 5", heads=(5,))


def test_bare_weights_with_maes_positions_need_their_heads_said(tmp_path: Path) -> None:
    state = dict(network().state_dict()) | {"pos_embed": sincos_positions(SIDE // PATCH, DIM)}
    path = saved(state, tmp_path / "file")
    refused(path, "say it with --heads N, .*`leanvit convert FILE --heads N --out")
    assert open_weights(path, options={"heads": (12,)}).config.heads == 12  # type: ignore[attr-defined]
    refused(path, "5 heads do not divide 192", heads=(5,))
    decoder = saved({"model": state | {"decoder_embed.weight": torch.ones(2, 2)}}, tmp_path / "mae")
    refused(decoder, "say it with --heads")


@pytest.mark.parametrize("place", ["", "model.", "teacher.", "teacher.backbone.", "state_dict."])
@pytest.mark.parametrize("shift", [0, DIM // 2], ids=["mae", "moco_v3"])
def test_positions_of_twelve_heads_are_known_anywhere(
    place: str, shift: int, tmp_path: Path
) -> None:
    """MoCo-v3 says the row first, MAE the column; nobody else's light networks have either."""
    waves = sincos_positions(SIDE // PATCH, DIM).roll(shift, -1)
    state = put(dict(network().state_dict()) | {"pos_embed": waves}, place)
    refused(saved(state, tmp_path / "file"), "12 in MAE-Lite and MoCo-v3.*say it with --heads")


def test_what_reading_never_trusts(tmp_path: Path) -> None:
    """Names and shapes that would break the reader, or keep it busy for good."""
    state, ours = dict(network().state_dict()), build(VIL)
    bias = "blocks.0.attn.qkv.bias"
    lone = {n: v for n, v in state.items() if n != bias} | {"blocks.0.attn.q_bias": torch.ones(DIM)}
    sparse = NAMINGS["vil"].theirs(ours.state_dict())
    apart = sparse | {"layer1.1.attn.proj_global.bias": sparse["layer1.1.attn.proj.bias"] + 1}
    cases: list[tuple[State, str]] = [
        (lone, "'blocks.0.attn.q_bias' has no v_bias"),
        (state | {"blocks.99999999.norm1.bias": torch.ones(1)}, "more than 64 blocks"),
        (state | {"blocks.x.norm1.bias": torch.ones(1)}, "not the parameters of a plain ViT"),
        (state | {"pos_embed": torch.ones(())}, "not the parameters of a plain ViT"),
        (state | {"dist_token": torch.ones(1), "pos_embed": torch.ones(2)}, "of a plain ViT"),
        (apart, "'layer1.1.attn.proj_global.bias' are the same parameter here, but differ"),
    ]
    for number, (each, match) in enumerate(cases):
        refused(saved(each, tmp_path / str(number)), match)


def huggingface(folder: Path, processor: object = None, **said: object) -> Path:
    """Write a plain ViT as transformers does, beside what is said of it."""
    folder.mkdir()
    state = NAMINGS["vit huggingface"].theirs(build(VIT).state_dict())
    save_tensors(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2} | said))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_what_stands_beside_weights_is_checked(tmp_path: Path) -> None:
    plain = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    good = leanvit.load_backbone(huggingface(tmp_path / "a", plain, hidden_act="gelu"))
    assert good.mean == (0.1, 0.2, 0.3) and good.std == (0.5,) * 3
    bare = leanvit.load_backbone(huggingface(tmp_path / "b", plain | {"do_normalize": False}))
    assert bare.mean == (0.0,) * 3 and bare.std == (1.0,) * 3
    cases: list[tuple[object, dict[str, object], str]] = [
        (plain, {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'.*no trace"),
        (plain, {"qkv_bias": False}, "qkv_bias is False.*vit has True"),
        (plain, {"model_type": "deit", "hidden_act": "relu"}, "leanvit's deit has 'gelu'"),
        (plain, {"model_type": "yolos"}, "model_type is 'yolos'; leanvit reads"),
        (plain, {"model_args": {"act_layer": "relu"}}, "model_args without the architecture"),
        (plain, {"model_args": 5}, "model_args in its config.json is 5; expected an object"),
        (plain, {"pretrained_cfg": [1]}, "pretrained_cfg in its config.json"),
        ([1], {}, "preprocessor_config.json' is no JSON object"),
        (plain | {"image_std": [1, 0, 1]}, {}, "its std is .*one number a channel"),
        (plain | {"image_mean": ["a"] * 3}, {}, "its mean is .*one number a channel"),
        (plain | {"image_mean": 0.5}, {}, "its mean is 0.5"),
    ]
    for number, (processor, said, match) in enumerate(cases):
        refused(huggingface(tmp_path / str(number), processor, **said), match)


def test_the_width_of_an_mlp_is_exact() -> None:
    """240 / 176 * 176 is a little less than 240 in floating point."""
    shapes = {n: tuple(v.shape) for n, v in build(VIT).state_dict().items()}
    found = vit_config(shapes | {"layers.0.mlp.fc1.weight": (240, 176)}, heads=2)
    assert int(176 * found.mlp_ratio) == 240 and int(176 * (240 / 176)) == 239


def test_what_is_missing_unknown_or_of_another_shape(tmp_path: Path) -> None:
    state = dict(timm_vit(depth=3).state_dict())
    block = {n: v for n, v in state.items() if not n.startswith("blocks.1.")}
    refused(
        saved({"model": block}, tmp_path / "a"),
        r"12 of .* tensors are missing under 'model': 'blocks\.1\.norm1\.weight'",
    )
    more = state | {"blocks.0.attn.gate": torch.ones(3)}
    refused(
        saved({"model": more}, tmp_path / "b"),
        "no part of this network.*'model.blocks.0.attn.gate'",
    )
    odd = state | {"blocks.2.mlp.fc1.bias": torch.ones(3)}
    refused(
        saved({"model": odd}, tmp_path / "c"),
        r"'model.blocks.2.mlp.fc1.bias' is \(3,\); expected \(768,\)",
    )
    cut = state | {"pos_embed": torch.ones(1, 12, DIM)}
    refused(saved(cut, tmp_path / "d"), "pos_embed holds 12 positions")


def test_wrong_words(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    path = saved(FILES["dino"][1](state), tmp_path / "file")
    refused(
        path,
        "no network under 'studnet'; there are: 'teacher.backbone', 'student.backbone'",
        part="studnet",
    )
    refused(path, "Unknown layout 'dinno'.*did you mean 'dino'", layout="dinno")
    refused(path, "not of the layout 'mae_lite'; they fit dino", layout="mae_lite")
    refused(
        path,
        r"not vit_small: it has heads 3 \(there: 6\), dim 192 \(there: 384\)",
        network="vit_small",
    )
    refused(path, "holds a vit, not swin_tiny", network="swin_tiny")
    refused(
        saved({"a": state, "b": state}, tmp_path / "two"),
        "several networks: 'a', 'b'; say it with --part NAME",
    )
    none = {f"x{n.replace('.', '-')}": v for n, v in state.items()}
    refused(
        saved(none, tmp_path / "none"), "knows no layout with the names .*, none of swin, esvit"
    )
    refused(saved({"epoch": 3}, tmp_path / "empty"), "without named tensors, but with 'epoch'")
    torch.save(3, tmp_path / "number")
    refused(tmp_path / "number", "without named tensors, so")


def test_an_image_size_that_the_positions_do_not_have(tmp_path: Path) -> None:
    path = saved(dict(network().state_dict()), tmp_path / "file")
    assert open_weights(path, options={"image_size": SIDE}).config.image_size == SIDE
    refused(path, "positions are those of images of 32 pixels, not 224; leave", image_size=224)
    cvt = saved(NAMINGS["cvt"].theirs(build(CVT).state_dict()), tmp_path / "cvt")
    said = open_weights(cvt, options={"image_size": 32, "heads": CVT.heads})
    assert said.config.image_size == 32


@pytest.mark.parametrize(
    ("more", "fewer", "match"),
    [
        ("blocks.0.mlp.w12.weight", "blocks.0.mlp.fc1.weight", "SwiGLU"),
        ("blocks.0.attn.relative_position_bias_table", "pos_embed", "alone, as BEiT has"),
        ("rope_embed.periods", "pos_embed", "rotary positions, as EVA-02 and DINOv3"),
    ],
)
def test_families_that_are_not_ours_are_named(
    more: str, fewer: str, match: str, tmp_path: Path
) -> None:
    state = dict(network().state_dict()) | {more: torch.ones(2)}
    del state[fewer]
    refused(saved(state, tmp_path / "file"), f"show.*{match}.*--network timm:NAME")


def test_swin_v2_and_clip_are_named(tmp_path: Path) -> None:
    state = {name: torch.ones(2) for name in ("visual.conv1.weight", "token_embedding.weight")}
    refused(saved(state, tmp_path / "clip"), "show CLIP; .*--network timm:NAME")
    scale = {"layers.0.blocks.0.attn.logit_scale": torch.ones(1)}
    swin = saved(dict(build(SWIN).state_dict()) | scale, tmp_path / "swin")
    refused(swin, "show Swin v2, which no network here has; .*--network timm:NAME")


def test_what_was_named_is_not_asked_for_again(tmp_path: Path) -> None:
    state = NAMINGS["vit huggingface"].theirs(build(VIT).state_dict())
    odd = saved({"a.weight": torch.ones(2)}, tmp_path / "odd")
    theirs = saved({f"encoder.{n}": v for n, v in state.items()}, tmp_path / "theirs")
    for path, match in (
        (odd, r"names of timm:resnet18 \('conv1.weight', .*\) are not there, but 'a.weight'\.$"),
        (theirs, "look like those of vit huggingface: leave --network out"),
    ):
        refused(path, match, network="timm:resnet18")
    refused(odd, "none of .*; give a file of that network", network="vit_tiny")


def test_files_without_a_network_say_what_they_hold(tmp_path: Path) -> None:
    names = np.array(["a", "b"])
    np.savez(tmp_path / "x.npz", features=np.ones((2, 3)), targets=np.ones(2), names=names)
    refused(tmp_path / "x.npz", "holds features, as `leanvit embed` writes them")
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    for number, tree in enumerate((optimizer.state_dict(), {"optimizer": optimizer.state_dict()})):
        refused(saved(tree, tmp_path / str(number)), "the state of an optimizer and no network")


def test_what_was_assumed_is_said_where_networks_are_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, cpu = saved(dict(network().state_dict()), tmp_path / "file"), torch.device("cpu")
    open_networks(path, cpu)
    said = capsys.readouterr()
    assert f"Of {path}: 3 heads, as networks of 192 channels" in said.err and not said.out
    open_networks(path, cpu, quiet=True)
    assert not capsys.readouterr().err


def test_a_bare_resnet_says_that_it_may_be_a_variant(tmp_path: Path) -> None:
    with seeded(0, "reference"):
        state = timm.create_model("resnet50").state_dict()
    path = saved(state, tmp_path / "file")
    assert "resnet50 is assumed" in str(open_weights(path).report)
    named = open_weights(path, options={"network": "timm:resnet50"})
    assert "resnet50 is assumed" not in str(named.report)
