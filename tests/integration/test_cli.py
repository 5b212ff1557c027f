"""The command line as a person meets it: help, a run, its resume, and every mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import leanvit
from leanvit.cli import COMMANDS, main
from leanvit.config import RunConfig, from_dict, load_config, to_dict
from leanvit.config.convert import leaves
from leanvit.recipes import RECIPES, recipe
from tests.tiny import write_images

SIZES = """--backbone.image-size 32 --backbone.dim 8 --backbone.depths 1 1 --backbone.heads 1 2
--backbone.window 4 --method.views.global-size 32 --method.views.local-sizes 16
--method.views.local-counts 2 --method.head.prototypes 16 --method.head.hidden 16
--method.head.bottleneck 8 --method.head.no-train-gain --train.batch=4 --train.duration 4st
--train.save-every 2st --train.log-every 1st --train.device cpu --data.workers 0"""
TINY = SIZES.split()
"""A run of 4 steps on 12 images."""


def leanvit_process(
    *arguments: str, python: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [sys.executable, *python, "-m", "leanvit", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        check=False,
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a refused command said: one message, on stderr, without a traceback."""
    capsys.readouterr()
    try:
        found: object = main(arguments)
    except SystemExit as stop:
        found = stop.code
    out, error = capsys.readouterr()
    assert (found, out) == (2, "")
    assert "Traceback" not in error
    assert error.startswith("leanvit: ") == (error.count("\n") == 1), "a message or a box"
    return " ".join(re.sub(r"[│╭╮╰╯─|]|-{3,}", " ", error).split())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("data") / "images", 12))


@dataclass(frozen=True)
class Finished:
    """A run that a process of its own finished."""

    process: subprocess.CompletedProcess[str]
    arguments: tuple[str, ...]
    out: Path

    def copy(self, place: Path) -> Path:
        """Return a copy of the run's folder that a test may change."""
        return Path(shutil.copytree(self.out, place / "run"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: str) -> Finished:
    out = tmp_path_factory.mktemp("runs") / "first"
    arguments = ("pretrain", "esvit", "--data", images, *TINY)
    return Finished(leanvit_process(*arguments, "--out", str(out)), arguments, out)


# Help


HELP = [
    ("--version",),
    ("--help",),
    ("-h",),
    (),
    *[(name, "--help") for name in COMMANDS],
    ("pretrain", "esvit", "--help"),
    ("pretrain", "esvit", "--help-all"),
]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_comes_without_torch(arguments: tuple[str, ...]) -> None:
    process = leanvit_process(*arguments, python=("-X", "importtime"))
    assert process.returncode == 0
    assert "leanvit" in process.stdout
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert {"leanvit", "leanvit.cli", "leanvit.config"} <= imported
    heavy = {"torch", "torchvision", "numpy", "tensorboard", "PIL"}
    assert not imported & heavy
    assert all(line.startswith("import time:") for line in process.stderr.splitlines())


def test_importing_leanvit_does_not_import_torch() -> None:
    code = (
        "import sys, leanvit, leanvit.config, leanvit.recipes, leanvit.cli;"
        "print(leanvit.__version__, dir(leanvit), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ["__version__", "list_backbones", "load_backbone", "pretrain"]
    assert done.stdout.strip() == f"{leanvit.__version__} {names} False"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"leanvit {leanvit.__version__}\n"


@pytest.mark.parametrize("name", RECIPES)
def test_help_all_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", name, "--help-all"])
    assert stop.value.code == 0
    shown = set(re.findall(r"--[a-z_.-]+", capsys.readouterr().out))
    options = {f"--{option.replace('_', '-')}" for option, _ in leaves(to_dict(recipe(name)))}
    assert options <= shown


def test_help_all_fits_the_parts_that_were_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "esvit", "--backbone", "vit_tiny", "--optimizer", "lars", "--help-all"])
    shown = capsys.readouterr().out
    assert "--backbone.pool" in shown and "--optim.trust" in shown
    assert "--backbone.window" not in shown and "--optim.betas" not in shown


# A run


def test_a_run_writes_what_it_promises(run: Finished) -> None:
    assert run.process.returncode == 0, run.process.stderr
    assert "Traceback" not in run.process.stderr
    assert "step 4/4" in run.process.stdout
    assert str(run.out / "backbone.safetensors") in run.process.stdout
    assert {path.name for path in run.out.iterdir()} == {
        "config.json",
        "resolved.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "backbone.safetensors",
    }
    saved = sorted(path.name for path in (run.out / "checkpoints").iterdir())
    assert saved == ["step-00000002", "step-00000004"]
    rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["loss"] > 0 for row in rows)


def test_a_run_records_what_was_asked_and_what_it_became(run: Finished) -> None:
    asked = load_config(run.out / "config.json")
    record = json.loads((run.out / "resolved.json").read_text())
    resolved = from_dict(RunConfig, record["config"])
    assert (asked.train.precision, resolved.train.precision) == ("auto", "fp32")
    assert str(asked.method.teacher_temp.warmup) == "10%"  # type: ignore[attr-defined]
    assert str(resolved.method.teacher_temp.warmup) == "0st"  # type: ignore[attr-defined]
    assert resolved.backbone == asked.backbone
    assert not resolved.method.head.train_gain  # type: ignore[attr-defined]
    assert record["images"]["count"] == 12


def test_a_run_records_what_a_person_gave(run: Finished) -> None:
    origins = json.loads((run.out / "resolved.json").read_text())["origins"]
    typed = [word[2:].split("=")[0].replace("-", "_") for word in TINY if word.startswith("--")]
    expected = {name.replace(".no_", ".") for name in typed}
    assert {name for name, origin in origins.items() if origin == "given"} >= expected
    assert origins["train.seed"] == "recipe"


def test_a_run_records_that_a_person_named_the_images(run: Finished) -> None:
    origins = json.loads((run.out / "resolved.json").read_text())["origins"]
    assert origins["data.source"] == "given"


def test_the_backbone_of_a_run_loads(run: Finished) -> None:
    for place in (run.out, run.out / "backbone.safetensors", str(run.out)):
        backbone = leanvit.load_backbone(place)
        assert backbone.config == load_config(run.out / "config.json").backbone
        assert backbone.features(torch.zeros(1, 3, 32, 32)).pooled.shape == (1, 16)


def test_a_run_continues_to_the_same_end(run: Finished, tmp_path: Path) -> None:
    out = run.copy(tmp_path)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    (out / "backbone.safetensors").unlink()
    process = leanvit_process(*run.arguments, "--out", str(out), "--resume")
    assert process.returncode == 0, process.stderr
    assert "Continuing at step 2" in process.stdout
    for name in ("backbone.safetensors", "checkpoints/step-00000004/state.safetensors"):
        assert (out / name).read_bytes() == (run.out / name).read_bytes()
    timings = ("images_per_s", "data_wait")
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k not in timings}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (run.out, out)
    ]
    assert rows[0] == rows[1]


def test_overwrite_replaces_a_run(run: Finished, tmp_path: Path) -> None:
    out = run.copy(tmp_path)
    (out / "metrics.jsonl").write_text("old\n")
    (out / "unreadable.jsonl").write_text("old\n")
    (out / "thesis.txt").write_text("years of work")
    assert main([*run.arguments, "--out", str(out), "--overwrite"]) == 0
    assert not (out / "unreadable.jsonl").exists()
    assert (out / "thesis.txt").read_text() == "years of work", "only a run's files are removed"
    assert "old" not in (out / "metrics.jsonl").read_text()


# Mistakes


def test_a_mistake_ends_a_process_with_code_two() -> None:
    process = leanvit_process("pretrian", "esvit")
    assert (process.returncode, process.stdout) == (2, "")
    expected = "leanvit: Unknown command 'pretrian'; did you mean 'pretrain'? Known: "
    assert process.stderr.startswith(expected)
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train", "leanvit: Unknown command 'train'; did you mean 'pretrain'? Known: "),
        ("pretrain", "the following arguments are required: recipe"),
        ("pretrain esvt", "leanvit: Unknown recipe 'esvt'; did you mean 'esvit'? Known: dino, "),
        ("pretrain esvit --backbone swin_tinny", "did you mean 'swin_tiny'? Known: swin_base, "),
        ("pretrain esvit --optimizer adam", "did you mean 'adamw'? Known: adamw, lars, sgd."),
        ("pretrain esvit --train.batc 3", "Perhaps you meant: --train.batch INT"),
        ("pretrain esvit --backbone.pool mean", "Unrecognized options: --backbone.pool"),
        ("pretrain esvit --recipe dino", "Unrecognized options: --recipe"),
        ("pretrain esvit stray", "Unrecognized options: stray"),
        ("pretrain esvit --train.duration 10days", "'10days' is not a duration; write 10ep"),
        ("pretrain esvit --train.duration", "--train.duration"),
        ("pretrain esvit --train.batch two", "Error parsing --train.batch"),
        ("pretrain esvit --train.batch 0", "batch is 0; expected at least 1"),
        ("pretrain esvit --train.precision fp16", "Expected one of ('auto', 'fp32', 'bf16')"),
        ("pretrain esvit --method.region-weight 1", "region_weight lies between 0 and 1"),
    ],
)
def test_a_mistake_in_the_words_is_answered(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "out")) if " " in arguments else ()
    assert message in refused(capsys, *arguments.split(), *out)
    assert not (tmp_path / "out").exists()


def test_a_run_needs_a_place_for_its_results(
    images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ([], ["--out", ""]):
        said = refused(capsys, "pretrain", "esvit", "--data", images, *TINY, *place)
        assert said == "leanvit: Name a folder for the results: --out FOLDER."


def test_a_mistake_in_the_images_is_answered(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, empty, file = tmp_path / "out", tmp_path / "empty", tmp_path / "photo.png"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    file.write_bytes(b"")
    for data, message in [
        (["--data", str(tmp_path / "none")], f"folder '{tmp_path / 'none'}' does not exist."),
        (["--data", str(file)], f"The data folder '{file}' is not a folder."),
        (["--data", str(empty)], f"There is no image in '{empty}' or below it; known endings: "),
        ([], "No images were named: give --data FOLDER."),
        (["--data", images, "--train.batch", "13"], "There are 12 images, fewer than one batch"),
    ]:
        assert message in refused(capsys, "pretrain", "esvit", *TINY, "--out", str(out), *data)
        assert not out.exists()


def test_results_are_not_written_over_others(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.copy(tmp_path)
    said = refused(capsys, *run.arguments, "--out", str(out))
    assert f"The folder '{out}' is not empty: continue the run in it with --resume" in said
    file = tmp_path / "file"
    file.write_text("kept")
    for how in ([], ["--overwrite"]):
        assert "is a file; name a folder" in refused(
            capsys, *run.arguments, "--out", str(file), *how
        )
    assert file.read_text() == "kept"


def test_overwrite_leaves_a_folder_alone_that_is_no_run(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    said = refused(capsys, *run.arguments, "--out", str(tmp_path), "--overwrite")
    assert "holds no run of leanvit, so --overwrite leaves it alone" in said
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwrite_leaves_images_alone_that_lie_in_the_run(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.copy(tmp_path)
    inside = write_images(out / "images", 12)
    arguments = ("pretrain", "esvit", "--data", str(inside), *TINY, "--out", str(out))
    refused(capsys, *arguments, "--overwrite")
    assert len(list(inside.iterdir())) == 12


@pytest.mark.parametrize("how", [(), ("--overwrite",)], ids=["new", "overwrite"])
def test_a_network_that_cannot_be_built_leaves_the_folder_as_it_was(
    how: tuple[str, ...],
    run: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such network")

    monkeypatch.setattr("leanvit.run.build_method", refuse)
    out = run.copy(tmp_path) if how else tmp_path / "new"
    before = sorted(out.rglob("*"))
    assert "no such network" in refused(capsys, *run.arguments, "--out", str(out), *how)
    assert sorted(out.rglob("*")) == before


def test_only_a_run_is_resumed(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (tmp_path / "none", tmp_path):
        said = refused(capsys, *run.arguments, "--out", str(out), "--resume")
        assert said == f"leanvit: There is no run to resume in '{out}'."
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_as_it_began(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--out", str(run.out), "--resume")
    said = refused(capsys, *run.arguments, *place, "--optim.clip", "1", "--train.seed", "7")
    assert "optim.clip was 3.0, now 1.0; train.seed was 0, now 7. Ask for the same" in said
    said = refused(capsys, *run.arguments, *place, "--optimizer", "sgd")
    assert "optim.betas was [0.9, 0.999], now None; optim.momentum was None, now 0.9" in said
    images = write_images(tmp_path / "images", 12)
    arguments = ("pretrain", "esvit", "--data", str(images), *TINY, "--out", str(tmp_path / "run"))
    assert main(arguments) == 0
    (images / "000.png").unlink()
    said = refused(capsys, *arguments, "--resume")
    assert "The run began with 12 images and there are 11 now" in said


def test_resume_and_overwrite_exclude_each_other(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.copy(tmp_path)
    said = refused(capsys, *run.arguments, "--out", str(out), "--resume", "--overwrite")
    assert "--resume" in said and "--overwrite" in said


def test_a_diverged_run_ends_with_code_one_and_a_reason(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*run.arguments, "--out", str(tmp_path / "out"), "--optim.lr.peak", "1e30")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("leanvit: The loss or a gradient was not finite at step ")
    assert error.count("\n") == 1


def test_several_processes_are_refused(
    run: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refused(capsys, *run.arguments, "--out", str(tmp_path / "out"))
    assert "trains in one process, but WORLD_SIZE is 2" in said


def test_a_folder_of_another_program_is_no_run(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    said = refused(capsys, *run.arguments, "--out", str(tmp_path), "--overwrite")
    assert "holds no run of leanvit" in said
    assert (tmp_path / "model.safetensors").read_text() == "weights"


def test_results_may_lie_behind_a_link(run: Finished, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk")
    assert main([*run.arguments, "--out", str(link)]) == 0
    assert main([*run.arguments, "--out", str(link), "--overwrite"]) == 0
    assert link.is_symlink() and (tmp_path / "disk" / "backbone.safetensors").exists()


def test_results_and_images_do_not_mix(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 12)
    for out in (images, images / "results", tmp_path):
        said = refused(capsys, "pretrain", "esvit", *TINY, "--data", str(images), "--out", str(out))
        assert "would lie in one another" in said


def test_a_place_that_cannot_be_written_is_an_error(
    run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Cannot write to '/proc/run'" in refused(capsys, *run.arguments, "--out", "/proc/run")


def test_what_changes_no_number_may_change_on_resume(run: Finished, tmp_path: Path) -> None:
    out = run.copy(tmp_path)
    moved = shutil.copytree(run.arguments[3], tmp_path / "moved")
    arguments = ["pretrain", "esvit", "--data", str(moved), *TINY, "--train.keep", "1"]
    assert main([*arguments, "--out", str(out), "--resume"]) == 0


def test_other_images_of_the_same_number_are_noticed(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.copy(tmp_path)
    moved = shutil.copytree(run.arguments[3], tmp_path / "moved")
    (moved / "000.png").rename(moved / "zzz.png")
    said = refused(
        capsys, "pretrain", "esvit", "--data", str(moved), *TINY, "--out", str(out), "--resume"
    )
    assert "began with 12 images and there are the same number of others now" in said


def test_unreadable_images_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", 12)
    (images / "003.png").write_bytes(b"broken")
    out = tmp_path / "out"
    assert main(["pretrain", "esvit", "--data", str(images), *TINY, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "unreadable.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == {"003.png"}
    assert "The image '003.png' cannot be read (UnidentifiedImageError" in capsys.readouterr().err


def test_an_interrupted_run_says_where_it_stands(
    run: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: object, row: dict[str, float]) -> None:
        if row["step"] == 4:  # after the step, before its checkpoint
            raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr("leanvit.train.metrics.Terminal.on_row", interrupted)
    assert main([*run.arguments, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert "interrupted at step 4; --resume continues from step 2" in said
    monkeypatch.undo()
    assert main([*run.arguments, "--out", str(out), "--resume"]) == 0
    assert "Continuing at step 2" in capsys.readouterr().out


def test_a_run_that_saved_nothing_begins_again(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.copy(tmp_path)
    shutil.rmtree(out / "checkpoints")
    assert "(it saved nothing yet)" in refused(capsys, *run.arguments, "--out", str(out))
    assert main([*run.arguments, "--out", str(out), "--resume"]) == 0
    assert "saved nothing yet, so it begins again at step 0" in capsys.readouterr().out


def test_a_damaged_record_is_named(
    run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.copy(tmp_path)
    (out / "resolved.json").write_text("{")
    said = refused(capsys, *run.arguments, "--out", str(out), "--resume")
    assert "resolved.json is damaged" in said
