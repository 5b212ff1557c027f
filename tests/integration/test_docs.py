"""Every command in the documents runs; only sizes are made small."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leanvit.cli import main
from leanvit.core.distributed import LIMITS
from tests.tables import write_discs, write_maps
from tests.tiny import noise, write_images

ROOT = Path(__file__).parents[2]
SMALL = shlex.split(
    "--backbone.image-size 32 --backbone.dim 8 --backbone.depths 2 2 --backbone.heads 1 2 "
    "--backbone.window 4 --method.head.prototypes 16 --method.head.hidden 8 "
    "--method.head.bottleneck 8 --method.views.global-size 32 --method.views.local-sizes 16 "
    "--method.views.local-counts 1 --train.batch 4 --train.duration 2st --train.save-every 1st "
    "--data.workers 0 --watch.images 8"
)
"""What makes a run small; other commands are small with the run's backbone."""
PLAIN = [
    *shlex.split("--backbone.image-size 32 --backbone.dim 8 --backbone.depth 2 --backbone.heads 2"),
    *SMALL[SMALL.index("--method.head.prototypes") :],
    *("--backbone.patch", "4"),
]
"""What makes a run of a plain ViT small."""
SHORT = SMALL[SMALL.index("--train.batch") :]
"""What makes one short whose network is small."""
BRIEF = {
    "loss": ["--batches", "1", "--prototypes", "64", "--bottleneck", "8", "--rounds", "1"],
    "step": ["--batch", "1", "--prototypes", "64", "--rounds", "1"],
}
"""What makes a bench short."""

LONGER = ["--train.duration", "4st"]
"""What makes a run of such a length longer, by a little."""


def blocks(language: str) -> list[str]:
    documents = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
    found = []
    for document in documents:
        found += re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)
    return found


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", 8)
    for name in ("cat", "dog"):
        write_images(tmp_path / "labelled" / name, 6)
    write_maps(tmp_path / "scenes")
    write_discs(tmp_path / "objects")
    commands = [line for block in blocks("bash") for line in block.strip().splitlines()]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    ran = 0
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        if program == "make":
            assert arguments[0] in targets, command
            continue
        if program == "torchrun":
            words = [sys.executable, "-m", "torch.distributed.run", *arguments, *SMALL]
            assert subprocess.run(words, check=False, timeout=300).returncode == 0, command
            continue
        assert program == "leanvit", command
        small = SMALL if arguments[0] in ("pretrain", "check") else []
        small = PLAIN if small and "vit_tiny" in arguments else small
        small = SHORT if {"mae_laptop", "dmae_laptop", "d2mae_laptop"} & set(arguments) else small
        small = BRIEF[arguments[1]] if arguments[0] == "bench" else small
        small = LONGER if "--allow" in arguments else small
        if "--budget" in arguments:
            arguments[arguments.index("--budget") + 1] = "0.01m"
            place = small.index("--train.duration")
            small = [*small[:place], *small[place + 2 :]]
        assert main([*arguments, *small]) == 0, command
        ran += 1
    assert ran >= 7
    for block in blocks("python"):
        exec(block, {"images": noise(2, 3, 32, 48)})


def test_job_scripts_are_scripts() -> None:
    """They need a cluster to run; here the shell and the command line read them."""
    scripts = blocks("sh")
    assert scripts
    for script in scripts:
        read = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert read.returncode == 0, read.stderr + script
        joined = script.replace("\\\n", " ")
        commands = re.findall(r"leanvit (pretrain [^\n&]*)", joined)
        assert commands, script
        for command in commands:
            assert main([*shlex.split(command.replace("--autoresume", "")), "--help"]) == 0


def test_time_limits_are_documented() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text()
    for name, seconds in LIMITS.items():
        assert f"| `{name}` | {seconds} |" in page


def test_recipes_in_documents_exist() -> None:
    from leanvit.recipes import RECIPES

    named = set(re.findall(r"leanvit pretrain (\w+)", (ROOT / "README.md").read_text()))
    assert named and named <= RECIPES.keys()
