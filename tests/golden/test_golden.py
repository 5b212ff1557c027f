"""Figures of the official code. Sizes, seeds and names come from the files.

`LEANVIT_GOLDEN` names another folder of such files; `data/` beside this file is the default.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leanvit.analysis.attention import PAPER_STEP, attention_of, measure
from leanvit.analysis.cka import MiniBatchCka, grams
from leanvit.backbones.base import Ask, Backbone, Logits, Tokens
from leanvit.backbones.catalogue import build_backbone
from leanvit.backbones.vit import sincos_positions
from leanvit.config import (
    AdamWConfig,
    CropConfig,
    DecoderConfig,
    DinoConfig,
    DmaeConfig,
    EsViTConfig,
    HeadConfig,
    MaeConfig,
    MultiCropConfig,
    RunConfig,
    TrainConfig,
    ViTConfig,
    constant,
    steps,
)
from leanvit.core.files import save_tensors
from leanvit.data.batch import ViewBatch
from leanvit.evaluation.features import last_block_features
from leanvit.evaluation.knn import knn_accuracy
from leanvit.kernels.prototypes import Projection
from leanvit.losses.region import region_loss
from leanvit.losses.view import view_loss
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.methods.dmae import DMAE
from leanvit.methods.esvit import EsViT
from leanvit.methods.heads import Center, Prototypes
from leanvit.methods.mae import MAE
from leanvit.train.state import TrainState
from leanvit.weights.file import header
from leanvit.weights.shapes import head_config
from leanvit.weights.whole import from_official, strip
from tests.golden.fill import fill
from tests.golden.published import PUBLISHED, published, shapes_of, sizes_of

FOLDER = Path(os.environ.get("LEANVIT_GOLDEN") or Path(__file__).parent / "data")
GLOBAL_SIZE = 224
Golden = dict[str, Any]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_golden(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    arrays = FOLDER / f"{name}.npz"
    figures = dict(np.load(arrays)) if arrays.exists() else {}
    runner(name, golden)(golden, {key: torch.from_numpy(v) for key, v in figures.items()})


def test_the_folder_holds_golden_figures() -> None:
    assert list(FOLDER.glob("*.json")), f"no golden figures in {FOLDER}"


def runner(name: str, golden: Golden) -> Callable[[Golden, dict[str, Tensor]], None]:
    kind = name.split("_")[0]
    family = golden.get("arch", "").split("_")[0]
    if kind in ("backbone", "train"):
        if family not in PUBLISHED:
            pytest.skip(f"not yet built: {family} ({name})")
        return check_backbone if kind == "backbone" else check_training
    checks = {
        "loss": check_loss,
        "knn": check_knn,
        "mae": check_mae,
        "attention": check_attention,
        "cka": check_cka,
    }
    return checks[kind]


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Compare with a tolerance in units of the largest value."""
    assert ours.shape == theirs.shape
    error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
    assert error < tolerance, f"off by {error:.2e} of the largest value"


def weights_of(golden: Golden) -> dict[str, Tensor]:
    seed = golden["seed"]
    return {name: fill(name, *shape, seed=seed) for name, shape in shapes_of(golden).items()}


def crops(golden: Golden, prefix: str = "input.", globals_: int = 2) -> list[Tensor]:
    """Return the global and local crops [views, B, 3, S, S]."""
    groups = []
    for kind, count, side in (
        ("global", globals_, GLOBAL_SIZE),
        ("local", golden["locals"], golden["local_size"]),
    ):
        shape = (golden["batch"], 3, side, side)
        names = [f"{prefix}{kind}.{view}" for view in range(count)]
        if count:
            groups.append(torch.stack([fill(n, *shape, seed=golden["seed"]) for n in names]))
    return groups


@torch.no_grad()
def check_backbone(golden: Golden, figures: dict[str, Tensor]) -> None:
    config = published(golden)
    assert replace(sizes_of(golden), drop_path=config.drop_path) == config
    backbone: Backbone = build_backbone(config).eval()
    backbone.load_state_dict(strip(from_official(weights_of(golden)), "backbone."), strict=True)
    groups = crops(golden, globals_=golden["globals"])
    found = backbone([group.flatten(0, 1) for group in groups])
    close(torch.cat([f.pooled for f in found]), figures["pooled"], 1e-4)
    close(torch.cat([f.grid.flatten(0, 2) for f in found]), figures["regions"], 1e-4)
    assert [f.grid[0, ..., 0].numel() for f in found] == figures["npatch"].tolist()
    close(last_block_features(backbone, groups[0][0]), figures["last4"], 1e-4)
    (features,) = backbone([groups[0][0]], Ask(logits=(-1,)))
    if "last_attention" in figures:
        attention = features.logits[0].values.softmax(-1).flatten(0, 1)
        expected = figures["last_attention"]
        close(attention[: len(expected)], expected, 1e-4)


def check_loss(golden: Golden, figures: dict[str, Tensor]) -> None:
    seed, k, batch, views = (golden[key] for key in ("seed", "K", "batch", "crops"))
    regions = "region" in golden["kind"]
    temperatures = {key: golden[key] for key in ("student_temp", "teacher_temp")}
    eye, prototypes = torch.eye(k), Prototypes(k, k, train_gain=False)
    prototypes.weight_v.data.copy_(eye)

    def center(name: str) -> Center:
        module = Center(HeadConfig(prototypes=k, bottleneck=k))
        module.value.copy_(0.1 * fill(name, 1, k, seed=seed)[0])
        return module

    def move(module: Center, rows: Tensor) -> Tensor:
        module.collect(rows)
        module.update(prototypes, golden["center_momentum"])
        return module.value[None]

    student = fill("input.student_view", views * batch, k, seed=seed).requires_grad_()
    teacher = fill("input.teacher_view", 2 * batch, k, seed=seed)
    view_center = center("input.center")
    bias = view_center.key_bias(golden["teacher_temp"])
    loss = view_loss(Projection(student, eye), Projection(teacher, eye), bias, **temperatures)
    if regions:
        sizes = [(2, golden["global_regions"]), (views - 2, golden["local_regions"])]
        sizes = [(count, size) for count, size in sizes if count]
        rows = sum(count * batch * size for count, size in sizes)
        d = golden["feature_dim"]
        student_region = fill("input.student_region_logits", rows, k, seed=seed).requires_grad_()
        teacher_rows = 2 * batch * golden["global_regions"]
        teacher_region = fill("input.teacher_region_logits", teacher_rows, k, seed=seed)
        features = fill("input.student_region", rows, d, seed=seed)
        parts = features.split([count * batch * size for count, size in sizes])
        region_center = center("input.center_region")
        region, _ = region_loss(
            Projection(student_region, eye),
            Projection(teacher_region, eye),
            region_center.key_bias(golden["teacher_temp"]),
            student_features=[
                part.view(count, batch, size, d)
                for part, (count, size) in zip(parts, sizes, strict=True)
            ],
            teacher_features=fill("input.teacher_region", teacher_rows, d, seed=seed).view(
                2, batch, -1, d
            ),
            **temperatures,
        )
        loss = 0.5 * loss + 0.5 * region
    loss.backward()
    close(loss.detach(), figures["loss"], 1e-5)
    assert student.grad is not None
    close(student.grad, figures["grad_student_view"], 1e-5)
    close(move(view_center, teacher), figures["center_after"], 1e-5)
    if regions:
        assert student_region.grad is not None
        close(student_region.grad, figures["grad_student_region"], 1e-5)
        close(move(region_center, teacher_region), figures["center_region_after"], 1e-5)


def training(golden: Golden) -> TrainState:
    """Return the official run at its start."""
    weights = from_official(weights_of(golden))
    shapes = from_official(shapes_of(golden))
    regions = any(name.startswith("region_head.") for name in shapes)
    view_only = DinoConfig(
        views=MultiCropConfig(
            local_sizes=(golden["local_size"],), local_counts=(golden["locals"],)
        ),
        head=head_config(strip(shapes, "head."), train_gain=not golden["norm_last_layer"]),
        student_temp=golden["student_temp"],
        teacher_temp=constant(golden["teacher_temp"]),
        teacher_momentum=constant(golden["teacher_momentum"]),
        center_momentum=golden["center_momentum"],
        freeze_prototypes=steps(golden["freeze_last_layer_steps"]),
    )
    shared = {field.name: getattr(view_only, field.name) for field in fields(view_only)}
    method = EsViTConfig(**shared, region_start=steps(0)) if regions else view_only
    betas, eps = re.fullmatch(r"AdamW betas (.*) eps (.*)", golden["optimizer"]).groups()  # type: ignore[union-attr]
    assert float(eps) == 1e-8  # torch's own, which we keep
    first, second = map(float, betas.split(","))
    config = RunConfig(
        recipe="golden",
        method=method,
        backbone=sizes_of(golden),
        optim=AdamWConfig(
            lr=constant(golden["lr"]),
            weight_decay=constant(golden["weight_decay"]),
            decay_all_matrices=True,
            clip=golden["clip"],
            clip_by="tensor",
            betas=(first, second),
        ),
        train=TrainConfig(
            duration=steps(golden["steps"]), batch=golden["batch"], precision="fp32", device="cpu"
        ),
    )
    built = build_method(method, config.backbone, seed=0)
    assert isinstance(built, DINO)
    for network in (built.student, built.teacher):
        loaded = network.load_state_dict(weights, strict=False)
        known = {name for name, _ in network.named_parameters()}
        assert not loaded.unexpected_keys and not known & set(loaded.missing_keys)
    return TrainState(built, config, epoch_steps=golden["steps"])


def check_training(golden: Golden, figures: dict[str, Tensor]) -> None:
    state = training(golden)
    batch = golden["batch"]
    assert isinstance(state.method, DINO)
    for step in range(golden["steps"]):
        groups = tuple(crops(golden, f"input.step{step}."))
        at = state.begin_step()
        state.backward(ViewBatch(groups, torch.arange(batch), torch.zeros(batch)), at, 1)
        if step == 0:
            check_gradient_norms(state.method, golden["first_grad_norms"])
        state.update(at)
        loss = state.meter.read()["loss"]
        assert loss == pytest.approx(golden["losses"][step], rel=1e-4)
    state.require_sound()
    reach = golden["lr"] * golden["steps"]
    check_digests(state.method.student, golden["student"], reach)
    check_digests(state.method.teacher, golden["teacher"], reach)
    close(state.method.center.value[None], figures["center"], 1e-3)
    if isinstance(state.method, EsViT):
        close(state.method.region_center.value[None], figures["center_region"], 1e-3)


def check_gradient_norms(method: DINO, expected: list[float]) -> None:
    """The file holds the norms of the first parameters that are trained."""
    norms = [p.grad.norm().item() for p in method.student.parameters() if p.grad is not None]
    assert norms[: len(expected)] == pytest.approx(expected, rel=1e-3)


def check_digests(network: torch.nn.Module, digests: dict[str, list[float]], reach: float) -> None:
    """Compare sum, absolute sum and first element of every parameter, and of the file's buffers.

    The key part of a qkv or kv bias has no gradient but rounding noise, which Adam turns into
    steps of up to `reach` in all; the digests cover it, so it is granted that much.
    """
    ours, theirs = network.state_dict(), from_official(digests)
    assert dict(network.named_parameters()).keys() <= theirs.keys() <= ours.keys()
    for name, (total, size, first) in theirs.items():
        value = ours[name].detach().double().flatten()
        floor, first_floor = 1e-4 * len(value), 1e-4
        if name.endswith("qkv.bias"):
            floor += reach * len(value) / 3
        elif name.endswith("kv.bias"):
            floor += reach * len(value) / 2
            first_floor += reach
        assert value.sum().item() == pytest.approx(total, rel=1e-3, abs=floor), name
        assert value.abs().sum().item() == pytest.approx(size, rel=1e-3, abs=floor), name
        assert value[0].item() == pytest.approx(first, rel=1e-3, abs=first_floor), name


DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_embed": "decoder.embed",
    "decoder_blocks": "decoder.layers",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.predict",
}
"""Official names of MAE's decoder -> ours."""


def mae_network(golden: Golden, who: str, patches: int) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Return the configuration and the weights of the student or the teacher, under our names."""
    sizes = golden[who]
    patch = golden["parameters"]["student.patch_embed.proj.weight"][-1]
    config = ViTConfig(
        **{name: sizes[name] for name in ("dim", "depth", "heads")},
        patch=patch,
        image_size=patch * math.isqrt(patches),
        positions="sincos",
        drop_path=0.0,
    )
    state = {}
    key = "parameters" if who == "student" else "teacher_parameters"
    for name, shape in golden[key].items():
        theirs = name.removeprefix(f"{who}.")
        first, dot, rest = theirs.partition(".")
        ours = f"{DECODER[first]}{dot}{rest}" if first in DECODER else ""
        ours = ours or f"backbone.{theirs.replace('blocks.', 'layers.')}"
        state[ours] = fill(name, *shape, seed=golden["seed"])
    return config, state | {"backbone.pos_embed": sincos_positions(math.isqrt(patches), config.dim)}


def mae_options(golden: Golden, size: int) -> dict[str, Any]:
    sizes = golden["student"]
    return {
        "views": CropConfig(size=size),
        "mask_ratio": golden["mask_ratio"],
        "normalize": golden["norm_pix"],
        "decoder": DecoderConfig(dim=sizes["ddim"], depth=sizes["ddepth"], heads=sizes["dheads"]),
    }


def check_mae(golden: Golden, figures: dict[str, Tensor]) -> None:
    seed, batch, patches = golden["seed"], golden["batch"], figures["mask"].shape[1]
    config, weights = mae_network(golden, "student", patches)
    size = config.image_size
    images = fill("input.images", batch, 3, size, size, seed=seed)
    noise = fill("input.mask_noise", batch, patches, seed=seed)
    method = MAE(MaeConfig(**mae_options(golden, size)), config)
    method.load_state_dict(weights, strict=True)
    close(method.backbone.pos_embed, figures["pos_embed"], 1e-5)  # type: ignore[arg-type]
    found = method.learn(images, noise)
    assert float(found.total.detach()) == pytest.approx(float(figures["loss"]), rel=1e-5)
    found.total.backward()
    trained = dict(method.backbone.named_parameters())
    close(trained["patch_embed.proj.weight"].grad, figures["grad_patch_embed"], 1e-5)  # type: ignore[arg-type]
    close(trained["layers.0.attn.qkv.weight"].grad, figures["grad_first_qkv"], 1e-5)  # type: ignore[arg-type]
    seen = method.hide(noise)
    assert seen.mask.float().equal(figures["mask"])
    with torch.no_grad():
        (shown,) = method.backbone([images], seen.ask)
        prediction = method.decoder(Tokens(shown.grid, shown.prefix), seen.kept)
    close(prediction, figures["prediction"], 1e-5)
    check_distillation(golden, figures, images, noise)


def check_distillation(
    golden: Golden, figures: dict[str, Tensor], images: Tensor, noise: Tensor
) -> None:
    patches = figures["mask"].shape[1]
    config, weights = mae_network(golden, "student", patches)
    teacher_config, known = mae_network(golden, "teacher", patches)
    teacher = build_backbone(teacher_config)
    teacher.load_state_dict(strip(known, "backbone."), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        save_tensors(teacher.state_dict(), path, header(teacher, {}))
        options = mae_options(golden, config.image_size)
        method = DMAE(DmaeConfig(**options, teacher=str(path)), config)
    shape = figures["grad_adapter"].shape
    adapter = fill("adapter.weight", *shape, seed=golden["seed"])[..., 0, 0]
    weights |= {"head_adapters.0": adapter, "teacher.fingerprint": method.teacher.fingerprint}
    method.load_state_dict(weights, strict=True)
    found = method.learn(images, noise)
    attention = float(found.terms["attention"].detach())
    assert attention == pytest.approx(float(figures["distill_attention_loss"]), rel=1e-5)
    total = float(found.total.detach())
    assert total == pytest.approx(float(figures["distill_total"]), rel=1e-5)
    found.total.backward()
    close(method.head_adapters[0].grad, figures["grad_adapter"][..., 0, 0], 1e-5)
    qkv = method.backbone.layers[0].attn.qkv  # type: ignore[union-attr]
    close(qkv.weight.grad, figures["distill_grad_first_qkv"], 1e-5)  # type: ignore[union-attr, arg-type]


def check_knn(golden: Golden, figures: dict[str, Tensor]) -> None:
    seed, classes, dim = golden["seed"], golden["classes"], golden["dim"]
    prototypes = fill("input.proto", classes, dim, seed=seed)
    train_target = torch.arange(golden["train"]) % classes
    test_target = 7 * torch.arange(golden["test"]) % classes
    train = 3 * fill("input.train", golden["train"], dim, seed=seed) + 3 * prototypes[train_target]
    test = 3 * fill("input.test", golden["test"], dim, seed=seed) + 3 * prototypes[test_target]
    expected = {int(k): tuple(values) for k, values in golden["top1_top5"].items()}
    found = knn_accuracy(
        train,
        train_target,
        test,
        test_target,
        ks=tuple(expected),
        temperature=golden["temperature"],
    )
    assert {k: tuple(round(v, 6) for v in values) for k, values in found.items()} == expected


def check_attention(golden: Golden, figures: dict[str, Tensor]) -> None:
    batch, heads, tokens = golden["batch"], golden["heads"], golden["tokens"]
    side = int(tokens**0.5)
    logits = 2 * fill("input.logits", batch, heads, tokens, tokens, seed=golden["seed"])
    seen = attention_of(
        Logits(logits[:, None].double(), torch.arange(tokens)[None, None]),
        Tokens(torch.zeros(batch, side, side, 1), None),
    )
    found = measure(seen, (PAPER_STEP, PAPER_STEP)).mean(0)
    close(found[:, 0], figures["distance_factor14"], 1e-5)
    close(found[:, 1], figures["entropy"], 1e-5)


def check_cka(golden: Golden, figures: dict[str, Tensor]) -> None:
    seed, shape = golden["seed"], (golden["batch"], golden["tokens"])
    found = MiniBatchCka()
    for batch in range(golden["batches"]):
        shared = 0.7 * fill(f"input.shared.{batch}", *shape, golden["width_a"], seed=seed)
        kernels = []
        for model in "ab":
            width = golden[f"width_{model}"]
            layers = [
                fill(f"input.{model}.{batch}.{layer}", *shape, width, seed=seed)
                + shared[..., :width]
                for layer in range(golden[f"layers_{model}"])
            ]
            kernels.append(grams(layers))
        found.add(*kernels)
    close(found.value(), figures["cka"], 1e-5)
