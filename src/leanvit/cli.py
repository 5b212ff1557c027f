"""The command line: one table of commands. Torch is imported when a command runs, not before."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

import leanvit
from leanvit.config import BACKBONES, Duration, RunConfig, load_config, look_up, to_dict
from leanvit.config.convert import KINDS, from_dict, leaves
from leanvit.config.names import unknown_name
from leanvit.config.run import OptimConfig
from leanvit.recipes import RECIPES, recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 2 for a mistake in the request, 1 for a failed run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(f"leanvit {leanvit.__version__}")
        return 0
    try:
        return look_up("command", arguments[0], COMMANDS)(arguments[1:])
    except ValueError as error:
        print(f"leanvit: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error) is RuntimeError:  # not one of ours: a defect, to be seen whole
            raise
        print(f"leanvit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("leanvit: interrupted; continue with --resume", file=sys.stderr)
        return 130
