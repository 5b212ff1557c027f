"""Features of images, out: as arrays, tensors, tables and lines."""

import csv
import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pyarrow import types
from pyarrow.parquet import ParquetFile, read_table
from safetensors import safe_open

import leanvit
from leanvit.config import from_dict
from leanvit.config.backbones import BackboneConfig
from leanvit.config.evaluation import FEATURE_FILES, EmbedConfig
from leanvit.data.sources import FolderSource
from leanvit.evaluation import embedding, formats
from leanvit.evaluation.features import last_block_features
from leanvit.evaluation.formats import FORMATS, Part
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


@dataclass
class Found:
    """What a file of features holds, read by its format's own library."""

    features: NDArray[Any]
    names: list[str]
    targets: list[int]
    facts: dict[str, Any]


def read(out: Path) -> Found:
    return {".npz": read_npz, ".safetensors": read_safetensors, ".parquet": read_parquet}[
        out.suffix
    ](out)


def read_npz(out: Path) -> Found:
    with np.load(out) as found:
        assert set(found) == {"features", "names", "targets", "classes", "facts"}
        facts = json.loads(str(found["facts"]))
        assert found["classes"].tolist() == facts["classes"]
        names, targets = found["names"].tolist(), found["targets"].tolist()
        return Found(found["features"], names, targets, facts)


def read_safetensors(out: Path) -> Found:
    with safe_open(out, framework="np") as file:
        assert set(file.keys()) == {"features", "targets"}
        words = file.metadata()
        features, targets = file.get_tensor("features"), file.get_tensor("targets")
    return Found(features, json.loads(words["names"]), targets.tolist(), json.loads(words["facts"]))


def read_parquet(out: Path) -> Found:
    """Return the rows of regions folded back into the grids that they say they lie in."""
    table = read_table(out)
    facts = json.loads(table.schema.metadata[b"facts"])
    kind = table.schema.field("features").type
    assert types.is_fixed_size_list(kind)
    assert np.dtype(kind.value_type.to_pandas_dtype()) == facts["dtype"]
    rows = np.array(table["features"].to_pylist(), facts["dtype"])
    labels, targets = table["class"].to_pylist(), table["target"].to_pylist()
    assert labels == [facts["classes"][t] if t >= 0 else None for t in targets]
    names = table["name"].to_pylist()
    if facts["features"] != "grid":
        assert table.column_names == ["name", "class", "target", "features"]
        return Found(rows, names, targets, facts)
    assert table.column_names == ["name", "class", "target", "row", "column", "features"]
    places = np.array([table["row"], table["column"]]).T
    h, w = places.max(0) + 1
    assert np.array_equal(places[: h * w], list(np.ndindex(h, w)))
    assert np.array_equal(places, np.tile(places[: h * w], (len(places) // (h * w), 1)))
    assert names == np.repeat(names[:: h * w], h * w).tolist()
    every = slice(None, None, h * w)
    return Found(rows.reshape(-1, h, w, rows.shape[1]), names[every], targets[every], facts)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("kind", ["pooled", "last4", "grid"])
def test_features_are_written_in_every_format(
    kind: str, suffix: str, model: Path, data: Path, tmp_path: Path
) -> None:
    out = embed(model, data, tmp_path / "new" / f"some{suffix}", features=kind, batch=7)
    assert out == tmp_path / "new" / f"some{suffix}"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
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
    found = read(out)
    assert found.features.shape == shapes[kind]
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, wanted.numpy(), atol=1e-5)
    assert found.names == [source.name(i) for i in range(45)]
    assert found.targets == source.targets.tolist()
    facts = dict(found.facts)
    assert from_dict(BackboneConfig, facts.pop("backbone"), "backbone") == backbone.config
    assert facts == {
        "features": kind,
        "dtype": "float32",
        "model": model.name,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "image_size": 32,
        "crop": 0.875,
        "data": data.name,
        "classes": list(CLASSES),
    }


def test_half_precision_rounds_and_never_overflows(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(embed(model, data, tmp_path / "whole.npz", features="grid")).features
    for suffix in (".npz", ".safetensors", ".parquet"):
        out = embed(model, data, tmp_path / f"half{suffix}", features="grid", dtype="float16")
        assert read(out).features.dtype == np.float16
        assert np.array_equal(read(out).features, whole.astype(np.float16))
    large = lambda *_, **__: lambda pixels: torch.full((len(pixels), 4), 7e4)  # noqa: E731
    monkeypatch.setattr(embedding, "describe_network", large)
    with pytest.raises(ValueError, match=r"is 70000, and the largest float16 is 65504; use"):
        embed(model, data, tmp_path / "large.npz", dtype="float16")
    assert not (tmp_path / "large.npz").exists()


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
    for suffix in (".npz", ".safetensors", ".parquet"):
        found = read(embed(model, tmp_path / "flat", tmp_path / f"some{suffix}"))
        spelled = [r"1\udcff.png" if name[0] == "1" else name for name in names]
        assert sorted(found.names) == sorted(spelled if suffix == ".parquet" else names)
        assert (found.targets, found.facts["classes"]) == ([-1] * 3, [])
    out = embed(model, tmp_path / "flat", tmp_path / "some.csv")
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = list(csv.reader(file))[1:]
    assert sorted(line[0] for line in lines) == sorted(names)
    assert [line[1] for line in lines] == [""] * 3


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_unreadable_images_have_no_features(
    suffix: str,
    model: Path,
    broken: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether some of a batch cannot be read, or all of it."""
    out = tmp_path / f"some{suffix}"
    with pytest.raises(ValueError, match=r"3 of 45 .* \(max_unreadable\)"):
        embed(model, broken, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
    found = read(embed(model, broken, out, max_unreadable=10, batch=2))
    assert len(found.names) == len(found.features) == len(found.targets) == 42
    assert "ants/003.png" not in found.names and found.names[3] == "ants/005.png"
    assert found.targets[3] == 0 and found.targets[-1] == 2
    assert "3 of 45 images cannot be read" in capsys.readouterr().err
    whole = read(embed(model, data, tmp_path / f"whole{suffix}"))
    kept = [whole.names.index(name) for name in found.names]
    np.testing.assert_allclose(found.features, whole.features[kept], atol=1e-5)


def test_nothing_is_written_of_images_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 3)
    for image in (tmp_path / "flat").iterdir():
        image.write_bytes(b"no image")
    for suffix in FEATURE_FILES:
        with pytest.raises(ValueError, match=r"None of the 3 images could be read\."):
            embed(model, tmp_path / "flat", tmp_path / f"some{suffix}", max_unreadable=100)
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]


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
    ("option", "value"),
    [("image_size", 24), ("crop", 0.5), ("features", "last4"), ("dtype", "float16")],
)
def test_an_option_changes_the_features(
    option: str, value: object, model: Path, data: Path, tmp_path: Path
) -> None:
    others = {"data", "batch", "workers", "device", "max_unreadable"}  # as in test_evaluate
    assert {field.name for field in fields(EmbedConfig)} - others == {
        "image_size",
        "crop",
        "features",
        "dtype",
    }
    plain = np.load(embed(model, data, tmp_path / "plain.npz"))["features"]
    changed = np.load(embed(model, data, tmp_path / "changed.npz", **{option: value}))["features"]
    assert not np.array_equal(plain, changed)


def test_what_cannot_be_written_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.npz"
    there.write_bytes(b"mine")
    for out, options, expected in (
        (there, {}, r"there\.npz' is there already; remove it or name another"),
        (tmp_path / "some.txt", {}, r"some\.txt'; name a file that ends in \.npz, \.parquet, "),
        (tmp_path / "some", {}, r"ends in \.npz, \.parquet, \.safetensors or \.csv"),
        (tmp_path / "some.csv", {"features": "grid"}, r"more dimensions than a \.csv holds"),
        (there / "some.npz", {}, r"Cannot write to .*/some\.npz': "),
        (tmp_path / "some.npz", {"features": "last5"}, r"features.*'last5'"),
    ):
        with pytest.raises(ValueError, match=expected):
            embed(model, data, out, **options)
    assert there.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.npz"]


def test_what_is_missing_is_said_before_an_image_is_read(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untouched(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr("leanvit.data.images.read_image", untouched)
    monkeypatch.setattr(embedding, "missing", lambda name: f"{name} is gone")
    with pytest.raises(ValueError, match=r"pyarrow is gone: pip install 'leanvit\[web\]'"):
        embed(model, data, tmp_path / "some.parquet")
    monkeypatch.setattr(embedding, "NAMES_BYTES", 500)
    with pytest.raises(ValueError, match=r"names of the 45 images .* use \.parquet or \.npz"):
        embed(model, data, tmp_path / "some.safetensors")


@pytest.mark.parametrize(
    ("suffix", "times"), [(".npz", 2), (".parquet", 1), (".safetensors", 2), (".csv", 3)]
)
def test_a_full_disk_is_said_at_the_first_batch(
    suffix: str,
    times: int,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = 45 * 16 * 4 * times
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr("leanvit.evaluation.embedding.shutil.disk_usage", lambda place: free)
    with pytest.raises(ValueError, match=r"of 45 images need about .* GB are free\. A \.parquet"):
        embed(model, data, tmp_path / f"some{suffix}", batch=7)
    assert not list(tmp_path.iterdir())
    free.free = needed
    assert embed(model, data, tmp_path / f"some{suffix}", batch=7).stat().st_size > 0


def test_parquet_is_written_in_groups_of_rows(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 7 x 64 regions in groups of 100 rows, which no batch fills evenly."""
    whole = read(embed(model, data, tmp_path / "whole.parquet", features="grid"))
    monkeypatch.setattr(formats, "GROUP_BYTES", 100 * 16 * 4)
    out = embed(model, data, tmp_path / "some.parquet", features="grid", batch=7)
    facts = ParquetFile(out).metadata
    groups = [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]
    assert groups == [100] * 28 + [80]
    np.testing.assert_allclose(read(out).features, whole.features, atol=1e-5)
    assert read(out).names == whole.names


@pytest.mark.parametrize("suffix", FEATURE_FILES)
def test_memory_holds_a_few_batches(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No writer keeps the features of a batch for longer than a row group takes to fill."""
    monkeypatch.setattr(formats, "GROUP_BYTES", 8 * 16 * 4)
    alive: list[weakref.ref[NDArray[Any]]] = []
    most = 0

    def parts() -> Iterator[Part]:
        nonlocal most
        for number in range(20):
            features = np.full((4, 16), number, np.float32)
            alive.append(weakref.ref(features))
            yield Part([f"{number}/{i}" for i in range(4)], np.full(4, -1), features)
            del features
            most = max(most, sum(kept() is not None for kept in alive))

    out = tmp_path / f"some{suffix}"
    FORMATS[suffix].write(out, parts(), {"features": "pooled", "dtype": "float32", "classes": []})
    assert most <= 4
    if suffix != ".csv":
        assert read(out).features[:, 0].tolist() == np.repeat(np.arange(20), 4).tolist()


def test_every_ending_that_the_help_names_is_written() -> None:
    assert tuple(FORMATS) == FEATURE_FILES
