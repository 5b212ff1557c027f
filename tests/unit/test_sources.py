"""A folder becomes a numbered set of images: which files, in which order, of which class."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from leanvit.data.sources import IMAGE_SUFFIXES, FolderSource, open_source


def fill(folder: Path, names: Iterable[str]) -> Path:
    """Write a file for each name, whose content is the name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def names(source: FolderSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def targets(source: FolderSource) -> list[int]:
    return [source[index].target for index in range(len(source))]


def test_images_at_any_depth_are_found(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["b/c/d/2.png", "a/1.jpg", "b/3.jpg"]))
    assert names(source) == ["a/1.jpg", "b/3.jpg", "b/c/d/2.png"]
    assert len(source) == 3


def test_a_sample_is_the_file_under_its_number(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["a/1.jpg", "b/3.jpg", "b/c/2.png"]))
    for index in range(3):
        sample = source[index]
        assert sample.image == source.name(index).encode()
        assert sample.index == index


def test_first_level_folders_name_the_classes(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["dog/b/1.jpg", "cat/9.jpg", "dog/a.jpg", "emu/x/y.png"]))
    assert source.classes == ("cat", "dog", "emu")
    assert names(source) == ["cat/9.jpg", "dog/a.jpg", "dog/b/1.jpg", "emu/x/y.png"]
    assert targets(source) == [0, 1, 1, 2]


def test_an_image_at_the_top_means_no_classes(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["dog/1.jpg", "cat/1.jpg", "top.jpg"]))
    assert source.classes == ()
    assert targets(source) == [-1, -1, -1]


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["cat/1.jpg", "docs/readme.txt"]))
    assert source.classes == ("cat",)


def test_hidden_entries_are_left_out(tmp_path: Path) -> None:
    hidden = [".a.jpg", "cat/._1.jpg", ".cache/1.jpg", "cat/.thumbs/1.jpg", "cat/.jpg"]
    source = FolderSource(fill(tmp_path, ["cat/1.jpg", *hidden]))
    assert names(source) == ["cat/1.jpg"]
    assert source.classes == ("cat",)


def test_other_files_are_left_out(tmp_path: Path) -> None:
    others = ["cat/notes.txt", "cat/1.jpg.part", "labels.csv", "jpg", "cat/2.jpg~"]
    assert names(FolderSource(fill(tmp_path, ["cat/1.jpg", *others]))) == ["cat/1.jpg"]


def test_a_folder_may_end_like_an_image(tmp_path: Path) -> None:
    assert names(FolderSource(fill(tmp_path, ["cat.jpg/1.png"]))) == ["cat.jpg/1.png"]


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_case_of_the_suffix_does_not_matter(tmp_path: Path, suffix: str) -> None:
    wanted = [f"1{suffix}", f"2{suffix.upper()}", f"3{suffix.title()}"]
    assert names(FolderSource(fill(tmp_path, wanted))) == wanted


def test_order_does_not_depend_on_the_directory(tmp_path: Path) -> None:
    wanted = [f"{folder}/{number:03}.jpg" for folder in "abc" for number in range(40)]
    forwards = FolderSource(fill(tmp_path / "forwards", wanted))
    backwards = FolderSource(fill(tmp_path / "backwards", reversed(wanted)))
    assert names(forwards) == wanted
    assert names(backwards) == wanted


def test_unicode_names_are_kept(tmp_path: Path) -> None:
    wanted = ["Zoë und Anaïs/straße.jpg", "猫/写真 1.png"]
    source = FolderSource(fill(tmp_path, wanted))
    assert names(source) == wanted
    assert source.classes == ("Zoë und Anaïs", "猫")
    assert source[1].image == wanted[1].encode()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*does not exist"):
        FolderSource(tmp_path / "nowhere")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    with pytest.raises(ValueError, match=r"1\.jpg.*is not a folder"):
        FolderSource(tmp_path / "1.jpg")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, ["a/notes.txt", ".hidden.jpg"])
    with pytest.raises(ValueError, match=r"no image in .*\.jpeg, \.jpg"):
        FolderSource(tmp_path)


def test_a_vanished_file_is_an_os_error(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["1.jpg", "2.jpg"]))
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(OSError, match=r"1\.jpg"):
        source[0]
    assert source[1].image == b"2.jpg"


def test_a_number_beyond_the_end_is_an_index_error(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["1.jpg"]))
    with pytest.raises(IndexError):
        source[1]


def test_a_name_on_the_command_line_is_a_folder(tmp_path: Path) -> None:
    source = open_source(str(fill(tmp_path, ["cat/1.jpg"])))
    assert source.classes == ("cat",)
    assert source.name(0) == "cat/1.jpg"


def test_no_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="--data FOLDER"):
        open_source("")


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "one.jpg").write_bytes(b"1")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(data)
    source = FolderSource(data)
    assert [source.name(number) for number in range(len(source))] == ["a/deep/one.jpg"]
