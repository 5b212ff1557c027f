"""Official checkpoints, made of golden names, load from files and are the same networks."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import leanvit
from leanvit.backbones.vit import sincos_positions
from leanvit.config import ViTConfig
from leanvit.evaluation.features import last_block_features
from leanvit.weights.loading import open_weights
from tests.golden.fill import fill
from tests.golden.published import published
from tests.golden.test_golden import FOLDER, Golden, close, crops, weights_of

NAMES = sorted(path.stem for path in FOLDER.glob("backbone_*.json"))
WRAPPED = ("", "module.", "_orig_mod.module.", "module._fsdp_wrapped_module.")


def read(name: str) -> tuple[Golden, dict[str, Tensor]]:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    figures = {k: torch.from_numpy(v) for k, v in np.load(FOLDER / f"{name}.npz").items()}
    return golden, figures


def esvit_file(weights: dict[str, Tensor], path: Path, wrapper: str = "") -> None:
    """Write what the official code saves: two networks with heads, and everything around them."""
    # golden figures come of the second name of what sparse attention shares; files have one tensor
    twice = {name.replace("_global.", "."): v for name, v in weights.items() if "_global." in name}
    weights = weights | twice
    head = {"mlp.0.weight": torch.ones(8, 8), "last_layer.weight_v": torch.ones(4, 2)}
    heads = {f"{h}.{k}": v for h in ("head", "head_dense") for k, v in head.items()}
    derived = {
        f"{name.removesuffix('table')}index".replace("_bias_index", "_index"): torch.zeros(4, 4)
        for name in weights
        if name.endswith("relative_position_bias_table") and "layers" in name
    }
    student = {name: -value for name, value in weights.items()}
    moments = {"step": 7, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    torch.save(
        {
            "student": {f"module.{k}": v for k, v in (student | heads | derived).items()},
            "teacher": {f"{wrapper}{k}": v for k, v in (weights | heads | derived).items()},
            "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
            "epoch": 300,
            "args": Namespace(arch="swin_tiny", cfg="path.yaml", batch_size_per_gpu=32),
            "dino_loss": {"center": torch.zeros(1, 4), "center_grid": torch.zeros(1, 4)},
            "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        },
        path,
    )


def options_of(golden: Golden) -> dict[str, Any]:
    """Return what the weights of a file do not show: the heads of a CvT."""
    config = published(golden)
    return {"heads": config.heads} if golden["arch"].startswith("cvt") else {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_checkpoint_of_esvit(name: str, tmp_path: Path) -> None:
    golden, figures = read(name)
    wrapper = WRAPPED[NAMES.index(name) % len(WRAPPED)]
    esvit_file(weights_of(golden), tmp_path / "checkpoint0300.pth", wrapper)
    backbone = leanvit.load_backbone(tmp_path / "checkpoint0300.pth", options=options_of(golden))
    groups = crops(golden, globals_=golden["globals"])
    found = backbone([group.flatten(0, 1) for group in groups])
    close(torch.cat([f.pooled for f in found]), figures["pooled"], 1e-4)
    close(torch.cat([f.grid.flatten(0, 2) for f in found]), figures["regions"], 1e-4)
    close(last_block_features(backbone, groups[0][0]), figures["last4"], 1e-4)


def test_the_student_by_name_and_what_became_of_all(tmp_path: Path) -> None:
    golden, _ = read("backbone_swin_w7")
    weights = weights_of(golden)
    esvit_file(weights, tmp_path / "file.pth", "module.")
    teacher = open_weights(tmp_path / "file.pth")
    student = open_weights(tmp_path / "file.pth", options={"part": "student"})
    assert teacher.state is not None and student.state is not None
    for name, value in teacher.state.items():
        assert value.equal(weights[name]) and student.state[name].equal(-value)
    fates = {(row.theirs, row.fate) for row in teacher.report.rows}
    assert ("teacher.norm.weight", "used") in fates
    assert ("teacher.head_dense.mlp.0.weight", "dropped") in fates
    assert ("student.norm.weight", "dropped") in fates
    text = str(teacher.report)
    assert "layout esvit under 'teacher'" in text and "region head" in text
    assert len(text.splitlines()) < 40, "blocks of a kind share a line"


# Masked autoencoders


def mae_weights(golden: Golden, who: str, patches: int) -> dict[str, Tensor]:
    """Return the weights of the student or the teacher under their official names."""
    key = "parameters" if who == "student" else "teacher_parameters"
    seed, dim = golden["seed"], golden[who]["dim"]
    found = {
        name.removeprefix(f"{who}."): fill(name, *shape, seed=seed)
        for name, shape in golden[key].items()
    }
    side = math.isqrt(patches)
    decoder = sincos_positions(side, golden[who]["ddim"])
    return found | {"pos_embed": sincos_positions(side, dim), "decoder_pos_embed": decoder}


MAE_FILES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "mae": ("model.{}", {}, True),
    "mae_lite": ("model.module.model.{}", {"start_epoch": 400, "best_top1": 1.5}, True),
    "mae_lite one process": ("model.model.{}", {}, True),
    "dmae": ("model.module.model.{}", {"scheduler": {"lr": 0.1}}, False),
}


@pytest.mark.parametrize("kind", MAE_FILES)
@torch.no_grad()
def test_masked_autoencoders(kind: str, tmp_path: Path) -> None:
    golden, figures = read("mae")
    place, around, unsaid = MAE_FILES[kind]
    patches = figures["mask"].shape[1]
    patch = golden["parameters"]["student.patch_embed.proj.weight"][-1]
    heads = golden["student"]["heads"]
    options: dict[str, Any] = {"heads": (heads,)} if unsaid else {}
    flat = {place.format(name): v for name, v in mae_weights(golden, "student", patches).items()}
    if kind == "dmae":
        teacher = mae_weights(golden, "teacher", patches)
        flat |= {f"model.module.tch_model.{name}": v for name, v in teacher.items()}
        adapter = torch.ones(golden["teacher"]["heads"], heads, 1, 1)
        flat["model.module.attn_adapter.adapter11.weight"] = adapter
    torch.save(
        {**around, "model": {k.removeprefix("model."): v for k, v in flat.items()}}, tmp_path / "x"
    )
    backbone = leanvit.load_backbone(tmp_path / "x", options=options)
    assert isinstance(backbone.config, ViTConfig) and backbone.config.positions == "sincos"
    assert backbone.config.heads == heads
    side = math.isqrt(patches) * patch
    images = fill("input.images", golden["batch"], 3, side, side, seed=golden["seed"])
    (found,) = backbone([images])
    assert found.prefix is not None
    tokens = torch.cat([found.prefix, found.grid.flatten(1, 2)], 1)
    close(tokens, figures["encoder_all_tokens"], 1e-5)
    report = str(open_weights(tmp_path / "x", options=options).report)
    assert "decoder" in report
    if kind == "dmae":
        options = {"part": "tch_model"}
        large = leanvit.load_backbone(tmp_path / "x", options=options)
        assert large.feature_dim == golden["teacher"]["dim"]
        assert isinstance(large.config, ViTConfig)
        assert large.config.heads == golden["teacher"]["heads"]
        assert large.state_dict()["norm.weight"].equal(teacher["norm.weight"])
