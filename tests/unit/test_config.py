"""The vocabulary of options: durations, schedules, strict conversion, composition, resolution."""

import json
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from leanvit.backbones.catalogue import FAMILIES
from leanvit.config import (
    BACKBONES,
    AdamWConfig,
    BackboneConfig,
    CvTConfig,
    Duration,
    EsViTConfig,
    Facts,
    LARSConfig,
    MethodConfig,
    MixConfig,
    MultiCropConfig,
    RunConfig,
    SGDConfig,
    SwinConfig,
    TrainConfig,
    ViLConfig,
    ViTConfig,
    compose,
    from_dict,
    load_config,
    replace_options,
    resolve,
    steps,
    to_dict,
)
from leanvit.config.convert import KINDS, leaves
from leanvit.config.run import OptimConfig
from leanvit.methods.catalogue import METHODS
from leanvit.recipes import RECIPES, recipe

OPTIMIZERS = tuple(KINDS[OptimConfig])
ESVIT = replace_options(recipe("esvit"), {"train.batch": 64})
LAPTOP = Facts(images=1000, cores=8, device="cpu", bf16=False)
ROOMY = replace(LAPTOP, images=5000, classes=10)
"""Enough images for a batch of every recipe, with classes for those that need them."""
GPU = Facts(
    images=100_000,
    classes=10,
    cores=32,
    device="cuda",
    bf16=True,
    attention={("cpu", "bf16"): "flash", ("cuda", "bf16"): "triton", ("cuda", "fp32"): "triton"},
    world=2,
)


def refusal(text: str) -> "re.Pattern[str]":
    """Return a pattern of this text, word by word."""
    return re.compile(re.escape(text))


# Strict conversion


@pytest.mark.parametrize(
    ("name", "backbone", "optimizer"), list(product(RECIPES, BACKBONES, OPTIMIZERS))
)
def test_json_brings_every_configuration_back(name: str, backbone: str, optimizer: str) -> None:
    config = compose(recipe(name), backbone=backbone, optimizer=optimizer)
    found = from_dict(RunConfig, json.loads(json.dumps(to_dict(config))))
    assert found == config
    assert type(found.method) is type(config.method)
    assert found.backbone == BACKBONES[backbone]
    assert found.optim.kind == optimizer


def test_a_resolved_configuration_comes_back_from_json() -> None:
    for name in RECIPES:
        resolved = resolve(recipe(name), ROOMY)
        plain = json.loads(json.dumps(resolved.to_dict()))
        assert from_dict(RunConfig, plain["config"]) == resolved.config
        assert plain["origins"] == resolved.origins


def test_a_file_brings_a_configuration_back(tmp_path: Path) -> None:
    config = replace_options(recipe("esvit"), {"data.mean": (0.1, 0.2, 0.3), "data.workers": 3})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert load_config(tmp_path / "config.json") == config


def test_what_is_no_configuration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot read the configuration .*none.json: No such"):
        load_config(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"recipe": ')
    with pytest.raises(ValueError, match=r"half.json is not JSON: "):
        load_config(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a section with keys"):
        load_config(tmp_path / "list.json")


def test_missing_keys_take_their_defaults() -> None:
    assert from_dict(TrainConfig, {"batch": 8}) == TrainConfig(batch=8)
    plain = {"recipe": "mine", "method": {"kind": "esvit"}, "backbone": {"kind": "vit"}}
    expected = RunConfig(recipe="mine", method=EsViTConfig(), backbone=ViTConfig())
    assert from_dict(RunConfig, plain) == expected


def test_whole_numbers_serve_as_numbers() -> None:
    found = from_dict(AdamWConfig, {"clip": 3, "betas": [0, 0.5]})
    assert found == AdamWConfig(clip=3.0, betas=(0.0, 0.5))
    assert type(found.clip) is float


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the recipe esvit as plain values with one of them set, or removed if it is `...`."""
    plain = to_dict(recipe("esvit"))
    *sections, last = path.split(".")
    section = plain
    for name in sections:
        section = section[name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trian", 1, "Unknown option 'trian'; did you mean 'train'? Known: "),
        ("train.batc", 1, "Unknown option 'train.batc'; did you mean 'train.batch'? Known: "),
        ("optim.lr.peek", 1, "Unknown option 'optim.lr.peek'; did you mean 'optim.lr.peak'?"),
        ("backbone.pool", "mean", "Unknown option 'backbone.pool'"),
        ("backbone.kind", "swim", "Unknown kind of backbone 'swim'; did you mean 'swin'?"),
        ("method.kind", "mocov2", "Unknown kind of method 'mocov2'; did you mean 'mocov3'?"),
        ("optim.kind", 3, "Unknown kind of optim '3'. Known: adamw, lars, muon, sgd."),
        ("optim.kind", ..., "optim needs a kind: one of adamw, sgd, lars, muon."),
        ("train.kind", "x", "Unknown option 'train.kind'"),
        ("method", ..., "method is missing."),
        ("recipe", ..., "recipe is missing."),
        ("optim.lr.peak", ..., "optim.lr.peak is missing."),
    ],
)
def test_a_wrong_name_is_an_error(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=refusal(message)):
        from_dict(RunConfig, changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("train.batch", True, "a whole number, or 'auto'"),
        ("train.batch", 64.0, "a whole number, or 'auto'"),
        ("train.batch", "64", "a whole number, or 'auto'"),
        ("train.batch", None, "a whole number, or 'auto'"),
        ("optim.clip", True, "a number"),
        ("optim.clip", "3", "a number"),
        ("optim.clip", [3.0], "a number"),
        ("data.source", 3, "a word"),
        ("method.head.batch_norm", 1, "true or false"),
        ("method.head.batch_norm", "yes", "true or false"),
        ("train.precision", "fp16", "one of 'auto', 'fp32', 'bf16'"),
        ("train.precision", ["fp32"], "one of 'auto', 'fp32', 'bf16'"),
        ("data.workers", "many", "a whole number, or 'auto'"),
        ("data.workers", 2.0, "a whole number, or 'auto'"),
        ("data.workers", True, "a whole number, or 'auto'"),
        ("data.mean", 0.5, "a list"),
        ("data.mean", "0.5", "a list"),
        ("data.mean", [0.5, 0.5], "3 values"),
        ("data.mean", [0.5, 0.5, "x"], "a number"),
        ("backbone.depths", [2, 2.0, 6, 2], "a whole number"),
        ("backbone.depths", {"0": 2}, "a list"),
        ("train.duration", 10, "a duration such as '10ep'"),
        ("train", 5, "a section with keys"),
        ("method", [], "a section with keys"),
        ("optim.lr", "cosine", "a section with keys"),
    ],
)
def test_a_wrong_type_is_an_error(path: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=refusal(f"{path} is ")) as caught:
        from_dict(RunConfig, changed(path, value))
    assert f"expected {expected}" in str(caught.value)


@pytest.mark.parametrize("path", ["train.duration", "optim.lr.warmup", "method.region_start"])
def test_a_wrong_duration_is_an_error_with_its_place(path: str) -> None:
    with pytest.raises(ValueError, match=r"'10days' is not a duration; write 10ep") as caught:
        from_dict(RunConfig, changed(path, "10days"))
    assert path in str(caught.value)


def test_a_refused_value_is_an_error_with_its_place() -> None:
    for path, value, message in [
        ("train.batch", 0, "train: batch is 0; expected at least 1."),
        ("method.region_weight", 1, "method: region_weight lies between 0 and 1, not 1.0"),
        ("method.views.local_counts", [], "method.views: local_sizes (96,) and local_counts ()"),
    ]:
        with pytest.raises(ValueError, match=refusal(message)):
            from_dict(RunConfig, changed(path, value))


def test_a_section_of_another_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="this section is of kind 'swin'"):
        from_dict(SwinConfig, to_dict(ViTConfig()))
    assert from_dict(BackboneConfig, to_dict(ViTConfig()), "backbone") == ViTConfig()


# Single options


def test_options_are_replaced_by_name() -> None:
    before = recipe("esvit")
    durations = {"train.duration": Duration(3, "ep"), "optim.lr.warmup": "7st"}
    others = {"train.batch": 8, "optim.lr.peak": 1, "backbone.depths": (1, 1, 1, 1)}
    after = replace_options(before, {**durations, **others})
    assert (after.train.batch, after.train.duration) == (8, Duration(3, "ep"))
    assert (after.optim.lr.peak, after.optim.lr.warmup) == (1.0, steps(7))
    assert after.backbone == SwinConfig(depths=(1, 1, 1, 1))
    assert after.method == before.method
    assert before == recipe("esvit")
    assert replace_options(before, {}) == before
    assert replace_options(TrainConfig(), {"seed": 3}) == TrainConfig(seed=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.bacth", "Unknown option 'train.bacth'; did you mean 'train.batch'? Known: "),
        ("batch", "Unknown option 'batch'"),
        ("tran.batch", "Unknown option 'tran.batch'; did you mean 'train.batch'? Sections: "),
        ("optim.momentum", "Unknown option 'optim.momentum'"),
        ("backbone.depth", "Unknown option 'backbone.depth'; did you mean 'backbone.depths'?"),
        ("method.kind", "Unknown option 'method.kind'"),
        ("recipe", "Unknown option 'recipe'"),
        ("train", "'train' is a section; its options are train.duration, train.batch"),
    ],
)
def test_an_unknown_option_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=refusal(message)):
        replace_options(recipe("esvit"), {name: 1})


def test_an_unknown_option_is_answered_with_its_own_section_alone() -> None:
    with pytest.raises(ValueError, match=r"Unknown option 'train.bacth'") as caught:
        replace_options(recipe("esvit"), {"train.bacth": 1})
    known = str(caught.value).split("Known: ")[1].rstrip(".").split(", ")
    assert known == sorted(f"train.{name}" for name in to_dict(TrainConfig()))


@pytest.mark.parametrize("name", ["train.xyzzy", "backbone.qqq"])
def test_a_name_like_no_option_gets_no_suggestion(name: str) -> None:
    with pytest.raises(ValueError, match=refusal(f"Unknown option '{name}'.")):
        replace_options(recipe("esvit"), {name: 1})


def test_a_value_that_does_not_fit_an_option_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"train.batch is '8'; expected a whole number"):
        replace_options(recipe("esvit"), {"train.batch": "8"})
    with pytest.raises(ValueError, match=r"backbone: depths \(1,\) and heads"):
        replace_options(recipe("esvit"), {"backbone.depths": (1,)})


def test_leaves_are_all_options_and_no_kinds() -> None:
    names = dict(leaves(to_dict(recipe("esvit"))))
    assert names["train.batch"] == 16
    assert names["optim.lr.warmup"] == "3.3%"
    assert names["method.views.local_sizes"] == [96]
    assert not [name for name in names if name == "recipe" or name.endswith("kind")]


# Composition


def test_nothing_asked_leaves_a_recipe_as_it_is() -> None:
    for name in RECIPES:
        assert compose(recipe(name)) == recipe(name)


def test_parts_are_replaced_by_name() -> None:
    config = compose(
        recipe("esvit"), data="photos", backbone="swin_base_w14", options={"train.seed": 5}
    )
    assert config.data.source == "photos"
    assert config.backbone == BACKBONES["swin_base_w14"]
    assert config.train.seed == 5
    assert (config.method, config.optim) == (recipe("esvit").method, recipe("esvit").optim)


def test_options_fit_the_parts_that_were_asked_for() -> None:
    options = {"backbone.pool": "mean", "optim.trust": 0.1}
    config = compose(recipe("esvit"), backbone="vit_tiny", optimizer="lars", options=options)
    assert config.backbone == ViTConfig(dim=192, heads=3, pool="mean")
    assert config.optim == LARSConfig(trust=0.1)
    with pytest.raises(ValueError, match=r"Unknown option 'backbone.pool'"):
        compose(recipe("esvit"), options=options)


def test_a_new_optimizer_keeps_what_all_share() -> None:
    before = recipe("esvit_swin_tiny_in1k")
    after = compose(before, optimizer="sgd").optim
    assert after == SGDConfig(lr=before.optim.lr, decay_all_matrices=True)
    assert after.lr.warmup == Duration(10, "ep")


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("backbone", "swin_tinny", "Unknown backbone 'swin_tinny'; did you mean 'swin_tiny'?"),
        ("optimizer", "adam", "Unknown optimizer 'adam'; did you mean 'adamw'? Known: adamw, "),
        ("optimizer", "x", "Unknown optimizer 'x'. Known: adamw, lars, muon, sgd."),
    ],
)
def test_an_unknown_part_is_an_error(part: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=refusal(message)):
        compose(recipe("esvit"), **{part: name})  # type: ignore[arg-type]


def test_an_unknown_recipe_is_an_error() -> None:
    with pytest.raises(ValueError, match="Unknown recipe 'esvitt'; did you mean 'esvit'"):
        recipe("esvitt")


# Resolution


def ask(**changes: object) -> RunConfig:
    """Return the recipe esvit with options changed; `__` stands for a point."""
    return replace_options(
        ESVIT, {name.replace("__", "."): value for name, value in changes.items()}
    )


def decided(name: str, facts: Facts = LAPTOP, **changes: object) -> object:
    """Return what an option of the recipe esvit is resolved to."""
    return dict(leaves(to_dict(resolve(ask(**changes), facts).config)))[name]


def test_the_best_device_is_taken() -> None:
    assert decided("train.device") == "cpu"
    assert decided("train.device", GPU) == "cuda"
    assert decided("train.device", GPU, train__device="cpu") == "cpu"


def test_bf16_is_for_devices_that_are_fast_at_it() -> None:
    slow = replace(GPU, bf16=False)
    assert decided("train.precision") == "fp32"
    assert decided("train.precision", GPU) == "bf16"
    assert decided("train.precision", slow) == "fp32"
    assert decided("train.precision", GPU, train__device="cpu") == "fp32"
    assert decided("train.precision", slow, train__precision="bf16") == "bf16"
    units = replace(LAPTOP, matrix_units=True)
    assert decided("train.precision", units) == "bf16"
    assert decided("train.precision", units, backbone__dim=24) == "fp32"
    assert decided("train.precision", GPU, train__precision="fp32") == "fp32"


def test_prototype_attention_takes_the_fastest_form() -> None:
    assert decided("method.attention") == "chunks"
    assert decided("method.attention", GPU) == "triton"
    assert decided("method.attention", GPU, train__device="cpu") == "chunks"
    assert decided("method.attention", GPU, train__device="cpu", train__precision="bf16") == "flash"
    assert decided("method.attention", GPU, method__attention="chunks") == "chunks"


def test_views_are_rendered_where_that_is_faster() -> None:
    gpu = replace(GPU, rendering={"cuda": "device", "cpu": "host"})
    assert decided("data.rendering") == decided("data.rendering", GPU) == "host"
    assert decided("data.rendering", gpu) == "device"
    assert decided("data.rendering", gpu, train__device="cpu") == "host"
    assert decided("data.rendering", gpu, data__rendering="host") == "host"
    assert decided("data.rendering", data__rendering="device") == "device"


@pytest.mark.parametrize(
    ("cores", "world", "expected"),
    [(8, 1, 7), (1, 1, 0), (2, 1, 1), (8, 2, 3), (2, 4, 0), (64, 1, 16), (3, 2, 0)],
)
def test_workers_leave_a_core_of_each_process_to_the_step(
    cores: int, world: int, expected: int
) -> None:
    facts = replace(LAPTOP, cores=cores, world=world)
    assert decided("data.workers", facts) == expected
    assert decided("data.workers", replace(facts, world=8 * world, neighbours=world)) == expected
    assert decided("data.workers", facts, data__workers=5) == 5


def test_the_learning_rate_follows_the_batch() -> None:
    for rule, factor in [("linear", 0.25), ("sqrt", 0.5), ("none", 1.0)]:
        config = resolve(ask(train__batch=64, optim__lr_rule=rule), LAPTOP).config
        assert config.optim.lr.peak == pytest.approx(5e-4 * factor, rel=1e-12)
        assert config.optim.lr_rule == "none"
        assert config.optim.lr.end == 1e-6
    assert decided("optim.lr.peak", train__batch=512) == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("train.duration", "7st", 7),
        ("train.duration", "100ep", 1500),
        ("train.duration", "1e5img", 1562),
        ("optim.lr.warmup", "3.3%", 50),
        ("optim.weight_decay.warmup", "2ep", 30),
        ("method.teacher_temp.warmup", "30ep", 450),
        ("method.teacher_momentum.warmup", "64img", 1),
        ("method.freeze_prototypes", "1%", 15),
        ("method.region_start", "50%", 750),
        ("train.log_every", "0st", 1),
        ("train.save_every", "0.01%", 1),
        ("train.save_every", "5%", 75),
    ],
)
def test_durations_become_steps(name: str, word: str, expected: int) -> None:
    config = replace_options(ESVIT, {"method.teacher_temp.warmup": "0st", name: word})
    found = dict(leaves(to_dict(resolve(config, LAPTOP).config)))
    assert found[name] == f"{expected}st"  # of 15 steps an epoch, 1500 in the run


def test_no_open_value_is_left() -> None:
    for (name, facts), optimizer in product(product(RECIPES, (ROOMY, GPU)), OPTIMIZERS):
        config = resolve(compose(recipe(name), optimizer=optimizer), facts).config
        found = dict(leaves(to_dict(config)))
        assert "auto" not in found.values()
        words = [word for word in found.values() if re.fullmatch(r"[0-9.e+]+(ep|%|img)", str(word))]
        assert words == []


def test_resolving_twice_changes_nothing() -> None:
    for name, facts, rule in product(RECIPES, (ROOMY, GPU), ("linear", "sqrt", "none")):
        config = replace_options(recipe(name), {"optim.lr_rule": rule})
        once = resolve(config, facts).config
        again = resolve(once, facts)
        assert again.config == once
        assert set(again.origins.values()) == {"recipe"}


def test_resolving_changes_nothing_that_was_decided_already() -> None:
    asked = ask(train__batch=32, data__workers=2)
    before, after = (dict(leaves(to_dict(c))) for c in (asked, resolve(asked, LAPTOP).config))
    moved = {name for name in before if before[name] != after[name]}
    durations = {name for name, word in before.items() if str(word).endswith(("ep", "%"))}
    rules = {
        *("train.device", "train.precision", "method.attention", "data.rendering"),
        *("optim.lr.peak", "optim.lr_rule", "fit", "method.head.prototypes"),
        *("method.teacher_momentum.start", "method.teacher_momentum.peak"),
    }
    assert moved == rules | durations


def test_every_value_has_an_origin() -> None:
    given = ("train.batch", "optim.lr.peak", "data.workers")
    asked = ask(train__batch=32, optim__lr__peak=1e-3, data__workers=2)
    resolved = resolve(asked, LAPTOP, given=given)
    found = dict(leaves(to_dict(resolved.config)))
    assert set(resolved.origins) == set(found)
    assert {n for n, origin in resolved.origins.items() if origin.startswith("given")} == {*given}
    assert resolved.origins["train.batch"] == resolved.origins["data.workers"] == "given"
    assert resolved.origins["train.seed"] == "recipe"
    expected = "given; 0.001 at 256 images, linear rule, batch 32"
    assert resolved.origins["optim.lr.peak"] == expected
    assert resolved.origins["optim.lr_rule"] == "recipe; applied to the peak"
    assert resolved.origins["train.duration"] == "recipe; 100ep of 3100 steps, 31 an epoch"
    assert resolved.origins["train.device"] == "recipe; the best device here is cpu"


def test_every_value_that_moved_says_why() -> None:
    for name, facts in product(RECIPES, (ROOMY, GPU)):
        resolved = resolve(recipe(name), facts)
        before, after = (dict(leaves(to_dict(c))) for c in (recipe(name), resolved.config))
        for option, origin in resolved.origins.items():
            assert ("; " in origin) == (before[option] != after[option]), (option, origin)


SPLIT = "micro-batches on each of"
TOO_LONG = "steps, but the whole run has 1500: shorten it to 1500 or train longer."
SCHEDULES = ("optim.lr", "optim.weight_decay", "method.teacher_temp", "method.teacher_momentum")


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        ("train.batch=1001", LAPTOP, "There are 1000 images, fewer than one batch of 1001; lower "),
        ("train.duration=1img", LAPTOP, "train.duration 1img is less than one step of 64 images."),
        ("train.duration=0st", LAPTOP, "train.duration 0st is less than one step of 64 images."),
        ("train.duration=50%", LAPTOP, "The length of a run cannot be 50%: give epochs or steps."),
        ("train.accumulate=3", LAPTOP, f"64 does not split into 3 {SPLIT} 1 processes; use a mul"),
        ("train.batch=66 train.accumulate=2", GPU, f"2 {SPLIT} 2 processes; use a multiple of 4."),
        ("train.device=cuda", LAPTOP, "torch finds no CUDA device here; use cpu."),
        ("train.accumulate=2 method.head.batch_norm=true", LAPTOP, "Batch norm in the heads coup"),
        ('train.accumulate=2 method.targets="sinkhorn"', LAPTOP, "Sinkhorn-Knopp shares the image"),
        ("train.accumulate=2 method.koleo=0.1", LAPTOP, "KoLeo compares the images of a whole bat"),
        ("train.batch=1 method.koleo=0.1", LAPTOP, "so it needs two and a step cannot be split"),
        ("method.koleo=-1", LAPTOP, "koleo is -1.0; expected 0 or more"),
        ("method.token_dropout=0.5", LAPTOP, "which a swin cannot do without; set it to 0, or"),
        ("method.token_dropout=1.0", LAPTOP, "token_dropout is 1.0; expected within [0, 1)"),
        ("train.progressive=1.5", LAPTOP, "progressive is 1.5; expected within [0, 1]"),
        (
            "train.progressive=0.5 train.progressive_scale=0.99",
            LAPTOP,
            "makes views of 220, 96 pixels, in whole patches, out of those of 224, 96; each has",
        ),
        ("method.mix.views=11", LAPTOP, "method.mix.views is 11, but there are 10 views."),
        ("method.mix.views=1 train.batch=65", LAPTOP, "but a micro-batch has 65: make it even."),
        ("method.mix.views=1 train.batch=66 train.accumulate=2", LAPTOP, "has 33: make it even."),
        *[(f"{n}.warmup=1501st", LAPTOP, f"{n}.warmup takes 1501 {TOO_LONG}") for n in SCHEDULES],
    ],
)
def test_what_cannot_run_is_refused(changes: str, facts: Facts, message: str) -> None:
    pairs = [change.split("=") for change in changes.split()]
    options = {name: word if word[-1] in "tg%a" else json.loads(word) for name, word in pairs}
    with pytest.raises(ValueError, match=refusal(message)):
        resolve(replace_options(ESVIT, options), facts)


@pytest.mark.parametrize(
    ("name", "options", "facts", "message"),
    [
        ("mocov3", {"train.accumulate": 2}, ROOMY, "a step cannot be split: set train.accumulate"),
        ("mocov3", {"train.batch": 1}, ROOMY, "a batch of 1 has none: raise train.batch"),
        ("supervised", {}, replace(ROOMY, classes=0), "and these images have none; docs/data.md"),
        ("supervised", {"method.classes": 10}, LAPTOP, "and these images have none; docs/data.md"),
        ("supervised", {}, replace(ROOMY, unlabelled=3), "3 of 5000 images have none; leave those"),
        ("supervised", {"method.classes": 9}, ROOMY, "is 9, but the images have 10; leave it at"),
        ("supervised", {"method.mix.views": 2}, ROOMY, "is 2, but there is 1 view."),
        ("supervised", {"train.batch": 33}, ROOMY, "a micro-batch has 33: make it even."),
        ("deit_tiny_in1k", {"train.batch": 4}, ROOMY, "too few for two different ones: raise tr"),
    ],
)
def test_other_methods_refuse_what_they_cannot(
    name: str, options: Mapping[str, Any], facts: Facts, message: str
) -> None:
    with pytest.raises(ValueError, match=refusal(message)):
        resolve(replace_options(recipe(name), options), facts)


def test_classes_are_those_of_the_images() -> None:
    resolved = resolve(recipe("supervised"), ROOMY)
    assert resolved.config.method.classes == 10  # type: ignore[attr-defined]
    assert resolved.origins["method.classes"] == "recipe; the images have so many"
    more = resolve(replace_options(recipe("supervised"), {"method.classes": 12}), ROOMY)
    assert more.config.method.classes == 12  # type: ignore[attr-defined]
    resolve(recipe("mocov3"), LAPTOP)  # needs no classes
    resolve(replace_options(recipe("mocov3"), {"train.batch": 2}), LAPTOP)
    resolve(replace_options(recipe("deit_tiny_in1k"), {"train.batch": 6}), ROOMY)


def test_what_just_fits_is_not_refused() -> None:
    resolve(ask(train__batch=1000), LAPTOP)
    resolve(ask(method__mix__views=10), LAPTOP)
    resolve(ask(optim__lr__warmup="1500st"), LAPTOP)
    resolve(ask(train__duration="1st"), LAPTOP)
    resolve(ask(train__accumulate=64), LAPTOP)
    resolve(ask(method__head__batch_norm=True), LAPTOP)


# What single sections refuse


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (ViTConfig, {"drop_path": 1.0}, r"drop_path is 1.0; expected within \[0, 1\)"),
        (ViTConfig, {"drop_path": -0.1}, r"drop_path is -0.1; expected within \[0, 1\)"),
        (ViTConfig, {"image_size": 15}, "image_size 15 is smaller than one patch of 16 pixels"),
        (ViTConfig, {"heads": 5}, "5 heads do not divide 384 channels"),
        (ViTConfig, {"registers": -1}, "registers is -1; expected 0 or more"),
        (ViTConfig, {"layer_scale": -0.1}, "layer_scale is -0.1; expected 0 or more"),
        (
            ViTConfig,
            {"dim": 18, "positions": "sincos"},
            r"channels in fours .*, not 18; change dim, or take learned positions",
        ),
        (SwinConfig, {"image_size": 3}, "image_size 3 is smaller than one patch of 4 pixels"),
        (SwinConfig, {"heads": (3, 6, 12, 0)}, "heads"),
        (SwinConfig, {"depths": (2, 2)}, r"depths \(2, 2\) and heads .* differ in length"),
        (ViLConfig, {"depths": (2, 2)}, r"dims \(96, .* and depths \(2, 2\) differ in length"),
        (ViLConfig, {"heads": (3, 6, 12, 7)}, "Stage 4 has 768 channels, which 7 heads do not"),
        (ViLConfig, {"sparse_stages": 4}, "leaves a sparse stage without one; expected at least 1"),
        (ViLConfig, {"sparse_stages": 5}, "sparse_stages is 5; there are 4 stages"),
        (ViLConfig, {"dims": (), "depths": ()}, r"dims is \(\); expected the channels"),
        (SwinConfig, {"heads": (3, 6, 12, 7)}, "Stage 4 has 768 channels, which 7 heads do not"),
        (CvTConfig, {"depths": (2, 2)}, r"dims .*, depths \(2, 2\) and heads .* differ in length"),
        (
            CvTConfig,
            {"depths": (), "dims": (), "heads": ()},
            r"depths is \(\); expected the number",
        ),
        (CvTConfig, {"heads": (1, 3, 6, 7)}, "Stage 4 has 768 channels, which 7 heads do not"),
        (MultiCropConfig, {"local_sizes": (96, 64)}, "give a number of local crops for each size"),
        (MultiCropConfig, {"global_scale": (0.0, 1.0)}, r"global_scale is a range within \(0, 1\]"),
        (MultiCropConfig, {"local_scale": (0.5, 0.4)}, r"local_scale is a range within \(0, 1\]"),
        (MultiCropConfig, {"local_scale": (0.5, 1.1)}, r"not \(0.5, 1.1\)"),
        (MixConfig, {"views": 1, "mixup": 0.0, "cutmix": 0.0}, "mix.mixup and mix.cutmix are 0"),
        (EsViTConfig, {"region_weight": 0.0}, "without a region loss the method is called dino"),
        (EsViTConfig, {"region_weight": 1.0}, "region_weight lies between 0 and 1, not 1.0"),
        (TrainConfig, {"batch": 0}, "batch is 0; expected at least 1"),
        (TrainConfig, {"accumulate": 0}, "accumulate is 0; expected at least 1"),
        (TrainConfig, {"keep": 0}, "keep is 0; expected at least 1"),
    ],
)
def test_a_section_refuses_what_makes_no_sense(
    section: type, options: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        section(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone.window", 0),
        ("backbone.dim", 0),
        ("backbone.patch", 0),
        ("backbone.depths", (0, 2, 6, 2)),
        ("backbone.mlp_ratio", 0.0),
        ("data.workers", -1),
        ("data.max_unreadable", 100.5),
        ("data.std", (0.0, 0.2, 0.2)),
        ("method.center_momentum", 1.5),
        ("method.head.bottleneck", 0),
        ("method.head.hidden", 0),
        ("method.head.prototypes", 0),
        ("method.mix.mixup", -1.0),
        ("method.mix.views", -1),
        ("method.student_temp", 0.0),
        ("method.teacher_temp.start", 0.0),
        ("method.views.flip", 2.0),
        ("method.views.global_size", 0),
        ("method.views.jitter_strength", (0.4, 0.4, 0.2, 0.6)),
        ("method.views.local_counts", (-1,)),
        ("optim.betas", (0.9, 1.0)),
        ("optim.clip", -1.0),
        ("train.seed", -1),
    ],
)
def test_a_number_out_of_range_is_refused_before_the_run(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name.split(".")[-1]):
        resolve(replace_options(recipe("esvit"), {name: value}), LAPTOP)


# Catalogues


def test_a_catalogue_cannot_be_changed() -> None:
    tables: list[Any] = [BACKBONES, RECIPES, FAMILIES, METHODS]
    for table in tables:
        name = next(iter(table))
        with pytest.raises(TypeError):
            table[name] = None
        with pytest.raises(TypeError):
            del table[name]


def test_a_catalogue_entry_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        BACKBONES["swin_tiny"].patch = 1  # type: ignore[misc]
    assert recipe("esvit").backbone is BACKBONES["swin_tiny"]


def test_kinds_name_their_types() -> None:
    for section, kinds in KINDS.items():
        for name, kind in kinds.items():
            assert kind.kind == name  # type: ignore[attr-defined]
            assert issubclass(kind, section)
    dense = {"detector", "segmenter"}  # methods of evaluations
    assert {kind.kind for kind in METHODS} | dense == set(KINDS[MethodConfig])
