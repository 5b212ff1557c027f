"""WebDataset shards, tables of base64 and Parquet: what a row or a key holds, in which order."""

import base64
import io
import json
import multiprocessing
import pickle
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leanvit.data.shards import ShardSource, expand
from leanvit.data.sources import FolderSource, Source, open_source
from leanvit.data.tables import ParquetSource
from leanvit.data.tsv import TsvSource
from tests.tiny import write_classes


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def images(source: Source) -> list[object]:
    return [source[index].image for index in range(len(source))]


def targets(source: Source) -> list[int]:
    found = [source[index].target for index in range(len(source))]
    assert source.targets.dtype == np.int64 and source.targets.tolist() == found
    return found


def read_apart(source: Source) -> list[object]:
    """Return the images as another process reads them, forked after this one has read."""
    assert images(source)
    context = multiprocessing.get_context("fork")
    end, other = context.Pipe()
    child = context.Process(target=lambda: other.send(images(source)))
    child.start()
    found: list[object] = end.recv()
    child.join()
    return found


# Shards


def write_shard(file: Path, members: Mapping[str, bytes | str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def shards(folder: Path, *contents: Mapping[str, bytes | str]) -> Path:
    for number, members in enumerate(contents):
        write_shard(folder / f"{number:03d}.tar", members)
    return folder


LABELLED = (
    {"7.jpg": "a", "7.cls": "10", "x/8.png": "b", "x/8.cls": " 9\n"},
    {"1.cls": "10", "1.JPG": "c", "1.json": '{"label": 3}'},
)


def test_shards_are_read_in_their_order(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", *LABELLED)
    for name in (folder, f"{folder}/{{000..001}}.tar", f"{folder}/{{000,001}}.tar"):
        source = open_source(str(name))
        assert isinstance(source, ShardSource)
        assert names(source) == ["000.tar/7.jpg", "000.tar/x/8.png", "001.tar/1.JPG"]
        assert images(source) == [b"a", b"b", b"c"]
        assert source.classes == ("9", "10"), "numbers come in their order"
        assert targets(source) == [1, 0, 1]
        assert source.fingerprint() == open_source(str(folder)).fingerprint()
    turned = open_source(f"{folder}/{{001,000}}.tar")
    assert images(turned) == [b"c", b"a", b"b"]
    assert turned.fingerprint() != source.fingerprint()
    assert source.about().labels == "their labels" and source.about().notes == ()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{8..10}.tar", ["8.tar", "9.tar", "10.tar"]),
        ("{0..1}-{0..1}", ["0-0", "0-1", "1-0", "1-1"]),
        ("{train,val}/{00..01}", ["train/00", "train/01", "val/00", "val/01"]),
        ("{000}.tar", ["000.tar"]),
        ("{3..1}.tar", []),
        ("{0..1", ["{0..1"]),
    ],
)
def test_patterns_name_shards(pattern: str, expected: list[str]) -> None:
    assert expand(pattern) == expected


def test_a_label_comes_from_json_too(tmp_path: Path) -> None:
    words = {
        f"{i}.{kind}": text
        for i, word in enumerate("ba")
        for kind, text in (("json", json.dumps({"label": word})), ("webp", word))
    }
    source = open_source(str(shards(tmp_path, words)))
    assert source.classes == ("a", "b") and targets(source) == [1, 0]
    known = open_source(str(tmp_path), ("c", "b", "a"))
    assert targets(known) == [1, 2]
    with pytest.raises(ValueError, match=r"Unknown class in .*'a'"):
        open_source(str(tmp_path), ("b", "c"))


@pytest.mark.parametrize("label", [{}, {"2.json": "{}"}, {"2.json": "[["}, {"2.cls": " "}])
def test_without_a_label_for_every_sample_there_are_no_classes(
    tmp_path: Path, label: dict[str, str]
) -> None:
    source = open_source(str(shards(tmp_path, {"1.jpg": "a", "1.cls": "1", "2.jpg": "b", **label})))
    assert source.classes == () and targets(source) == [-1, -1]
    assert source.about().labels == ""


def test_of_a_key_one_image_is_taken_and_the_others_are_counted(tmp_path: Path) -> None:
    members = {"1.seg.png": "a mask", "1.jpg": "photo", "2.left.jpg": "l", "2.right.jpg": "r"}
    source = open_source(str(shards(tmp_path, {**members, "3.txt": "no image", "4.png": "x"})))
    assert images(source) == [b"photo", b"l", b"x"]
    (note,) = source.about().notes
    assert note.startswith("2 images in ") and "since their keys have another" in note


def test_a_shard_cut_in_the_middle_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shards(tmp_path, {f"{i}.jpg": "x" * 3000 for i in range(4)}, {"9.jpg": "last"})
    first = folder / "000.tar"
    first.write_bytes(first.read_bytes()[:9000])
    source = open_source(str(folder))
    assert names(source) == ["000.tar/0.jpg", "000.tar/1.jpg", "001.tar/9.jpg"]
    assert images(source)[-1] == b"last"
    assert (
        f"'{first}' is cut off within '2.jpg': what follows is missing." in capsys.readouterr().err
    )


def test_shards_beside_train_are_set_aside(tmp_path: Path) -> None:
    for name, word in [("train-0", "a"), ("train-1", "b"), ("val-0", "b")]:
        write_shard(tmp_path / f"{name}.tar", {"1.jpg": name, "1.cls": word})
    source = open_source(str(tmp_path))
    assert images(source) == [b"train-0", b"train-1"]
    held = source.validation()
    assert held is not None
    assert (images(held), targets(held), held.classes) == ([b"val-0"], [1], ("a", "b"))
    write_shard(tmp_path / "other.tar", {"1.jpg": "o", "1.cls": "a"})
    assert open_source(str(tmp_path)).validation() is None


def test_shards_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", *LABELLED)
    for pattern, message in [
        ("{000..002}.tar", r"names '.*002\.tar', which does not exist"),
        ("{3..1}.tar", "names no shard"),
        ("{0..9000000}.tar", "names more than a million shards"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(f"{folder}/{pattern}")
    empty = shards(tmp_path / "empty", {"1.txt": "no image"})
    with pytest.raises(ValueError, match=r"There is no image in the WebDataset shards"):
        open_source(str(empty))
    (folder / "notes.txt").write_text("not only shards")
    with pytest.raises(ValueError, match="There is no image in"):
        open_source(str(folder))


def test_damaged_shards_are_a_valueerror_or_an_oserror(tmp_path: Path) -> None:
    file = shards(tmp_path, *LABELLED) / "000.tar"
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    draw, heads = np.random.default_rng(0), np.flatnonzero(whole)
    for _ in range(150):
        data = whole.copy()
        places = draw.choice(heads, 4)
        data[places] = draw.integers(0, 256, 4)
        file.write_bytes(data.tobytes()[: draw.integers(600, 2 * len(data))])
        try:
            source = ShardSource(tmp_path)
        except ValueError:
            continue
        for index in range(len(source)):
            try:
                assert source.name(index) and source[index].image is not None
            except OSError as error:
                assert str(error)


# Tables of base64


def write_tsv(file: Path, rows: Sequence[tuple[str, ...]], *, index: bool = False) -> Path:
    lines = ["\t".join([*row[:-1], base64.b64encode(row[-1].encode()).decode()]) for row in rows]
    text = [f"{line}\n".encode() for line in lines]
    file.write_bytes(b"".join(text))
    starts = np.cumsum([0, *map(len, text)])[:-1]
    if index:
        file.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))
    return file


ROWS = [("k2", "10", "one"), ("\u732b 1", "9", "two" * 9000), ("k2", "10", "three")]


@pytest.mark.parametrize("index", [False, True])
def test_rows_of_base64_are_images(tmp_path: Path, index: bool) -> None:
    source = open_source(str(write_tsv(tmp_path / "train.tsv", ROWS, index=index)))
    assert isinstance(source, TsvSource)
    assert names(source) == ["k2", "\u732b 1", "k2"]
    assert images(source) == [row[2].encode() for row in ROWS]
    assert source.classes == ("9", "10") and targets(source) == [1, 0, 1]
    assert images(pickle.loads(pickle.dumps(source))) == images(source) == read_apart(source)


def test_labels_of_a_table_may_be_json(tmp_path: Path) -> None:
    rows = [
        ("1", '[{"class": "cat", "conf": 1}, {"class": "dog"}]', "a"),
        ("2", '[{"class": "ape"}' + ', {"class": "x"}' * 900 + "]", "b"),
    ]
    source = open_source(str(write_tsv(tmp_path / "a.tsv", rows)))
    assert source.classes == ("ape", "cat") and targets(source) == [1, 0]
    assert images(source) == [b"a", b"b"]
    for label in ("[]", "[{}]", "", '{"class": [1]}', "[[[", "[1]"):
        source = open_source(str(write_tsv(tmp_path / "b.tsv", [*rows, ("3", label, "c")])))
        assert source.classes == () and targets(source) == [-1] * 3
    bare = open_source(str(write_tsv(tmp_path / "c.tsv", [("1", "a"), ("2", "b")])))
    assert (images(bare), bare.classes) == ([b"a", b"b"], ())


def test_the_last_row_may_lack_its_end(tmp_path: Path) -> None:
    file = write_tsv(tmp_path / "a.tsv", ROWS)
    file.write_bytes(file.read_bytes()[:-1])
    assert images(open_source(str(file))) == [row[2].encode() for row in ROWS]
    file.write_bytes(file.read_bytes()[:-2])
    source = open_source(str(file))
    assert source[1].image == ROWS[1][2].encode()
    with pytest.raises(OSError, match="the image is no base64"):
        source[2]


def test_a_table_that_is_cut_off_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_tsv(tmp_path / "a.tsv", ROWS)
    whole, at = file.read_bytes(), file.read_bytes().rindex(b"k2\t10")
    for size in (at + 2, at + 4):
        file.write_bytes(whole[:size])
        source = open_source(str(file))
        assert images(source) == [row[2].encode() for row in ROWS[:2]] and targets(source) == [1, 0]
        said = f"The table '{file}' is cut off at byte {at}, within its last row."
        assert capsys.readouterr().err == f"leanvit: {said}\n"


def test_a_table_changes_its_fingerprint_with_its_keys(tmp_path: Path) -> None:
    prints = [
        open_source(str(write_tsv(tmp_path / "a.tsv", rows))).fingerprint()
        for rows in (ROWS, ROWS[::-1][1:], ROWS[:2], [*ROWS, ROWS[0]], ROWS)
    ]
    assert prints[0] == prints[-1] and len(set(prints)) == 4


def test_mistakes_in_a_table_are_named(tmp_path: Path) -> None:
    file = write_tsv(tmp_path / "a.tsv", ROWS)
    for index in ("0\n5\n", "0\n9999999\n", "3\n", "0\n0\n", ""):
        file.with_suffix(".lineidx").write_text(index)
        with pytest.raises(ValueError, match=r"a\.lineidx' does not fit '.*; remove it"):
            open_source(str(file))
    for index in ("zero", "9" * 30):
        file.with_suffix(".lineidx").write_text(index)
        with pytest.raises(ValueError, match="holds more than whole numbers"):
            open_source(str(file))
    for text, message in [
        ("no table\n", "the row at byte 0 lacks columns; write key, tab, label"),
        ("a\t1\tYQ==\nb\nc\t1\tYQ==\n", "the row at byte 9 lacks columns"),
        ("a\tYQ==\nb\t1\tYQ==\nc\tYQ==\n", "the row at byte 7 lacks columns"),
        ("", "There is no row in"),
        ("\n\n", "There is no row in"),
    ]:
        (tmp_path / "b.tsv").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / "b.tsv"))
    with pytest.raises(ValueError, match=r"none\.tsv' does not exist"):
        open_source(str(tmp_path / "none.tsv"))


@pytest.mark.parametrize("index", [False, True])
def test_a_damaged_table_is_a_valueerror_or_an_oserror(tmp_path: Path, index: bool) -> None:
    file = write_tsv(tmp_path / "a.tsv", [("k", '[{"class": "a"}]', "xyz")] * 4, index=index)
    whole, draw = file.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for place in draw.integers(0, len(data), 5):
            data[place] = draw.choice(list(b'\t\n[]{}",a\xff\x00'))
        file.write_bytes(data[: draw.integers(1, len(data) + 1)])
        try:
            source = TsvSource(file)
        except ValueError:
            continue
        for i in range(len(source)):
            try:
                assert isinstance(source.name(i), str) and isinstance(source[i].image, bytes)
            except OSError as error:
                assert str(error)


# Parquet


def write_parquet(
    file: Path, columns: Mapping[str, object], *, rows: int = 2, facts: object = None
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if facts is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(facts)})
    pq.write_table(table, file, row_group_size=rows)
    return file


def stored(*contents: bytes | None) -> pa.Array:
    """Return images as Hugging Face stores them."""
    return pa.array(
        [c and {"bytes": c, "path": f"{c!r}.png"} for c in contents],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )


@pytest.mark.parametrize("column", [stored(b"a", b"b", b"c"), pa.array([b"a", b"b", b"c"])])
def test_rows_of_parquet_are_images(tmp_path: Path, column: pa.Array) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": column, "label": [10, 9, 10]})
    source = open_source(str(file))
    assert isinstance(source, ParquetSource)
    assert images(source) == [b"a", b"b", b"c"]
    assert [source[i].image for i in (2, 0, 1)] == [b"c", b"a", b"b"]
    assert names(source) == ["a.parquet/000000", "a.parquet/000001", "a.parquet/000002"]
    assert source.classes == ("9", "10") and targets(source) == [1, 0, 1]
    assert images(pickle.loads(pickle.dumps(source))) == images(source) == read_apart(source)
    with pytest.raises(IndexError):
        source[3]


def test_a_folder_of_parquet_is_one_source(tmp_path: Path) -> None:
    facts = {"info": {"features": {"label": {"names": ["dog", "cat", "ape"]}}}}
    for number, contents in enumerate([(b"a", b"b", b"c"), (b"d",)]):
        columns = {"image": stored(*contents), "label": [number] * len(contents)}
        write_parquet(tmp_path / f"train-{number}.parquet", columns, facts=facts)
    write_parquet(tmp_path / "test-0.parquet", {"image": stored(b"e"), "label": [2]}, facts=facts)
    source = open_source(str(tmp_path))
    assert images(source) == [b"a", b"b", b"c", b"d"]
    assert names(source)[2:] == ["train-0.parquet/000002", "train-1.parquet/000000"]
    assert source.classes == ("dog", "cat", "ape") and targets(source) == [0, 0, 0, 1]
    held = source.validation()
    assert held is not None and held.classes == source.classes
    assert (images(held), targets(held)) == ([b"e"], [2])


def test_words_are_classes_if_every_row_has_one(tmp_path: Path) -> None:
    for label, classes in [
        (["b", "a"], ("a", "b")),
        (pa.array(["b", "a"]).dictionary_encode(), ("a", "b")),
        (["b", None], ()),
        ([0.5, 1.5], ()),
    ]:
        columns = {"photo": [b"x", b"y"], "label": label, "text": ["u", "v"]}
        source = open_source(str(write_parquet(tmp_path / "a.parquet", columns)))
        assert source.classes == classes
        assert source.targets.tolist() == ([1, 0] if classes else [-1, -1])
    columns = {"img": [b"x"], "mask": [b"y"], "label": ["c"]}
    source = open_source(str(write_parquet(tmp_path / "a.parquet", columns)), ("b", "c"))
    assert source[0].image == b"x" and targets(source) == [1]


def test_a_number_without_a_name_is_no_class(tmp_path: Path) -> None:
    facts = {"info": {"features": {"label": {"names": ["dog", "cat"]}}}}
    for label, classes in [([1, 0], ("dog", "cat")), ([-1, 0], ()), ([2, 0], ())]:
        columns = {"image": [b"x", b"y"], "label": label}
        source = open_source(str(write_parquet(tmp_path / "a.parquet", columns, facts=facts)))
        assert source.classes == classes
        assert source.targets.tolist() == ([1, 0] if classes else [-1, -1])


def test_a_row_without_an_image_is_an_oserror(tmp_path: Path) -> None:
    source = open_source(str(write_parquet(tmp_path / "a.parquet", {"image": stored(b"a", None)})))
    assert source[0].image == b"a"
    with pytest.raises(OSError, match="the row holds no image"):
        source[1]


def test_mistakes_in_parquet_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"text": ["a"]}, r"a\.parquet' has no column of bytes; name the column"),
        ({"u": [b"a"], "v": [b"b"]}, r"holds 'u', 'v'; name the column of images 'image'"),
        ({"image": pa.array([], pa.binary())}, "There is no image in the Parquet table"),
    ]
    for columns, message in mistakes:
        with pytest.raises(ValueError, match=message):
            open_source(str(write_parquet(file, columns)))
    whole = write_parquet(file, {"image": [b"abc" * 100] * 4}).read_bytes()
    for data in (whole[:-1], whole[:100], b"", b"PAR1 text PAR1"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"Cannot read the Parquet table '.*a\.parquet'"):
            open_source(str(file))
    with pytest.raises(ValueError, match="does not exist"):
        open_source(str(tmp_path / "none.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'leanvit\[web\]'"):
        open_source(str(write_damaged(file, whole)))


def write_damaged(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


def test_a_damaged_row_group_is_an_oserror(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": [b"abc" * 100, b"d", b"e", b"f"]})
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)
    source = open_source(str(write_damaged(file, bytes(data))))
    with pytest.raises(OSError, match=r"a\.parquet', row group 0: "):
        source[0]
    assert source[3].image == b"f"


# All of them


def test_every_kind_has_the_pixels_of_the_folder(tmp_path: Path) -> None:
    folder = FolderSource(write_classes(tmp_path / "images", cat=2, dog=3))
    read = [(folder.name(i), folder[i].image, folder.classes[folder[i].target]) for i in range(5)]
    shard = {
        f"{i}.{kind}": value
        for i, (_, image, word) in enumerate(read)
        for kind, value in (("png", image), ("cls", word))
    }
    write_shard(tmp_path / "shards" / "0.tar", shard)  # type: ignore[arg-type]
    lines = [
        f"{name}\t{word}\t{base64.b64encode(image).decode()}\n"  # type: ignore[arg-type]
        for name, image, word in read
    ]
    (tmp_path / "a.tsv").write_text("".join(lines))
    columns: dict[str, Any] = {"image": [i for _, i, _ in read], "label": [w for *_, w in read]}
    write_parquet(tmp_path / "a.parquet", columns)
    for name in ("shards", "a.tsv", "a.parquet"):
        source = open_source(str(tmp_path / name))
        assert images(source) == images(folder)
        assert source.classes == folder.classes and targets(source) == targets(folder)
