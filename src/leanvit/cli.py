"""The command line: one table of commands. Torch is imported when a command runs, not before."""

import json
import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import leanvit
from leanvit.config import BACKBONES, RunConfig, compose, load_config, look_up
from leanvit.config.bench import BENCH_CONFIGS, BenchDataConfig, BenchForwardConfig
from leanvit.config.convert import KINDS, replace_options
from leanvit.config.dense import DenseConfig
from leanvit.config.evaluation import (
    EVALUATION_CONFIGS,
    FEATURE_FILES,
    CompareConfig,
    EmbedConfig,
    EvaluationConfig,
)
from leanvit.config.resume import RESOLVED, read_past
from leanvit.config.run import OptimConfig
from leanvit.config.weights import ConvertConfig
from leanvit.config.words import Parser, add_options, parse_options
from leanvit.core.errors import GoneError, RunError, Stopped
from leanvit.recipes import RECIPES, recipe

USAGE = """leanvit: turn a folder of unlabelled images into a small, strong vision backbone.

  leanvit check RECIPE --data FOLDER            what a run would see, need and take
  leanvit pretrain RECIPE --data FOLDER --out DIR       images to backbone
  leanvit replay RUN [--step N]                 one step of a run once more, looked into
  leanvit evaluate knn MODEL --data FOLDER      classes by neighbours (linear, layers, lowshot)
  leanvit evaluate finetune MODEL --data FOLDER classes by training all weights
  leanvit evaluate transfer MODEL --data FOLDER classes of up to 24 data sets, beside a paper's
  leanvit evaluate segment MODEL --data FOLDER  a class for every pixel
  leanvit evaluate detect MODEL --data FOLDER   boxes, and masks, of objects
  leanvit evaluate robust MODEL --data FOLDER   classes under noise, blur and weather
  leanvit evaluate correspondence MODEL --data FOLDER   regions found again in a second view
  leanvit evaluate compare RUN [RUN ...]        what was found of several backbones, side by side
  leanvit embed MODEL --data FOLDER --out FILE  features to .npz, .parquet, .safetensors or .csv
  leanvit convert MODEL [--to FORMAT --out PATH]        weights of other codes in, other formats out
  leanvit backbones [NAME ...]                  the networks that have a name, in figures
  leanvit bench loss | forward | data           time and memory, beside other code
  leanvit --version

Every command answers --help, and --json prints its result as one JSON object on stdout.
--data is a folder of any depth, a list file, a .zip, .tar, .tsv or .parquet file, WebDataset
shards, torchvision:NAME@FOLDER, or `sample`, photographs that come with the package.
MODEL is the folder of a run, a backbone file, a checkpoint of another code (docs/weights.md),
timm:NAME.TAG for trained weights of timm, or the name of an untrained backbone, also timm:NAME."""

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    2 for a mistake in the request, 1 for a failed run, 128 and its number for a signal.
    """
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
        _complain(error)
        return 2
    except Stopped as stop:
        _complain(stop)
        return 128 + stop.signal
    except RunError as error:
        _complain(error)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None
        return 0
    except KeyboardInterrupt as stop:
        _complain(stop)
        return 130


def _complain(error: BaseException) -> None:
    """Say what went wrong: once, where several processes were started and all would say it."""
    from leanvit.core.console import warn
    from leanvit.core.launch import launch

    text = str(error) or "interrupted"
    try:
        here = launch()
    except ValueError:  # this may be the error
        here = None
    if here is None or here.world == 1:
        warn(text)
        return
    from leanvit.core.distributed import speaking

    with speaking(text, of_another=isinstance(error, GoneError)) as mine:
        if mine:
            who = f"rank {here.rank}: " if here.rank else ""
            warn(f"{who}{text}")


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
    from leanvit.run import pretrain as run

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
    """`leanvit check`: the same words as for `pretrain`, but three steps and no run."""
    parser = _run_parser(
        "check",
        "Say what a run would see, need and take: reads every image, does three steps.",
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
    _add_common(parser)
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


def evaluate(arguments: list[str]) -> int:
    """`leanvit evaluate NAME`, of those of `EVALUATION_CONFIGS`, or compare."""
    if not arguments:
        raise ValueError(f"Name an evaluation: {', '.join(EVALUATION_CONFIGS)}.")
    if arguments[0].startswith("-"):
        print("usage: leanvit evaluate NAME MODEL --data SOURCE [options]\n\nNAME is one of:")
        for name, kind in EVALUATION_CONFIGS.items():
            print(f"  {name:14} {kind.__doc__}")
        print(f"  {'compare':14} {CompareConfig.__doc__}")
        print("\n`leanvit evaluate NAME --help` lists the options.")
        return 0
    name = arguments[0]
    if name == "compare":
        return compare(arguments[1:])
    config = look_up("evaluation", name, EVALUATION_CONFIGS)()
    found = _model_request(f"evaluate {name}", config, arguments[1:])
    if found is None:
        return 0
    names, options = found
    from leanvit.core.distributed import rank
    from leanvit.evaluation.evaluate import evaluate as run

    result = run(name, names.model, options=options)
    if rank() == 0:  # it speaks for all
        print(json.dumps(result.to_dict(), indent=2) if names.json else result)
    return 0


def compare(arguments: list[str]) -> int:
    """`leanvit evaluate compare`: one table of several backbones, and a picture."""
    config = CompareConfig()
    parser = Parser(
        prog="leanvit evaluate compare",
        usage="leanvit evaluate compare MODEL [MODEL ...] [--out FOLDER] [options]",
        description=f"{config.__doc__} MODEL is the folder of a run that was evaluated, or any "
        "other whose results are in the file --results.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--out", default="", help="folder for the picture efficiency.png")
    parser.add_argument("--results", default="", help="file of results of models without a folder")
    _add_common(parser)
    names, rest = parser.parse_known_args(arguments)
    if names.help:
        add_options(parser, config)
        print(parser.format_help())
        return 0
    count = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    if not count:
        raise ValueError("Name the models to compare first: folders of runs.")
    options = parse_options(config, rest[count:], ("out", "results", "json"))
    from leanvit.analysis.comparison import compare as run

    found = run(rest[:count], out=names.out, results=names.results, options=options)
    print(json.dumps(found.to_dict(), indent=2) if names.json else found)
    return 0


def embed(arguments: list[str]) -> int:
    """`leanvit embed`: features to a file."""
    endings = " or ".join([", ".join(FEATURE_FILES[:-1]), FEATURE_FILES[-1]])
    usage = "--data SOURCE --out FILE"
    found = _model_request("embed", EmbedConfig(), arguments, usage, f"file: {endings}")
    if found is None:
        return 0
    names, options = found
    if not names.out:
        raise ValueError(f"Name a file for the features: --out FILE, ending in {endings}.")
    from leanvit.evaluation.embedding import embed as run

    written = run(names.model, out=names.out, options=options)
    print(json.dumps({"features": str(written)}) if names.json else f"Features are in {written}")
    return 0


def convert(arguments: list[str]) -> int:
    """`leanvit convert`: weights of any known code in any known format."""
    usage = "[--to FORMAT --out PATH]"
    found = _model_request("convert", ConvertConfig(), arguments, usage, "file or folder to write")
    if found is None:
        return 0
    names, options = found
    from leanvit.weights.converting import convert as run

    converted = run(names.model, out=names.out, options=options)
    print(json.dumps(converted.to_dict(), indent=2) if names.json else converted)
    return 0


def backbones(arguments: list[str]) -> int:
    """`leanvit backbones [NAME ...]`: the catalogue in figures."""
    parser = Parser(
        prog="leanvit backbones",
        usage="leanvit backbones [NAME ...] [--json]",
        description="Parameters, multiply-adds and region features of backbones, all if none is "
        "named.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="timm:NAME, or any of " + ", ".join(BACKBONES)
    )
    _add_common(parser)
    names = parser.parse_args(arguments)
    if names.help:
        print(parser.format_help())
        return 0
    from leanvit.backbones.sizes import describe_backbones

    table = describe_backbones(names.names)
    print(json.dumps(table.to_dict(), indent=2) if names.json else table)
    return 0


def bench(arguments: list[str]) -> int:
    """`leanvit bench NAME`: measured speed."""
    if not arguments:
        raise ValueError(f"Name what to measure: {', '.join(BENCH_CONFIGS)}.")
    if arguments[0].startswith("-"):
        print("usage: leanvit bench NAME [options]\n\nNAME is one of:")
        for name, kind in BENCH_CONFIGS.items():
            print(f"  {name:8} {kind.__doc__}")
        return 0
    config = look_up("bench", arguments[0], BENCH_CONFIGS)()
    parser = Parser(
        prog=f"leanvit bench {arguments[0]}",
        description=config.__doc__,
        allow_abbrev=False,
        add_help=False,
    )
    _add_common(parser)
    names, rest = parser.parse_known_args(arguments[1:])
    if names.help:
        add_options(parser, config)
        print(parser.format_help())
        return 0
    options = parse_options(config, rest)
    config = replace_options(config, options)
    report: Any
    if isinstance(config, BenchDataConfig):
        from leanvit.bench.data import bench_data

        report = bench_data(config)
    elif isinstance(config, BenchForwardConfig):
        from leanvit.bench.forward import bench_forward

        report = bench_forward(config)
    else:
        from leanvit.bench.loss import bench_loss

        report = bench_loss(config)
    print(json.dumps(report.to_dict(), indent=2) if names.json else report)
    return 0


def _run_parser(command: str, text: str, *, out: str) -> Parser:
    parser = Parser(
        prog=f"leanvit {command}",
        usage=f"leanvit {command} RECIPE --data SOURCE "
        f"{'--out DIR' if command == 'pretrain' else '[--out DIR]'} [options]",
        description=f"{text} RECIPE is one of {', '.join(RECIPES)}.",
        epilog="Durations are words: 10ep (epochs), 2000st (steps), 1e6img (images), 5% (of the "
        "run). --help shows the options that people change, --help-all all of them.",
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
        "--config", help="config.json or resolved.json of a run, in place of RECIPE"
    )
    _add_common(parser)
    parser.add_argument("--help-all", action="store_true", help="list every option")
    return parser


def _add_common(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("-h", "--help", action="store_true", help="list the options")


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
    return names, parse_options(config, rest)


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


def _model_request(
    command: str,
    config: EmbedConfig | EvaluationConfig | DenseConfig | ConvertConfig,
    arguments: list[str],
    usage: str = "--data SOURCE",
    out: str = "",
) -> tuple[Namespace, dict[str, Any]] | None:
    """Return the names and the options of what is done with a model; None after help."""
    parser = Parser(
        prog=f"leanvit {command}",
        usage=f"leanvit {command} MODEL {usage} [options]",
        description=f"{type(config).__doc__} MODEL is the folder of a run, a backbone file, a "
        "checkpoint of another code, timm:NAME.TAG, or a backbone's name.",
        allow_abbrev=False,
        add_help=False,
    )
    if out:
        parser.add_argument("--out", default="", help=out)
    _add_common(parser)
    parser.add_argument("--help-all", action="store_true", help=SUPPRESS)  # --help lists all here
    names, rest = parser.parse_known_args(arguments)
    if names.help or names.help_all:
        add_options(parser, config)
        print(parser.format_help())
        return None
    if not rest or rest[0].startswith("-"):
        raise ValueError(
            "Name a model first: the folder of a run, a file of weights or a backbone's name."
        )
    names.model = rest[0]
    return names, parse_options(config, rest[1:], ("out", "json") if out else ("json",))


COMMANDS: Mapping[str, Callable[[list[str]], int]] = MappingProxyType(
    {
        "check": check,
        "pretrain": pretrain,
        "replay": replay,
        "evaluate": evaluate,
        "embed": embed,
        "convert": convert,
        "backbones": backbones,
        "bench": bench,
    }
)
