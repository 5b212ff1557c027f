"""What others wrote is data: names are only names, configurations only values, and no network."""

import base64
import json
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import leanvit
from leanvit.cli import main
from leanvit.config import RunConfig, from_dict, load_config, to_dict
from leanvit.data.decode import read_image
from leanvit.data.shards import ShardSource
from leanvit.data.sources import ListSource, Source, number_classes, open_source
from leanvit.recipes import recipe
from tests.encoded import large
from tests.integration.command import TINY, Says, contents
from tests.tiny import write_images

pytestmark = pytest.mark.usefixtures("undrawn")

OBEYED = "\x1b[31mred\x07\x9b2J\u202e"
"""What a terminal obeys: colors, a bell, clearing the screen, writing backwards."""


def printable(text: str) -> bool:
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))


# Names of files


@pytest.mark.parametrize("most", ["50", "1"], ids=["goes on", "stops"])
@pytest.mark.parametrize("command", ["check", "pretrain"])
def test_a_terminal_obeys_no_name(command: str, most: str, tmp_path: Path, capsys: Says) -> None:
    images = tmp_path / "images"
    write_images(images / f"{OBEYED} cats", 6)
    write_images(images / "dogs", 6)
    (images / "dogs" / f"{OBEYED}.png").write_bytes(b"no image")
    (images / f"{OBEYED} link").symlink_to("nowhere")
    out = tmp_path / "out"
    words = [command, "esvit", "--data", images, "--out", out, *TINY, "--data.max-unreadable", most]
    assert main(list(map(str, words))) == (0 if most == "50" else 2)
    said = "".join(capsys.readouterr())
    assert r"dogs/\x1b[31mred\x07\x9b2J\u202e.png" in said and printable(said)
    rows = (out / "unreadable.jsonl").read_text()
    assert printable(rows) and OBEYED in json.loads(rows.splitlines()[0])["name"]


def test_a_terminal_obeys_no_class() -> None:
    with pytest.raises(ValueError, match="Unknown class") as caught:
        number_classes([f"{OBEYED}1"], 1, (f"{OBEYED}2", "dogs"), "folder")
    assert printable(str(caught.value))


# Archives and lists

TRICKS = ("../out.png", "/abs.png", "a/../../out.png", "a/b.png", "..\\out.png")


def zipped(place: Path, image: bytes) -> Source:
    with zipfile.ZipFile(place / "x.zip", "w") as archive:
        for name in TRICKS:
            archive.writestr(name, image)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(place / "secret.png"))
    return open_source(str(place / "x.zip"))


def tarred(place: Path, image: bytes) -> None:
    (place / "image").write_bytes(image)
    with tarfile.open(place / "x.tar", "w") as archive:
        for name in TRICKS:
            archive.add(place / "image", name)
        for kind, name in ((tarfile.SYMTYPE, "soft.png"), (tarfile.LNKTYPE, "hard.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(place / "secret.png")
            archive.addfile(link)
    (place / "image").unlink()


def tar(place: Path, image: bytes) -> Source:
    tarred(place, image)
    return open_source(str(place / "x.tar"))


def shards(place: Path, image: bytes) -> Source:
    tarred(place, image)
    return ShardSource(str(place / "x.tar"))


def mapped(place: Path, image: bytes) -> Source:
    zipped(place, image)
    (place / "map.txt").write_text("".join(f"x.zip@/{name.lstrip('/')}\n" for name in TRICKS))
    return open_source(str(place / "map.txt"))


def tsv(place: Path, image: bytes) -> Source:
    text = base64.b64encode(image).decode()
    (place / "x.tsv").write_text("".join(f"{name}\tcat\t{text}\n" for name in TRICKS))
    return open_source(str(place / "x.tsv"))


def parquet(place: Path, image: bytes) -> Source:
    rows = [{"bytes": image, "path": name} for name in TRICKS]
    pq.write_table(pa.table({"image": rows}), place / "x.parquet")
    return open_source(str(place / "x.parquet"))


KINDS: dict[str, Callable[[Path, bytes], Source]] = {
    "zip": zipped, "tar": tar, "shards": shards, "map": mapped, "tsv": tsv,
    "parquet": parquet,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_names_inside_archives_are_only_names(kind: str, tmp_path: Path) -> None:
    """Nothing is written, and no link is followed: a link's image would be the secret one."""
    place = tmp_path / "deep" / "place"
    (secret,) = write_images(place, 1, side=23).iterdir()
    secret.rename(place / "secret.png")
    (inside,) = write_images(tmp_path / "one", 1, side=31).iterdir()
    source = KINDS[kind](place, inside.read_bytes())
    before = contents(tmp_path)
    found = [read_image(source, index) for index in range(len(source))]
    heights = [entry[0].shape[1] for entry in found if isinstance(entry, tuple)]
    assert len(heights) >= 2 and set(heights) == {31}
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_bombs_in_archives_are_refused(kind: str, tmp_path: Path) -> None:
    """A few bytes whose header speaks of 4 * 10^8 pixels: refused before there is memory."""
    source = KINDS[kind](tmp_path, large("PNG", 20_000))
    found = [read_image(source, index) for index in range(len(source))]
    errors = [entry.error for entry in found if not isinstance(entry, tuple)]
    assert len(errors) == len(found) and sum("pixels; store" in error for error in errors) >= 2


def test_a_list_may_name_any_file_and_shows_none_of_it(tmp_path: Path) -> None:
    (image,) = write_images(tmp_path / "elsewhere", 1).iterdir()
    (tmp_path / "secret.txt").write_text("the word is swordfish")
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "list.txt").write_text(f"{image}\n../secret.txt\n/dev/zero\n")
    source = ListSource(folder / "list.txt")
    read, secret, device = (read_image(source, index) for index in range(3))
    assert isinstance(read, tuple)
    assert not isinstance(secret, tuple) and "swordfish" not in repr(secret)
    assert not isinstance(device, tuple) and "is a pipe or a device" in device.error


# Configurations

CODE = (
    "!!python/object/apply:os.system ['touch marker']",
    "$(touch marker)",
    "`touch marker`",
    "__import__('os').system('touch marker')",
    "{0.__class__.__init__.__globals__}",
)


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("name", ["recipe", "data.source", "init", "method.kind", "train.duration"])
def test_a_configuration_names_no_code(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the word that it is, or is refused."""
    monkeypatch.chdir(tmp_path)
    plain: dict[str, Any] = to_dict(recipe("esvit"))
    *path, last = name.split(".")
    section = plain[path[0]] if path else plain
    section[last] = code
    (tmp_path / "config.json").write_text(json.dumps(plain))
    before = contents(tmp_path)
    if name in ("method.kind", "train.duration"):
        with pytest.raises(ValueError, match=r"kind of method|train\.duration"):
            load_config(tmp_path / "config.json")
    else:
        found = to_dict(load_config(tmp_path / "config.json"))
        assert (found[path[0]] if path else found)[last] == code
        with pytest.raises(ValueError):
            leanvit.pretrain(load_config(tmp_path / "config.json"), out=tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, "9" * 10_000, "[" * 900 + "]" * 900, "NaN", "[]"],
    ids=["deep list", "deep object", "digits", "nested", "nan", "list"],
)
def test_json_without_end_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not JSON|expected a section with keys") as caught:
        load_config(tmp_path / "config.json")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["train.batch", "optim.clip", "method.kind", "data.mean"])
@pytest.mark.parametrize("depth", [0, 900], ids=["digits", "nested"])
def test_values_without_end_are_an_error(name: str, depth: int) -> None:
    plain: dict[str, Any] = to_dict(recipe("esvit"))
    value: Any = 10**400
    for _ in range(depth):
        value = [value]
    section, last = name.split(".")
    plain[section][last] = value
    if name == "train.batch" and not depth:
        plain[section][last] = [value]  # any whole number is one
    with pytest.raises(ValueError, match=section) as caught:
        from_dict(RunConfig, plain)
    assert len(str(caught.value)) < 1000


# The network


def test_nothing_asks_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, evaluations, features and conversion, none of which names a place out there."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("asked the network")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("cats", "dogs"):
        write_images(tmp_path / "images" / name, 6)
    out = tmp_path / "run"
    images = ["--data", str(tmp_path / "images")]
    commands: list[list[object]] = [
        ["pretrain", "esvit", *images, "--out", out, *TINY],
        ["evaluate", "knn", out, *images, "--workers", "0", "--device", "cpu"],
        ["embed", out, *images, "--out", tmp_path / "f.npz", "--workers", "0", "--device", "cpu"],
        ["convert", out, "--to", "leanvit", "--out", tmp_path / "converted.safetensors"],
    ]
    for words in commands:
        assert main([str(word) for word in words]) == 0, words
