"""What a run may change when it goes on, and what follows from a change."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from leanvit.backbones.catalogue import build_backbone
from leanvit.config import Facts, RunConfig, compose, replace_options, resolve, to_dict
from leanvit.config.convert import leaves
from leanvit.config.resume import (
    FIXED,
    FREE,
    LOOSE,
    Past,
    differences,
    find_changes,
    fixed,
    go_on,
    require_allowed,
    with_free,
)
from leanvit.core.files import save_tensors
from leanvit.methods.catalogue import build_method
from leanvit.recipes import RECIPES, recipe
from leanvit.weights.file import header
from tests.tiny import write_tuned
from tests.unit.test_options import CASES, CHANGES, OWN_CHANGES, PARTS

FACTS = Facts(images=1000, classes=10, cores=4, device="cpu", bf16=False)
RESHAPING = {("supervised", "method.average"), ("supervised", "method.teacher")}
"""Options that bring tensors along where they leave 0 or nothing: what is saved refuses that."""


def past(config: RunConfig, facts: Facts = FACTS) -> Past:
    return Past(config, resolve(config, facts), {})


def options(config: RunConfig) -> dict[str, Any]:
    return dict(leaves(to_dict(config)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    teacher = build_backbone(PARTS["mae"].config({}).backbone)
    for name in ("teacher", "other"):
        save_tensors(teacher.state_dict(), folder / f"{name}.safetensors", header(teacher, {}))
    write_tuned(folder / "tuned", teacher, classes=10)
    return folder


@cache
def shapes(config: RunConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what a checkpoint of the method would hold."""
    if teacher := options(config).get("method.teacher"):
        config = replace_options(config, {"method.teacher": str(folder / teacher)})
    config = resolve(config, FACTS).config
    method = build_method(config.method, config.backbone, 0)
    return {name: tuple(tensor.shape) for name, tensor in method.state_dict().items()}


MAY = [case for case in CASES if case[1].startswith(("method.", "backbone."))]
REFUSED = {("esvit", "method.token_dropout")}
"""Options that a part cannot have: its backbone needs all patches."""
MAY = [(part, name) for part, name in MAY if not fixed(name) and (part, name) not in REFUSED]


@pytest.mark.parametrize(("part", "name"), MAY, ids=[f"{p}-{n}" for p, n in MAY])
def test_what_may_change_leaves_the_saved_weights_fitting(
    part: str, name: str, files: Path
) -> None:
    value, base = CHANGES[name]
    value = OWN_CHANGES.get((part, name), value)
    before = PARTS[part].config(base)
    after = replace_options(before, {name: value})
    fits = shapes(before, files) == shapes(after, files)
    assert fits == ((part, name) not in RESHAPING)


def test_what_is_fixed_and_free_are_options() -> None:
    every = {name for part in PARTS.values() for name in options(part.config({}))}
    sections = {name.rpartition(".")[0] for name in every}
    kinds = {"method.kind", "optim.kind"}
    assert set(FIXED) <= every | sections | kinds and set(FREE) | set(LOOSE) <= every
    assert not {name for name in FREE if fixed(name)}
    assert fixed("backbone.dim") and fixed("init") and fixed("init_from") == fixed("init")
    assert not fixed("backbone.drop_path") and not fixed("method.hidden_layers")


# What is a change


def test_what_was_asked_and_what_it_became_are_no_changes() -> None:
    began = past(recipe("esvit"))
    assert began.asked != began.resolved.config
    assert find_changes(began, began.asked) == []
    assert find_changes(began, began.resolved.config) == []
    free = {"data.source": "moved", "data.workers": 9, "data.max_unreadable": 5.0, "train.keep": 9}
    free |= {"train.keep_every": "7st", "train.save_minutes": 7.0, "train.recompute": "full"}
    assert set(free) == set(FREE)
    assert find_changes(began, replace_options(began.asked, free)) == []


def test_a_change_is_told_with_what_it_was_resolved_to() -> None:
    began = past(recipe("esvit"))
    new = {"train.precision": "bf16", "optim.clip": 1.0, "train.seed": 7}
    found = find_changes(began, replace_options(began.asked, new))
    assert [str(change) for change in found] == [
        "optim.clip was 3.0, now 1.0",
        "train.precision was 'auto' (ran as 'fp32'), now 'bf16'",
        "train.seed was 0, now 7; it stays, since order, views and masks are drawn from it",
    ]


def test_another_kind_is_a_change_that_no_run_takes() -> None:
    began = past(recipe("esvit"))
    asked = (compose(began.asked, optimizer="sgd"), compose(began.asked, backbone="vit_tiny"))
    for config in asked:
        kinds = [c for c in find_changes(began, config) if "kind" in c.name]
        assert len(kinds) == 1 and fixed(kinds[0].name)
    (kind,) = (c for c in find_changes(began, recipe("dino")) if c.name == "method.kind")
    assert (kind.was, kind.now) == ("esvit", "dino") and fixed(kind.name)


def test_every_change_is_to_be_allowed() -> None:
    began = past(recipe("esvit"))
    asked = replace_options(began.asked, {"optim.clip": 1.0, "watch.k": 5})
    found = find_changes(began, asked)
    require_allowed(began, found, ("watch.k", "optim.clip", "train.duration"))
    for allow in ((), ("optim.clip",)):
        with pytest.raises(ValueError) as refused:
            require_allowed(began, found, allow)
        assert str(refused.value) == (
            "A run resumes as it began, and this is another:\n"
            "  optim.clip was 3.0, now 1.0\n"
            "  watch.k was 20, now 5\n"
            "Ask for the same, or start a new run in another folder; --allow optim.clip,watch.k "
            "takes over what may change."
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("optim.clib", "Unknown option 'optim.clib'; did you mean 'optim.clip'?"),
        ("optim.lr", "'optim.lr' is a section; its options are optim.lr.start"),
        ("train.seed", "train.seed cannot be allowed to change: order, views and masks"),
        ("backbone.dim", "backbone.dim cannot be allowed to change: the saved weights have these"),
        ("optim.kind", "optim.kind cannot be allowed to change: what is saved of each weight"),
    ],
)
def test_what_cannot_be_allowed_is_said_at_once(name: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        require_allowed(past(recipe("esvit")), [], (name,))
    assert message in str(refused.value)


# What follows from it


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_follows_from_no_change(name: str) -> None:
    """Also on a machine that would decide otherwise what was open."""
    asked = recipe(name)
    if "teacher" in options(asked):
        asked = replace_options(asked, {"method.teacher": "somebody"})
    facts = replace(FACTS, images=10_000)
    other = replace(facts, device="cuda", bf16=True, cores=64, rendering={"cuda": "device"})
    began = past(asked, facts)
    now = go_on(began, asked, [], other)
    assert now.resolved == began.resolved and now.asked == asked


def changed(began: Past, new: dict[str, Any], facts: Facts = FACTS) -> Past:
    asked = replace_options(began.asked, new)
    return go_on(began, asked, find_changes(began, asked), facts)


def test_shares_follow_a_longer_run_and_what_was_open_stays() -> None:
    began = past(replace_options(recipe("esvit"), {"train.duration": "100st", "train.batch": 16}))
    better = replace(FACTS, device="cuda", bf16=True)
    now = changed(began, {"train.duration": "1000st"}, better)
    assert now.asked == replace_options(began.asked, {"train.duration": "1000st"})
    found = differences(began.resolved.config, now.resolved.config)
    assert found["train.duration"] == {"was": "100st", "now": "1000st"}
    assert found["method.teacher_temp.warmup"] == {"was": "10st", "now": "100st"}
    assert found["train.save_every"] == {"was": "5st", "now": "50st"}
    assert not [n for n, c in found.items() if not str(c["was"]).endswith("st")], "only lengths"
    assert now.resolved.config.train.precision == "fp32"
    assert now.resolved.origins["train.duration"] == "given"
    assert now.resolved.origins["train.precision"] == began.resolved.origins["train.precision"]


def test_a_new_peak_follows_its_rule_as_the_first_did() -> None:
    began = past(replace_options(recipe("esvit"), {"train.batch": 64, "optim.lr_rule": "linear"}))
    now = changed(began, {"optim.lr.peak": 1e-3})
    assert now.resolved.config.optim.lr.peak == 1e-3 * 64 / 256
    assert (now.asked.optim.lr.peak, now.asked.optim.lr_rule) == (1e-3, "linear")
    (name,) = differences(began.resolved.config, now.resolved.config)
    assert name == "optim.lr.peak"
    assert find_changes(now, now.asked) == [], "the same words again change nothing more"
    assert [c.name for c in find_changes(now, began.asked)] == ["optim.lr.peak"]


def test_changes_that_contradict_the_rest_are_refused() -> None:
    began = past(replace_options(recipe("esvit"), {"train.duration": "100st"}))
    with pytest.raises(ValueError, match=r"train.device is cuda, but torch finds no CUDA"):
        changed(began, {"train.device": "cuda"})
    with pytest.raises(ValueError, match=r"does not split into 5 micro-batches"):
        changed(began, {"train.accumulate": 5})


def test_what_changes_no_number_is_as_it_is_now() -> None:
    config, current = recipe("esvit"), replace_options(recipe("mae"), {"data.source": "moved"})
    assert with_free(config, current) == replace_options(config, {"data.source": "moved"})
