"""The command line as tests call it: in this process, or as the installed command."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from leanvit.cli import main

COMMAND = Path(sys.executable).parent / "leanvit"
"""What `pip install` put beside Python."""

SIZES = """--backbone.image-size 32 --backbone.dim 8 --backbone.depths 1 1 --backbone.heads 1 2
--backbone.window 4"""
REST = """--method.views.global-size 32 --method.views.local-sizes 16 --method.views.local-counts 2
--method.head.prototypes 16 --method.head.hidden 16 --method.head.bottleneck 8
--method.head.train-gain false --train.batch=4 --train.duration 4st --train.save_every 2st
--train.log-every 1st --train.device cpu --data.workers 0 --watch.every 2st --watch.k 3"""
TINY = [*SIZES.split(), *REST.split()]
"""A run of 4 steps on 12 images."""

Says = pytest.CaptureFixture[str]


def leanvit_process(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
        check=False,
    )


def refused(capsys: Says, *arguments: str | Path, lines: int = 1) -> str:
    """Return what a refused command said: so many lines on stderr, and exit code 2."""
    capsys.readouterr()
    found = main([str(argument) for argument in arguments])
    out, error = capsys.readouterr()
    assert (found, out) == (2, ""), error
    assert error.startswith("leanvit: ") and error.endswith(".\n"), error
    assert error.count("\n") == lines, error
    return error.removesuffix("\n")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return all that a folder holds, to see whether anything was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Finished:
    """A run that the installed command finished."""

    process: subprocess.CompletedProcess[str]
    arguments: tuple[str, ...]
    """All but where to."""
    data: str
    out: Path

    def copy(self, place: Path) -> Path:
        """Return a copy of the run's folder that a test may change."""
        return Path(shutil.copytree(self.out, place / "run"))
