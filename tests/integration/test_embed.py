"""Features of images, out: as arrays and as lines."""

import csv
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leanvit
from leanvit.config.evaluation import EmbedConfig
from leanvit.data.sources import FolderSource
from leanvit.evaluation.features import last_block_features
from leanvit.weights.file import FILE, STUDENT
from leanvit.weights.loading import load_backbone
from tests.tables import (
    CLASSES,
    seen_by,
    write_run,
)
from tests.tiny import write_images

pytestmark = pytest.mark.usefixtures("one_thread")


def embed(model: Path, data: Path, out: Path, **options: Any) -> Path:
    options = {"workers": 0, "device": "cpu", **options}
    return leanvit.embed(model, out=out, data=str(data), options=options, quiet=True)


@pytest.mark.parametrize("kind", ["pooled", "last4", "grid"])
def test_features_are_written_as_arrays(kind: str, model: Path, data: Path, tmp_path: Path) -> None:
    out = embed(model, data, tmp_path / "new" / "some.npz", features=kind, batch=7)
    assert out == tmp_path / "new" / "some.npz"
    source, backbone = FolderSource(data), load_backbone(model)
    seen = seen_by(backbone, source)
    with torch.no_grad():
        features = backbone.features(seen)
        wanted = {
            "pooled": features.pooled,
            "grid": features.grid,
            "last4": last_block_features(backbone, seen, 4),
        }[kind]
    shapes = {"pooled": (45, 16), "last4": (45, 8 + 8 + 16 + 16), "grid": (45, 8, 8, 16)}
    with np.load(out) as found:
        assert set(found) == {"features", "names", "targets", "classes"}
        assert found["features"].shape == shapes[kind]
        assert found["features"].dtype == np.float32
        np.testing.assert_allclose(found["features"], wanted.numpy(), atol=1e-5)
        assert found["names"].tolist() == [source.name(i) for i in range(45)]
        assert found["targets"].tolist() == source.targets.tolist()
        assert found["classes"].tolist() == list(CLASSES)


def test_features_are_written_as_lines(model: Path, data: Path, tmp_path: Path) -> None:
    out = embed(model, data, tmp_path / "some.csv")
    source, backbone = FolderSource(data), load_backbone(model)
    with out.open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["name", "class", *(f"f{column}" for column in range(16))]
    assert [line[0] for line in lines] == [source.name(i) for i in range(45)]
    assert [line[1] for line in lines] == [CLASSES[target] for target in source.targets]
    with torch.no_grad():
        wanted = backbone.features(seen_by(backbone, source)).pooled
    np.testing.assert_allclose(np.array([line[2:] for line in lines], float), wanted, atol=1e-5)


def test_images_without_classes_have_features(model: Path, tmp_path: Path) -> None:
    """Names may hold anything that a file's name may: commas, quotes, bytes of another coding."""
    write_images(tmp_path / "flat", 3)
    (tmp_path / "flat" / "000.png").rename(tmp_path / "flat" / '0,"é".png')
    (tmp_path / "flat" / "001.png").rename(
        os.fsdecode(os.fsencode(tmp_path / "flat") + b"/1\xff.png")
    )
    names = ['0,"é".png', os.fsdecode(b"1\xff.png"), "002.png"]
    with np.load(embed(model, tmp_path / "flat", tmp_path / "some.npz")) as found:
        assert sorted(found["names"].tolist()) == sorted(names)
        assert found["targets"].tolist() == [-1] * 3
        assert len(found["classes"]) == 0
    out = embed(model, tmp_path / "flat", tmp_path / "some.csv")
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = list(csv.reader(file))[1:]
    assert sorted(line[0] for line in lines) == sorted(names)
    assert [line[1] for line in lines] == [""] * 3


def test_unreadable_images_have_no_features(
    model: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"3 of 45 .* \(max_unreadable\)"):
        embed(model, broken, tmp_path / "some.npz")
    assert not (tmp_path / "some.npz").exists()
    with np.load(embed(model, broken, tmp_path / "some.npz", max_unreadable=10)) as found:
        names = found["names"].tolist()
        assert len(names) == len(found["features"]) == len(found["targets"]) == 42
        assert "ants/003.png" not in names and names[3] == "ants/005.png"
        assert found["targets"][3] == 0 and found["targets"][-1] == 2
    assert "3 of 45 images cannot be read" in capsys.readouterr().err


def test_a_run_s_features_are_its_teacher_s(data: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    whole, file = (
        np.load(embed(path, data, tmp_path / f"{number}.npz"))["features"]
        for number, path in enumerate((run, run / FILE))
    )
    assert np.array_equal(whole, file)
    student = np.load(embed(run / STUDENT, data, tmp_path / "student.npz"))["features"]
    assert not np.array_equal(whole, student)


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 24), ("crop", 0.5), ("features", "last4")]
)
def test_an_option_changes_the_features(
    option: str, value: object, model: Path, data: Path, tmp_path: Path
) -> None:
    others = {"data", "batch", "workers", "device", "max_unreadable"}  # as in test_evaluate
    assert {field.name for field in fields(EmbedConfig)} - others == {
        "image_size",
        "crop",
        "features",
    }
    plain = np.load(embed(model, data, tmp_path / "plain.npz"))["features"]
    changed = np.load(embed(model, data, tmp_path / "changed.npz", **{option: value}))["features"]
    assert not np.array_equal(plain, changed)


def test_what_cannot_be_written_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.npz"
    there.write_bytes(b"mine")
    for out, options, expected in (
        (there, {}, r"there\.npz' is there already; remove it or name another"),
        (tmp_path / "some.txt", {}, r"some\.txt'; name a file that ends in \.npz or \.csv"),
        (tmp_path / "some", {}, r"ends in \.npz or \.csv"),
        (tmp_path / "some.csv", {"features": "grid"}, r"more dimensions than a \.csv holds"),
        (there / "some.npz", {}, r"Cannot write to .*/some\.npz': "),
        (tmp_path / "some.npz", {"features": "last5"}, r"features.*'last5'"),
    ):
        with pytest.raises(ValueError, match=expected):
            embed(model, data, out, **options)
    assert there.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.npz"]
