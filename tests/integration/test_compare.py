"""Several backbones in one table and one picture, from what was found of each."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import leanvit
from leanvit.analysis.comparison import NONE, PICTURE
from leanvit.cli import main
from leanvit.evaluation.result import Result
from leanvit.weights.card import RESULTS
from leanvit.weights.file import FILE
from leanvit.weights.loading import load_backbone
from tests.integration.command import Says, refused
from tests.tables import KNN, LINEAR, write_network, write_run

pytestmark = pytest.mark.usefixtures("one_thread")
STILL: dict[str, Any] = {"rounds": 0, "device": "cpu"}


@pytest.fixture
def runs(tmp_path: Path, data: Path) -> tuple[Path, Path]:
    """Two runs: of the first there are k-NN and linear, of the second there is k-NN."""
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second")
    for run, name, options in (
        (first, "knn", {**KNN, "protocol": "both"}),
        (first, "linear", LINEAR),
        (second, "knn", {**KNN, "protocol": "both"}),
    ):
        leanvit.evaluate(name, run, data=str(data), options=options, quiet=True)
    return first, second


def compare(*models: str | Path, **options: Any) -> Result:
    return leanvit.compare(models, options={**STILL, **options}, quiet=True)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / RESULTS).read_text().splitlines()]


def test_the_table_holds_the_newest_of_each(runs: tuple[Path, Path], data: Path) -> None:
    first, second = runs
    before = compare(*runs).rows
    again = leanvit.evaluate("knn", first, data=str(data), options={**KNN, "k": (45,)}, quiet=True)
    found = compare(*runs)
    entries = [line["headline"] for line in lines(first)]
    assert [list(entry) for entry in entries] == [
        ["k-NN, k=1", "k-NN, k=1, grey"],
        ["linear"],
        ["k-NN, k=45"],
    ]
    size = sum(value.numel() for value in load_backbone(first).parameters()) / 1e6
    (row, other) = found.rows
    figures = {**entries[0], **entries[1], **again.headline}
    assert row == {"backbone": str(first), "M parameters": size, **figures}
    assert other["backbone"] == str(second) and other["linear"] == NONE
    assert other["k-NN, k=1"] == lines(second)[0]["headline"]["k-NN, k=1"]
    assert {name: row[name] for name in before[0]} == before[0]


def test_the_headline_is_the_teacher_s(runs: tuple[Path, Path]) -> None:
    """The first row of the table that is no baseline."""
    for line in lines(runs[0])[:2]:
        column = "k=1" if line["name"] == "knn" else "top1"
        (teacher,) = [
            row[column]
            for row in line["rows"]
            if row["features"] == "trained (teacher)" and row["protocol"] == "color"
        ]
        assert next(iter(line["headline"].values())) == teacher


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("knn", {**KNN, "protocol": "both", "leave_one_out": True}, "leave_one_out"),
        ("knn", {**KNN, "protocol": "both", "crop": 0.5}, "crop"),
        ("knn", {**KNN, "protocol": "both", "temperature": 0.5}, "temperature"),
        ("linear", {**LINEAR, "solver": "lbfgs"}, "solver"),
        ("linear", {**LINEAR, "epochs": 1}, "epochs"),
    ],
)
def test_another_question_has_a_column_of_its_own(
    name: str, options: dict[str, Any], words: str, runs: tuple[Path, Path], data: Path
) -> None:
    before = compare(*runs).rows
    leanvit.evaluate(name, runs[0], data=str(data), options=options, quiet=True)
    title = "linear" if name == "linear" else "k-NN, k=1"
    found = compare(*runs).rows
    columns = [column for column in found[0] if column.startswith(f"{title} (")]
    assert len(columns) == 2 and all(words in column for column in columns)
    assert found[0][columns[0]] == before[0][title]
    assert found[1][columns[0]] == before[1][title] and found[1][columns[1]] == NONE


def test_other_data_are_columns_of_their_own(
    runs: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    """Also where the last folder has the same name."""
    other = Path(shutil.copytree(data, tmp_path / data.name))
    options = {**KNN, "protocol": "both"}
    leanvit.evaluate("knn", runs[1], data=str(other), options=options, quiet=True)
    found = compare(*runs).rows[1]
    assert {f"k-NN, k=1 ({data})", f"k-NN, k=1 ({other})"} <= found.keys()


def test_figures_of_other_weights_are_left_out(runs: tuple[Path, Path], tmp_path: Path) -> None:
    place = runs[0] / RESULTS
    changed = lines(runs[0])
    changed[1]["weights"] = "other"
    place.write_text("".join(json.dumps(line) + "\n" for line in changed))
    found = compare(*runs)
    assert "linear" not in found.rows[0]
    assert found.notes == [f"{runs[0]}: linear of other weights than are there now: left out."]


def test_a_picture_and_speeds(runs: tuple[Path, Path], tmp_path: Path, capsys: Says) -> None:
    out = tmp_path / "picture"
    words = ("evaluate", "compare", *runs, "--out", out, "--batch", 2, "--rounds", 2, "--json")
    assert main([*map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(row["images/s"] > 0 for row in found["rows"])
    with Image.open(out / PICTURE) as picture:
        assert picture.width > 600 and len(set(picture.convert("RGB").tobytes())) > 10
    before = (out / PICTURE).read_bytes()
    assert main([*map(str, words[:4]), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split()[:4] == ["backbone", "M", "parameters", "images/s"]
    assert (out / PICTURE).read_bytes() == before


def test_files_of_weights_name_their_results(model: Path, data: Path, tmp_path: Path) -> None:
    results = tmp_path / "all.jsonl"
    other = Path(shutil.copy(model, tmp_path / "other.safetensors"))
    for each in (model, other):
        options = {**KNN, "results": str(results)}
        leanvit.evaluate("knn", each, data=str(data), options=options, quiet=True)
    found = leanvit.compare((model, other), results=results, options=STILL, quiet=True)
    assert [row["backbone"] for row in found.rows] == [str(model), str(other)]


def test_a_file_that_changed_has_no_figures(model: Path, data: Path, tmp_path: Path) -> None:
    """Whatever its name says; and a file has its figures under every name."""
    results, here = tmp_path / "all.jsonl", Path(shutil.copy(model, tmp_path / "w.safetensors"))
    options = {**KNN, "results": str(results)}
    leanvit.evaluate("knn", here, data=str(data), options=options, quiet=True)
    moved = here.rename(tmp_path / "moved.safetensors")
    assert leanvit.compare([moved], results=results, options=STILL, quiet=True).rows
    write_network(moved, norm=3.0)
    with pytest.raises(ValueError, match="holds no figure of"):
        leanvit.compare([moved], results=results, options=STILL, quiet=True)


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ([], "Name a model or more first"),
        (["{first}", "{first}"], "first' is named twice"),
        (["{new}"], "Nothing was found of '.*new' yet"),
        (["swin_tiny"], "it is no run: name --results FILE"),
        (["{bare}"], "holds no figure of"),
        (["{strange}"], "holds no results of leanvit"),
    ],
)
def test_what_cannot_be_compared_is_named(
    models: list[str], text: str, runs: tuple[Path, Path], tmp_path: Path, capsys: Says
) -> None:
    places = {name: write_run(tmp_path / name) for name in ("new", "bare", "strange")}
    (places["bare"] / RESULTS).touch()
    (places["strange"] / RESULTS).write_text('{"a": 1}\n')
    named = [model.format(first=runs[0], **places) for model in models]
    said = refused(capsys, "evaluate", "compare", *named)
    assert re.search(text, said)


def test_a_run_that_is_gone_is_named(runs: tuple[Path, Path], capsys: Says) -> None:
    (runs[0] / FILE).unlink()
    assert "--results FILE" in refused(capsys, "evaluate", "compare", *runs)
