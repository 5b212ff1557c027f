"""What follows from the images and the machine, and from nothing that was given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import leanvit
from leanvit.config import (
    Facts,
    RunConfig,
    SwinConfig,
    compose,
    load_config,
    replace_options,
    resolve,
)
from leanvit.config.convert import leaves
from leanvit.config.defaults import COUNTS, LENGTHS, SIZES
from leanvit.config.resume import find_changes, read_past
from leanvit.data.sources import open_source
from leanvit.recipes import RECIPES, recipe
from leanvit.recipes.sizes import KEYS, PROTOTYPES, TEACHER
from leanvit.train.facts import gather_facts
from tests.integration.command import Says, refused
from tests.tiny import draw_nothing, write_images

FITTED = [name for name in RECIPES if recipe(name).fit]


def facts(side: int, images: int = 100_000) -> Facts:
    return Facts(images=images, side=side, classes=3, cores=2, device="cpu", bf16=False)


def options(config: RunConfig) -> dict[str, Any]:
    from leanvit.config import to_dict

    return dict(leaves(to_dict(config)))


@pytest.mark.parametrize("name", FITTED)
def test_photographs_take_what_the_recipe_says(name: str) -> None:
    asked = recipe(name)
    plain = resolve(replace(asked, fit=()), facts(500))
    assert resolve(asked, facts(0)).config == plain.config, "nobody looked"
    if not name.endswith("_laptop"):
        assert resolve(asked, facts(500)).config == plain.config


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("side", [8, 16, 28, 32, 48, 64, 75, 96, 128, 160, 223])
def test_views_are_made_of_whole_patches_and_lie_within_the_images(name: str, side: int) -> None:
    resolved = resolve(recipe(name), facts(side))
    now = options(resolved.config)
    patch = now["backbone.patch"]
    sizes = [now[n] for n in now if n in ("method.views.global_size", "method.views.size")]
    for size in [*sizes, *now.get("method.views.local_sizes", ())]:
        assert size % patch == 0 and 0 < size <= now["backbone.image_size"]
    if side < recipe(name).backbone.image_size:
        assert side - patch < now["backbone.image_size"] <= side
        assert "backbone.image_size" in resolved.followed
    else:
        assert not resolved.followed
    assert resolved.config.fit == ()


def test_the_sample_keeps_its_values() -> None:
    """Tiles of 96 pixels are what `esvit_laptop` was made on; its figures are README's."""
    asked = recipe("esvit_laptop")
    assert resolve(asked, facts(96)).config == resolve(replace(asked, fit=()), facts(0)).config


@pytest.mark.parametrize(
    ("name", "side", "wanted"),
    [
        ("esvit_laptop", 32, {"patch": 4, "dim": 64, "depths": [2, 2], "window": 3, "views": 24}),
        (
            "esvit_laptop",
            64,
            {"patch": 4, "dim": 32, "depths": [2, 2, 2], "window": 4, "views": 48},
        ),
        ("esvit", 32, {"patch": 4, "dim": 192, "depths": [2, 6, 2], "window": 4, "views": 32}),
        ("esvit", 96, {"patch": 4, "dim": 96, "depths": [2, 2, 6, 2], "window": 4, "views": 96}),
        ("dino", 32, {"patch": 4, "dim": 384, "depth": 12, "views": 32}),
        ("dino", 128, {"patch": 16, "dim": 384, "depth": 12, "views": 128}),
        ("mae", 64, {"patch": 8, "dim": 192, "views": 64}),
    ],
)
def test_small_images_get(name: str, side: int, wanted: dict[str, Any]) -> None:
    now = options(resolve(recipe(name), facts(side)).config)
    views = now.get("method.views.global_size", now.get("method.views.size"))
    assert {
        "views": views,
        **{n: now.get(f"backbone.{n}") for n in wanted if n != "views"},
    } == wanted


@pytest.mark.parametrize("side", range(20, 224, 3))
def test_views_need_no_padding(side: int) -> None:
    """Where any window of 2 to 4 tokens divides them."""
    resolved = resolve(recipe("esvit"), facts(side)).config
    backbone = resolved.backbone
    assert isinstance(backbone, SwinConfig)
    across = options(resolved)["method.views.global_size"] // backbone.patch
    assert across % backbone.window == 0 or all(across % window for window in (2, 3, 4))


def test_what_is_given_stays_and_the_rest_follows_it() -> None:
    asked = compose(recipe("esvit_laptop"), options={"backbone.patch": 3})
    assert "backbone.patch" not in asked.fit and "method.views.global_size" in asked.fit
    found = resolve(asked, facts(32), given=["backbone.patch"])
    assert found.config.backbone.patch == 3 and found.origins["backbone.patch"] == "given"
    now = options(found.config)["method.views.global_size"]
    assert now == 24 and found.config.backbone.image_size == 30
    assert "depths" not in str(found.followed), "stages stay where patches are given"
    named = compose(recipe("esvit_laptop"), backbone="swin_tiny")
    assert not any(name.startswith("backbone.") for name in named.fit) and named.fit
    assert compose(recipe("esvit_laptop"), options={"fit": ()}).fit == ()
    both = {"fit": ("backbone.patch", "backbone.window"), "backbone.patch": 5}
    assert compose(recipe("esvit_laptop"), options=both).fit == ("backbone.window",)


def test_small_images_are_seen_whole_and_their_teachers_stay_sharp() -> None:
    for side, wanted, scale in ((32, 0.04, (0.3, 1.0)), (96, 0.07, (0.25, 0.6))):
        now = options(resolve(recipe("esvit_laptop"), facts(side)).config)
        assert tuple(now["method.views.global_scale"]) == scale
        assert {now[f"method.teacher_temp.{when}"] for when in ("peak", "end")} == {wanted}


@pytest.mark.parametrize(
    ("images", "wanted"), [(70_000, 65536), (65536, 65536), (65535, 32768), (5000, 4096), (99, 256)]
)
def test_no_image_has_a_prototype_of_its_own(images: int, wanted: int) -> None:
    found = resolve(recipe("dino"), facts(500, images))
    assert found.config.method.head.prototypes == wanted  # type: ignore[attr-defined]
    assert (PROTOTYPES in found.followed) == (wanted != 65536)
    assert not any("prototypes" in said for said in found.advice if images > 256)
    small = {PROTOTYPES: 64, "fit": (PROTOTYPES,)}
    now = resolve(replace_options(recipe("dino"), small), facts(500, 40)).config
    assert now.method.head.prototypes == 64, "never more than asked"  # type: ignore[attr-defined]


def test_a_teachers_end_follows_the_peak_that_is_given() -> None:
    given = {"method.teacher_temp.peak": 0.06}
    found = resolve(compose(recipe("esvit_laptop"), options=given), facts(32))
    now = options(found.config)
    assert [now[f"method.teacher_temp.{part}"] for part in ("start", "peak", "end")] == [
        0.04,
        0.06,
        0.06,
    ]
    assert found.origins["method.teacher_temp.end"].endswith("; as the peak")


def test_what_stays_is_not_called_a_choice() -> None:
    short = resolve(compose(recipe("esvit_laptop"), options={"train.duration": "20st"}), facts(500))
    assert set(TEACHER).isdisjoint(short.followed)
    assert options(short.config)[TEACHER[0]] == 0.97


@pytest.mark.parametrize(
    ("steps", "wanted"), [(100_000, 0.996), (6250, 0.996), (2500, 0.99), (1000, 0.975), (10, 0.97)]
)
def test_the_teacher_of_a_short_run_keeps_up(steps: int, wanted: float) -> None:
    """However long a batch, an epoch or a second are."""
    length = {"train.duration": f"{steps}st"}
    found = resolve(compose(recipe("esvit"), options=length), facts(500))
    now = options(found.config)
    assert [now[name] for name in TEACHER] == [wanted] * 2
    assert set(TEACHER).isdisjoint(found.followed) == (wanted == 0.996)
    assert not any("momentum" in said for said in found.advice), "nothing is said of its own choice"
    if steps == 10:
        assert found.origins[TEACHER[0]].endswith(
            "the lowest that is chosen, for a run of 10 steps"
        )
    timed = compose(recipe("esvit"), options={"train.duration": "10m"})
    again = resolve(timed, replace(facts(500), seconds=600 / steps)).config
    assert options(again)["method.teacher_momentum.start"] == wanted
    given = compose(recipe("esvit"), options={**length, "method.teacher_momentum.start": 0.9})
    kept = options(resolve(given, facts(500)).config)
    assert [kept[name] for name in TEACHER] == [0.9, 0.996], "given, and its pair as it is"
    keys = compose(recipe("mocov3"), options=length)
    assert options(resolve(keys, facts(500)).config)[KEYS[0]] == min(wanted, 0.99)


def test_an_option_that_follows_from_nothing_is_refused() -> None:
    asked = replace_options(recipe("esvit_laptop"), {"fit": ("backbone.path",)})
    with pytest.raises(ValueError, match=r"Unknown option in fit 'backbone.path'; did you mean"):
        resolve(asked, facts(32))


def test_every_rule_decides_on_something_of_some_recipe() -> None:
    fitted = {name for asked in map(recipe, FITTED) for name in asked.fit}
    for rule, names in {**SIZES, **COUNTS, **LENGTHS}.items():
        assert fitted & {*names}, rule
        assert all(name in fitted for name in names), names


# Images and runs


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 12)


@pytest.fixture(autouse=True)
def undrawn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


SHORT = {
    "train.duration": "4st",
    "train.batch": 4,
    "data.workers": 0,
    "watch.images": 0,
    "train.device": "cpu",
}


def test_the_middle_of_the_shorter_sides(images: Path) -> None:
    from PIL import Image

    for number, size in enumerate([(90, 30), (20, 70), (40, 40)]):
        for place in range(3):
            Image.new("RGB", size).save(images / f"b{number}{place}.png")
    for path in images.glob("0*.png"):
        path.write_bytes(b"no image")
    assert gather_facts(open_source(str(images)), sides=True).side == 30
    assert gather_facts(open_source(str(images))).side == 0


def test_a_run_says_what_it_chose_and_goes_on_with_it(
    images: Path, tmp_path: Path, capsys: Says
) -> None:
    out = tmp_path / "run"
    leanvit.pretrain("esvit_laptop", data=str(images), out=out, options=SHORT)
    said = capsys.readouterr().err
    resolved = json.loads((out / "resolved.json").read_text())
    chosen = {*recipe("esvit_laptop").fit} - {*TEACHER}  # which are what they were
    assert said.count("Chosen: ") == len(chosen)
    for name in chosen:
        assert f"Chosen: {name} " in said
        assert resolved["origins"][name].startswith("recipe; ")
    assert resolved["config"]["fit"] == [] and len(resolved["asked"]["fit"]) > 2
    past = read_past(out)
    assert find_changes(past, past.asked) == []
    size = {"method.views.global_size": 16}
    changes = find_changes(past, compose(past.asked, options=size))
    assert [change.name for change in changes] == ["method.views.global_size"]
    (out / "backbone.safetensors").unlink()
    leanvit.pretrain(out=out, resume=True, quiet=True)
    assert json.loads((out / "resolved.json").read_text())["config"] == resolved["config"]
    (out / "backbone.safetensors").unlink()
    leanvit.pretrain(out=out, resume=True, allow=[*size], options=size, quiet=True)
    assert load_config(out / "resolved.json").method.views.global_size == 16  # type: ignore[attr-defined]


def test_a_configuration_asks_again_and_a_resolved_one_does_not(
    images: Path, tmp_path: Path, capsys: Says
) -> None:
    out = tmp_path / "run"
    leanvit.pretrain("esvit_laptop", data=str(images), out=out, options=SHORT, quiet=True)
    assert load_config(out / "config.json").fit and not load_config(out / "resolved.json").fit
    capsys.readouterr()
    said = refused(capsys, "pretrain", "--out", out, "--resume", "--fit", "backbone.patch", lines=3)
    assert "fit was" in said and "decided when the run began" in said


def test_a_check_says_it_too(images: Path, tmp_path: Path) -> None:
    report = leanvit.check(
        "esvit_laptop", data=str(images), out=tmp_path / "check", options=SHORT, quiet=True
    )
    assert len(report.chosen) == len({*recipe("esvit_laptop").fit} - {*TEACHER})
    assert f"chosen       {report.chosen[0]}" in str(report)
