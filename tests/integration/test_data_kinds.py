"""Every kind of source from the command line: checked, trained on, and told by its one line."""

import base64
import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import leanvit
from leanvit.cli import main
from leanvit.data.decode import read_image
from leanvit.data.named import ArraySource
from leanvit.data.sources import FolderSource, open_source
from tests.integration.command import TINY, Says, contents, refused
from tests.unit.test_named import write_mnist

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def place(images: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same images in every kind of source."""
    place = tmp_path_factory.mktemp("kinds")
    source = FolderSource(images)
    read = [(source.name(i), source[i].image, source[i].target) for i in range(len(source))]
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(place / "photos"), kind, images)
    (place / "map.txt").write_text("".join(f"photos.zip@/{n}\t{t}\n" for n, _, t in read))
    (place / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(place / "shards" / f"{shard:03d}.tar", "w") as archive:
            for number, (_, image, target) in enumerate(read[6 * shard : 6 * shard + 6]):
                assert isinstance(image, bytes)
                for kind, data in (("png", image), ("cls", str(target).encode())):
                    member = tarfile.TarInfo(f"{number}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    rows = [f"{n}\t{t}\t{base64.b64encode(bytes(i)).decode()}\n" for n, i, t in read]
    (place / "photos.tsv").write_text("".join(rows))
    columns = {"image": [i for _, i, _ in read], "label": [t for *_, t in read]}
    pq.write_table(pa.table(columns), place / "photos.parquet", row_group_size=5)
    (place / "tables").mkdir()
    shutil.copy(place / "photos.parquet", place / "tables" / "0.parquet")
    write_mnist(place / "mnist", train=12)
    return place


KINDS = {
    "photos.zip": "zip archive 'photos.zip'; classes from its folders",
    "photos.tar": "tar archive 'photos.tar'; classes from its folders",
    "map.txt": "list 'map.txt' of members of zip archives; classes from its lines",
    "shards": "WebDataset shards 'shards', 2 in all; classes from their labels",
    "shards/{000..1}.tar": "WebDataset shards 'shards/{000..1}.tar', 2 in all; classes from their"
    " labels",
    "photos.tsv": "table 'photos.tsv' of images in base64; classes from its labels",
    "photos.parquet": "Parquet table 'photos.parquet'; classes from its column 'label'",
    "tables": "Parquet table 'tables'; classes from its column 'label'",
    "torchvision:MNIST@mnist": "MNIST of torchvision in 'mnist'; classes from the data set",
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_checked_and_trained_on(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("leanvit.preflight.view_grid", lambda *_: None)
    assert main(["check", "esvit", "--data", name, *TINY, "--out", str(tmp_path / "check")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "images       12, 0 of them unreadable"
    assert said[1] == f"source       {KINDS[name]}"
    words = ["pretrain", "esvit", "--data", name, *TINY, "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    out, error = capsys.readouterr()
    assert json.loads(out) and "k-NN" in error, "the classes are used"
    assert not (tmp_path / "out" / "unreadable.jsonl").exists()


def test_losses_do_not_depend_on_what_the_images_lie_in(
    place: Path, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    losses = []
    for number, data in enumerate([images, "photos.zip", "shards", "photos.parquet"]):
        out = tmp_path / str(number)
        options = ["--data.workers", str(2 * (number > 0)), "--watch.images", "0"]
        assert main(["pretrain", "esvit", "--data", data, *TINY, *options, "--out", str(out)]) == 0
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(losses[0]) == 4 and np.isfinite(losses[0]).all()
    assert losses[1:] == losses[:1] * 3


def test_a_run_goes_on_with_the_same_images_in_an_archive(
    place: Path, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    monkeypatch.chdir(place)
    out = str(tmp_path / "out")
    assert main(["pretrain", "esvit", "--data", images, *TINY, "--out", out]) == 0
    again = ["pretrain", "--resume", "--out", out, "--data"]
    last = Path(out, "checkpoints", "step-00000004")
    shutil.rmtree(last)
    assert main([*again, "photos.tar"]) == 0
    shutil.rmtree(last)
    assert "The run began with 12 images" in refused(capsys, *again, "shards")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.zip", "The data file 'none.zip' does not exist."),
        ("none.tar", "The data file 'none.tar' does not exist."),
        ("photos.tar.gz", "The archive 'photos.tar.gz' is compressed, so no image in it can"),
        ("shards/{0..1}.tar", "names 'shards/0.tar', which does not exist."),
        ("torchvision:MNIST@none", "The folder 'none' does not hold MNIST as torchvision stores"),
        ("torchvision:MNISTT@none", "Unknown data set of torchvision 'MNISTT'; did you mean"),
        ("none.tsv", "The data file 'none.tsv' does not exist."),
        ("none.parquet", "The data file 'none.parquet' does not exist."),
        ("none", "The data folder 'none' does not exist."),
    ],
)
@pytest.mark.parametrize("command", ["check", "pretrain"])
def test_mistakes_are_answered(
    command: str,
    name: str,
    message: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Says,
) -> None:
    monkeypatch.chdir(place)
    out = tmp_path / "out"
    assert message in refused(capsys, command, "esvit", "--data", name, *TINY, "--out", out)
    assert not out.exists()


def test_results_lie_beside_a_folder_of_shards_and_anywhere_near_files(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    shutil.copytree(place / "shards", tmp_path / "shards")
    monkeypatch.chdir(tmp_path / "shards")
    before = contents(tmp_path)
    for out in (".", "out", ".."):
        words = ["pretrain", "esvit", "--data", ".", *TINY, "--out", out]
        assert "would lie in one another" in refused(capsys, *words)
    assert contents(tmp_path) == before
    words = ["pretrain", "esvit", "--data", "{000..001}.tar", *TINY, "--out"]
    assert "is not empty" in refused(capsys, *words, ".")
    assert "holds no run of leanvit" in refused(capsys, *words, ".", "--overwrite")
    assert contents(tmp_path) == before
    assert main([*words, "runs/first"]) == 0, "a pattern reads what it names and nothing else"
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before


def test_a_pattern_may_be_longer_than_a_path(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    monkeypatch.chdir(place / "shards")
    name = f"{{{','.join(['000', '001'] * 600)}}}.tar"
    assert len(open_source(name)) == 12 * 600
    words = ["pretrain", "esvit", *TINY, "--out", str(tmp_path / "out"), "--data"]
    assert main([*words, name, "--watch.images", "0"]) == 0
    capsys.readouterr()
    for ending in ("", ".zip", ".tar", ".parquet", ".tsv"):
        assert "does not exist" in refused(capsys, *words, "x" * 5000 + ending)
    text = tmp_path / "page.html"
    text.write_text("<html>@/" + "x" * 5000)
    assert "names the archive '<html>', but there is no file" in refused(capsys, *words, text)


def test_what_was_left_out_is_said(
    place: Path, tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanvit.preflight.view_grid", lambda *_: None)
    file = tmp_path / "cut.tar"
    whole = (place / "photos.tar").read_bytes()
    with tarfile.open(place / "photos.tar") as archive:
        last = [member for member in archive.getmembers() if member.isfile()][-1]
    file.write_bytes(whole[: last.offset_data + 10])
    sentence = f"The archive '{file}' is cut off within '{last.name}': what follows is missing."
    words = ["check", "esvit", "--data", str(file), *TINY, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    out, error = capsys.readouterr()
    assert error == f"leanvit: {sentence}\n"
    assert f"problem      {sentence}" in out and "images       11," in out


def test_a_word_that_is_a_file_is_the_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(place / "photos.tar", tmp_path / "{0..1}.tar")
    assert open_source("{0..1}.tar").about().what == "tar archive '{0..1}.tar'"
    (tmp_path / "cat.tar").mkdir()
    shutil.copy(place / "photos.zip", tmp_path / "cat.tar" / "x.zip")
    with pytest.raises(ValueError, match=r"There is no image in 'cat\.tar' or below it"):
        open_source("cat.tar")


def test_arrays_are_trained_on_from_python(
    tmp_path: Path, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanvit.preflight.view_grid", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    folder = FolderSource(images)
    pixels = [read_image(folder, index) for index in range(12)]
    arrays = [p[0].permute(1, 2, 0).numpy() for p in pixels if isinstance(p, tuple)]
    source = ArraySource(arrays, folder.targets, folder.classes)
    options = parse_tiny()
    checked = leanvit.check(
        "esvit", data=source, out="check", options={**options, "train.duration": "9st"}, quiet=True
    )
    assert checked.source == "arrays in memory; classes from the targets"
    losses = []
    for out, data in (("folder", images), ("arrays", source)):
        leanvit.pretrain("esvit", data=data, out=out, options=options, quiet=True)
        rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    last = Path("arrays", "checkpoints", "step-00000004")
    shutil.rmtree(last)
    with pytest.raises(ValueError, match="No images were named"):
        leanvit.pretrain(out="arrays", resume=True, quiet=True)
    leanvit.pretrain(out="arrays", data=source, resume=True, quiet=True)
    shutil.rmtree(last)
    other = ArraySource(arrays[::-1])
    with pytest.raises(ValueError, match="the same number of others now"):
        leanvit.pretrain(out="arrays", data=other, resume=True, quiet=True)


def parse_tiny() -> dict[str, object]:
    """Return the options of a tiny run by their names."""
    pairs = " ".join(TINY).replace("=", " ").split("--")[1:]
    found: dict[str, object] = {}
    for pair in pairs:
        name, *values = pair.split()
        read = [int(v) if v.isdigit() else {"false": False}.get(v, v) for v in values]
        many = name.endswith(("depths", "heads", "sizes", "counts"))
        found[name.replace("-", "_")] = tuple(read) if many else read[0]
    return found


@pytest.mark.parametrize("name", KINDS)
def test_threads_read_the_same(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Each file is opened by whoever comes first, and read by all."""
    monkeypatch.chdir(place)
    alone = open_source(name)
    expected = [read_image(alone, index) for index in range(len(alone))]
    shared = open_source(name)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda index: read_image(shared, index), [*range(len(alone))] * 8))
    for one, other in zip(expected * 8, found, strict=True):
        assert isinstance(one, tuple) and isinstance(other, tuple)
        assert one[0].equal(other[0]) and one[1] == other[1]
