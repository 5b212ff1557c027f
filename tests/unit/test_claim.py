"""One process at a time writes into a folder."""

import os
import signal
from pathlib import Path

import pytest

from leanvit.folder import LOCK, Claim


def other(out: Path, read: int) -> None:
    """Be another process: claim the folder, and hold it until the pipe closes."""
    code = 1
    try:
        with Claim(out) as claim:
            claim.take()
            os.write(1, b"")
            os.read(read, 1)
        code = 0
    finally:
        os._exit(code)


def started(out: Path) -> tuple[int, int]:
    """Return a process that holds the folder, and the end of the pipe that ends it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        other(out, read)
    os.close(read)
    while not (out / LOCK).exists() or not (out / LOCK).read_text():
        pass
    return child, write


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_is_claimed_until_its_process_ends(tmp_path: Path, killed: bool) -> None:
    out = tmp_path / "new" / "run"
    child, pipe = started(out)
    said = rf"Another process \({child} on .*\) trains in"
    with Claim(out) as claim, pytest.raises(ValueError, match=said):
        claim.take()
    assert (out / LOCK).exists(), "who did not get it removed it"
    if killed:
        os.kill(child, signal.SIGKILL)
    os.close(pipe)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if killed else 0)
    assert (out / LOCK).exists() is killed
    with Claim(out) as claim:
        claim.take()
        assert (out / LOCK).read_text().startswith(f"{os.getpid()} on ")
    assert list(out.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Claim(tmp_path / "file" / "run") as claim, pytest.raises(ValueError, match="Cannot write"):
        claim.take()
