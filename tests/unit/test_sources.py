"""A folder becomes a numbered set of images: which files, in which order, of which class."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from leanvit.data.names import IMAGE_SUFFIXES
from leanvit.data.sample import PHOTOGRAPHS, SampleSource
from leanvit.data.sources import (
    VALIDATION,
    FolderSource,
    ListSource,
    Source,
    Subset,
    at_most,
    hold_out,
    open_source,
    open_validation,
    require_classes,
)


def fill(folder: Path, names: Iterable[str]) -> Path:
    """Write a file for each name, whose content is the name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def write_list(file: Path, *lines: str) -> Path:
    """Write a list of images."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def targets(source: Source) -> list[int]:
    """Return the classes that the samples state, which are those that the source states."""
    found = [source[index].target for index in range(len(source))]
    assert source.targets.dtype == np.int64
    assert source.targets.tolist() == found
    return found


def aside(source: Source) -> Source:
    """Return what was set aside."""
    found = source.validation()
    assert found is not None
    return found


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


# Folders that are split


def test_train_and_val_are_two_sources_of_the_same_classes(tmp_path: Path) -> None:
    files = [
        "train/cat/1.jpg",
        "train/dog/1.jpg",
        "train/emu/2.jpg",
        "val/emu/3.jpg",
        "val/cat/4.jpg",
    ]
    source = FolderSource(fill(tmp_path, files))
    assert names(source) == ["cat/1.jpg", "dog/1.jpg", "emu/2.jpg"]
    assert targets(source) == [0, 1, 2]
    val = aside(source)
    assert names(val) == ["cat/4.jpg", "emu/3.jpg"]
    assert val.classes == source.classes == ("cat", "dog", "emu")
    assert targets(val) == [0, 2], "numbered by the classes of train, not by its own"
    assert val[0].image == b"val/cat/4.jpg"
    assert val.validation() is None


@pytest.mark.parametrize("name", VALIDATION)
def test_val_has_other_names_too(tmp_path: Path, name: str) -> None:
    source = FolderSource(fill(tmp_path, ["train/cat/1.jpg", f"{name}/cat/2.jpg"]))
    assert names(source) == ["cat/1.jpg"]
    assert names(aside(source)) == ["cat/2.jpg"]


def test_of_val_and_test_val_is_taken(tmp_path: Path) -> None:
    files = ["train/cat/1.jpg", "val/cat/2.jpg", "test/cat/3.jpg"]
    source = FolderSource(fill(tmp_path, files))
    assert names(source) == ["cat/1.jpg"]
    assert aside(source)[0].image == b"val/cat/2.jpg"


@pytest.mark.parametrize("other", ["cat/3.jpg", "Val/3.jpg", "tests/3.jpg"])
def test_another_folder_makes_train_and_val_classes(tmp_path: Path, other: str) -> None:
    source = FolderSource(fill(tmp_path, ["train/1.jpg", "val/2.jpg", other]))
    assert sorted(names(source)) == sorted(["train/1.jpg", "val/2.jpg", other])
    assert set(source.classes) == {"train", "val", other.split("/")[0]}
    assert source.validation() is None


@pytest.mark.parametrize("one", ["train", "val"])
def test_train_or_val_alone_is_a_class(tmp_path: Path, one: str) -> None:
    source = FolderSource(fill(tmp_path, [f"{one}/cat/1.jpg", f"{one}/dog/1.jpg"]))
    assert source.classes == (one,)
    assert source.validation() is None


def test_files_and_hidden_folders_beside_train_do_not_count(tmp_path: Path) -> None:
    others = ["labels.csv", ".cache/x/1.jpg"]
    source = FolderSource(fill(tmp_path, ["train/cat/1.jpg", "val/cat/2.jpg", *others]))
    assert names(source) == ["cat/1.jpg"]
    assert names(aside(source)) == ["cat/2.jpg"]


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    files = ["train/cat/1.jpg", "train/horse/1.jpg", "val/cat/2.jpg", "val/horses/2.jpg"]
    source = FolderSource(fill(tmp_path, files))
    expected = r"class in .*val' 'horses'; did you mean 'horse'\? Known: cat, horse\."
    with pytest.raises(ValueError, match=expected):
        source.validation()


def test_an_empty_val_is_an_error_when_it_is_asked_for(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["train/cat/1.jpg", "val/readme.txt"]))
    assert names(source) == ["cat/1.jpg"]
    with pytest.raises(ValueError, match=r"no image in .*val'"):
        source.validation()


def test_without_classes_train_and_val_are_still_split(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["train/1.jpg", "train/2.jpg", "val/3.jpg"]))
    assert names(source) == ["1.jpg", "2.jpg"]
    assert targets(source) == [-1, -1]
    assert names(aside(source)) == ["3.jpg"]


# Lists


def test_a_list_names_images_relative_to_itself(tmp_path: Path) -> None:
    fill(tmp_path, ["photos/b.jpg", "photos/a.jpg", "lists/c.jpg"])
    file = write_list(
        tmp_path / "lists" / "some.txt", "../photos/b.jpg", "c.jpg", "../photos/a.jpg"
    )
    source = ListSource(file)
    assert names(source) == ["../photos/b.jpg", "c.jpg", "../photos/a.jpg"], "order is the list's"
    assert [source[i].image for i in range(3)] == [b"photos/b.jpg", b"lists/c.jpg", b"photos/a.jpg"]
    assert [source[i].index for i in range(3)] == [0, 1, 2]
    assert source.classes == ()
    assert targets(source) == [-1, -1, -1]
    assert source.validation() is None


def test_a_list_may_name_an_image_twice_and_by_its_whole_path(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg"])
    source = ListSource(write_list(tmp_path / "list.txt", str(tmp_path / "a.jpg"), "a.jpg"))
    assert [source[i].image for i in range(2)] == [b"a.jpg"] * 2


def test_a_class_follows_a_tab(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg", "2 3.jpg", "3.jpg"])
    lines = ["1.jpg\temu", "2 3.jpg \t big cat ", "3.jpg\temu"]
    source = ListSource(write_list(tmp_path / "list.txt", *lines))
    assert names(source) == ["1.jpg", "2 3.jpg", "3.jpg"]
    assert source.classes == ("big cat", "emu")
    assert targets(source) == [1, 0, 1]


def test_comments_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg", "2.jpg"])
    lines = ["# two images", "", "1.jpg", "   ", "#\ta\tb", "2.jpg", ""]
    assert names(ListSource(write_list(tmp_path / "list.txt", *lines))) == ["1.jpg", "2.jpg"]


def test_line_ends_of_other_systems_are_line_ends(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg", "2.jpg"])
    (tmp_path / "list.txt").write_bytes("\ufeff1.jpg\ta\r\n2.jpg\tb\r\n".encode())
    source = ListSource(tmp_path / "list.txt")
    assert names(source) == ["1.jpg", "2.jpg"]
    assert source.classes == ("a", "b")


@pytest.mark.parametrize(
    "lines",
    [("1.jpg\ta", "2.jpg"), ("1.jpg", "2.jpg\ta"), ("1.jpg\ta\tb", "2.jpg\ta\tb")],
)
def test_a_list_that_mixes_lines_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    fill(tmp_path, ["1.jpg", "2.jpg"])
    with pytest.raises(ValueError, match=r"list\.txt' mixes lines: write a path, or a path, a tab"):
        ListSource(write_list(tmp_path / "list.txt", *lines))


@pytest.mark.parametrize("lines", [(), ("", "# 1.jpg", "  ")])
def test_an_empty_list_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"list\.txt' names no image; write one path a line"):
        ListSource(write_list(tmp_path / "list.txt", *lines))


def test_a_list_none_of_whose_images_exists_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    expected = (
        r"names 'cat/1\.jpg', but there is no file '.*/lists/cat/1\.jpg', nor any of the next"
    )
    with pytest.raises(ValueError, match=expected):
        ListSource(write_list(tmp_path / "lists" / "list.txt", "cat/1.jpg", "1.jpg"))


def test_a_text_that_is_no_list_is_refused(tmp_path: Path) -> None:
    """A line may be longer than any path can be: a JSON file, a web page."""
    (tmp_path / "some.json").write_text('{"images": "' + "x" * 5000 + '"}')
    with pytest.raises(ValueError, match=r"some\.json' is not a folder and cannot be read"):
        ListSource(tmp_path / "some.json")


def test_a_list_is_looked_at_only_so_far(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    missing = [f"missing/{number}.jpg" for number in range(ListSource.LOOKED_AT)]
    found = ListSource(write_list(tmp_path / "list.txt", *missing[1:], "1.jpg"))
    assert len(found) == ListSource.LOOKED_AT
    with pytest.raises(ValueError, match="nor any of the next"):
        ListSource(write_list(tmp_path / "list.txt", *missing, "1.jpg"))


def test_one_missing_image_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg", "3.jpg"])
    source = ListSource(write_list(tmp_path / "list.txt", "1.jpg", "2.jpg", "3.jpg"))
    assert len(source) == 3
    with pytest.raises(OSError, match=r"2\.jpg"):
        source[1]
    assert source[2].image == b"3.jpg"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\xff\xfe", b"\xff\xd8\xff\xe0"])
def test_an_image_is_no_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"photo\.jpg' is not a folder and cannot be read as a list"
    ):
        open_source(str(tmp_path / "photo.jpg"))


def test_a_list_of_other_classes_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    file = write_list(tmp_path / "list.txt", "1.jpg\tcats")
    assert targets(ListSource(file, ("bird", "cats"))) == [1]
    with pytest.raises(ValueError, match=r"class in .* 'cats'; did you mean 'cat'\?"):
        ListSource(file, ("bird", "cat"))


# Choices of images


def classed(folder: Path, **counts: int) -> FolderSource:
    """Return a folder with so many images of each class."""
    wanted = [f"{label}/{i:02}.jpg" for label, count in counts.items() for i in range(count)]
    return FolderSource(fill(folder, wanted))


def test_a_subset_numbers_its_images_anew(tmp_path: Path) -> None:
    source = classed(tmp_path, a=2, b=2, c=1)
    some = Subset(source, [4, 0, 3])
    assert len(some) == 3
    assert names(some) == ["c/00.jpg", "a/00.jpg", "b/01.jpg"]
    assert some.classes == ("a", "b", "c")
    assert targets(some) == [2, 0, 1]
    assert [some[i].index for i in range(3)] == [0, 1, 2]
    assert [some[i].image for i in range(3)] == [name.encode() for name in names(some)]
    assert some.validation() is None
    with pytest.raises(IndexError):
        some[3]


def test_a_subset_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    source, other = classed(tmp_path / "1", a=3), classed(tmp_path / "2", b=3)
    some = [
        Subset(source, [0, 1]),
        Subset(source, [1, 0]),
        Subset(source, [0]),
        Subset(other, [0, 1]),
    ]
    assert len({source.fingerprint(), *(s.fingerprint() for s in some)}) == 5
    assert Subset(source, [0, 1]).fingerprint() == some[0].fingerprint()


def test_a_subset_keeps_what_was_set_aside(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg"]))
    assert names(aside(Subset(source, [1]))) == ["b/3.jpg"]


def test_at_most_draws_once_and_keeps_the_order(tmp_path: Path) -> None:
    source = classed(tmp_path, a=30, b=20)
    for count in (50, 51):
        assert at_most(source, count) is source
    some = at_most(source, 12)
    assert len(some) == 12
    assert names(some) == sorted(set(names(some)))
    assert set(names(some)) < set(names(source))
    assert names(at_most(source, 12)) == names(some)
    assert names(some) != names(source)[:12], "the first are all of one class"
    assert set(names(at_most(source, 5))) < set(names(some)), "a smaller choice is part of it"
    assert len(at_most(source, 0)) == 0


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_held_out_images_are_a_share_of_each_class(tmp_path: Path, share: float) -> None:
    counts = {"a": 2, "b": 10, "c": 27}
    source = classed(tmp_path, **counts)
    rest, held = hold_out(source, share)
    assert not set(names(rest)) & set(names(held))
    assert sorted(names(rest) + names(held)) == names(source)
    assert names(held) == sorted(names(held)) and names(rest) == sorted(names(rest))
    assert rest.classes == held.classes == source.classes
    for target, count in enumerate(counts.values()):
        assert targets(held).count(target) == max(round(share * count), 1)
        assert targets(rest).count(target) == count - max(round(share * count), 1)
    assert [names(half) for half in hold_out(source, share)] == [names(rest), names(held)]


def test_something_of_every_class_stays(tmp_path: Path) -> None:
    rest, held = hold_out(classed(tmp_path, a=2, b=40), 0.99)
    assert targets(rest) == [0, 1]
    assert targets(held) == [0] + [1] * 39


def test_what_is_held_out_is_no_rule_of_thumb(tmp_path: Path) -> None:
    """Neither the first nor the last of each class, nor the same places in all of them."""
    _, held = hold_out(classed(tmp_path, a=20, b=20, c=20))
    places = [{name.split("/")[1] for name in names(held) if name[0] == label} for label in "abc"]
    assert len({frozenset(place) for place in places}) == 3
    assert {"00.jpg", "01.jpg", "02.jpg", "03.jpg"} not in places


def test_a_choice_depends_on_the_numbers_alone(tmp_path: Path) -> None:
    _, held = hold_out(classed(tmp_path / "1", a=8, b=9))
    _, again = hold_out(classed(tmp_path / "2", ape=8, bee=9))
    assert [name.replace("ape", "a").replace("bee", "b") for name in names(again)] == names(held)


def test_a_single_image_of_a_class_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Class 'b' has a single image, so none can be held out"):
        hold_out(classed(tmp_path, a=5, b=1))


def test_a_known_class_without_images_is_passed_over(tmp_path: Path) -> None:
    source = FolderSource(
        fill(tmp_path, ["a/1.jpg", "a/2.jpg", "c/1.jpg", "c/2.jpg"]), tuple("abc")
    )
    rest, held = hold_out(source)
    assert targets(rest) == targets(held) == [0, 2]


@pytest.mark.parametrize(
    "files", [["1.jpg", "2.jpg"], ["a/1.jpg", "a/2.jpg"], ["a/1.jpg", "2.jpg"]]
)
def test_fewer_than_two_classes_are_refused(tmp_path: Path, files: list[str]) -> None:
    source = FolderSource(fill(tmp_path, files))
    for what in (require_classes, hold_out):
        with pytest.raises(ValueError, match=r"needs classes.*sub-folder.*after a tab"):
            what(source)


def test_images_without_a_class_among_known_ones_are_refused(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path, ["1.jpg"]), ("a", "b"))
    assert source.classes == ("a", "b")
    with pytest.raises(ValueError, match="needs classes"):
        require_classes(source)
    require_classes(classed(tmp_path / "two", a=1, b=1))


# Names on the command line


def test_a_name_on_the_command_line_is_a_list(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg", "2.jpg"])
    source = open_source(str(write_list(tmp_path / "list", "2.jpg\tb", "1.jpg\ta")))
    assert isinstance(source, ListSource)
    assert targets(source) == [1, 0]


def test_sample_is_the_embedded_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, ["sample/cat/1.jpg"])
    monkeypatch.chdir(tmp_path)
    source = open_source("sample")
    assert isinstance(source, SampleSource) and source.split == "train"
    assert source.classes == tuple(PHOTOGRAPHS)
    assert isinstance(open_source("./sample"), FolderSource)


def test_images_to_evaluate_on_are_named_or_set_aside(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.jpg", "train/b/1.jpg", "val/b/2.jpg"])
    source = FolderSource(tmp_path)
    assert names(aside(source)) == ["b/2.jpg"]
    for found in (open_validation("", source), open_validation(str(tmp_path / "val"), source)):
        assert found is not None
        assert names(found) == ["b/2.jpg"]
        assert targets(found) == [1]
    assert open_validation("", classed(tmp_path / "one", a=2)) is None


def test_images_to_evaluate_on_have_known_classes(tmp_path: Path) -> None:
    source = classed(tmp_path / "data", cat=1, dog=1)
    other = classed(tmp_path / "other", cats=1).folder
    with pytest.raises(ValueError, match=r"other' 'cats'; did you mean 'cat'\? Known: cat, dog"):
        open_validation(str(other), source)


def test_sample_evaluates_on_the_other_sides_of_its_photographs() -> None:
    found = open_validation("sample", open_source("sample"))
    assert isinstance(found, SampleSource) and found.split == "val"


def test_sample_does_not_evaluate_what_learned_from_others(tmp_path: Path) -> None:
    for counts in ({"cat": 1, "dog": 1}, dict.fromkeys((*PHOTOGRAPHS, "aa"), 1)):
        source = classed(tmp_path / str(len(counts)), **counts)
        with pytest.raises(ValueError, match="classes of 'sample' are its own photographs"):
            open_validation("sample", source)
