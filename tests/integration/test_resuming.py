"""Runs that go on: with changes that are allowed, from job scripts, out of damaged folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import leanvit
from leanvit import folder
from leanvit.cli import main
from leanvit.config import load_config
from leanvit.weights.card import card, read_run
from tests.integration.command import Finished, Says, contents, refused

pytestmark = pytest.mark.usefixtures("undrawn")

STATE = "checkpoints/step-00000004/state.safetensors"
SPARED = ("summary.json", "backbone.safetensors", "student.safetensors")


def cut(run: Finished, place: Path) -> Path:
    """Return a run that was killed after its step 2 had been saved."""
    out = run.copy(place)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    for name in SPARED:
        (out / name).unlink()
    return out


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "resolved.json").read_text())
    return found


def steps(out: Path) -> list[int]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def same_weights(one: Path, other: Path) -> bool:
    return (one / STATE).read_bytes() == (other / STATE).read_bytes()


def went_on(capsys: Says, *words: str | Path) -> str:
    """Return what a command that succeeded said."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().err


def test_a_finished_run_without_its_backbone_writes_it_anew(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = run.copy(tmp_path)
    (out / "backbone.safetensors").unlink()
    went_on(capsys, *run.arguments, "--out", out, "--autoresume")
    for name in ("backbone.safetensors", STATE):
        assert (out / name).read_bytes() == (run.out / name).read_bytes()


# Changes


def test_a_finished_run_is_made_longer(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out, longer = run.copy(tmp_path), ("--train.duration", "6st", "--optim.clip", "1")
    words = ("pretrain", "--out", out, "--resume", *longer)
    before = contents(out)
    assert "--allow optim.clip,train.duration takes over" in refused(capsys, *words, lines=4)
    assert "  train.duration was '4st'" in refused(capsys, *words, "--allow=optim.clip", lines=4)
    assert contents(out) == before
    allow = ("--allow", "optim.clip,train.duration,train.save-every")
    said = went_on(capsys, *words, *allow)
    assert "--allow train.save_every: it is as it was." in said
    assert (
        "Changed from there on: optim.clip was 3.0, now 1.0; train.duration was '4st', now '6st'."
        in said
    )
    assert steps(out) == [0, 1, 2, 3, 4, 5, 6]
    assert json.loads((out / "summary.json").read_text())["steps"] == 6
    asked, runs = load_config(out / "config.json"), load_config(out / "resolved.json")
    assert str(asked.train.duration) == str(runs.train.duration) == "6st"
    assert str(asked.method.teacher_temp.warmup) == "10%"  # type: ignore[attr-defined]
    assert str(runs.method.teacher_temp.warmup) == "1st"  # type: ignore[attr-defined]
    assert asked.train.precision == "auto"


def test_a_changed_run_never_hides_it(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out = cut(run, tmp_path)
    words = ("pretrain", "--out", out, "--resume")
    went_on(capsys, *words, "--optim.clip", "1", "--allow", "optim.clip")
    (entry,) = record(out)["resumed"]
    assert (entry["step"], entry["changes"]) == (2, {"optim.clip": {"was": 3.0, "now": 1.0}})
    assert entry["when"] >= record(out)["started"] == record(run.out)["started"]
    assert record(out)["origins"]["optim.clip"] == "given; changed at step 2"
    assert record(out)["origins"]["train.seed"] == "recipe"
    went_on(capsys, *words, "--train.duration", "5st", "--allow", "train.duration")
    first, second = record(out)["resumed"]
    assert first == entry and second["step"] == 4 and "train.duration" in second["changes"]
    found, _ = read_run(out)
    text = card(leanvit.load_backbone(out), {}, usage="", run=found)
    assert "| changed on the way | optim.clip at step 2; " in text and "at step 4 |" in text


def test_a_change_matters_and_the_words_that_brought_it_go_on(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    """As a job script says them: again and again."""
    out = cut(run, tmp_path)
    words = ("pretrain", "--out", out, "--resume", "--optim.lr.peak", "0.1")
    allow = ("--allow", "optim.lr.peak")
    went_on(capsys, *words, *allow)
    assert not same_weights(out, run.out)
    again = cut(Finished(run.process, run.arguments, run.data, out), tmp_path / "again")
    words = ("pretrain", "--out", again, *words[3:])
    went_on(capsys, *words)
    assert same_weights(again, out) and len(record(again)["resumed"]) == 1
    assert "optim.lr.peak was 0.1" in refused(capsys, *words[:-1], "0.2", lines=3), (
        "what was changed is what the next one is compared with"
    )


def test_python_allows_too(run: Finished, tmp_path: Path) -> None:
    out, new = cut(run, tmp_path), {"watch.every": "4st"}
    with pytest.raises(ValueError, match=r"watch\.every was '2st', now '4st'"):
        leanvit.pretrain(out=out, options=new, resume=True, quiet=True)
    leanvit.pretrain(out=out, options=new, resume=True, allow=("watch.every",), quiet=True)
    assert same_weights(out, run.out) and record(out)["resumed"][0]["step"] == 2


def test_a_change_that_what_is_saved_does_not_fit_leaves_the_run_alone(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = run.copy(tmp_path)
    (out / "summary.json").unlink()
    before = contents(out)
    words = ("pretrain", "--out", out, "--resume", "--train.duration", "3st")
    said = refused(capsys, *words, "--allow", "train.duration")
    assert "The run is at step 4, beyond a train.duration of 3 steps." in said
    said = refused(capsys, *words[:-2], "--allow", "train.batch")
    assert "train.batch cannot be allowed to change: steps and epochs count in it" in said
    assert contents(out) == before


def test_a_run_killed_while_a_change_is_written_takes_it_once(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    """Between the two files: it is in the one that counts."""
    out = cut(run, tmp_path)
    words = ("pretrain", "--out", out, "--resume", "--optim.clip", "1", "--allow", "optim.clip")
    write = folder._write_json

    def killed(path: Path, plain: dict[str, Any]) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, plain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "_write_json", killed)
        assert main([str(word) for word in words]) == 130
    assert load_config(out / "config.json").optim.clip == 3
    assert "optim.clip was 1.0, now 3.0" in refused(
        capsys, "pretrain", "--out", out, "--resume", "--optim.clip", "3", lines=3
    )
    went_on(capsys, *words)
    assert load_config(out / "config.json").optim.clip == 1
    assert len(record(out)["resumed"]) == 1


# Job scripts


def test_the_same_command_begins_continues_and_ends(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "job-17.log").write_text("kept")
    words = (*run.arguments, "--out", str(out), "--autoresume")
    assert "Continuing" not in went_on(capsys, *words)
    assert same_weights(out, run.out)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    (out / "summary.json").unlink()
    assert "Continuing at step 2" in went_on(capsys, *words)
    assert same_weights(out, run.out) and (out / "job-17.log").read_text() == "kept"
    before = contents(out)
    shutil.rmtree(out / "checkpoints")  # they are large, and the run needs them no more
    before = {n: d for n, d in before.items() if not n.startswith("checkpoints")}
    for way in ("--autoresume", "--resume"):
        said = went_on(capsys, "pretrain", "--out", out, way)
        assert f"The run in {out} is finished; nothing is left to do." in said
        assert contents(out) == before
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4


def test_a_finished_run_needs_its_images_no_more(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = run.copy(tmp_path)
    for name in ("config.json", "resolved.json"):
        text = (out / name).read_text().replace(run.data, str(tmp_path / "gone"))
        (out / name).write_text(text)
    assert "is finished" in went_on(capsys, "pretrain", "--out", out, "--resume")
    assert leanvit.pretrain(out=out, autoresume=True, quiet=True) == out / "backbone.safetensors"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("way", ["--autoresume", "--overwrite", ""])
def test_a_run_killed_while_it_began_begins(
    way: str, step: int, run: Finished, tmp_path: Path, capsys: Says
) -> None:
    """In the midst of the first file, or of the second one."""
    out, half = tmp_path / "out", ("resolved.json", "config.json")[step - 1]

    def killed(path: Path, data: bytes) -> None:
        if half in path.name:
            path.with_name(f".{half}.999999999.tmp").write_bytes(data[:9])
            raise KeyboardInterrupt
        path.write_bytes(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanvit.folder.write_synced", killed)
        assert main([*run.arguments, "--out", str(out)]) == 130
    left = {f".{half}.999999999.tmp"} | ({"resolved.json"} if step == 2 else set())
    assert {path.name for path in out.iterdir()} == left
    words = (*run.arguments, "--out", str(out), *way.split())
    if step == 2 and not way:
        assert "(it saved nothing yet)" in refused(capsys, *words)
        return
    went_on(capsys, *words)
    assert same_weights(out, run.out)
    assert not list(out.glob(".*")), "nothing is left lying about"


def test_a_folder_of_others_is_no_run(run: Finished, tmp_path: Path, capsys: Says) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(run.out / "config.json", out)
    before = contents(out)
    said = refused(capsys, *run.arguments, "--out", out, "--autoresume")
    assert "resolved.json is damaged or missing (No such file or directory)" in said
    assert contents(out) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--resume --overwrite", "--resume continues a run and --overwrite replaces it"),
        ("--autoresume --overwrite", "--autoresume continues a run and --overwrite replaces it"),
        ("--resume --autoresume", "--autoresume begins a run that --resume would not find"),
        ("--allow train.duration", "--allow is for a run that goes on: add --resume"),
        ("--overwrite --allow train.duration", "--allow is for a run that goes on"),
    ],
)
def test_words_that_contradict_each_other(
    words: str, message: str, run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = run.copy(tmp_path)
    before = contents(out)
    assert message in refused(capsys, *run.arguments, "--out", out, *words.split())
    assert contents(out) == before


def test_autoresume_without_a_run_needs_a_recipe(tmp_path: Path, capsys: Says) -> None:
    said = refused(capsys, "pretrain", "--out", tmp_path / "out", "--autoresume")
    assert said.startswith("leanvit: Name a recipe first: ")


# Damage


@pytest.mark.parametrize(
    ("left", "why"),
    [
        ("", "Expecting value"),
        ("{}", "is missing"),
        ("[]", "list indices"),
        ("[" * 100_000, "recursion"),
        (None, "No such file or directory"),
        ("half", "line"),
        ("\x00" * 100, "Expecting value"),
    ],
    ids=["empty", "object", "list", "deep", "gone", "half", "zeros"],
)
def test_a_damaged_record_is_named_and_nothing_touched(
    left: str | None, why: str, run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = cut(run, tmp_path)
    path = out / "resolved.json"
    whole = path.read_text()
    path.unlink()
    if left is not None:
        path.write_text(whole[: len(whole) // 2] if left == "half" else left)
    before = contents(out)
    words = [(*run.arguments, way) for way in ("--resume", "--autoresume")]
    for entry in (*words, ("pretrain", "--resume")):
        said = refused(capsys, *entry, "--out", out)
        assert f"{path} is damaged or missing (" in said and why in said
        assert f"or begin another run from these weights: --init {out}" in said
    assert contents(out) == before


@pytest.mark.parametrize("left", ["", '{"recipe": ', None], ids=["empty", "half", "gone"])
def test_what_was_asked_is_written_anew(
    left: str | None, run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = cut(run, tmp_path)
    (out / "config.json").unlink()
    if left is not None:
        (out / "config.json").write_text(left)
    went_on(capsys, *run.arguments, "--out", out, "--autoresume")
    assert load_config(out / "config.json") == load_config(run.out / "config.json")
    assert same_weights(out, run.out)


@pytest.mark.parametrize("place", ["images", "origins", "init", "asked"])
def test_a_part_of_the_record_that_is_none_is_named(
    place: str, run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = cut(run, tmp_path)
    (out / "resolved.json").write_text(json.dumps({**record(out), place: ["x"]}))
    said = refused(capsys, "pretrain", "--out", out, "--resume")
    assert "resolved.json is damaged or missing (" in said


def test_a_full_disk_leaves_the_record_as_it_was(
    run: Finished, tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = cut(run, tmp_path)
    before = contents(out)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leanvit.folder.write_synced", full)
    words = ("pretrain", "--out", out, "--resume", "--optim.clip", "1", "--allow", "optim.clip")
    assert main([*map(str, words)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents(out) == before


def test_what_a_killed_run_leaves_lying_about_harms_nobody(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    """No rows, half a line of an unreadable image, and files that were being written."""
    out = cut(run, tmp_path)
    (out / "metrics.jsonl").unlink()
    whole = json.dumps({"name": "a", "error": "b"}) + "\n"
    (out / "unreadable.jsonl").write_text(whole + '{"name": "b", "er')
    for name in (".backbone.safetensors.999999999.tmp", ".student.safetensors.999999999.tmp"):
        (out / name).write_bytes(b"half")
    (out / "checkpoints" / ".step-00000004.999999999.tmp").mkdir()
    went_on(capsys, "pretrain", "--out", out, "--resume")
    assert same_weights(out, run.out) and steps(out) == [3, 4]
    assert (out / "unreadable.jsonl").read_text() == whole
    assert not list(out.rglob(".*"))


def test_a_run_without_rows_comes_to_its_end(run: Finished, tmp_path: Path, capsys: Says) -> None:
    """Killed after its last step, and the rows are gone."""
    out = run.copy(tmp_path)
    for name in ("metrics.jsonl", "summary.json"):
        (out / name).unlink()
    went_on(capsys, "pretrain", "--out", out, "--resume")
    found = json.loads((out / "summary.json").read_text())
    assert (found["steps"], found["first"], found["last"]) == (4, {}, {})


def test_an_empty_folder_of_checkpoints_begins_again(
    run: Finished, tmp_path: Path, capsys: Says
) -> None:
    out = cut(run, tmp_path)
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").mkdir()
    said = went_on(capsys, *run.arguments, "--out", out, "--autoresume")
    assert "begins again at step 0" in said
    assert same_weights(out, run.out) and steps(out) == [0, 1, 2, 3, 4]
