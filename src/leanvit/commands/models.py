"""Commands about finished backbones: evaluate, compare, embed, convert, list them."""

import json
from pathlib import Path

from leanvit.commands.words import add_common, model_request, models_request
from leanvit.config import BACKBONES, look_up
from leanvit.config.analysis import ANALYSIS_CONFIGS
from leanvit.config.evaluation import (
    EVALUATION_CONFIGS,
    FEATURE_FILES,
    CompareConfig,
    EmbedConfig,
)
from leanvit.config.weights import ConvertConfig
from leanvit.config.words import Parser


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
    found = model_request(f"evaluate {name}", config, arguments[1:])
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
    found = models_request(
        "evaluate compare",
        CompareConfig(),
        arguments,
        usage="[--out FOLDER]",
        text="MODEL is the folder of a run that was evaluated, or any other whose results are in "
        "the file --results.",
        out="folder for the picture efficiency.png",
        results="file of results of models without a folder",
    )
    if found is None:
        return 0
    names, options = found
    from leanvit.analysis.comparison import compare as run

    result = run(names.models, out=names.out, results=names.results, options=options)
    print(json.dumps(result.to_dict(), indent=2) if names.json else result)
    return 0


def analyze(arguments: list[str]) -> int:
    """`leanvit analyze NAME`, of those of `ANALYSIS_CONFIGS`."""
    if not arguments:
        raise ValueError(f"Name an analysis: {', '.join(ANALYSIS_CONFIGS)}.")
    if arguments[0].startswith("-"):
        print("usage: leanvit analyze NAME MODEL [MODEL ...] --data SOURCE [options]\n")
        print("NAME is one of:")
        for name, kind in ANALYSIS_CONFIGS.items():
            print(f"  {name:14} {kind.__doc__}")
        print("\n`leanvit analyze NAME --help` lists the options.")
        return 0
    name = arguments[0]
    config = look_up("analysis", name, ANALYSIS_CONFIGS)()
    found = models_request(
        f"analyze {name}",
        config,
        arguments[1:],
        usage="--data SOURCE [--out FOLDER]",
        out="folder for pictures and figures (default analysis)",
    )
    if found is None:
        return 0
    names, options = found
    from leanvit.analysis.analyze import FOLDER
    from leanvit.analysis.analyze import analyze as run

    result = run(name, names.models, out=names.out or FOLDER, options=options)
    if names.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        written = ", ".join(str(Path(result.facts["out"]) / file) for file in result.facts["files"])
        print(f"{result}\nWritten: {written}")
    return 0


def embed(arguments: list[str]) -> int:
    """`leanvit embed`: features to a file."""
    endings = " or ".join([", ".join(FEATURE_FILES[:-1]), FEATURE_FILES[-1]])
    usage = "--data SOURCE --out FILE"
    found = model_request("embed", EmbedConfig(), arguments, usage, f"file: {endings}")
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
    found = model_request("convert", ConvertConfig(), arguments, usage, "file or folder to write")
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
    add_common(parser)
    names = parser.parse_args(arguments)
    if names.help:
        print(parser.format_help())
        return 0
    from leanvit.backbones.sizes import describe_backbones

    table = describe_backbones(names.names)
    print(json.dumps(table.to_dict(), indent=2) if names.json else table)
    return 0
