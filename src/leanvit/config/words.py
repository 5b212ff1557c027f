"""Options as words on a command line: listed from the dataclasses, read back by their types."""

import argparse
import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NoReturn, get_args, get_origin

from leanvit.config.convert import replace_options, unknown_option
from leanvit.config.duration import Duration, Schedule
from leanvit.config.run import RunConfig

METAVARS = {int: "INT", float: "NUMBER", str: "WORD", bool: "true|false", Duration: "DURATION"}


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a configuration."""

    name: str
    """Dotted name."""
    hint: Any
    """Its type."""
    value: Any
    """Its value now."""
    doc: str
    """What its docstring says."""


def options_of(config: Any, place: str = "", about: str = "") -> Iterator[Option]:
    """Yield every option of a configuration, section by section.

    about: what the values of a schedule are values of.
    """
    kind: Any = type(config)
    hints, docs = typing.get_type_hints(kind), field_docs(kind)
    for field in dataclasses.fields(config):
        value, name, doc = getattr(config, field.name), f"{place}{field.name}", docs[field.name]
        if isinstance(value, Schedule):
            yield from options_of(value, f"{name}.", f"{doc.partition(';')[0].rstrip('.')}: ")
        elif dataclasses.is_dataclass(value) and not isinstance(value, Duration):
            yield from options_of(value, f"{name}.")
        elif not (isinstance(config, RunConfig) and name == "recipe"):
            doc = about + doc[0].lower() + doc[1:] if about else doc
            yield Option(name, hints[field.name], value, doc)


@cache
def field_docs(cls: Any) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, its own and the inherited ones."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(ast.Constant(str(text))):
                        docs[field.target.id] = text
    return docs


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors of one sentence, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong as a ValueError."""
        raise ValueError(f"{message.removeprefix('argument ').rstrip('.')}.")


def add_options(parser: argparse.ArgumentParser, config: Any, shown: Collection[str] = ()) -> None:
    """Add every option of a configuration; help lists those in `shown`, or all if it is empty."""
    for option in options_of(config):
        plain = _plain(option.hint)
        arity: dict[str, Any] = {}
        if plain is bool:
            arity = {"nargs": "?", "const": "true"}
        elif get_origin(plain) is tuple:
            arity = {"nargs": "*"}
        hidden = shown and option.name not in shown
        text = f"{option.doc.rstrip('.')} (default {_spell(option.value)})".replace("%", "%%")
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            dest=option.name,
            default=argparse.SUPPRESS,
            metavar=_metavar(plain),
            help=argparse.SUPPRESS if hidden else text,
            **arity,
        )


def parse_options(
    config: Any, arguments: Sequence[str], also: Collection[str] = ()
) -> dict[str, Any]:
    """Return the options that arguments such as `--train.batch 32` set, by dotted name.

    Underscores count as hyphens, `--name=value` as two words, and `2,2` as two numbers. also: words
    of the command that are no options of the configuration, which a message lists with them. Raises
    ValueError for an unknown option, with the nearest one, and for a value that does not fit.
    """
    words = [
        name.replace("_", "-") + equals + value if word.startswith("--") else word
        for word in arguments
        for name, equals, value in [word.partition("=")]
    ]
    parser = Parser(add_help=False, allow_abbrev=False)
    add_options(parser, config)
    known = {option.name: option for option in options_of(config)}
    found, rest = parser.parse_known_args(words)
    for word in rest:
        if word.startswith("--"):
            spelled = {name.replace("_", "-"): None for name in (*known, *also)}
            raise unknown_option(word[2:].partition("=")[0], spelled)
        raise ValueError(f"{word!r} belongs to no option; every value follows its option's name.")
    options = {name: _value(known[name].hint, value) for name, value in vars(found).items()}
    replace_options(config, options)  # whether values fit is said here, in the same words as ever
    return options


def _plain(hint: Any) -> Any:
    """Return the type beside "auto"."""
    if get_origin(hint) in (typing.Union, type(int | str)):
        return next(option for option in get_args(hint) if get_origin(option) is not Literal)
    return hint


def _metavar(plain: Any) -> str:
    if get_origin(plain) is Literal:
        return "|".join(map(str, get_args(plain)))
    if get_origin(plain) is tuple:
        return _metavar(get_args(plain)[0])
    return METAVARS[plain]


def _value(hint: Any, words: Any) -> Any:
    """Return words as the plain value that they spell; what spells none stays a word."""
    if isinstance(words, list):
        each = get_args(_plain(hint))[0]
        if each in (int, float):  # also as one word: 2,2 and [2, 2]
            words = re.findall(r"[^\s,()[\]]+", " ".join(words))
        return [_value(each, word) for word in words]
    plain = _plain(hint)
    if plain is bool:
        return {"true": True, "false": False}.get(words.lower(), words)
    if plain in (int, float):
        try:
            return plain(words)
        except ValueError:
            return words
    return words


def _spell(value: Any) -> str:
    """Return a value as one would write it on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(_spell, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
