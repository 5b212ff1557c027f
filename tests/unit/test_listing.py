"""Which images lie below a folder, whatever else does, and that what was kept changes nothing."""

import hashlib
import multiprocessing
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from leanvit.data import archives, cache, listing
from leanvit.data.archives import TarSource, ZipSource
from leanvit.data.listing import list_images
from leanvit.data.names import IMAGE_SUFFIXES, OTHER_SUFFIXES, Names, labels_by_folder
from leanvit.data.shards import ShardSource
from leanvit.data.sources import FolderSource, ListSource, Source, open_source
from tests.unit.test_archives import write_folder, write_tar, write_zip
from tests.unit.test_shards import LABELLED, shards, write_shard


def walked(folder: Path) -> list[str]:
    """Return the images below a folder as os.walk finds them, one folder after another."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            str((Path(place) / name).relative_to(folder))
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def listed(folder: Path) -> list[str]:
    return list(list_images(str(folder)).names)


def settle(*folders: Path) -> None:
    """Make folders look as if nothing had changed for long, so that any change shows."""
    for top in folders:
        for place, _, _ in os.walk(top):
            os.utime(place, (10**9, 10**9))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what is found out about few files, and of folders that changed just now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST", 1)
    monkeypatch.setattr(cache, "SETTLED", -(10**12))
    return tmp_path / "cache" / "leanvit" / "index"


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Fail, once it is called, if anything is listed or scanned anew."""

    def forbid(*_: object) -> Iterator[str]:
        raise AssertionError("this was kept")

    def forbid_all() -> None:
        monkeypatch.setattr(listing, "_scan", forbid)
        monkeypatch.setattr(archives, "_scan", forbid)
        monkeypatch.setattr(archives, "_find_directory", forbid)

    return forbid_all


# Folders


@pytest.mark.parametrize("seed", range(8))
def test_a_tree_is_listed_as_os_walk_does(tmp_path: Path, seed: int) -> None:
    """Names around the slash, whose order is that of whole paths, and links that make loops."""
    draw = np.random.default_rng(seed)
    words = ["a", "a-b", "a b", "a.jpg", "a0", "ab", ".a", "A", "\u00e9", "\ue000", "\U0001f600"]
    words += [os.fsdecode(b"\xff\xfe"), "line\nbreak"]
    top = tmp_path / "top"
    places = [top, tmp_path / "outside"]
    for place in places:
        place.mkdir()
    for _ in range(60):
        place, name = places[draw.integers(len(places))], words[draw.integers(len(words))]
        kind, path = draw.integers(4), place / name
        if path.is_symlink() or path.exists():
            continue
        if kind == 0:
            path.mkdir()
            places.append(path)
        elif kind == 1:
            path.symlink_to(places[draw.integers(len(places))])
        else:
            path.with_name(f"{name}{draw.choice(['', '.png', '.txt'])}").touch()
    found = listed(top)
    assert found == walked(top) and found


def test_any_name_is_listed_and_read(tmp_path: Path, kept: Path) -> None:
    wanted = [
        "line\nbreak/1\n.jpg",
        "\u732b/\U0001f600.png",
        os.fsdecode(b"\xff/\xfe.jpg"),
        "\ue000/1.jpg",
    ]
    for name in wanted:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(os.fsencode(name))
    for _ in range(2):
        source = FolderSource(tmp_path / "data")
        names = [source.name(index) for index in range(4)]
        assert names == sorted(wanted)
        assert [source[index].image for index in range(4)] == [*map(os.fsencode, names)]
        assert source.classes == tuple(sorted(name.split("/")[0] for name in wanted))
        assert len(list(kept.iterdir())) == 1


def test_folders_that_cannot_be_read_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    write_folder(tmp_path, [f"{name}/1.jpg" for name in ("a", "b/c", "d", "e", "f", "g\n")])
    closed, real = {"b", "d", "e", "g\n"}, os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name in closed:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = open_source(str(tmp_path))
    assert [source.name(index) for index in range(len(source))] == ["a/1.jpg", "f/1.jpg"]
    (note,) = source.about().notes
    assert note == (
        f"4 of the folders and links below {str(tmp_path)!r} cannot be read, and what lies there "
        f"is left out: 'b' (Permission denied), 'd' (Permission denied), 'e' (Permission denied) "
        f"and 1 more."
    )
    assert not kept.exists(), "rights may change"
    closed.add(tmp_path.name)
    with pytest.raises(ValueError, match=r"The data folder .* cannot be read: Permission denied\."):
        open_source(str(tmp_path))


def test_links_that_lead_nowhere_are_recorded_or_said(tmp_path: Path, kept: Path) -> None:
    data = write_folder(tmp_path / "data", ["1.jpg"])
    (data / "gone.jpg").symlink_to(tmp_path / "none.jpg")
    (data / "gone").symlink_to(tmp_path / "disk")
    (data / "self").symlink_to(data / "self")
    (data / ".hidden").symlink_to(tmp_path / "disk")
    (data / "text").symlink_to(data / "1.jpg")
    source = open_source(str(data))
    assert [source.name(index) for index in range(len(source))] == ["1.jpg", "gone.jpg"]
    with pytest.raises(OSError, match=r"gone\.jpg"):
        source[1]
    (note,) = source.about().notes
    assert "2 of the folders and links" in note
    assert "'gone' (a link that cannot be followed)" in note and "'self'" in note
    write_folder(tmp_path / "disk", ["2.jpg"])
    assert "gone/2.jpg" in listed(data)
    assert not kept.exists()


def test_a_link_to_a_file_may_come_to_lead_to_a_folder(tmp_path: Path, kept: Path) -> None:
    data = write_folder(tmp_path / "data", ["1.jpg"])
    target = write_folder(tmp_path, ["target.jpg"]) / "target.jpg"
    (data / "2.jpg").symlink_to(target)
    assert listed(data) == ["1.jpg", "2.jpg"]
    target.unlink()
    write_folder(target, ["3.jpg"])
    assert listed(data) == ["1.jpg", "2.jpg/3.jpg"]


def test_photographs_that_cannot_be_read_here_are_counted(tmp_path: Path, kept: Path) -> None:
    assert not IMAGE_SUFFIXES & OTHER_SUFFIXES
    names = ["a/1.jpg", "a/2.HEIC", "a/3.heic", "a/.4.heic", ".a/5.heic", "b/6.nef", "b/7.txt"]
    said = (
        "3 files in {} were left out, since files with their endings cannot be read here: "
        "2 .heic, 1 .nef; convert them to JPEG."
    )
    folder = write_folder(tmp_path / "data", names)
    zipped, tarred = write_zip(tmp_path / "a.zip", names), write_tar(tmp_path / "a.tar", names)
    for _ in range(2):
        assert FolderSource(folder).about().notes == (said.format(repr(str(folder))),)
        assert ZipSource(zipped).about().notes == (said.format(f"the zip archive {str(zipped)!r}"),)
        assert TarSource(tarred).about().notes == (said.format(f"the tar archive {str(tarred)!r}"),)
    assert len(list(kept.iterdir())) == 3
    (folder / "a" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"There is no image in .* 3 files in .* convert them"):
        FolderSource(folder)


# What is kept of folders


def tree(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder, and another one that it links to twice; they make a loop."""
    data = write_folder(tmp_path / "data", ["a/1.jpg", "a/deep/er/2.jpg", "b/3.jpg"])
    outside = write_folder(tmp_path / "outside", ["x/4.jpg"])
    (tmp_path / "way").symlink_to(outside)
    (data / "c").symlink_to(tmp_path / "way")
    (tmp_path / "side").symlink_to(outside / "x")
    (data / "d").symlink_to(tmp_path / "side")
    (outside / "loop").symlink_to(data)
    write_folder(tmp_path / "new", ["9.jpg"])
    return data, outside


def relink(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


def swap(data: Path, _: Path) -> None:
    shutil.rmtree(data / "b")
    (data.parent / "new").rename(data / "b")


def to_folder(data: Path, _: Path) -> None:
    (data / "a/1.jpg").unlink()
    write_folder(data / "a/1.jpg", ["1.jpg"])


def to_file(data: Path, _: Path) -> None:
    shutil.rmtree(data / "b")
    (data / "b").touch()


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "add a file": lambda data, _: (data / "a/deep/er/0.jpg").touch(),
    "add a file at the top": lambda data, _: (data / "0.jpg").touch(),
    "add a file behind a link": lambda _, outside: (outside / "x/0.jpg").touch(),
    "remove a file": lambda data, _: (data / "a/1.jpg").unlink(),
    "rename a file": lambda data, _: (data / "a/1.jpg").rename(data / "a/0.jpg"),
    "move a file": lambda data, _: (data / "a/1.jpg").rename(data / "b/1.jpg"),
    "add a folder": lambda data, _: write_folder(data / "a/deep/new", ["1.jpg"]),
    "remove a folder": lambda data, _: shutil.rmtree(data / "a/deep"),
    "rename a folder": lambda data, _: (data / "a").rename(data / "z"),
    "move a folder": lambda data, _: (data / "a/deep").rename(data / "b/deep"),
    "another folder of its name": swap,
    "change a link": lambda data, _: relink(data / "d", data.parent / "new"),
    "change a link on the way": lambda data, _: relink(data.parent / "way", data / "a/deep"),
    "change a link to what is seen": lambda data, _: relink(
        data.parent / "side", data.parent / "new"
    ),
    "change the loop": lambda data, outside: relink(outside / "loop", data.parent / "new"),
    "a folder takes an image's place": to_folder,
    "a file takes a folder's place": to_file,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    data, outside = tree(tmp_path)
    settle(data, outside)
    before = listed(data)
    assert before == walked(data) and len(before) == 4
    with monkeypatch.context() as patch:
        patch.setattr(listing, "_scan", lambda _: pytest.fail("this was kept"))
        assert listed(data) == before
    CHANGES[change](data, outside)
    expected = walked(data)
    assert expected != before
    assert listed(data) == expected
    shutil.rmtree(kept)
    assert listed(data) == expected


@pytest.mark.parametrize("times", [(4, 10), (10, 4)])
def test_a_folder_that_changed_just_before_is_not_kept(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, times: tuple[int, int]
) -> None:
    """A file that is added in the same tick of the clock leaves the folder's times as they are."""
    second = 10**9
    data = write_folder(tmp_path / "data", ["1.jpg"])
    stamp = cache.STAMP.pack(1, 2, 3, *(time * second for time in times))
    monkeypatch.setattr("leanvit.data.listing.stamp", lambda _: stamp)
    monkeypatch.setattr(cache, "SETTLED", 2 * second)
    for now in (8.0, 10.0, 11.9):  # clocks of machines differ
        monkeypatch.setattr("time.time_ns", lambda now=now: int(now * second))
        assert listed(data) == ["1.jpg"] and not kept.exists()
    monkeypatch.setattr("time.time_ns", lambda: int(12.1 * second))
    assert listed(data) == ["1.jpg"] and len(list(kept.iterdir())) == 1


def test_small_folders_leave_nothing(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LEAST", 3)
    assert len(listed(write_folder(tmp_path / "two", ["1.jpg", "2.jpg"]))) == 2
    assert not kept.exists()
    assert len(listed(write_folder(tmp_path / "three", ["1.jpg", "2.jpg", "3.jpg"]))) == 3
    assert len(list(kept.iterdir())) == 1


def test_a_damaged_index_is_made_anew(tmp_path: Path, kept: Path) -> None:
    data = write_folder(tmp_path / "data", ["a/1.jpg", "b/2.jpg", "b/3.nef"])
    expected = list_images(str(data))
    (file,) = kept.iterdir()
    whole, draw = file.read_bytes(), np.random.default_rng(0)
    contents = [b"", whole[:10], whole[:60], whole[:-1], whole + b"\0", b"\x80\x04N." * 20]
    for _ in range(60):
        data_bytes = bytearray(whole)
        data_bytes[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        contents.append(bytes(data_bytes))
    for content in contents:
        file.write_bytes(content)
        again = list_images(str(data))
        assert (list(again.names), again.notes) == (list(expected.names), expected.notes)
        assert file.read_bytes() == whole, "and is whole again"
    file.unlink()
    file.mkdir()
    assert listed(data) == list(expected.names)
    assert list(kept.iterdir()) == [file], "what was begun is removed"


@pytest.mark.parametrize("place", ["/dev/null", "/proc", "file", "home", ""])
def test_a_place_that_cannot_be_written_changes_nothing(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    data = write_folder(tmp_path / "data", ["a/1.jpg"])
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place) if place == "file" else place)
    if place == "home":  # a path that is not whole does not count
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if not place:
        monkeypatch.setattr(Path, "home", homeless)
    for _ in range(2):
        assert listed(data) == ["a/1.jpg"]
    assert not kept.exists()
    assert (tmp_path / "home/.cache/leanvit").exists() == (place == "home")


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_processes_list_and_keep_at_once(tmp_path: Path, kept: Path) -> None:
    data = write_folder(tmp_path / "data", [f"{i}/{j}.jpg" for i in range(5) for j in range(20)])
    expected = walked(data)
    context = multiprocessing.get_context("fork")
    pipe, end = context.Pipe()
    children = [
        context.Process(target=lambda: end.send(all(listed(data) == expected for _ in range(20))))
        for _ in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [pipe.recv() for _ in children] == [True] * 4
    assert len(list(kept.iterdir())) == 1
    assert listed(data) == expected


def test_calls_wait_together_and_answer_in_order() -> None:
    both = threading.Barrier(2, timeout=60)

    def meet(number: int) -> int:
        both.wait()
        return number

    assert list(cache.in_threads(meet, range(10))) == [*range(10)]
    count = 3 * cache.BATCH + 1
    assert list(cache.in_threads(abs, range(-count, 0))) == [*range(count, 0, -1)]


# What is kept of archives


def seen(source: Source) -> tuple[object, ...]:
    """Return all that a source tells."""
    samples = [source[index] for index in range(len(source))]
    names = [source.name(index) for index in range(len(source))]
    images = [(sample.image, sample.target) for sample in samples]
    return names, images, source.classes, source.about(), source.fingerprint()


@pytest.mark.parametrize("kind", ["zip", "tar", "shards"])
def test_an_archive_is_scanned_once(
    tmp_path: Path, kept: Path, still: Callable[[], None], kind: str
) -> None:
    names = ["train/cat/1.jpg", "train/dog\n/2.jpg", "val/cat/3.jpg", "train/cat/4.heic"]
    if kind == "shards":
        place = shards(tmp_path / "shards", *LABELLED)
        write_shard(place / "002.tar", {"1.jpg": "d", "1.b.jpg": "e", "1.cls": "9", "2.NEF": "f"})
    else:
        write = write_zip if kind == "zip" else write_tar
        place = write(tmp_path / f"a.{kind}", names)
    fresh = open_source(str(place))
    expected, aside = seen(fresh), fresh.validation()
    assert "convert them to JPEG" in fresh.about().notes[-1]
    (file,) = kept.iterdir()
    still()
    again = open_source(str(place))
    assert seen(again) == expected
    held = again.validation()
    assert (aside is None) == (held is None) == (kind == "shards")
    if aside is not None and held is not None:
        assert seen(held) == seen(aside)
    assert list(kept.iterdir()) == [file]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_changed_is_scanned_again(tmp_path: Path, kept: Path, kind: str) -> None:
    write = write_zip if kind == "zip" else write_tar
    file = write(tmp_path / f"a.{kind}", ["a/1.jpg"])
    os.utime(file, (10**9, 10**9))
    assert open_source(str(file)).name(0) == "a/1.jpg"
    write(file, ["b/1.jpg"])
    assert open_source(str(file)).name(0) == "b/1.jpg"
    file.unlink()
    with pytest.raises(ValueError, match="does not exist"):
        open_source(str(file))


def test_a_shard_that_changed_is_scanned_again(tmp_path: Path, kept: Path) -> None:
    place = shards(tmp_path / "shards", *LABELLED)
    for shard in place.iterdir():
        os.utime(shard, (10**9, 10**9))
    before = seen(ShardSource(place))
    write_shard(place / "001.tar", {"1.jpg": "x", "1.cls": "7"})
    assert seen(ShardSource(place)) != before
    other = tmp_path / "other"
    other.mkdir()
    (other / "000.tar").symlink_to(place / "001.tar")
    (other / "001.tar").symlink_to(place / "000.tar")
    turned = ShardSource(other)
    assert turned.name(0) == "000.tar/1.jpg" and turned[0].image == b"x"
    (other / "000.tar").rename(other / "0.tar")
    assert ShardSource(other).name(0) == "0.tar/1.jpg", "names are those of the links"


def test_what_is_damaged_is_not_kept(tmp_path: Path, kept: Path) -> None:
    file = write_tar(tmp_path / "a.tar", ["a/1.jpg", "a/2.jpg"])
    file.write_bytes(file.read_bytes()[:1800])
    for _ in range(2):
        assert "is cut off within" in TarSource(file).about().notes[0]
    assert not kept.exists()


# Memory


def test_words_are_sorted_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanvit.data.names.RUN", 7)
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice([*"ab/-\ue000\udcff"], draw.integers(4))) for _ in range(100)]
    names = Names(words)
    assert list(names.order()) == sorted(range(100), key=words.__getitem__)
    assert list(Names().order()) == []
    joined = "\0".join(words).encode(errors="surrogateescape")
    assert names.fingerprint() == hashlib.sha256(joined).hexdigest()
    assert list(Names.from_arrays(*names.arrays())) == words == list(names)


def test_first_folders_are_found_in_order() -> None:
    paths = Names(sorted(["a/1", "a/b/2", "a-b/3", "a.b/4", "a0/5", "\udcff/6"]))
    assert list(paths.first_folders()) == [
        ("a-b", 1),
        ("a.b", 1),
        ("a", 2),
        ("a0", 1),
        ("\udcff", 1),
    ]
    assert labels_by_folder(paths) == ["a-b", "a.b", "a", "a", "a0", "\udcff"]
    assert labels_by_folder(Names(["a/1", "b", "c/1"])) == labels_by_folder(Names()) == []
    below = Names(["x/a/1", "x/b", "x/c/2"])
    assert list(below.first_folders("x/")) == [("a", 1), ("", 1), ("c", 1)]


def test_an_image_takes_few_bytes_while_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million may take 200 MB; as an object, and in a list, a name alone takes 100 bytes."""
    monkeypatch.setattr("leanvit.data.names.RUN", 1000)
    count = 20_000
    names = [f"n{number % 20:02d}/some_image_{number:09d}.jpg" for number in range(count)]
    write_folder(tmp_path, names[:1])
    lines = (f"{name}\t{name[:3]}\n" for name in names)
    (tmp_path / "list.txt").write_text("".join(lines))
    archive = write_zip(tmp_path / "a.zip", names)
    for opener, file in ((ListSource, tmp_path / "list.txt"), (ZipSource, archive)):
        tracemalloc.start()
        source = opener(file)
        source.fingerprint()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(source) == count and most < 200 * count


def test_a_list_may_hold_any_character_but_line_ends(tmp_path: Path) -> None:
    names = ["a\u2028b.jpg", "c\x85d\x0ce.jpg"]
    write_folder(tmp_path, names)
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    source = ListSource(tmp_path / "list.txt")
    assert [source.name(index) for index in range(len(source))] == names


@pytest.mark.parametrize("year", [1902, 2300, 2440])
def test_dates_beyond_what_a_stamp_holds_are_no_error(
    tmp_path: Path, kept: Path, year: int
) -> None:
    """File systems keep years that nanoseconds in 64 bits do not; such a folder is not kept."""
    data = write_folder(tmp_path / "data", ["1.jpg"])
    when = int((year - 1970) * 365.25 * 86_400)
    os.utime(data, (when, when))
    assert listed(data) == ["1.jpg"]
    (data / "2.jpg").touch()
    os.utime(data, (when, when))
    assert listed(data) == ["1.jpg", "2.jpg"]
