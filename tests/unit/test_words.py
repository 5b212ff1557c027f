"""Options as words: every field is listed with its docstring, every type is read, or refused."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import pytest

from leanvit.config import (
    BACKBONES,
    Duration,
    OptimConfig,
    compose,
    replace_options,
    to_dict,
)
from leanvit.config.analysis import ANALYSIS_CONFIGS
from leanvit.config.convert import KINDS, leaves
from leanvit.config.evaluation import EVALUATION_CONFIGS, EmbedConfig, KnnConfig, LinearConfig
from leanvit.config.words import Parser, add_options, field_docs, options_of, parse_options
from leanvit.recipes import RECIPES, recipe

CONFIGS: dict[str, Any] = {
    **{name: recipe(name) for name in RECIPES},
    **{name: compose(recipe("esvit"), backbone=name) for name in BACKBONES},
    **{name: compose(recipe("esvit"), optimizer=name) for name in KINDS[OptimConfig]},
    **{f"evaluate {name}": kind() for name, kind in EVALUATION_CONFIGS.items()},
    **{f"analyze {name}": kind() for name, kind in ANALYSIS_CONFIGS.items()},
    "embed": EmbedConfig(),
}
"""Every configuration that a command may start from."""


def spelled(name: str, value: Any) -> list[str]:
    """Return the words that a person would set an option to a plain value with."""
    values = value if isinstance(value, list) else [value]
    words = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    return [f"--{name.replace('_', '-')}", *words]


# Listing


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_is_an_option_with_its_docstring(name: str) -> None:
    found = list(options_of(CONFIGS[name]))
    plain = dict(leaves(to_dict(CONFIGS[name])))
    assert [option.name for option in found] == list(plain), "each once, in the order of the fields"
    for option in found:
        assert option.doc and option.doc.endswith(".") and "\n" not in option.doc, option.name
        value = str(option.value) if isinstance(option.value, Duration) else option.value
        assert (list(value) if isinstance(value, tuple) else value) == plain[option.name]


def test_the_values_of_a_schedule_say_what_they_are_values_of() -> None:
    docs = {option.name: option.doc for option in options_of(recipe("esvit"))}
    assert docs["optim.lr.warmup"] == "Learning rate: length of the linear warm-up."
    assert docs["optim.weight_decay.peak"] == "Weight decay: value at the end of the warm-up."
    assert docs["train.batch"] == (
        "Images in a step, over all processes; auto for the most that fits and learns well."
    )


@dataclass
class Base:
    first: int = 0
    """The first."""
    second: float = 0.0
    """The second."""


@dataclass
class Child(Base):
    """A child."""

    second: float = 1.0
    """Another second."""
    third: str = ""
    fourth: bool = False
    """The fourth."""


def test_docstrings_of_fields_are_inherited() -> None:
    assert field_docs(Base) == {"first": "The first.", "second": "The second."}
    expected = {"first": "The first.", "second": "Another second.", "fourth": "The fourth."}
    assert field_docs(Child) == expected
    inherited = {field.name for field in dataclasses.fields(LinearConfig)}
    assert set(field_docs(LinearConfig)) == inherited
    assert field_docs(LinearConfig)["val"] == field_docs(KnnConfig)["val"]


def test_a_field_without_a_docstring_is_no_option() -> None:
    with pytest.raises(KeyError, match="third"):
        list(options_of(Child()))


@pytest.mark.parametrize("name", CONFIGS)
def test_help_shows_defaults_as_one_writes_them(name: str) -> None:
    parser = Parser(add_help=False, prog="x")
    add_options(parser, CONFIGS[name])
    said = " ".join(parser.format_help().split())
    for option in options_of(CONFIGS[name]):
        assert f"--{option.name.replace('_', '-')}" in said
    for default in re.findall(r"\(default (.*?)\)", said):
        assert not re.search(r"[\[\](]|True|False|None", default), default


def test_help_can_be_a_choice_of_options() -> None:
    parser = Parser(add_help=False, prog="x")
    add_options(parser, recipe("esvit"), shown=("train.batch", "data.max_unreadable"))
    shown = re.findall(r"^ +--(\S+)", parser.format_help(), re.MULTILINE)
    assert shown == ["data.max-unreadable", "train.batch"]
    assert "16" in parser.format_help() and "default 1)" in parser.format_help()


# Reading


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_is_read_back_from_its_words(name: str) -> None:
    config = CONFIGS[name]
    plain = dict(leaves(to_dict(config)))
    words = [word for option, value in plain.items() for word in spelled(option, value)]
    options = parse_options(config, words)
    assert list(options) == list(plain)
    assert replace_options(config, options) == config


READ: list[tuple[str, str, object]] = [
    ("--train.batch 32", "train.batch", 32),
    ("--train.batch=32", "train.batch", 32),
    ("--train.save_every 7st", "train.save_every", "7st"),
    ("--train.save_every=7st", "train.save_every", "7st"),
    ("--train.save-every 1e6img", "train.save_every", "1e6img"),
    ("--optim.clip 1", "optim.clip", 1.0),
    ("--optim.lr.peak 1e-3", "optim.lr.peak", 1e-3),
    ("--optim.lr-rule sqrt", "optim.lr_rule", "sqrt"),
    ("--data.source a_folder", "data.source", "a_folder"),
    ("--data.source=a_b=c", "data.source", "a_b=c"),
    ("--init=", "init", ""),
    ("--data.workers auto", "data.workers", "auto"),
    ("--data.workers 3", "data.workers", 3),
    ("--optim.decay-all-matrices", "optim.decay_all_matrices", True),
    ("--optim.decay-all-matrices true", "optim.decay_all_matrices", True),
    ("--method.head.train-gain false", "method.head.train_gain", False),
    ("--method.head.train_gain=False", "method.head.train_gain", False),
    ("--method.views.local-scale 0.1 0.5", "method.views.local_scale", [0.1, 0.5]),
    ("--optim.betas 0 1e-3", "optim.betas", [0.0, 1e-3]),
    ("--data.mean -1 -0.5 0", "data.mean", [-1.0, -0.5, 0.0]),
]


@pytest.mark.parametrize(("words", "name", "value"), READ, ids=[words for words, *_ in READ])
def test_words_become_values_of_their_type(words: str, name: str, value: object) -> None:
    found = parse_options(recipe("esvit"), words.split())
    assert found == {name: value}
    assert repr(found[name]) == repr(value), "1 is not 1.0, and true is not 1"


def test_tuples_may_be_empty_and_the_last_word_wins() -> None:
    words = "--method.views.local-sizes --method.views.local-counts --train.batch 2 --train.batch 4"
    options = parse_options(recipe("esvit"), words.split())
    assert options["method.views.local_sizes"] == options["method.views.local_counts"] == []
    assert options["train.batch"] == 4
    assert replace_options(recipe("esvit"), options).method.views.local_sizes == ()  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", ["96 64", "96,64", "[96, 64]", "(96,64)", "96, 64"])
def test_numbers_of_a_list_may_stand_in_one_word(words: str) -> None:
    name = "--method.views.local-sizes"
    counts = "--method.views.local-counts=4,2"  # which cannot be two words
    for given in ([name, *words.split()], [name, words], [f"{name}={words}"]):
        options = parse_options(recipe("esvit"), [*given, counts])
        assert options["method.views.local_sizes"] == [96, 64]
        assert options["method.views.local_counts"] == [4, 2]


def test_evaluations_have_options_without_a_section() -> None:
    words = "--k 1 5 --data photos --image_size auto --crop 0.5 --baselines false"
    options = parse_options(KnnConfig(), words.split())
    expected = {"k": [1, 5], "image_size": "auto", "crop": 0.5, "baselines": False}
    assert options == {"data": "photos", **expected}


def test_no_words_set_nothing() -> None:
    assert parse_options(recipe("esvit"), []) == {}


# Mistakes


REFUSED = [
    ("--train.batch two", "train.batch is 'two'; expected a whole number, or 'auto'."),
    ("--train.batch 2.5", "train.batch is '2.5'; expected a whole number, or 'auto'."),
    ("--train.batch 0", "train: batch is 0; expected at least 1."),
    ("--optim.clip much", "optim.clip is 'much'; expected a number."),
    ("--optim.clip nan", "optim: clip is nan; expected 0 or more."),
    ("--method.head.train-gain maybe", "method.head.train_gain is 'maybe'; expected true or false"),
    ("--train.precision fp16", "train.precision is 'fp16'; expected one of 'auto', 'fp32', 'bf16'"),
    ("--train.duration 10days", "train.duration: '10days' is not a duration; write 10ep"),
    ("--train.duration 10", "train.duration: '10' is not a duration; write 10ep"),
    ("--data.workers few", "data.workers is 'few'; expected a whole number, or 'auto'."),
    ("--optim.betas 0.9", "optim.betas is [0.9]; expected 2 values."),
    ("--optim.betas 0.9 much", "optim.betas is 'much'; expected a number."),
    ("--method.views.local-sizes 16.5", "method.views.local_sizes is '16.5'; expected a whole"),
    (
        "--method.views.local-sizes",
        "local_sizes () and local_counts (8,) differ in length",
    ),
    ("--train.batch", "--train.batch: expected one argument."),
    ("--train.batch --optim.clip 1", "--train.batch: expected one argument."),
    ("--train.batch 4 5", "'5' belongs to no option; every value follows its option's name."),
    ("--no-train-gain", "Unknown option 'no-train-gain'; did you mean 'method.head.train-gain'?"),
    ("--train.batsh 4", "Unknown option 'train.batsh'; did you mean 'train.batch'?"),
    ("--train.batsh=4", "Unknown option 'train.batsh'; did you mean 'train.batch'?"),
    ("--tain.batch 4", "Unknown option 'tain.batch'; did you mean 'train.batch'? Sections: "),
    ("--optim.batch 4", "Unknown option 'optim.batch'. Known: optim.betas, "),
    ("--method.head 4", "'method.head' is a section; its options are method.head.prototypes, "),
    ("--recipe dino", "Unknown option 'recipe'"),
    ("--kind dino", "Unknown option 'kind'"),
    ("--zzz 1", "Unknown option 'zzz'. Sections: backbone, data, guard, method, "),
    ("-b 4", "'-b' belongs to no option"),
    ("stray", "'stray' belongs to no option"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words for words, _ in REFUSED])
def test_a_mistake_is_answered_in_one_sentence(words: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_options(recipe("esvit"), words.split())
    said = str(caught.value)
    assert said.startswith(message) or message in said, said
    assert said.endswith(".") and "\n" not in said


BARE = [
    ("batch", "train.batch"),
    ("workers", "data.workers"),
    ("prototypes", "method.head.prototypes"),
    ("clip", "optim.clip"),
    ("data-workers", "data.workers"),
    ("max-unreadable", "data.max_unreadable"),
    ("seed", "train.seed"),
]


@pytest.mark.parametrize(("given", "meant"), BARE)
def test_an_option_without_its_section_is_found(given: str, meant: str) -> None:
    message = f"Unknown option {given!r}; did you mean {meant.replace('_', '-')!r}?"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_options(recipe("esvit"), [f"--{given}", "4"])


def test_an_unknown_option_of_an_evaluation_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'temperatur'; did you mean 'temperature'\?"):
        parse_options(KnnConfig(), ["--temperatur", "1"])
    with pytest.raises(ValueError, match=r"Unknown option 'neighbors'\. Known: baselines, "):
        parse_options(KnnConfig(), ["--neighbors", "1"])


def test_the_other_words_of_a_command_are_listed_too() -> None:
    with pytest.raises(ValueError, match=r"mean 'out'\?.* image-size, json, max-unreadable, out"):
        parse_options(EmbedConfig(), ["--outt", "1"], ("out", "json"))


def test_options_of_another_kind_are_unknown() -> None:
    vit = compose(recipe("esvit"), backbone="vit_tiny")
    assert parse_options(vit, ["--backbone.pool", "mean"]) == {"backbone.pool": "mean"}
    with pytest.raises(ValueError, match=r"Unknown option 'backbone\.pool'"):
        parse_options(recipe("esvit"), ["--backbone.pool", "mean"])


def test_a_parser_raises_what_it_would_print() -> None:
    parser = Parser(add_help=False, prog="x")
    parser.add_argument("--out")
    with pytest.raises(ValueError, match=r"^--out: expected one argument\.$"):
        parser.parse_args(["--out"])
