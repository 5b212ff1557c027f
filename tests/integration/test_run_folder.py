"""The folder of a run: what is written there, how it goes on, and that nothing in it is lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import leanvit
from leanvit.analysis import pictures
from leanvit.analysis.matches import match_views
from leanvit.cli import main
from leanvit.config import RunConfig, load_config, replace_options
from leanvit.data.decode import to_pixels
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order, replacement
from leanvit.data.sources import open_source
from leanvit.data.views import multi_crop
from leanvit.request import compose_request
from leanvit.weights.card import RESULTS
from leanvit.weights.file import FILE, STUDENT, header, read_header
from tests.integration.command import REST, TINY, Finished, Says, contents, leanvit_process, refused
from tests.tiny import VIT, build, write_images

pytestmark = pytest.mark.usefixtures("undrawn")

NETWORKS = (FILE, STUDENT)
WEIGHTS = (*NETWORKS, "checkpoints/step-00000004/state.safetensors")
TIMINGS = ("images_per_s", "data_wait")


def rows(out: Path, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in without} for row in found]


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "resolved.json").read_text())
    return found


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def same_weights(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in WEIGHTS)


# What is written


def test_a_run_writes_what_it_promises(run: Finished) -> None:
    assert run.process.returncode == 0, run.process.stderr
    found = {path.name for path in run.out.iterdir()} - {RESULTS}  # which evaluations write
    assert found == {
        *("config.json", "resolved.json", "metrics.jsonl", "tensorboard", "checkpoints"),
        *("backbone.safetensors", "student.safetensors", "summary.json"),
        *("views.png", "curves.png", "matches.png"),
    }
    saved = sorted(path.name for path in (run.out / "checkpoints").iterdir())
    assert saved == ["step-00000002", "step-00000004"]
    assert [row["step"] for row in rows(run.out)] == [0, 1, 2, 3, 4]
    assert all(row["loss"] > 0 for row in rows(run.out)[1:])
    looked_at = [row["step"] for row in rows(run.out) if {"knn", "effective_rank"} <= row.keys()]
    assert looked_at == [0, 2, 4]


def test_a_run_records_what_was_asked_and_what_it_became(run: Finished) -> None:
    asked, resolved = load_config(run.out / "config.json"), load_config(run.out / "resolved.json")
    assert (asked.train.precision, resolved.train.precision) == ("auto", "fp32")
    assert str(asked.method.teacher_temp.warmup) == "10%"  # type: ignore[attr-defined]
    assert str(resolved.method.teacher_temp.warmup) == "0st"  # type: ignore[attr-defined]
    assert resolved.backbone == asked.backbone
    assert not resolved.method.head.train_gain  # type: ignore[attr-defined]
    assert record(run.out)["images"]["count"] == 12


def test_a_run_records_what_a_person_gave(run: Finished) -> None:
    origins = record(run.out)["origins"]
    typed = [word[2:].split("=")[0].replace("-", "_") for word in TINY if word.startswith("--")]
    given = {name for name, origin in origins.items() if origin == "given"}
    assert given == {*typed, "data.source"}
    assert origins["train.seed"] == "recipe"


def test_both_networks_of_a_run_load_and_differ(run: Finished) -> None:
    teacher, student = (leanvit.load_backbone(run.out / name) for name in NETWORKS)
    assert teacher.config == student.config == load_config(run.out / "config.json").backbone
    assert leanvit.load_backbone(str(run.out)).state_dict().keys() == student.state_dict().keys()
    views = torch.zeros(1, 3, 32, 32)
    assert teacher.features(views).pooled.shape == student.features(views).pooled.shape == (1, 16)
    pairs = zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
    assert not all(one.equal(other) for one, other in pairs)
    assert read_header(run.out / FILE) == read_header(run.out / STUDENT)
    assert read_header(run.out / FILE)["step"] == 4
    state = load_file(run.out / WEIGHTS[-1])
    for network, place in ((teacher, "teacher"), (student, "student")):
        for name, value in network.state_dict().items():
            assert value.equal(state[f"method.{place}.backbone.{name}"])


def test_the_summary_says_what_the_run_did(run: Finished) -> None:
    found = summary(run.out)
    assert (found["images"], found["steps"], found["unreadable"]) == (12, 4, 0)
    assert found["backbone"] == str(run.out / FILE)
    assert found["first"] == rows(run.out)[0] and found["last"] == rows(run.out)[-1]
    assert "loss" not in found["first"] and found["last"]["step"] == 4
    assert found["images_per_s"] == pytest.approx(16 / found["seconds"])
    assert found["collapse"] == {}
    assert found["pictures"] == [
        str(run.out / name) for name in ("views.png", "curves.png", "matches.png")
    ]


# The pictures at the end, which the installed command drew


def opened(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


def test_the_views_are_those_of_the_first_step(run: Finished, tmp_path: Path) -> None:
    config = load_config(run.out / "resolved.json")
    source = open_source(run.data)
    spec = multi_crop(config.method.views)  # type: ignore[attr-defined]
    views = Views(source, spec, config.data, config.train.seed)
    cpu = torch.device("cpu")
    (batch,) = load_views(views, Order(12, 4, 0), 0, 1, workers=0, device=cpu)
    pictures.view_grid(batch.groups, config.data.mean, config.data.std, tmp_path / "views.png")
    assert (tmp_path / "views.png").read_bytes() == (run.out / "views.png").read_bytes()
    assert min(opened(run.out / "views.png")) > 100


def test_the_curves_are_those_of_the_metrics(run: Finished, tmp_path: Path) -> None:
    pictures.loss_curves(rows(run.out), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == (run.out / "curves.png").read_bytes()
    assert min(opened(run.out / "curves.png")) > 300


def test_the_matches_are_those_of_the_trained_network(run: Finished, tmp_path: Path) -> None:
    config = load_config(run.out / "resolved.json")
    view = multi_crop(config.method.views).groups[0][0]  # type: ignore[attr-defined]
    pixels = to_pixels(open_source(run.data)[0].image)
    found = match_views(leanvit.load_backbone(run.out), pixels, view)
    assert summary(run.out)["correct_matches"] == pytest.approx(found.accuracy)
    assert rows(run.out)[-1]["correct_matches"] == pytest.approx(found.accuracy)
    width, height = opened(run.out / "matches.png")
    assert width > 200 and height > 100


def test_a_collapse_is_in_the_summary(run: Finished, tmp_path: Path, capsys: Says) -> None:
    """A teacher that is far too hot says nothing: a person is warned once, and the run goes on."""
    out = tmp_path / "out"
    hot = [f"--method.teacher-temp.{name}=100" for name in ("start", "peak", "end")]
    assert main([*run.arguments, *hot, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    (name, meaning), *others = summary(out)["collapse"].items()
    assert name == "uniform teacher" and others == []
    assert said.count("leanvit: collapse (uniform teacher) at step 2: the teacher weighs all") == 1
    assert said.count("leanvit: ") == 1 and meaning in said
    assert summary(out)["steps"] == 4


# Configurations


@pytest.mark.parametrize("name", ["config.json", "resolved.json"])
def test_a_configuration_gives_the_same_run(name: str, run: Finished, tmp_path: Path) -> None:
    assert main(["pretrain", "--config", str(run.out / name), "--out", str(tmp_path / "out")]) == 0
    assert record(tmp_path / "out")["config"] == record(run.out)["config"]
    assert same_weights(tmp_path / "out", run.out)


def test_options_change_a_configuration(run: Finished, tmp_path: Path, images: str) -> None:
    copied = shutil.copytree(images, tmp_path / "images")
    changes = ("--train.seed", "3", "--data", str(copied), "--optimizer", "sgd")
    found = ("pretrain", "--config", str(run.out / "resolved.json"), "--out", str(tmp_path / "out"))
    assert main([*found, *changes]) == 0
    config, before = (load_config(out / "resolved.json") for out in (tmp_path / "out", run.out))
    assert (config.train.seed, config.data.source, config.optim.kind) == (3, str(copied), "sgd")
    train = replace(config.train, seed=before.train.seed)
    assert (train, config.method, config.backbone) == (before.train, before.method, before.backbone)


def test_a_configuration_stands_in_place_of_a_recipe(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    named, out = ("--config", run.out / "config.json"), ("--out", tmp_path / "out")
    said = refused(capsys, "pretrain", "esvit", *named, *out)
    assert said == ("leanvit: --config stands in place of a recipe, but both were given: 'esvit'.")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "words.json").write_text("words")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "other.json").write_text('{"recipe": "esvit", "metod": {}}')
    for path, message in [
        (tmp_path / "none.json", "Cannot read the configuration"),
        (tmp_path, "Cannot read the configuration"),
        (tmp_path / "words.json", "is not JSON"),
        (tmp_path / "deep.json", "is not JSON"),
        (tmp_path / "list.json", "expected a section with keys"),
        (tmp_path / "other.json", "Unknown option 'metod'; did you mean 'method'?"),
    ]:
        assert message in refused(capsys, "pretrain", "--config", path, *out)
    assert not (tmp_path / "out").exists()


def test_a_check_takes_a_configuration(run: Finished, tmp_path: Path, capsys: Says) -> None:
    arguments = ("check", "--config", str(run.out / "resolved.json"), "--json")
    assert main([*arguments, "--out", str(tmp_path / "check")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["steps"]) == (12, 4)


# Going on


def cut(run: Finished, place: Path) -> Path:
    """Return a run that stopped after its step 2."""
    out = run.copy(place)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    for name in (*NETWORKS, "summary.json", "curves.png", "matches.png"):
        (out / name).unlink()
    return out


def test_a_run_continues_to_the_same_end(run: Finished, tmp_path: Path) -> None:
    """By the installed command, which knows the recipe and the rest from the folder."""
    out = cut(run, tmp_path)
    process = leanvit_process("pretrain", "--resume", "--data.workers", "1", "--out", out)
    assert process.returncode == 0, process.stderr
    assert "Continuing at step 2" in process.stderr
    assert same_weights(out, run.out)
    assert rows(out, TIMINGS) == rows(run.out, TIMINGS)
    assert (out / "views.png").read_bytes() == (run.out / "views.png").read_bytes()
    assert (out / "matches.png").read_bytes() == (run.out / "matches.png").read_bytes()
    changing = ("seconds", "images_per_s", "last", "first")
    for name, value in summary(run.out).items():
        if name not in changing:
            assert str(summary(out)[name]) == str(value).replace(str(run.out), str(out))


def test_a_run_continues_with_the_words_that_it_began_with(run: Finished, tmp_path: Path) -> None:
    out = cut(run, tmp_path)
    assert main([*run.arguments, "--out", str(out), "--resume"]) == 0
    assert same_weights(out, run.out)


def test_only_a_run_is_resumed(run: Finished, tmp_path: Path, capsys: Says) -> None:
    for out in (tmp_path / "none", tmp_path):
        for words in (run.arguments, ("pretrain",)):
            said = refused(capsys, *words, "--out", out, "--resume")
            assert said == f"leanvit: There is no run in '{out}'."
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_as_it_began(run: Finished, tmp_path: Path, capsys: Says) -> None:
    place, before = ("--out", run.out, "--resume"), contents(run.out)
    changes = ("--optim.clip", "1", "--train.seed", "7")
    for words in (run.arguments, ("pretrain",)):
        said = refused(capsys, *words, *place, *changes, lines=4)
        assert said.splitlines()[1:3] == [
            "  optim.clip was 3.0, now 1.0",
            "  train.seed was 0, now 7; it stays, since order, views and masks are drawn from it",
        ]
    said = refused(capsys, *run.arguments, *place, "--optimizer", "sgd", lines=3)
    assert "optim.kind was 'adamw', now 'sgd'; it stays, since what is saved" in said
    dino = ("pretrain", "dino", "--data", run.data, "--train.batch", "4", *place)
    assert main([str(word) for word in dino]) == 2
    assert "  method.kind was 'esvit', now 'dino'; it stays" in capsys.readouterr().err
    assert contents(run.out) == before


def test_the_images_must_be_the_same_on_resume(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out, moved = cut(run, tmp_path), Path(shutil.copytree(run.data, tmp_path / "moved"))
    words = ("pretrain", "--resume", "--out", out, "--data", moved)
    (moved / "cats" / "000.png").rename(moved / "cats" / "zzz.png")
    said = refused(capsys, *words)
    assert "began with 12 images and there are the same number of others now" in said
    (moved / "cats" / "zzz.png").unlink()
    assert "The run began with 12 images and there are 11 now" in refused(capsys, *words)


def test_what_changes_no_number_may_change_on_resume(run: Finished, tmp_path: Path) -> None:
    out, moved = cut(run, tmp_path), str(shutil.copytree(run.data, tmp_path / "moved"))
    free = ("--train.keep", "1", "--data.max-unreadable", "7", "--data", moved)
    assert main(["pretrain", "--resume", "--out", str(out), *free]) == 0
    assert same_weights(out, run.out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000004"]


def test_what_auto_became_may_be_named_on_resume(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = cut(run, tmp_path)
    words = ("pretrain", "--resume", "--out", str(out), "--train.precision", "fp32")
    assert main([*words, "--data.rendering", "host"]) == 0
    assert same_weights(out, run.out)
    assert "data.rendering was 'auto' (ran as 'host'), now 'device'" in refused(
        capsys, *words, "--data.rendering", "device", lines=3
    )


def test_resume_and_overwrite_exclude_each_other(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = run.copy(tmp_path)
    said = refused(capsys, *run.arguments, "--out", out, "--resume", "--overwrite")
    assert said == "leanvit: --resume continues a run and --overwrite replaces it: choose one."


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Break the next run off after a step, before its checkpoint."""

    def interrupted(self: object, row: dict[str, float]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr("leanvit.train.terminal.Terminal.on_row", interrupted)


def test_an_interrupted_run_says_where_it_stands(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 4)
        assert main([*run.arguments, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert "stopped at step 4; --resume continues from step 2" in said
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0
    assert "Continuing at step 2" in capsys.readouterr().err
    assert same_weights(out, run.out)


def test_a_run_that_saved_nothing_begins_again(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out = run.copy(tmp_path)
    shutil.rmtree(out / "checkpoints")
    (out / "summary.json").unlink()
    assert "(it saved nothing yet)" in refused(capsys, *run.arguments, "--out", out)
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0
    assert "saved nothing yet, so it begins again at step 0" in capsys.readouterr().err
    assert same_weights(out, run.out) and rows(out, TIMINGS) == rows(run.out, TIMINGS)


# Initial weights

STILL = ("--optim.lr.peak", "0", "--optim.lr.end", "0", "--optim.lr-rule", "none")
"""A run whose student stays where it starts, and whose teacher is an average of the same."""


def weights(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_both_networks_start_from_initial_weights(kind: str, run: Finished, tmp_path: Path) -> None:
    start, out = run.out / (STUDENT if kind == "file" else ""), tmp_path / "out"
    given = weights(run.out / (STUDENT if kind == "file" else FILE))
    words = ("pretrain", "esvit", "--data", run.data, *REST.split(), "--train.seed", "9")
    assert main([*words, *STILL, "--init", str(start), "--out", str(out)]) == 0
    student, teacher = weights(out / STUDENT), weights(out / FILE)
    assert given.keys() == student.keys() == teacher.keys()
    for name, value in given.items():
        assert student[name].equal(value), name
        torch.testing.assert_close(teacher[name], value, rtol=1e-5, atol=1e-7)
    config, before = (load_config(folder / "config.json") for folder in (out, run.out))
    assert config.init == str(start)
    assert config.backbone == replace(before.backbone, drop_path=config.backbone.drop_path)


def test_a_run_starts_elsewhere_without_initial_weights(run: Finished, tmp_path: Path) -> None:
    """So that the test above can fail."""
    assert main([*run.arguments, "--train.seed", "9", *STILL, "--out", str(tmp_path / "out")]) == 0
    given, student = weights(run.out / STUDENT), weights(tmp_path / "out" / STUDENT)
    assert not any(given[name].equal(value) for name, value in student.items() if value.ndim > 1)


def test_initial_weights_are_not_overwritten_by_the_run_that_needs_them(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(run.out, tmp_path / "out")
    words = [*run.arguments, *STILL, "--init", str(out), "--out", str(out), "--overwrite"]
    assert main(words) == 2
    assert "initial weights" in capsys.readouterr().err
    assert (out / FILE).exists()


def asked(init: object, backbone: str = "", **options: Any) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in options.items()}
    return compose_request("esvit", None, "", backbone, "", {"init": str(init), **named})


FACTS = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


def test_initial_weights_bring_their_architecture(run: Finished, tmp_path: Path) -> None:
    """All but stochastic depth, which is a matter of the training."""
    backbone, file = leanvit.load_backbone(run.out), tmp_path / "start.safetensors"
    trained = backbone.config
    backbone.config = replace(trained, drop_path=0.7)
    save_file(backbone.state_dict(), file, header(backbone, FACTS))
    assert asked(file).backbone == trained and trained.drop_path != 0.7
    assert asked(file, backbone__drop_path=0.3).backbone == replace(trained, drop_path=0.3)
    assert asked(file, backbone__window=4).backbone == trained


def test_initial_weights_bring_their_mean_and_deviation(run: Finished, tmp_path: Path) -> None:
    backbone, file = leanvit.load_backbone(run.out), tmp_path / "start.safetensors"
    save_file(backbone.state_dict(), file, header(backbone, FACTS))
    data = asked(file).data
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    data = asked(file, data__mean=(0.5, 0.5, 0.5)).data
    assert (data.mean, data.std) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6)), "what is given is taken"


@pytest.mark.parametrize(("there", "here"), [("sincos", "learned"), ("learned", "sincos")])
def test_fixed_positions_of_initial_weights_may_be_learned(
    there: str, here: str, tmp_path: Path
) -> None:
    """And the other way round: what is trained does not make it another network."""
    backbone, file = build(replace_options(VIT, {"positions": there})), tmp_path / "x.safetensors"
    save_file(backbone.state_dict(), file, header(backbone, FACTS))
    options = {"init": str(file), "backbone.drop_path": 0.0}
    found = compose_request("dino", None, "", "", "", options)
    assert found.backbone == backbone.config
    found = compose_request("dino", None, "", "", "", {**options, "backbone.positions": here})
    assert found.backbone == replace_options(backbone.config, {"positions": here})


def test_initial_weights_of_another_network_are_refused(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    words = ("pretrain", "esvit", "--data", run.data, *REST.split(), "--out", f"{tmp_path}/out")
    mistakes: list[tuple[list[str | Path], str]] = [
        (["--backbone", "vit_tiny"], "belong to another network: kind swin (run: vit)."),
        (["--backbone", "swin_tiny"], "image_size 32 (run: 224), "),
        (["--backbone", "swin_tiny"], "dim 8 (run: 96)"),
        (["--backbone.dim", "48"], "belong to another network: dim 8 (run: 48)."),
        (["--init", tmp_path / "none"], f"There is no file or folder '{tmp_path / 'none'}'"),
        (["--init", "swin_tiny"], "'swin_tiny' names no trained weights to start from (init): "),
        (
            ["--init", "timm:test_vit"],
            "weights to start from (init): name timm:test_vit.r160_in1k.",
        ),
    ]
    for extra, message in mistakes:
        assert message in refused(capsys, *words, "--init", run.out, *extra)
        assert not (tmp_path / "out").exists()


def test_an_initialized_run_goes_on_without_its_initial_weights(
    run: Finished, tmp_path: Path
) -> None:
    start, whole, out = tmp_path / "start", tmp_path / "whole", tmp_path / "run"
    shutil.copytree(run.out, start)
    words = ("pretrain", "esvit", "--data", run.data, *REST.split(), "--init", str(start))
    assert main([*words, "--out", str(whole)]) == 0
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    shutil.rmtree(start)
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert same_weights(out, whole)


# Replacing


def test_overwrite_replaces_a_run(run: Finished, tmp_path: Path) -> None:
    out = run.copy(tmp_path)
    (out / "metrics.jsonl").write_text("old\n")
    (out / "unreadable.jsonl").write_text("old\n")
    (out / "thesis.txt").write_text("years of work")
    assert main([*run.arguments, "--out", str(out), "--overwrite"]) == 0
    assert not (out / "unreadable.jsonl").exists()
    assert (out / "thesis.txt").read_text() == "years of work", "only a run's files are removed"
    assert same_weights(out, run.out) and rows(out, TIMINGS) == rows(run.out, TIMINGS)


def test_results_are_not_written_over_others(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out = run.copy(tmp_path)
    before = contents(out)
    said = refused(capsys, *run.arguments, "--out", out)
    assert f"The folder '{out}' is not empty: continue the run in it with --resume" in said
    file = tmp_path / "file"
    file.write_text("kept")
    for how in ([], ["--overwrite"]):
        assert "is a file; name a folder" in refused(capsys, *run.arguments, "--out", file, *how)
    assert file.read_text() == "kept" and contents(out) == before


LOST = [
    (["--watch.val", "nowhere"], "'nowhere' does not exist"),
    (["--train.batch", "13"], "fewer than one batch of 13"),
    (["--train.batch", "two"], "expected a whole number"),
    (["--data", "nowhere"], "'nowhere' does not exist"),
    (["--init", "nowhere"], "Unknown backbone file or name 'nowhere'"),
    (["--backbone.patch", "20"], "less than one patch"),
    (["--method.freeze-prototypes", "9st"], "takes 9 steps, but the whole run has 4"),
    (["--backbone.heads", "3", "5"], "heads"),
]


@pytest.mark.parametrize(("mistake", "message"), LOST, ids=[" ".join(words) for words, _ in LOST])
def test_a_mistake_loses_nothing(
    mistake: list[str], message: str, run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = run.copy(tmp_path)
    before = contents(tmp_path)
    assert message in refused(capsys, *run.arguments, "--out", out, "--overwrite", *mistake)
    assert contents(tmp_path) == before


def test_overwrite_leaves_a_folder_alone_that_is_no_run(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    said = refused(capsys, *run.arguments, "--out", tmp_path, "--overwrite")
    assert "holds no run of leanvit, so --overwrite leaves it alone" in said
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_overwrite_leaves_images_alone_that_lie_in_the_run(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = run.copy(tmp_path)
    inside = write_images(out / "images", 12)
    before = contents(out)
    refused(capsys, *run.arguments, "--data", inside, "--out", out, "--overwrite")
    assert contents(out) == before


@pytest.mark.parametrize("how", [(), ("--overwrite",)], ids=["new", "overwrite"])
def test_a_network_that_cannot_be_built_leaves_the_folder_as_it_was(
    how: tuple[str, ...],
    run: Finished,
    tmp_path: Path,
    capsys: Says,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("There is no such network.")

    monkeypatch.setattr("leanvit.run.build_method", refuse)
    out = run.copy(tmp_path) if how else tmp_path / "new"
    before = contents(tmp_path)
    assert "no such network" in refused(capsys, *run.arguments, "--out", out, *how)
    assert contents(tmp_path) == before


def test_a_folder_of_another_program_is_no_run(run: Finished, tmp_path: Path, capsys: Says) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    before = contents(tmp_path)
    said = refused(capsys, *run.arguments, "--out", tmp_path, "--overwrite")
    assert "holds no run of leanvit" in said
    assert contents(tmp_path) == before


def test_results_may_lie_behind_a_link(run: Finished, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk")
    assert main([*run.arguments, "--out", str(link)]) == 0
    assert main([*run.arguments, "--out", str(link), "--overwrite"]) == 0
    assert link.is_symlink() and (tmp_path / "disk" / FILE).exists()


def test_results_and_images_do_not_mix(tmp_path: Path, capsys: Says) -> None:
    images = write_images(tmp_path / "images", 12)
    before = contents(tmp_path)
    for out in (images, images / "results", tmp_path):
        for command in ("pretrain", "check"):
            said = refused(capsys, command, "esvit", *TINY, "--data", images, "--out", out)
            assert "would lie in one another" in said
    assert contents(tmp_path) == before


def test_a_check_leaves_a_run_alone(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out = run.copy(tmp_path)
    before = contents(out)
    assert "holds a run" in refused(capsys, "check", *run.arguments[1:], "--out", out)
    assert contents(out) == before


def test_a_place_that_cannot_be_written_is_an_error(run: Finished, capsys: Says) -> None:
    assert "Cannot write to '/proc/run'" in refused(capsys, *run.arguments, "--out", "/proc/run")


# Failures of a run


def test_a_diverged_run_ends_with_code_one_and_a_reason(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    assert main([*run.arguments, "--out", str(tmp_path), "--optim.lr.peak", "1e30"]) == 1
    out, error = capsys.readouterr()
    said = [line for line in error.splitlines() if line.startswith("leanvit: ")]
    assert out == "" and len(said) == 1
    assert said[0].startswith("leanvit: The loss or a gradient was not finite at step ")


def test_several_processes_need_torchrun(
    run: Finished, tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refused(capsys, *run.arguments, "--out", tmp_path / "out")
    assert "WORLD_SIZE is 2, but RANK is not set" in said and "torchrun" in said
    assert not (tmp_path / "out").exists()


# Unreadable images


def broken(place: Path, *numbers: int) -> Path:
    """Return 12 images, some of which are none."""
    images = write_images(place / "images", 12)
    for number in numbers:
        (images / f"{number:03d}.png").write_bytes(b"broken")
    return images


def listed(out: Path) -> list[str]:
    lines = (out / "unreadable.jsonl").read_text().splitlines()
    return [json.loads(line)["name"] for line in lines]


def words(images: Path, out: Path, most: float | None = None) -> list[str]:
    allowed = [] if most is None else ["--data.max-unreadable", str(most)]
    return ["pretrain", "esvit", "--data", str(images), *TINY, "--out", str(out), *allowed]


def test_unreadable_images_are_replaced_and_listed_once(tmp_path: Path, capsys: Says) -> None:
    """In three epochs each of them is met about three times."""
    images, out = broken(tmp_path, 3, 8), tmp_path / "out"
    assert main([*words(images, out, 50), "--train.duration", "9st"]) == 0
    assert sorted(listed(out)) == ["003.png", "008.png"]
    assert summary(out)["unreadable"] == 2 and summary(out)["images"] == 12
    assert rows(out)[-1]["images"] == 36, "others stood in, so every batch was whole"
    error = capsys.readouterr().err
    assert error.count("cannot be read") == 1, "a person is told once, the list has the rest"
    assert f"listed in {out / 'unreadable.jsonl'}" in error


def test_few_unreadable_images_stop_nothing(tmp_path: Path) -> None:
    images, out = broken(tmp_path, 3), tmp_path / "out"
    assert main(words(images, out, 8.4)) == 0, "1 of 12 is 8.33 %"
    assert listed(out) == ["003.png"]


def test_many_unreadable_images_stop_a_run(tmp_path: Path, capsys: Says) -> None:
    images, out = broken(tmp_path, 3), tmp_path / "out"
    assert main(words(images, out)) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(
        "leanvit: 1 of 12 images cannot be read, more than the 1 % that data.max_unreadable "
        f"allows; {out / 'unreadable.jsonl'} lists them, the last is '003.png' (Unidentified"
    )
    assert "--data.max_unreadable 10, would go on" in error[-1]  # 1 of 12 is 8.33 %
    assert listed(out) == ["003.png"]
    assert not (out / "summary.json").exists() and (out / "metrics.jsonl").exists()
    # it stays stopped until the limit is raised, and then ends as if it had never stopped
    assert main(["pretrain", "--resume", "--out", str(out)]) == 2
    assert "more than the 1 % that data.max_unreadable" in capsys.readouterr().err
    assert main(["pretrain", "--resume", "--out", str(out), "--data.max-unreadable", "50"]) == 0
    assert main(words(images, tmp_path / "whole", 50)) == 0
    assert same_weights(out, tmp_path / "whole")
    assert listed(out) == listed(tmp_path / "whole") == ["003.png"]


def test_too_many_unreadable_images_end_a_process_with_code_two(tmp_path: Path) -> None:
    process = leanvit_process(*words(broken(tmp_path, 1), tmp_path / "out"), "--json")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.splitlines()[-1].startswith("leanvit: 1 of 12 images cannot be read, ")
    assert "Traceback" not in process.stderr


def test_unreadable_images_are_counted_over_a_resume(tmp_path: Path, capsys: Says) -> None:
    """One is met in the first step and one in the third; one is allowed and two are not."""
    (first, *_), _, third = (Order(12, 4, 0).keys(step) for step in range(3))
    stands_in = replacement(0, first, 0, 12)
    late = next(key.index for key in third if key.index != stands_in)
    images, out = broken(tmp_path, first.index, late), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2)
        assert main([*words(images, out, 10), "--train.save-every", "1st"]) == 130
    assert listed(out) == [f"{first.index:03d}.png"]
    capsys.readouterr()
    assert main(["pretrain", "--resume", "--out", str(out)]) == 2
    assert "2 of 12 images cannot be read, more than the 10 %" in capsys.readouterr().err
    assert listed(out) == [f"{index:03d}.png" for index in (first.index, late)]
