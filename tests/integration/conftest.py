"""Images and a finished run that the tests of commands share."""

from collections.abc import Iterator

import pytest
import torch

from tests.integration.command import TINY, Finished, leanvit_process
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
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread and no pictures, for tests that run commands in this process."""
    draw_nothing(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
