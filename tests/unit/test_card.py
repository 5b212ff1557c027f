"""The model card: what is known is told as it was measured, what is not known is left out."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanvit.backbones.base import Backbone
from leanvit.backbones.sizes import describe_backbones
from leanvit.config import BACKBONES, BackboneConfig, Resolved
from leanvit.config.resume import RESOLVED
from leanvit.evaluation.result import Result
from leanvit.weights.card import METRICS, RESULTS, card, last_part, read_run
from leanvit.weights.loading import load_backbone
from tests.tiny import FAMILIES, SWIN, TIMM, build, run_config

USAGE = "import leanvit\n\nbackbone = leanvit.load_backbone('some.safetensors')\n"
FACTS = {"method": "esvit", "recipe": "esvit_laptop", "seed": 3, "step": 7, "version": "0.0.9"}
LOOKS = [
    {"step": 0, "knn": 12.25, "effective_rank": 3.5},
    {"step": 1, "loss": 4.0},
    {"step": 5, "knn": 20.0, "effective_rank": 4.0},
    {"step": 10, "knn": 31.5, "effective_rank": 5.75, "loss": 2.0},
]


def written_run(folder: Path) -> Path:
    """Write what a run of 10 steps of 4 images leaves, with paths of somebody's machine."""
    config = run_config()
    config = replace(
        config,
        data=replace(config.data, source="/home/ann/secret/birds/"),
        watch=replace(config.watch, val="/home/ann/secret/tested"),
        init="/home/ann/secret/before",
    )
    record = {
        "started": "2026-01-02T03:04:05+00:00",
        "versions": {"leanvit": "0.1.0", "torch": "2.11.0"},
        "images": {"count": 12345, "fingerprint": "abc"},
        **Resolved(config, {}).to_dict(),
    }
    (folder / RESOLVED).write_text(json.dumps(record))
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in LOOKS))
    facts = {"model": "/home/ann/secret/run", "data": "/home/ann/secret/labelled"}
    result = Result("knn", facts, [{"protocol": "color", "features": "teacher", "k=20": 64.125}])
    (folder / RESULTS).write_text(json.dumps(result.to_dict()) + "\n")
    return folder


def front_matter(text: str) -> Mapping[str, str | list[str]]:
    """Return the lines between --- as the YAML that they are: `key: word` and lists of words."""
    found: dict[str, str | list[str]] = {}
    first, *lines = text.splitlines()
    assert first == "---"
    words: list[str] = []
    for line in lines[: lines.index("---")]:
        if line.startswith("- "):
            words.append(line[2:])
            continue
        key, colon, word = line.partition(":")
        assert re.fullmatch(r"[a-z_]+", key) and colon and key not in found
        words = []
        found[key] = word[1:] if word.startswith(" ") else words
    return found


def table(text: str) -> dict[str, str]:
    """Return all lines of two columns as names and values."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", text, re.MULTILINE))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_card_says_what_the_network_is(config: BackboneConfig) -> None:
    backbone = build(config)
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    text = card(backbone, {}, usage=USAGE)
    found = table(text)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert int(found["parameters"].replace(",", "")) == parameters
    assert found["width of a feature"] == str(backbone.feature_dim)
    assert found["stride"] == f"{backbone.stride} pixels"
    assert found["input"].startswith(f"{config.image_size} x {config.image_size} pixels")
    assert found["mean"] == "0.1, 0.2, 0.3"
    assert found["standard deviation"] == "0.4, 0.5, 0.6"
    assert f"```python\n{USAGE}```" in text
    assert next(backbone.parameters()).device.type == "cpu"


def test_a_named_network_goes_by_its_name_and_its_figures() -> None:
    (size,) = describe_backbones(["swin_nano"]).backbones
    text = card(load_backbone("swin_nano"), {}, usage=USAGE)
    found = table(text)
    assert found["architecture"] == "swin_nano (swin)"
    assert int(found["multiply-adds of an image"].replace(",", "")) == size.multiply_adds
    assert found["regions"] == "{} x {}".format(*size.regions)
    other = Backbone(replace(BACKBONES["vit_tiny"], image_size=384, drop_path=0.0))
    light = Backbone(replace(BACKBONES["vit_tiny_h12"], image_size=96))
    texts = [card(network, {}, usage=USAGE) for network in (other, light, build(SWIN), build(TIMM))]
    titles = [re.findall(r"^# (.*)$", text, re.MULTILINE)[0] for text in texts]
    assert titles == ["vit_tiny", "vit_tiny_h12", "swin", "timm:test_vit"]
    assert ["2205.14443" in text for text in texts] == [False, True, False, False]


def test_a_card_begins_with_yaml() -> None:
    found = front_matter(card(build(SWIN), FACTS, usage=USAGE))
    assert found == {
        "library_name": "leanvit",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["image-feature-extraction", "swin", "esvit"],
    }
    text = card(build(SWIN), {"license": "cc-by-nc-4.0"}, usage=USAGE, library="timm")
    assert front_matter(text)["license"] == "cc-by-nc-4.0"
    assert front_matter(text)["library_name"] == "timm"
    assert "Licence" not in text and "belong to whoever trained them" not in text
    odd = card(build(SWIN), {"method": "two\nlines: |"}, usage=USAGE)
    assert front_matter(odd)["tags"] == ["image-feature-extraction", "swin", r'"two\nlines: |"']


def test_what_is_not_known_is_left_out() -> None:
    text = card(build(SWIN), {}, usage=USAGE)
    for heading in ("Training", "Evaluation", "Options", "pre-trained"):
        assert heading not in text
    assert "license" not in front_matter(text)
    assert "## Licence" in text and "2103.14030" in text and "2106.09785" not in text
    text = card(build(SWIN), FACTS, usage=USAGE)
    found = table(text)
    trained = {"method": "esvit", "recipe": "esvit_laptop", "steps": "7", "seed": "3"}
    assert trained.items() <= found.items() and found["versions"] == "leanvit 0.0.9"
    assert not {"images", "batch", "images seen", "optimizer", "data"} & found.keys()
    assert "2106.09785" in text and "None" not in text


def test_a_card_of_a_run_tells_its_numbers_and_no_path(tmp_path: Path) -> None:
    run, rows = read_run(written_run(tmp_path))
    text = card(build(SWIN), FACTS, usage=USAGE, run=run, rows=rows)
    found = table(text)
    told = {
        "data": "birds",
        "images": "12,345",
        "steps": "7 of 10",
        "batch": "4",
        "images seen": "28",
        "optimizer": "adamw",
        "peak learning rate": "0.001",
        "weight decay": "0.04",
        "initial weights": "before",
        "started": "2026-01-02T03:04:05+00:00",
        "versions": "leanvit 0.1.0, torch 2.11.0",
        "method.head.prototypes": "24",
        "optim.betas": "0.9, 0.999",
        "train.duration": "10st",
    }
    assert told.items() <= found.items()
    assert "/home" not in text and "secret" not in text and "ann" not in text
    assert "| while training | 0 | 12.25 | 3.5 |\n| while training | 10 | 31.5 | 5.75 |" in text
    assert "k-NN accuracy, k = 20, %" in text
    assert "| evaluation | data | protocol | features | k=20 |" in text
    assert "| knn | labelled | color | teacher | 64.12 |" in text


def test_a_finished_run_names_its_steps_once(tmp_path: Path) -> None:
    run, _ = read_run(written_run(tmp_path))
    finished = table(card(build(SWIN), {**FACTS, "step": 10}, usage=USAGE, run=run))
    alone = table(card(build(SWIN), {}, usage=USAGE, run=run))
    for found in (finished, alone):
        assert (found["steps"], found["images seen"], found["method"]) == ("10", "40", "esvit")


def test_a_card_quotes_these_weights_and_the_newest_of_each_question(tmp_path: Path) -> None:
    folder = written_run(tmp_path)
    (old,) = (folder / RESULTS).read_text().splitlines()
    again = {**json.loads(old), "asked": {}, "weights": ""}
    again["rows"] = [{**again["rows"][0], "k=20": 70.0, "chosen": None}]
    other = {**again, "asked": {"k": [5]}, "config": {"k": [5]}, "rows": [{"k=5": 1.5}]}
    stale = {**other, "weights": "others", "config": {}, "rows": [{"k=5": 99.0}]}
    lines = (old, *(json.dumps(entry) for entry in (again, other, stale)))
    (folder / RESULTS).write_text("".join(line + "\n" for line in lines))
    _, rows = read_run(folder)
    found = [row for row in rows if row["evaluation"] == "knn"]
    assert [row.get("k=20", row.get("k=5")) for row in found] == [70.0, 1.5]
    assert found[1]["options"] == "k [5]" and "options" not in found[0]
    text = card(build(SWIN), {}, usage=USAGE, rows=rows)
    assert "None" not in text and "70" in text and "99" not in text


def test_files_that_are_not_there_are_passed_over(tmp_path: Path) -> None:
    assert read_run(tmp_path) == (None, [])
    written_run(tmp_path)
    (tmp_path / RESULTS).unlink()
    (tmp_path / METRICS).write_text(json.dumps(LOOKS[1]) + "\n" + json.dumps(LOOKS[0])[:9])
    run, rows = read_run(tmp_path)
    assert run is not None and rows == []
    (tmp_path / METRICS).write_text(json.dumps(LOOKS[0]) + "\n")
    (row,) = read_run(tmp_path)[1]
    assert (row["step"], row["effective rank"]) == (0, 3.5)


@pytest.mark.parametrize("name", [RESOLVED, METRICS, RESULTS])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    (written_run(tmp_path) / name).write_text("{half\n")
    with pytest.raises(ValueError, match=rf"{name}' is damaged .*; mend or remove it"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("photos", "photos"),
        ("/home/ann/photos/", "photos"),
        ("../photos.zip", "photos.zip"),
        ("torchvision:CIFAR10@/home/ann/data", "torchvision:CIFAR10"),
        ("/home/ann/data-{000..010}.tar", "data-{000..010}.tar"),
        ("sample", "sample"),
        ("..", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_of_a_path_the_last_part_is_told(name: str, told: str) -> None:
    assert last_part(name) == told


def test_cells_stay_in_their_columns() -> None:
    rows: list[dict[str, Any]] = [{"evaluation": "a|b\nc", "x": 1}, {"evaluation": "d", "y": 2.0}]
    text = card(build(SWIN), {}, usage=USAGE, rows=rows)
    assert r"| a\|b c | 1 |" in text and "| evaluation | y |\n| --- | --- |\n| d | 2 |" in text
