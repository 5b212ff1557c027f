"""`leanvit check`: what it counts, what it measures, what it warns of, and what it leaves alone."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import leanvit
from leanvit import measuring, preflight
from leanvit.config import Facts, RunConfig, compose, replace_options, resolve, steps
from leanvit.core.errors import NonFiniteError
from leanvit.data.batch import ViewBatch
from leanvit.data.images import Images
from leanvit.data.sample import TILE, TILES
from leanvit.data.sources import open_source
from leanvit.data.views import ViewSpec
from leanvit.preflight import Report
from leanvit.recipes import recipe
from leanvit.run import Run
from leanvit.train.state import TrainState
from tests.tiny import VIT, dino, run_config, simmim, write_classes, write_images

QUIET: Mapping[str, Any] = {"data.workers": 0}
FACTS = Facts(images=13, cores=2, device="cpu", bf16=False)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """7 cats and 6 dogs of 40 pixels and more; one of the cats is broken."""
    folder = write_classes(tmp_path / "images", cats=7, dogs=6)
    (folder / "cats" / "003.png").write_bytes(b"no image")
    return folder


def config(**train: object) -> RunConfig:
    """A run of which nothing is to be said: fewer prototypes than images."""
    asked = run_config(**{"duration": steps(200), **train})
    return replace_options(asked, {"method.head.prototypes": 8})


def checked(data: Path | str, out: Path, recipe: RunConfig | None = None, **options: Any) -> Report:
    named = {**QUIET, **{name.replace("__", "."): value for name, value in options.items()}}
    return leanvit.check(recipe or config(), out=out, data=str(data), options=named, quiet=True)


def test_a_report_says_where_the_learning_rate_comes_from(images: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"optim__lr__peak": 0.256, "optim__lr__end": 0.0}
    report = checked(images, tmp_path / "check", **given, optim__lr_rule="linear")
    assert report.learning_rate == "0.004 (recipe; 0.256 at 256 images, linear rule, batch 4)"
    plain = checked(images, tmp_path / "plain", **given, optim__lr_rule="none")
    assert plain.learning_rate == "0.256"


def test_a_report_counts_what_is_there(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (300, 90)).save(images / "dogs" / "wide.png")
    out = tmp_path / "check"
    report = checked(images, out)
    assert report.images == 14
    assert report.classes == {"cats": 7, "dogs": 7}
    assert report.sides == {"smallest": 40, "middle": 40, "largest": 90}
    assert [(bad.name, bad.index) for bad in report.unreadable] == [("cats/003.png", 3)]
    assert report.unreadable[0].error.startswith("UnidentifiedImageError: cannot identify")
    listed = [json.loads(line) for line in (out / "unreadable.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in listed] == ["cats/003.png"]


def test_a_report_is_text_and_plain_values(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "check"
    report = checked(images, out)
    plain = report.to_dict()
    assert json.loads((out / "check.json").read_text()) == json.loads(json.dumps(plain))
    assert set(plain) == set(Report.__dataclass_fields__)
    said = str(report).splitlines()
    for line in (
        "images       13, 1 of them unreadable",
        f"source       folder '{images}'; classes from its sub-folders",
        "short side   40 to 40 pixels, 40 in the middle",
        "classes      2, of 6 to 7 images each",
        f"views        {out / 'views.png'}",
        "unreadable   'cats/003.png': UnidentifiedImageError: cannot identify image file",
    ):
        assert line in said
    odd = replace(report.unreadable[0], name="line\nbreak\udcff", error="OSError: gone")
    assert str(replace(report, unreadable=[odd])).splitlines()[11] == (
        "unreadable   'line\\nbreak\\udcff': OSError: gone"
    )
    heads = [line.split()[0] for line in said]
    assert heads[:8] == [
        "images",
        "source",
        "short",
        "classes",
        "memory",
        "speed",
        "epoch",
        "whole",
    ]
    assert heads[8:] == ["batch", "rate", "views", "unreadable", "problem"]
    assert "for 200 steps" in said[7]


def test_many_unreadable_images_are_cut_short_in_the_text_alone(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 20)
    for number in range(12):
        (folder / f"{number:03d}.png").write_bytes(b"broken")
    report = checked(folder, tmp_path / "check")
    assert len(report.unreadable) == 12 and report.classes == {}
    said = str(report)
    assert said.count("\nunreadable ") == 10 and "             and 2 more" in said
    assert "classes" not in said


def test_the_views_are_drawn(images: Path, tmp_path: Path) -> None:
    report = checked(images, tmp_path / "check")
    assert report.pictures == [str(tmp_path / "check" / "views.png")]
    with Image.open(report.pictures[0]) as picture:
        assert picture.format == "PNG" and min(picture.size) > 100


def test_no_weights_are_written_and_other_files_stay(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "check"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    before = sorted(images.rglob("*"))
    checked(images, out)
    names = {path.name for path in out.rglob("*")}
    assert names == {"thesis.txt", "views.png", "check.json", "unreadable.jsonl"}
    assert (out / "thesis.txt").read_text() == "years of work"
    assert sorted(images.rglob("*")) == before


def test_the_list_of_unreadable_images_is_of_this_check(images: Path, tmp_path: Path) -> None:
    checked(images, tmp_path / "check")
    (images / "cats" / "003.png").unlink()
    checked(images, tmp_path / "check")
    assert (tmp_path / "check" / "unreadable.jsonl").read_text() == ""


# What is measured


def test_steps_are_measured_after_one_that_is_not(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 10, 1, 4 and 1 seconds on a clock of our own: the mean of the last three is 2."""
    now, left = [0.0], [1.0, 4.0, 1.0, 10.0]
    update = TrainState.update

    def slow(self: TrainState, at: Any) -> None:
        now[0] += left.pop()
        update(self, at)

    monkeypatch.setattr(TrainState, "update", slow)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    report = checked(images, tmp_path / "check")
    assert left == []
    assert report.seconds_a_step == 2.0
    assert report.images_per_s == 4 / 2.0
    assert report.seconds_an_epoch == 2.0 * 3, "13 images are 3 batches of 4"
    assert report.seconds_in_all == 2.0 * 200 and report.steps == 200
    assert "whole run    6 min 40 s for 200 steps" in str(report)


def test_steps_of_small_views_count_as_what_they_are(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the picture shows the others, where there are any."""
    shown = []
    monkeypatch.setattr(
        preflight, "view_grid", lambda groups, *_: shown.append(groups[0].shape[-1])
    )

    def found(run: Run, spec: ViewSpec, count: int) -> Iterator[tuple[ViewBatch, float]]:
        for batch in run.load_as(spec, 0, count):
            yield batch, spec.groups[0][0].size / 32

    monkeypatch.setattr(measuring, "timed_steps", found)
    for share, seconds in ((0.25, 0.875), (1.0, 0.5), (0.0, 1.0)):
        report = checked(images, tmp_path / "check", train__progressive=share)
        assert report.seconds_a_step == seconds and report.seconds_in_all == 200 * seconds
    assert shown == [32, 16, 32]


def test_a_small_share_is_a_step(images: Path) -> None:
    options = {**QUIET, "train.progressive": 0.001}
    run = Run(resolve(replace_options(config(), options), FACTS), open_source(str(images)), Path())
    assert [batch.groups[0].shape[-1] for batch in run.load(0, 3)] == [16, 32, 32]


def test_small_views_that_no_network_takes_are_refused(images: Path, tmp_path: Path) -> None:
    options = {**QUIET, "train.batch": 4, "train.duration": "4st", "train.progressive": 0.5}
    options["method.freeze_patch_embed"] = False
    asked = compose(recipe("mocov3"), backbone="timm:levit_128s", options=options)
    with pytest.raises(ValueError, match=r"train\.progressive begins with small views\. .*112"):
        leanvit.check(asked, out=tmp_path / "check", data=str(images), quiet=True)


def test_a_run_of_days_is_offered_another_way(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_measure", lambda *_: (1000.0, 1.0))
    (said,) = checked(images, tmp_path / "check", data__max_unreadable=8).problems
    assert "The whole run takes 2 d 7 h" in said and "--budget 2h, say, makes one" in said
    monkeypatch.setattr(preflight, "_measure", lambda *_: (500.0, 1.0))
    assert checked(images, tmp_path / "check", data__max_unreadable=8).problems == []


def test_real_steps_take_time_and_memory(images: Path, tmp_path: Path) -> None:
    report = checked(images, tmp_path / "check", train__accumulate=2)
    assert 0 < report.seconds_a_step < 60
    assert 0.05 < report.memory_gib < 200
    assert report.device == "cpu"


def test_a_run_shorter_than_the_measurement_is_measured_too(images: Path, tmp_path: Path) -> None:
    report = checked(images, tmp_path / "check", config(duration=steps(2)))
    assert report.steps == 2 and report.seconds_a_step > 0


# Problems


def test_a_good_folder_has_no_problem(tmp_path: Path) -> None:
    report = checked(write_images(tmp_path / "images", 12), tmp_path / "check")
    assert report.problems == [] and "problem" not in str(report)


def test_problems_are_named(images: Path, tmp_path: Path) -> None:
    wide = {"method.views.global_size": 48, "train.duration": "99st"}
    report = leanvit.check(
        config(), out=tmp_path / "check", data=str(images), options={**QUIET, **wide}, quiet=True
    )
    share, small, short = report.problems
    assert share == (
        "7.7 % of the images cannot be read, so the run would stop: more than the 1 % of "
        "data.max_unreadable."
    )
    assert small.startswith("12 images are smaller than the largest view of 48 pixels")
    assert short == "99 steps are too few to learn anything; train longer."
    assert [line for line in str(report).splitlines() if line.startswith("problem      ")] == [
        f"problem      {text}" for text in report.problems
    ]


def test_what_the_loss_does_not_reach_is_named(images: Path, tmp_path: Path) -> None:
    """SimMIM reads the regions alone, and this norm comes after their mean."""
    recipe = replace(config(), method=simmim(), backbone=replace(VIT, pool="mean_norm"))
    report = checked(images, tmp_path / "check", recipe, data__max_unreadable=8)
    assert report.problems == [
        "The loss does not reach 2 of the trained tensors, which stay as they begin: "
        "backbone.fc_norm.weight, backbone.fc_norm.bias."
    ]


def test_views_of_half_a_patch_are_named(images: Path, tmp_path: Path) -> None:
    """A ViT takes them, as DINO does with small crops, and leaves out what remains."""
    recipe = replace(config(), method=dino(), backbone=VIT)
    recipe = replace_options(recipe, {"method.head.prototypes": 8})
    small = {"method__views__global_size": 30, "method__views__local_sizes": (16,)}
    report = checked(images, tmp_path / "check", recipe, data__max_unreadable=8, **small)
    assert report.problems == [
        "Views of 30 pixels are not made of whole patches of 4: a ViT does not see what is left "
        "over at their right and lower edge. Make them a multiple of 4 (method.views)."
    ]


def test_unreadable_images_within_the_limit_are_no_problem(images: Path, tmp_path: Path) -> None:
    report = checked(images, tmp_path / "check", data__max_unreadable=8)
    assert len(report.unreadable) == 1 and report.problems == []


def test_a_folder_without_one_readable_image_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"^None of the 5 images can be read; Unidentified"):
        checked(folder, tmp_path / "check")


def test_steps_that_diverge_are_a_failure(images: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        checked(images, tmp_path / "check", optim__lr__peak=1e30, optim__lr__end=1e30)


def test_a_mistake_writes_nothing(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "check"
    for options, message in (
        ({"train.batch": 14}, "fewer than one batch"),
        ({"watch.val": "nowhere"}, "'nowhere' does not exist"),
        ({"init": "nowhere"}, "Unknown backbone file or name 'nowhere'"),
    ):
        with pytest.raises(ValueError, match=message):
            leanvit.check(config(), out=out, data=str(images), options={**QUIET, **options})
        assert not out.exists()


def test_a_check_stays_out_of_images_and_runs(images: Path, tmp_path: Path) -> None:
    """A picture among the images would be one of them, and a list in a run would count there."""
    for out in (images, images / "check", tmp_path):
        with pytest.raises(ValueError, match="would lie in one another"):
            checked(images, out)
    assert not (images / "check").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resolved.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run; name another --out"):
        checked(images, tmp_path / "run")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        checked(images, tmp_path / "file")
    with pytest.raises(ValueError, match="Cannot write to '/proc/check'"):
        checked(images, Path("/proc/check"))


# The embedded sample


def test_the_sample_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Images, "__getitem__", None)  # of whole images nothing is needed
    recipe = replace(config(), watch=replace(config().watch, images=0))
    report = checked("sample", tmp_path / "check", recipe)
    assert report.images == 16 * TILES["train"] and not report.unreadable
    assert set(report.classes.values()) == {TILES["train"]} and len(report.classes) == 16
    assert report.sides == {"smallest": TILE, "middle": TILE, "largest": TILE}
    assert report.problems == []
