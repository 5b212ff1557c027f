"""Evaluations by two processes: what one finds, with every image in one share and no more."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import leanvit
from leanvit.config.evaluation import KnnConfig
from leanvit.data.sources import FolderSource
from leanvit.evaluation.features import describe_pixels, shared
from leanvit.evaluation.inputs import see
from tests.distributed.launch import in_processes
from tests.distributed.test_command import together
from tests.tables import KNN, LINEAR, PLAIN, break_images, write_network, write_split

EVALUATIONS: dict[str, dict[str, Any]] = {
    "knn": {**KNN, "batch": 7, "max_unreadable": 20.0},
    "knn leave": {**KNN, "batch": 7, "max_unreadable": 20.0, "leave_one_out": True, "k": (3, 99)},
    "linear": {**LINEAR, "batch": 7, "max_unreadable": 20.0},
    "lowshot": {
        **PLAIN,
        **{"batch": 7, "max_unreadable": 20.0, "probe": "lbfgs", "shots": ("30%",), "repeats": 2},
    },
    "layers": {**LINEAR, "batch": 7, "max_unreadable": 20.0},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, and images of which four are broken."""
    folder = tmp_path_factory.mktemp("together")
    write_network(folder / "some.safetensors")
    break_images(write_split(folder / "data"))
    return folder


def tables(place: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    found = {}
    for name, options in EVALUATIONS.items():
        model, data = place / "some.safetensors", str(place / "data")
        kind = name.split()[0]
        result = leanvit.evaluate(kind, model, data=data, options=options, quiet=True)
        found[name] = result.rows
    return found


BATCHES = (1, 7, 30, 64)


def every_share(place: Path) -> list[tuple[list[int], list[int], list[str]]]:
    return [shares(place, batch) for batch in BATCHES]


def shares(place: Path, batch: int) -> tuple[list[int], list[int], list[str]]:
    """Return the images of this process's share, those of all, and those that are broken."""
    source = FolderSource(place / "data" / "train")
    seen = see(
        KnnConfig(batch=batch, workers=0, max_unreadable=20, keep_features=False), 8, source, True
    )
    ways = {"pixels": describe_pixels("color")}
    own = seen.describe_share(source, "images", ways)
    every = shared(own, ways)
    assert len(every.rows["pixels"]) == len(every.index) == len(every.target)
    assert every.rows["pixels"].shape[1] == 3 * 8 * 8
    assert torch.equal(every.target, torch.from_numpy(source.targets)[every.index])
    broken = [bad.name for bad in every.unreadable]
    return own.index.tolist(), every.index.tolist(), broken


def test_every_image_is_in_one_share(place: Path) -> None:
    """Also where all are in one, since there is a single batch of them."""
    first_process, second_process = in_processes(2, every_share, place)
    for batch, one, other in zip(BATCHES, first_process, second_process, strict=True):
        (first, every, broken), (second, same, told) = one, other
        assert every == same == [*first, *second]
        assert sorted(every) == every == shares(place, batch)[1] and len(every) == 42
        assert broken == told and len(broken) == 3
        assert bool(first and second) == (batch < 45)


def test_two_processes_find_what_one_finds(place: Path) -> None:
    alone = tables(place)
    for found in in_processes(2, tables, place):
        for name, rows in alone.items():
            for row, other in zip(rows, found[name], strict=True):
                assert other == pytest.approx(row, abs=1e-3), name


def test_the_first_process_speaks_for_all(place: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    words = ("evaluate", "knn", place / "some.safetensors", "--data", place / "data", "--json")
    options = ("--max-unreadable", "20", "--workers", "0", "--batch", "7", "--k", "3")
    process = together(*words, *options, "--results", results)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["rows"] and process.stderr.count("3 of 45 images cannot be read") == 1
    (line,) = results.read_text().splitlines()
    assert json.loads(line)["rows"] == found["rows"]


@pytest.mark.long
def test_fine_tuning_is_for_one(place: Path) -> None:
    words = ("evaluate", "finetune", place / "some.safetensors", "--data", place / "data")
    process = together(*words)
    assert process.returncode != 0
    assert process.stderr.count("evaluate finetune is for one process") == 1
