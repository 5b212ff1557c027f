"""Images and a finished run that the tests of commands share."""

import shutil
from pathlib import Path

import pytest

from tests.integration.command import TINY, Finished, leanvit_process
from tests.tables import break_images, write_colored, write_network, write_split
from tests.tiny import draw_nothing, write_classes


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_classes(tmp_path_factory.mktemp("data") / "images", cats=6, dogs=6))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, images: str) -> Finished:
    out = tmp_path_factory.mktemp("runs") / "first"
    arguments = ("pretrain", "esvit", "--data", images, *TINY)
    process = leanvit_process(*arguments, "--out", out, "--json")
    return Finished(process, arguments, images, out)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """One thread and no pictures, for tests that run commands in this process."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colored(tmp_path_factory.mktemp("colored"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("model") / "some.safetensors")


@pytest.fixture
def broken(data: Path, tmp_path: Path) -> Path:
    return break_images(Path(shutil.copytree(data, tmp_path / "broken")))
