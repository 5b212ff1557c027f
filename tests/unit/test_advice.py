"""What is likely to keep a run from learning is said, and a usual run is left alone."""

from pathlib import Path
from typing import Any

import pytest

import leanvit
from leanvit.config import Facts, compose, resolve
from leanvit.recipes import RECIPES, recipe
from tests.integration.command import Says
from tests.tiny import draw_nothing, write_images


def said(name: str, images: int, side: int = 500, **options: Any) -> list[str]:
    given = {option.replace("__", "."): value for option, value in options.items()}
    facts = Facts(images=images, side=side, classes=10, cores=2, device="cpu", bf16=False)
    return list(resolve(compose(recipe(name), options=given), facts).advice)


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_run_is_left_alone(name: str) -> None:
    assert said(name, 1_281_167) == []


@pytest.mark.parametrize("name", ["esvit_laptop", "dino_laptop", "mae_laptop"])
def test_a_small_run_is_left_alone(name: str) -> None:
    assert said(name, 3000, side=96) == []


@pytest.mark.parametrize(
    ("name", "images", "options", "words"),
    [
        (
            "mae_vit_tiny_in1k",
            5000,
            {"train__duration": "50ep", "train__batch": 64},
            "rises for 3120 of 3900 steps, so that most of the run is warm-up",
        ),
        (
            "esvit",
            5000,
            {"method__head__prototypes": 65536},
            "There are 65536 prototypes and 5000 images",
        ),
        (
            "esvit",
            100_000,
            {"train__duration": "900st", "method__teacher_momentum__start": 0.996},
            "momentum 0.996 follows the student within 250 steps, and the run has 900",
        ),
        (
            "dino",
            100_000,
            {"method__views__local_sizes": (96,), "side": 64},
            "Local crops of 96 pixels are larger than the images, of 64",
        ),
        (
            "esvit",
            100_000,
            {"method__teacher_momentum__start": 1.0, "method__teacher_momentum__peak": 1.0},
            "momentum 1 never follows the student",
        ),
        (
            "esvit",
            100_000,
            {"method__teacher_temp__peak": 0.5},
            "temperature 0.5 is less sure than the student, of 0.1",
        ),
        ("esvit_laptop", 3000, {"train__batch": 8}, "mean and deviation from 8 images"),
        ("mocov3", 3000, {"train__batch": 32}, "from the 31 others of its batch"),
    ],
)
def test_what_hurts_is_said(name: str, images: int, options: dict[str, Any], words: str) -> None:
    side = options.pop("side", 500)
    (found,) = [text for text in said(name, images, side, **options) if words in text]
    assert found.endswith(".")


def test_a_run_and_a_check_say_it(
    tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    images = str(write_images(tmp_path / "images", 12))
    short = {"train.duration": "4st", "train.batch": 4, "data.workers": 0, "watch.images": 0}
    short["method.head.prototypes"] = 512
    out = tmp_path / "run"
    leanvit.pretrain("dino_laptop", data=images, out=out, options=short)
    text = capsys.readouterr().err
    assert "Note: There are 512 prototypes and 12 images" in text
    report = leanvit.check("dino_laptop", data=images, out=tmp_path / "check", options=short)
    assert any("512 prototypes" in problem for problem in report.problems)
