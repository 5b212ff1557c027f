"""The command line: one table of commands. Torch is imported when a command runs, not before."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tyro

import leanvit
from leanvit.config import BACKBONES, Duration, RunConfig, compose, look_up, to_dict
from leanvit.config.convert import KINDS, leaves
from leanvit.config.run import OptimConfig
from leanvit.core.errors import RunError
from leanvit.recipes import RECIPES, recipe

USAGE = """leanvit: turn a folder of unlabelled images into a small, strong vision backbone.

  leanvit pretrain RECIPE --data FOLDER --out FOLDER    folder of images to backbone
  leanvit --version

Every command answers --help."""


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
    except RunError as error:
        print(f"leanvit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None
        return 0
    except KeyboardInterrupt as stop:
        print(f"leanvit: {stop or 'interrupted before the first step'}", file=sys.stderr)
        return 130


def pretrain(arguments: list[str]) -> int:
    """`leanvit pretrain`: names first (recipe, backbone, optimizer), then the options they fix."""
    parser = argparse.ArgumentParser(
        prog="leanvit pretrain",
        description="Pre-train a backbone on a folder of images.",
        epilog="Every other option is named by its section, such as --train.batch 32 or "
        "--method.views.local-counts 4; `leanvit pretrain RECIPE --help` lists them with their "
        "defaults. Durations are words: 10ep (epochs), 2000st (steps), 1e6img (images), 5% (of the "
        "run).",
        allow_abbrev=False,
        add_help=not arguments or arguments[0].startswith("-"),
    )
    parser.add_argument("recipe", help="one of " + ", ".join(RECIPES))
    parser.add_argument("--data", default="", help="folder of images, of any depth")
    parser.add_argument("--out", help="folder that everything is written to")
    parser.add_argument("--backbone", default="", help="one of " + ", ".join(BACKBONES))
    parser.add_argument("--optimizer", default="", help="one of " + ", ".join(KINDS[OptimConfig]))
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--help-all", action="store_true", help="list every option of RECIPE")
    names, rest = parser.parse_known_args(arguments)
    config = compose(
        recipe(names.recipe), data=names.data, backbone=names.backbone, optimizer=names.optimizer
    )
    options = parse_options(config, ["--help"] if names.help_all else rest)
    if not names.out:
        raise ValueError("Name a folder for the results: --out FOLDER.")
    from leanvit.run import pretrain as run

    backbone = run(
        names.recipe,
        out=names.out,
        data=names.data,
        backbone=names.backbone,
        optimizer=names.optimizer,
        options=options,
        resume=names.resume,
        overwrite=names.overwrite,
    )
    print(f"The backbone is in {backbone}")
    return 0


def parse_options(config: RunConfig, arguments: list[str]) -> dict[str, Any]:
    """Return the options that dotted arguments set, by name; `config` fixes their types.

    Exits with code 2, after saying why and what was probably meant, for an unknown option or a
    value that does not fit.
    """
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def duration(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Duration] | None:
        if info.type is not Duration:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="DURATION",
            instance_from_str=lambda words: Duration.parse(words[0]),
            is_instance=lambda value: isinstance(value, Duration),
            str_from_instance=lambda value: [str(value)],
        )

    with registry:
        parsed = tyro.cli(
            RunConfig, default=config, args=arguments, prog=f"leanvit pretrain {config.recipe}"
        )
    named = {word.removeprefix("--").split("=")[0].replace("-", "_") for word in arguments}
    before = dict(leaves(to_dict(config)))
    return {
        name: value
        for name, value in leaves(to_dict(parsed))
        if name in named or value != before[name]
    }


COMMANDS: Mapping[str, Callable[[list[str]], int]] = MappingProxyType({"pretrain": pretrain})
