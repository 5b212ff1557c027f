"""What several commands understand in the same way."""

from argparse import SUPPRESS, Namespace
from typing import Any

from leanvit.config.analysis import AnyAnalysis
from leanvit.config.dense import DenseConfig
from leanvit.config.evaluation import CompareConfig, EmbedConfig, EvaluationConfig
from leanvit.config.weights import ConvertConfig
from leanvit.config.words import Parser, add_options, parse_options

Options = EmbedConfig | EvaluationConfig | DenseConfig | ConvertConfig | CompareConfig | AnyAnalysis

MODEL = (
    "MODEL is the folder of a run, a backbone file, a checkpoint of another code, timm:NAME.TAG, "
    "or a backbone's name."
)
ONE = "Name a model first: the folder of a run, a file of weights or a backbone's name."
SEVERAL = "Name a model or more first: folders of runs, files of weights, or backbones' names."


def add_common(parser: Parser) -> None:
    """Add what every command answers."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("-h", "--help", action="store_true", help="list the options")


def model_request(
    command: str,
    config: Options,
    arguments: list[str],
    usage: str = "--data SOURCE",
    out: str = "",
) -> tuple[Namespace, dict[str, Any]] | None:
    """Return the names and the options of what is done with a model; None after help."""
    words = {"out": out} if out else {}
    found = models_request(command, config, arguments, usage=usage, most=1, **words)
    if found is not None:
        found[0].model = found[0].models[0]
    return found


def models_request(
    command: str,
    config: Options,
    arguments: list[str],
    *,
    usage: str,
    text: str = MODEL,
    most: int | None = None,
    **words: str,
) -> tuple[Namespace, dict[str, Any]] | None:
    """Return the names and the options of what is done with several models; None after help.

    most: of models, 1 or any number; words: names that are no options of the configuration, such as
    out, and their help.
    """
    named = "MODEL" if most == 1 else "MODEL [MODEL ...]"
    parser = Parser(
        prog=f"leanvit {command}",
        usage=f"leanvit {command} {named} {usage} [options]",
        description=f"{type(config).__doc__} {text}",
        allow_abbrev=False,
        add_help=False,
    )
    for word, said in words.items():
        parser.add_argument(f"--{word}", default="", help=said)
    add_common(parser)
    parser.add_argument("--help-all", action="store_true", help=SUPPRESS)  # --help lists all here
    names, rest = parser.parse_known_args(arguments)
    if names.help or names.help_all:
        add_options(parser, config)
        print(parser.format_help())
        return None
    count = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    if not count:
        raise ValueError(ONE if most == 1 else SEVERAL)
    count = min(count, most or count)
    names.models = rest[:count]
    return names, parse_options(config, rest[count:], (*words, "json"))
