"""Images inside archives are those of a folder: same bytes, same order, same classes."""

import io
import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from leanvit.data.archives import TarSource, ZipMapSource, ZipSource, zip_directory
from leanvit.data.decode import read_image
from leanvit.data.members import Files, image_path
from leanvit.data.names import Names
from leanvit.data.sources import FolderSource, Source, open_source
from tests.tiny import write_classes, write_images

NAMES = [
    "cat/9.jpg",
    "cat/10.PNG",
    "dog/b/1.jpg",
    "dog/a.webp",
    "dog/\u00fcber \u732b.jpg",
    "emu/line\nbreak\ttab.png",
    "emu/empty.gif",
]
OTHERS = [
    "cat/notes.txt",
    "__MACOSX/cat/9.jpg",
    "dog/.hidden.jpg",
    ".cache/cat/1.jpg",
    "README.jpg.md",
]


def content(name: str) -> bytes:
    return b"" if name.endswith("empty.gif") else name.encode() * 50


def write_folder(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name))
    return folder


def write_zip(file: Path, names: Iterable[str], *, deflate: bool = True, top: str = "") -> Path:
    how = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", how) as archive:
        for name in names:
            archive.writestr(top + name, content(name))
    return file


def write_tar(
    file: Path, names: Iterable[str], *, layout: int = tarfile.PAX_FORMAT, top: str = ""
) -> Path:
    with tarfile.open(file, "w", format=layout) as archive:
        for name in names:
            member = tarfile.TarInfo(top + name)
            member.size = len(content(name))
            archive.addfile(member, io.BytesIO(content(name)))
    return file


Write = Callable[..., Path]
KINDS: dict[str, tuple[Write, type[ZipSource] | type[TarSource]]] = {
    "zip": (write_zip, ZipSource),
    "tar": (write_tar, TarSource),
}


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Write an archive of the kind at hand, with another name each time."""
    maker = KINDS[request.param][0]
    numbers = iter(range(100))
    return lambda names, **options: maker(
        tmp_path / f"archive{next(numbers)}.{request.param}", names, **options
    )


def seen(source: Source) -> list[tuple[str, object, int, int]]:
    """Return all that a source tells of its images."""
    samples = [source[index] for index in range(len(source))]
    names = [source.name(index) for index in range(len(source))]
    return [(n, s.image, s.index, s.target) for n, s in zip(names, samples, strict=True)]


def same(source: Source, expected: Source) -> None:
    assert seen(source) == seen(expected)
    assert source.classes == expected.classes
    assert source.targets.dtype == np.int64
    assert source.targets.tolist() == expected.targets.tolist()
    assert source.fingerprint() == expected.fingerprint()


# The same as a folder


@pytest.mark.parametrize("names", [NAMES, [*OTHERS, *NAMES], NAMES[::-1]])
def test_an_archive_is_its_folder(write: Write, tmp_path: Path, names: list[str]) -> None:
    folder = write_folder(tmp_path / "folder", [n for n in names if "MACOSX" not in n])
    source = open_source(str(write(names)))
    same(source, FolderSource(folder))
    assert source.classes == ("cat", "dog", "emu")
    assert len(source) == len(NAMES) and source.validation() is None


def test_stored_and_deflated_members_are_read(tmp_path: Path) -> None:
    stored = ZipSource(write_zip(tmp_path / "1.zip", NAMES, deflate=False))
    deflated = ZipSource(write_zip(tmp_path / "2.zip", NAMES))
    assert stored.file.stat().st_size > deflated.file.stat().st_size
    same(stored, deflated)


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_layouts_of_tar_and_long_names_are_read(tmp_path: Path, layout: int) -> None:
    names = [*NAMES, f"fox/{'x' * 120}/{'y' * 120}.jpg"]
    source = TarSource(write_tar(tmp_path / "1.tar", names, layout=layout))
    same(source, FolderSource(write_folder(tmp_path / "folder", names)))


@pytest.mark.parametrize("program", ["tar", "zip"])
def test_what_other_programs_write_is_read(tmp_path: Path, program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"there is no {program} here")
    folder = write_folder(tmp_path / "folder", NAMES)
    file = tmp_path / f"some.{program}"
    options = ["-cf"] if program == "tar" else ["-q", "-r"]
    subprocess.run([program, *options, str(file), "."], cwd=folder, check=True)
    same(open_source(str(file)), FolderSource(folder))


def test_images_outside_folders_have_no_class(write: Write, tmp_path: Path) -> None:
    source = open_source(str(write(["a/1.jpg", "2.jpg"])))
    assert source.classes == () and source.targets.tolist() == [-1, -1]
    assert [source.name(i) for i in range(2)] == ["2.jpg", "a/1.jpg"]


def test_a_folder_around_everything_is_no_class(write: Write, tmp_path: Path) -> None:
    plain, wrapped = open_source(str(write(NAMES))), open_source(str(write(NAMES, top="data/all/")))
    assert wrapped.classes == plain.classes == ("cat", "dog", "emu")
    assert wrapped.fingerprint() == plain.fingerprint()
    assert wrapped.name(0) == f"data/all/{plain.name(0)}", "a person finds it under its whole path"
    one = write(["cat/1.jpg", "cat/2.jpg"])
    assert open_source(str(one)).classes == ()
    assert open_source(str(one), ("cat", "dog")).targets.tolist() == [0, 0]


@pytest.mark.parametrize("top", ["", "data/"])
def test_train_and_val_are_split(write: Write, top: str) -> None:
    names = ["train/cat/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg", "readme.txt"]
    source = open_source(str(write(names, top=top)))
    assert [name for name, *_ in seen(source)] == [f"{top}train/cat/1.jpg", f"{top}train/dog/2.jpg"]
    held = source.validation()
    assert held is not None
    assert [(name, target) for name, _, _, target in seen(held)] == [(f"{top}val/dog/3.jpg", 1)]
    other = open_source(str(write([*names, "other/4.jpg"])))
    assert other.classes == ("other", "train", "val") and other.validation() is None


def test_a_class_that_is_not_known_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"class in .*archive0.* 'cats'; did you mean 'cat'\?"):
        open_source(str(write(["cats/1.jpg", "dog/1.jpg"])), ("cat", "dog"))


def test_of_two_members_of_one_path_the_later_counts(tmp_path: Path) -> None:
    file = tmp_path / "twice.tar"
    with tarfile.open(file, "w") as archive:
        for text in (b"old", b"newer"):
            member = tarfile.TarInfo("a/1.jpg")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    assert [image for _, image, _, _ in seen(TarSource(file))] == [b"newer"]


# Fingerprints, copies, processes, threads


def test_a_fingerprint_follows_number_names_and_order(write: Write) -> None:
    prints = [
        open_source(str(write(names))).fingerprint()
        for names in (NAMES, NAMES[1:], [*NAMES[1:], "cat/8.jpg"], ["ab", "c"], ["a", "bc"])
        if all("." in name for name in names)
    ]
    assert len(set(prints)) == len(prints) == 3
    file = write(NAMES)
    os.utime(file, (1, 1))
    assert open_source(str(file)).fingerprint() == prints[0]
    assert Names(["ab", "c"]).fingerprint() != Names(["a", "bc"]).fingerprint()


def test_names_are_kept_as_they_are() -> None:
    words = ["", "a", "\u732b", "b\udcff", "line\nbreak", ""]
    names = Names(words)
    assert [names[i] for i in range(len(names))] == words
    assert names[-2] == "line\nbreak"
    with pytest.raises(IndexError):
        names[6]


def test_a_source_survives_pickling(write: Write) -> None:
    source = open_source(str(write(NAMES)))
    source[0]
    same(pickle.loads(pickle.dumps(source)), source)


def test_processes_read_the_same_after_a_fork(write: Write) -> None:
    source = open_source(str(write(NAMES)))
    expected = [image for _, image, _, _ in seen(source)] * 20
    context = multiprocessing.get_context("fork")
    pipe, end = context.Pipe()

    def read() -> None:
        end.send([source[i % len(NAMES)].image for i in range(len(expected))])

    children = [context.Process(target=read) for _ in range(2)]
    for child in children:
        child.start()
    assert [source[i % len(NAMES)].image for i in range(len(expected))] == expected
    assert [pipe.recv(), pipe.recv()] == [expected] * 2
    for child in children:
        child.join()
        assert child.exitcode == 0


def test_threads_read_more_files_than_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Files, "OPEN", 2)
    paths = [tmp_path / str(number) for number in range(6)]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    files, wrong = Files(paths), list[int]()

    def read(start: int) -> None:
        for step in range(600):
            number = (start + step * 5) % 6
            if files.read(number, 10, 50) != str(number).encode() * 50:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    opened = [p.resolve() for p in Path("/proc/self/fd").iterdir() if p.resolve() in paths]
    assert len(opened) <= 2


# What cannot be read


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for name, message in [
        ("none.zip", r"The data file '.*none.zip' does not exist\."),
        ("none.tar", r"The data file '.*none.tar' does not exist\."),
        ("text.zip", r"is no zip archive, or its end is cut off.*copy it again"),
        ("text.tar", r"is no tar archive, or its start is damaged\."),
        ("empty.zip", "is no zip archive"),
        ("empty.tar", "is no tar archive"),
    ]:
        if not name.startswith("none"):
            (tmp_path / name).write_bytes(b"no archive" * 200 * name.startswith("text"))
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / name))


def test_an_archive_without_images_is_refused(write: Write) -> None:
    for names in ([], OTHERS):
        with pytest.raises(ValueError, match=r"There is no image in the (zip|tar) archive '.*jpg"):
            open_source(str(write(names)))


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.bz2", "tar.xz", "tar"])
def test_compressed_tars_are_refused(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"some.{ending}"
    how = {"tgz": "gz", "tar": "gz"}.get(ending, ending.split(".")[-1])
    with tarfile.open(file, f"w:{how}") as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ValueError, match=r"is compressed, so .* unpack it, or make it anew with"):
        open_source(str(file))


def test_a_zip_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "some.zip", NAMES)
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 10):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"its end is cut off.*zip -FF\.$"):
            ZipSource(file)
    file.write_bytes(whole[100:])
    with pytest.raises(ValueError, match=r"lacks 100 bytes; copy it again"):
        ZipSource(file)
    file.write_bytes(b"before it" + whole)
    assert len(seen(ZipSource(file))) == len(NAMES), "a program that unpacks itself is before it"


def test_a_tar_that_is_cut_off_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_tar(tmp_path / "some.tar", NAMES)
    before = seen(TarSource(file))
    assert capsys.readouterr().err == ""
    with tarfile.open(file) as archive:
        third = archive.getmembers()[2]
    whole = file.read_bytes()
    for size, message in [
        (third.offset_data + 5, "is cut off within 'dog/b/1.jpg': what follows is missing."),
        (third.offset + 100, f"is damaged at byte {third.offset}: what follows is left out."),
        (third.offset, "ends without a mark, so it may have been cut off."),
    ]:
        file.write_bytes(whole[:size])
        source = open_source(str(file))
        kept = [(name, image) for name, image, _, _ in seen(source)]
        assert kept == [(name, image) for name, image, _, _ in before if "cat" in name]
        said = f"The archive '{file}' {message}"
        assert capsys.readouterr().err == f"leanvit: {said}\n"
        assert source.about().notes == (said,)
    second = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "1"}
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    open_source(str(file))
    assert capsys.readouterr().err == "", "the first of several processes speaks for all"
    damaged = bytearray(whole)
    damaged[third.offset + 3] ^= 1
    file.write_bytes(damaged)
    assert "is damaged at byte" in TarSource(file).about().notes[0]
    file.write_bytes(whole[:600])
    with pytest.raises(ValueError, match=r"no image in the tar .* is cut off within 'cat/9.jpg'"):
        TarSource(file)


def test_a_member_that_cannot_be_read_is_an_oserror(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "some.zip", ["a.jpg", "b.jpg", "c.jpg"], deflate=False)
    entries = {entry.name: entry for entry in zip_directory(file)}
    data = bytearray(file.read_bytes())
    data[entries["a.jpg"].offset + 30 + 5] ^= 1  # the first byte of the content
    data[entries["b.jpg"].offset] ^= 1  # its own header
    file.write_bytes(data)
    source = ZipSource(file)
    for index, message in enumerate(["does not fit its checksum", "there is no member at byte"]):
        with pytest.raises(OSError, match=message):
            source[index]
    assert source[2].image == content("c.jpg")


@pytest.mark.parametrize(("method", "flags"), [(12, 0), (8, 1)])
def test_other_packings_and_passwords_are_an_oserror(
    tmp_path: Path, method: int, flags: int
) -> None:
    file = write_zip(tmp_path / "some.zip", ["a.jpg"])
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<2H", data, at + 8, flags, method)
    file.write_bytes(data)
    what = "is encrypted" if flags else "is packed by method 12"
    with pytest.raises(OSError, match=f"{what}; only stored and deflated"):
        ZipSource(file)[0]


def test_a_file_that_vanishes_is_an_oserror(write: Write) -> None:
    source = open_source(str(file := write(NAMES)))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(OSError, match=r"ends .* bytes too early"):
        source[0]
    file.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(source))[0]


def test_large_zips_are_read(tmp_path: Path) -> None:
    """More than 65,535 members, or offsets beyond 4 GiB, have a directory of another form."""
    file = tmp_path / "many.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(65_540):
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.jpg"), str(number))
    source = ZipSource(file)
    assert len(source) == 65_540
    assert source[65_539].image == b"65539"
    assert len(pickle.dumps(source)) < 100 * len(source), "a million images take under 100 MB"
    with (
        zipfile.ZipFile(tmp_path / "wide.zip", "w") as archive,
        archive.open("a.jpg", "w", force_zip64=True) as member,
    ):
        member.write(b"wide")
    assert ZipSource(tmp_path / "wide.zip")[0].image == b"wide"
    extra = struct.pack("<2H3Q", 1, 24, 4, 4, 0)
    data = (tmp_path / "wide.zip").read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = bytearray(data[start:end])
    entry[20:28] = b"\xff" * 8
    entry[42:46] = b"\xff" * 4
    entry[30:32] = struct.pack("<H", len(extra))
    size = struct.pack("<L", 46 + 5 + len(extra))
    wide = data[:start] + entry[:51] + extra + data[end : end + 12] + size + data[end + 16 :]
    (tmp_path / "wide.zip").write_bytes(wide)
    assert ZipSource(tmp_path / "wide.zip")[0].image == b"wide"


# Maps


def test_a_map_names_members_of_archives(tmp_path: Path) -> None:
    write_zip(tmp_path / "train.zip", NAMES)
    write_zip(tmp_path / "more.zip", ["x/1.jpg"])
    lines = ["train.zip@/dog/a.webp\t10", "more@/x/1.jpg\t9", "train@/cat/9.jpg\t10"]
    lines.append(lines[1])
    (tmp_path / "train_map.txt").write_text("".join(f"{line}\n" for line in lines))
    source = open_source(str(tmp_path / "train_map.txt"))
    assert isinstance(source, ZipMapSource)
    assert source.classes == ("9", "10"), "the labels are numbers"
    assert [(name, image, target) for name, image, _, target in seen(source)] == [
        ("train.zip@/dog/a.webp", content("dog/a.webp"), 1),
        ("more@/x/1.jpg", content("x/1.jpg"), 0),
        ("train@/cat/9.jpg", content("cat/9.jpg"), 1),
        ("more@/x/1.jpg", content("x/1.jpg"), 0),
    ]
    same(pickle.loads(pickle.dumps(source)), source)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["none.zip@/a.jpg"], r"names the archive 'none\.zip', but there is no file '.*none\.zip'"),
        (["some.zip@/cat/9.jpg", "b.jpg"], r"names 'b\.jpg' among members of zip archives; write"),
        (["some.zip@/x.jpg"], r"names 'some\.zip@/x\.jpg', but there is no such member in"),
        (["some.zip@/x.jpg\ta", "some.zip@/y.jpg"], r"mixes lines"),
    ],
)
def test_a_map_that_names_nothing_is_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    write_zip(tmp_path / "some.zip", NAMES)
    (tmp_path / "map.txt").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "map.txt"))


def test_one_missing_member_is_an_oserror(tmp_path: Path) -> None:
    write_zip(tmp_path / "some.zip", NAMES)
    (tmp_path / "map.txt").write_text("some.zip@/none.jpg\nsome.zip@/cat/9.jpg\n")
    source = open_source(str(tmp_path / "map.txt"))
    with pytest.raises(OSError, match=r"some\.zip' has no such member"):
        source[0]
    assert source[1].image == content("cat/9.jpg")


# Parts


@pytest.mark.parametrize(
    ("member", "path"),
    [
        ("./a/b.jpg", "a/b.jpg"),
        ("/a//b.JPG", "a/b.JPG"),
        ("a/../b.jpg", "b.jpg"),
        ("../b.jpg", ""),
        ("a/.b/c.jpg", ""),
        ("x__MACOSX/c.jpg", "x__MACOSX/c.jpg"),
        ("a/b.jpg/", ""),
        (".jpg", ""),
    ],
)
def test_paths_inside_archives_become_plain(member: str, path: str) -> None:
    assert image_path(member) == path


# Damage


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_a_valueerror_or_an_oserror(kind: str, tmp_path: Path) -> None:
    maker, opener = KINDS[kind]
    names = [*NAMES[:4], f"fox/{'x' * 120}.jpg"]
    options = {"layout": tarfile.GNU_FORMAT} if kind == "tar" else {}
    whole = np.frombuffer(maker(tmp_path / "whole", names, **options).read_bytes(), np.uint8)
    draw, file = np.random.default_rng(0), tmp_path / "damaged"
    opened = read = 0
    for _ in range(400):
        data = whole.copy()
        places = draw.integers(0, len(data), draw.integers(1, 9))
        if draw.random() < 0.7:  # where the headers are, which matter most
            heads = np.flatnonzero(data != 0) if kind == "tar" else np.arange(len(data))[-400:]
            places = draw.choice(heads, len(places))
        data[places] = draw.integers(0, 256, len(places))
        file.write_bytes(data.tobytes()[: draw.integers(len(data) // 2, 2 * len(data))])
        try:
            source = opener(file)
        except ValueError as error:
            assert "archive" in str(error)
            continue
        opened += 1
        for index in range(len(source)):
            assert source.name(index)
            try:
                read += isinstance(source[index].image, bytes)
            except OSError as error:
                assert str(error)
    assert opened > 20 and read > 50, "some are good enough"


def test_a_run_reads_pixels_from_an_archive(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "images", cat=2, dog=2)
    write_images(folder / "emu", 1)
    file = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    expected, source = FolderSource(folder), open_source(file)
    for index in range(5):
        found, wanted = read_image(source, index), read_image(expected, index)
        assert isinstance(found, tuple) and isinstance(wanted, tuple)
        assert found[0].equal(wanted[0]) and found[1] == wanted[1]
