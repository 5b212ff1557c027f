"""Commands about runs: begin one, look before it begins, look into one step."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from leanvit.commands.words import add_common
from leanvit.config import BACKBONES, RunConfig, compose, load_config
from leanvit.config.convert import KINDS
from leanvit.config.duration import Duration
from leanvit.config.resume import RESOLVED, read_past
from leanvit.config.run import OptimConfig
from leanvit.config.words import Parser, add_options, parse_options
from leanvit.recipes import RECIPES, recipe

COMMON = (
    *("init", "init_from", "data.workers", "data.max_unreadable"),
    *("backbone.image_size", "method.teacher", "method.mask_ratio"),
    *("method.views.global_size", "method.views.local_sizes", "method.views.local_counts"),
    "method.views.size",
    *("method.head.prototypes", "method.region_start", "method.teacher_momentum.start"),
    *("optim.lr.peak", "optim.weight_decay.peak"),
    *("train.duration", "train.batch", "train.accumulate", "train.precision", "train.device"),
    *("train.seed", "train.save_every", "watch.every", "watch.val"),
)
"""The options that people change: what --help shows of a run's."""


def pretrain(arguments: list[str]) -> int:
    """`leanvit pretrain`: images to backbone."""
    parser = _run_parser(
        "pretrain", "Pre-train a backbone on images.", out="folder that everything is written to"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--autoresume", action="store_true", help="continue the run in --out, or begin it"
    )
    parser.add_argument(
        "--allow",
        default="",
        metavar="NAME[,NAME...]",
        help="options that a continued run may change",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    found = _run_request(parser, arguments)
    if found is None:
        return 0
    names, options = found
    if not names.out:
        raise ValueError("Name a folder for the results: --out FOLDER.")
    from leanvit.core.distributed import rank
    from leanvit.folder import SUMMARY
    from leanvit.pretraining import pretrain as run

    backbone = run(
        load_config(Path(names.config)) if names.config else names.recipe,
        out=names.out,
        data=names.data,
        backbone=names.backbone,
        optimizer=names.optimizer,
        options=options,
        resume=names.resume,
        autoresume=names.autoresume,
        allow=names.allow.replace("-", "_").replace(",", " ").split(),
        overwrite=names.overwrite,
    )
    if rank():
        return 0  # the first process speaks for all
    if names.json:
        print((Path(names.out) / SUMMARY).read_text(), end="")
    else:
        print(
            f"The backbone is in {backbone}, pictures of what the run saw and learned beside it.\n"
            f"Evaluate it: leanvit evaluate knn {names.out} --data FOLDER-WITH-CLASSES"
        )
    return 0


def check(arguments: list[str]) -> int:
    """`leanvit check`: the same words as for `pretrain`, but some steps and no run."""
    parser = _run_parser(
        "check",
        "Say what a run would see, need and take: reads every image, does some steps.",
        out="folder for a picture of the views and for the report (default check)",
    )
    found = _run_request(parser, arguments)
    if found is None:
        return 0
    names, options = found
    from leanvit.preflight import check as run

    report = run(
        load_config(Path(names.config)) if names.config else names.recipe,
        out=names.out or "check",
        data=names.data,
        backbone=names.backbone,
        optimizer=names.optimizer,
        options=options,
    )
    print(json.dumps(report.to_dict(), indent=2) if names.json else report)
    return 2 if report.would_stop else 0


def replay(arguments: list[str]) -> int:
    """`leanvit replay`: one step of a run once more, by default its last bad one."""
    parser = Parser(
        prog="leanvit replay",
        usage="leanvit replay RUN [--step N] [--from N] [--out DIR] [options]",
        description="Do one step of a run once more, by default the last that stood out, and say "
        "what happens in it. RUN is its folder, which stays as it is. Exit code 0: it is as in the "
        "run, bad again or sound again; 1: it is not.",
        epilog="Options of the run hold from the first step that is done: train.precision, "
        "train.device, those of method, backbone and guard; with --from, those of optim.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--step", type=int, help="step, from 0 (default the last bad one)")
    parser.add_argument("--from", dest="since", type=int, help="step to begin at (default --step)")
    parser.add_argument(
        "--out", default="replay", help="folder for the picture and the report (default replay)"
    )
    add_common(parser)
    names, rest = parser.parse_known_args(arguments)
    if names.help:
        print(parser.format_help())
        return 0
    if not rest or rest[0].startswith("-"):
        raise ValueError("Name a run first: the folder that `leanvit pretrain` wrote.")
    from leanvit.config.resume import read_past
    from leanvit.replaying import replay as run

    config = read_past(Path(rest[0])).resolved.config
    options = parse_options(config, rest[1:], ("step", "from", "out", "json"))
    report = run(rest[0], names.step, since=names.since, out=names.out, options=options)
    print(json.dumps(report.to_dict(), indent=2) if names.json else report)
    return 0 if report.same else 1


def _run_parser(command: str, text: str, *, out: str) -> Parser:
    parser = Parser(
        prog=f"leanvit {command}",
        usage=f"leanvit {command} RECIPE --data SOURCE "
        f"{'--out DIR' if command == 'pretrain' else '[--out DIR]'} [options]",
        description=f"{text} RECIPE is one of {', '.join(RECIPES)}.",
        epilog="Durations are words: 10ep (epochs), 2000st (steps), 1e6img (images), 5% (of the "
        "run), 30m and 2h (as many steps as take so long). --help shows the options that people "
        "change, --help-all all of them.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.set_defaults(recipe="")
    parser.add_argument(
        "--data", default="", help="folder of any depth, list file, archive, or sample"
    )
    parser.add_argument("--out", default="", help=out)
    parser.add_argument(
        "--backbone", default="", help="timm:NAME or one of " + ", ".join(BACKBONES)
    )
    parser.add_argument("--optimizer", default="", help="one of " + ", ".join(KINDS[OptimConfig]))
    parser.add_argument(
        "--budget", default="", help="time for all steps, such as 30m or 2h: a train.duration"
    )
    parser.add_argument(
        "--config", help="config.json or resolved.json of a run, in place of RECIPE"
    )
    add_common(parser)
    parser.add_argument("--help-all", action="store_true", help="list every option")
    return parser


def _run_request(parser: Parser, arguments: list[str]) -> tuple[Namespace, dict[str, Any]] | None:
    """Return the names and the options of a run; None after help was printed.

    Names come first, since they fix which options there are and what they default to.
    """
    names, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("-"):
        names.recipe = rest.pop(0)
    if names.config and names.recipe:
        raise ValueError(
            f"--config stands in place of a recipe, but both were given: {names.recipe!r}."
        )
    config = _named_config(names)
    if names.help or names.help_all:
        known = () if names.help_all else COMMON
        add_options(parser, config, shown=known)
        print(f"{parser.format_help()}\nDefaults are those of the recipe, here {config.recipe}.")
        return None
    options = parse_options(config, rest)
    return names, {**options, **_budget(names.budget, options)}


def _budget(budget: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the length that a budget stands for."""
    if not budget:
        return {}
    if "train.duration" in options:
        raise ValueError("--budget and --train.duration both say how long a run is: give one.")
    try:
        time = Duration.parse(budget)
    except ValueError:
        time = Duration(0, "st")
    if not time.timed or not time.amount:
        raise ValueError(f"A budget is a time, such as 30m or 2h, not {budget!r}.")
    return {"train.duration": budget}


def _named_config(names: Namespace) -> RunConfig:
    """Return the configuration that the names alone ask for."""
    helping = names.help or names.help_all
    folder = Path(names.out) if names.out else None
    resuming = folder and getattr(names, "resume", False)
    found = folder and getattr(names, "autoresume", False) and (folder / RESOLVED).exists()
    if names.config:
        config = load_config(Path(names.config))
    elif names.recipe or helping:
        config = recipe(names.recipe or "esvit")
    elif folder and (resuming or found):
        config = read_past(folder).asked
    else:
        raise ValueError(f"Name a recipe first: {', '.join(RECIPES)}; or --config FILE.")
    return compose(config, backbone=names.backbone, optimizer=names.optimizer)
