"""The command line as a person meets it: help, results as words and as JSON, and every mistake."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leanvit
from leanvit.cli import COMMANDS, main
from leanvit.commands.runs import COMMON
from leanvit.config import to_dict
from leanvit.config.analysis import ANALYSIS_CONFIGS
from leanvit.config.convert import leaves
from leanvit.config.evaluation import EVALUATION_CONFIGS, EmbedConfig
from leanvit.recipes import RECIPES, recipe
from tests.integration.command import TINY, Finished, Says, contents, leanvit_process, refused
from tests.tiny import write_images

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = {"data", "out", "backbone", "budget", "optimizer", "config", "json", "help", "help-all"}
"""What `check` takes beside the options of a run."""


def listed(text: str) -> set[str]:
    """Return the options that a help text lists, without their dashes."""
    return set(re.findall(r"^ +(?:-h, )?--([a-z0-9_.-]+)", text, re.MULTILINE))


def helped(capsys: Says, *arguments: str) -> str:
    """Return the help that a command prints."""
    assert main(arguments) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


def words(options: set[str]) -> set[str]:
    return {option.replace("_", "-") for option in options}


# Help


RESUMING = {"resume", "autoresume", "allow", "overwrite"}
"""Words of `pretrain` alone."""

HELP = [
    ("--version",),
    ("--help",),
    ("-h",),
    (),
    ("pretrain", "--help"),
    ("pretrain", "esvit", "--help"),
    ("pretrain", "-h"),
    ("pretrain", "dino", "--help-all"),
    ("check", "--help"),
    ("replay", "--help"),
    ("evaluate", "--help"),
    *[("evaluate", name, "--help") for name in EVALUATION_CONFIGS],
    ("analyze", "--help"),
    *[("analyze", name, "--help") for name in ANALYSIS_CONFIGS],
    ("embed", "--help"),
    ("convert", "--help"),
    ("backbones", "--help"),
    ("bench", "--help"),
    ("bench", "loss", "--help"),
    ("bench", "forward", "--help"),
]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_comes_without_torch(arguments: tuple[str, ...]) -> None:
    process = leanvit_process(*arguments, PYTHONPROFILEIMPORTTIME="1")
    assert process.returncode == 0
    assert "leanvit" in process.stdout
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert {"leanvit", "leanvit.cli", "leanvit.config"} <= imported
    heavy = {"torch", "torchvision", "numpy", "tensorboard", "PIL", "matplotlib", "rich"}
    assert not imported & heavy
    assert all(line.startswith("import time:") for line in process.stderr.splitlines())


def test_every_command_is_in_the_help(capsys: Says) -> None:
    assert {arguments[0] for arguments in HELP if arguments} >= set(COMMANDS)
    said = helped(capsys)
    for command in COMMANDS:
        assert f"leanvit {command} " in said


def test_importing_leanvit_does_not_import_torch() -> None:
    code = (
        "import sys, leanvit, leanvit.config, leanvit.recipes, leanvit.cli;"
        "print(leanvit.__version__, *dir(leanvit), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = (
        "__version__ analyze check compare convert describe_backbones embed evaluate "
        "list_backbones load_backbone pretrain replay"
    )
    assert done.stdout.strip() == f"{leanvit.__version__} {names} False"


def test_the_version_is_the_packages(capsys: Says) -> None:
    assert helped(capsys, "--version") == f"leanvit {leanvit.__version__}\n"


@pytest.mark.parametrize("name", ["", *RECIPES])
@pytest.mark.parametrize("command", ["pretrain", "check"])
def test_help_shows_what_people_change(command: str, name: str, capsys: Says) -> None:
    named = [name] if name else []
    every = {option for option, _ in leaves(to_dict(recipe(name or "esvit")))}
    shown = listed(helped(capsys, command, *named, "--help"))
    own = NAMES | (RESUMING if command == "pretrain" else set())
    assert shown == words(set(COMMON) & every) | own


@pytest.mark.parametrize("name", RECIPES)
def test_help_all_shows_every_option(name: str, capsys: Says) -> None:
    every = {option for option, _ in leaves(to_dict(recipe(name)))}
    shown = listed(helped(capsys, "pretrain", name, "--help-all"))
    assert shown == words(every) | NAMES | RESUMING


def test_what_people_change_are_options() -> None:
    every = {option for name in RECIPES for option, _ in leaves(to_dict(recipe(name)))}
    assert set(COMMON) <= every and len(COMMON) == len(set(COMMON)) <= 25


def test_help_fits_the_parts_that_were_named(capsys: Says) -> None:
    parts = ("--backbone", "vit_tiny", "--optimizer", "lars")
    shown = listed(helped(capsys, "pretrain", "esvit", *parts, "--help-all"))
    assert {"backbone.pool", "optim.trust"} <= shown
    assert not {"backbone.window", "optim.betas"} & shown


@pytest.mark.parametrize("name", [*EVALUATION_CONFIGS, "embed"])
def test_the_help_of_an_evaluation_shows_every_option(name: str, capsys: Says) -> None:
    command = ("embed",) if name == "embed" else ("evaluate", name)
    config = EmbedConfig() if name == "embed" else EVALUATION_CONFIGS[name]()
    shown = listed(helped(capsys, *command, "--help"))
    own = {"json", "help"} | ({"out"} if name == "embed" else set())
    assert shown == words(set(to_dict(config))) | own


def test_the_help_of_convert_needs_no_model(capsys: Says) -> None:
    for word in ("--help", "--help-all"):
        assert main(["convert", word]) == 0
        said = capsys.readouterr().out
        assert "--graph-size" in said and "--help-all" not in said


def test_evaluations_are_listed(capsys: Says) -> None:
    said = helped(capsys, "evaluate", "--help")
    for name, kind in EVALUATION_CONFIGS.items():
        assert name in said and str(kind.__doc__) in said


# Results


def results(run: Finished, out: Path) -> dict[str, list[str]]:
    """Return commands that end with a result."""
    model = [str(run.out), "--data", run.data, "--workers", "0"]
    return {
        "check": ["check", *run.arguments[1:], "--out", str(out / "check")],
        "knn": ["evaluate", "knn", *model, "--k", "1", "3"],
        "linear": ["evaluate", "linear", *model, "--blocks", "2", "--epochs=3", "--rates", "0.1"],
        "embed": ["embed", *model, "--out", str(out / "features.npz")],
    }


KEYS = {
    "check": {"images", "classes", "seconds_a_step", "problems"},
    "knn": {"name", "facts", "rows", "notes"},
    "linear": {"name", "facts", "rows", "notes"},
    "embed": {"features"},
}


@pytest.mark.parametrize("name", KEYS)
def test_json_is_one_object_on_stdout(name: str, run: Finished, tmp_path: Path) -> None:
    process = leanvit_process(*results(run, tmp_path)[name], "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert isinstance(found, dict) and KEYS[name] <= found.keys()
    assert process.stderr == ""


@pytest.mark.parametrize("name", KEYS)
def test_results_are_words_without_json(
    name: str, run: Finished, tmp_path: Path, capsys: Says
) -> None:
    assert main(results(run, tmp_path)[name]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    first = {
        "check": "images 12, 0 of them unreadable",
        "knn": "protocol features k=1 k=3 color raw pixels ",
        "linear": "protocol features top1 top5 ",
        "embed": f"Features are in {tmp_path / 'features.npz'}",
    }
    assert " ".join(out.split()).startswith(first[name]), out
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


def test_the_catalogue_is_a_table_or_json(capsys: Says) -> None:
    names = ["vit_tiny", "swin_tiny"]
    assert main(["backbones", *names]) == 0
    assert capsys.readouterr().out == f"{leanvit.describe_backbones(names)}\n"
    assert main(["backbones", *names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["backbones"]
    assert [entry["name"] for entry in found] == names
    assert found[1] == {
        "name": "swin_tiny",
        "family": "swin",
        "image_size": 224,
        "parameters": 27_519_354,
        "multiply_adds": 4_489_798_656,
        "stride": 32,
        "width": 768,
        "regions": [7, 7],
    }


def test_a_run_says_its_progress_on_stderr_and_its_summary_on_stdout(run: Finished) -> None:
    assert run.process.returncode == 0, run.process.stderr
    assert json.loads(run.process.stdout) == json.loads((run.out / "summary.json").read_text())
    every = run.process.stderr.splitlines()
    said = [line for line in every if not line.startswith(("Note: ", "Chosen: "))]
    assert said[0].startswith("12 images, 4 steps of 4, a checkpoint every 2; fp32 on cpu.")
    assert said[1].startswith("step 0/4  before training:  k-NN ")
    assert [line[:8] for line in said[2:6]] == [f"step {step}/4" for step in (1, 2, 3, 4)]
    assert "Traceback" not in run.process.stderr


def test_a_run_ends_with_what_to_do_next(run: Finished, tmp_path: Path, capsys: Says) -> None:
    assert main([*run.arguments, "--out", str(tmp_path / "out")]) == 0
    out, error = capsys.readouterr()
    assert f"The backbone is in {tmp_path / 'out' / 'backbone.safetensors'}" in out
    assert f"leanvit evaluate knn {tmp_path / 'out'} --data " in out
    assert "step 4/4" in error and "step" not in out


def test_a_check_has_a_place_of_its_own(
    run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", *run.arguments[1:]]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["check"]


def test_features_are_those_of_the_images(run: Finished, tmp_path: Path, capsys: Says) -> None:
    assert main(results(run, tmp_path)["embed"]) == 0
    with np.load(tmp_path / "features.npz") as found:
        assert found["features"].shape == (12, 16)
        assert list(found["names"])[:2] == ["cats/000.png", "cats/001.png"]
        assert list(found["targets"]) == [0] * 6 + [1] * 6


def test_names_and_options_come_in_any_order(run: Finished, tmp_path: Path, capsys: Says) -> None:
    """The value of an option that only a recipe has is no recipe."""
    _, _, *rest = run.arguments
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["pretrain", "--json", "esvit", "--out", str(first), *rest]) == 0
    assert main(["pretrain", "--data", run.data, "esvit", *TINY, "--out", str(second)]) == 0
    for name in ("backbone.safetensors", "student.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert "Name a recipe first" in refused(capsys, "pretrain", "--train.batch", "4", "esvit")


# Mistakes in the words


MISTAKES = [
    (
        "train",
        "Unknown command 'train'; did you mean 'pretrain'? Known: analyze, backbones, bench, ",
    ),
    ("pretrain", "Name a recipe first: d2mae, "),
    ("check --data x", "Name a recipe first: d2mae, "),
    ("pretrain --resume", "Name a recipe first: "),
    ("pretrain esvt", "Unknown recipe 'esvt'; did you mean 'esvit'? Known: d2mae, "),
    ("pretrain esvit --backbone swin_tinny", "did you mean 'swin_tiny'? Known: cvt_small, "),
    ("pretrain esvit --optimizer adam", "did you mean 'adamw'? Known: adamw, lars, muon, sgd."),
    ("pretrain esvit --train.batc 3", "Unknown option 'train.batc'; did you mean 'train.batch'?"),
    ("pretrain esvit --batch 3", "Unknown option 'batch'; did you mean 'train.batch'?"),
    ("pretrain esvit --backbone.pool mean", "Unknown option 'backbone.pool'. Known: backbone.de"),
    ("pretrain esvit --recipe dino", "Unknown option 'recipe'"),
    ("pretrain esvit --head 5", "Unknown option 'head'; did you mean 'backbone.heads'?"),
    ("pretrain esvit --method.head 5", "'method.head' is a section; its options are method.head."),
    ("pretrain esvit stray", "'stray' belongs to no option; every value follows its option's name"),
    ("pretrain esvit --train.batch 4 5", "'5' belongs to no option"),
    ("pretrain esvit --out", "--out: expected one argument."),
    ("pretrain esvit --train.duration", "--train.duration: expected one argument."),
    ("pretrain esvit --train.duration 10days", "'10days' is not a duration; write 10ep (epochs)"),
    (
        "pretrain esvit --train.batch two",
        "train.batch is 'two'; expected a whole number, or 'auto'.",
    ),
    ("pretrain esvit --optim.clip two", "optim.clip is 'two'; expected a number."),
    ("pretrain esvit --train.batch 0", "train: batch is 0; expected at least 1."),
    ("pretrain esvit --method.head.train-gain no", "method.head.train_gain is 'no'; expected true"),
    ("pretrain esvit --optim.betas 0.9", "optim.betas is [0.9]; expected 2 values."),
    ("pretrain esvit --optim.betas 0.9 x", "optim.betas is 'x'; expected a number."),
    ("pretrain esvit --train.precision fp16", "expected one of 'auto', 'fp32', 'bf16'."),
    ("pretrain esvit --method.region-weight 1", "region_weight lies between 0 and 1"),
    ("pretrain esvit --json=yes", "--json: ignored explicit argument 'yes'."),
    ("check esvit --resume", "Unknown option 'resume'"),
    (
        "evaluate",
        "Name an evaluation: correspondence, detect, finetune, knn, layers, linear, lowshot, ",
    ),
    ("evaluate kn model", "Unknown evaluation 'kn'; did you mean 'knn'? Known: correspondence, "),
    ("evaluate finetune model --mixup much", "mixup is 'much'; expected a number, or 'auto'."),
    ("evaluate finetune model --duration 9", "'9' is not a duration; write 10ep (epochs), "),
    ("evaluate knn", "Name a model first: the folder of a run, a file of weights or a backbone's"),
    ("evaluate knn --data photos model", "Name a model first: "),
    ("evaluate knn model --temperatur 1", "did you mean 'temperature'?"),
    ("evaluate knn model --k few", "k is 'few'; expected a whole number."),
    ("evaluate knn model --k", "k is (); expected at least one number of neighbours."),
    ("evaluate knn model other --k 3", "'other' belongs to no option"),
    ("evaluate linear model --epochs 0", "epochs is 0; expected at least 1."),
    ("evaluate knn model", "No images were named: give --data FOLDER, a list file, or sample."),
    ("embed", "Name a model first: "),
    (
        "embed model --data photos",
        "Name a file for the features: --out FILE, ending in .npz, .parquet,",
    ),
    (
        "embed model --data photos --out f.txt",
        "name a file that ends in .npz, .parquet, .safetensors or .csv.",
    ),
    ("embed model --features all --out f.csv", "expected one of 'pooled', 'last4', 'grid'."),
    ("backbones vit_tinny", "Unknown backbone 'vit_tinny'; did you mean 'vit_tiny'? Known: "),
    ("backbones --jason", "unrecognized arguments: --jason."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_in_the_words_is_answered(
    arguments: str,
    message: str,
    tmp_path: Path,
    capsys: Says,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrian esvit", "leanvit: Unknown command 'pretrian'; did you mean 'pretrain'? Known: "),
        ("pretrain esvit --train.batsh 4", "leanvit: Unknown option 'train.batsh'; did you mean "),
        ("check esvit --train.batch two", "leanvit: train.batch is 'two'; expected a whole number"),
        ("evaluate knn", "leanvit: Name a model first: "),
        ("embed model", "leanvit: Name a file for the features"),
    ],
)
def test_a_mistake_ends_a_process_with_code_two(arguments: str, message: str) -> None:
    process = leanvit_process(*arguments.split())
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(message)
    assert process.stderr.count("\n") == 1


def test_a_run_needs_a_place_for_its_results(run: Finished, capsys: Says) -> None:
    for place in ([], ["--out", ""]):
        said = refused(capsys, *run.arguments, *place)
        assert said == "leanvit: Name a folder for the results: --out FOLDER."


# Mistakes in the images


@pytest.mark.parametrize("command", ["pretrain", "check"])
def test_a_mistake_in_the_images_is_answered(
    command: str, images: str, tmp_path: Path, capsys: Says
) -> None:
    out, empty, file = tmp_path / "out", tmp_path / "empty", tmp_path / "photo.png"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    file.write_bytes(b"")
    before = contents(tmp_path)
    for data, message in [
        (["--data", str(tmp_path / "none")], f"folder '{tmp_path / 'none'}' does not exist."),
        (["--data", str(file)], f"The list '{file}' names no image; write one path a line."),
        (["--data", str(empty)], f"There is no image in '{empty}' or below it; known endings: "),
        ([], "No images were named: give --data FOLDER, a list file, or sample."),
        (["--data", images, "--train.batch", "13"], "There are 12 images, fewer than one batch"),
        (["--data", images, "--watch.val", str(empty)], f"There is no image in '{empty}'"),
    ]:
        assert message in refused(capsys, command, "esvit", *TINY, "--out", out, *data)
        assert contents(tmp_path) == before


def test_an_empty_folder_ends_a_process_with_code_two(tmp_path: Path) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    process = leanvit_process("pretrain", "esvit", "--data", empty, *TINY, "--out", out)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"leanvit: There is no image in '{empty}' or below it; known")
    assert process.stderr.count("\n") == 1
    assert not out.exists()


def test_a_mistake_in_a_model_is_answered(run: Finished, tmp_path: Path, capsys: Says) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no weights")
    before = contents(tmp_path)
    models: list[tuple[str | Path, str]] = [
        ("swin_tinny", "Unknown backbone file or name 'swin_tinny'; did you mean 'swin_tiny'?"),
        (other, "so its weights cannot be read"),
        (tmp_path, "so its weights cannot be read"),
    ]
    for model, message in models:
        images = ("--data", run.data)
        assert message in refused(capsys, "evaluate", "knn", model, *images)
        assert message in refused(capsys, "embed", model, *images, "--out", tmp_path / "f.npz")
    plain = write_images(tmp_path.parent / f"{tmp_path.name} plain", 4)
    assert "This needs classes" in refused(capsys, "evaluate", "knn", run.out, "--data", plain)
    assert contents(tmp_path) == before


def test_features_are_not_written_over_others(run: Finished, tmp_path: Path, capsys: Says) -> None:
    (tmp_path / "features.npz").write_text("years of work")
    assert "is there already" in refused(capsys, *results(run, tmp_path)["embed"])
    assert (tmp_path / "features.npz").read_text() == "years of work"


@pytest.mark.parametrize(("limit", "code"), [("1", 2), ("50", 0)])
def test_check_answers_whether_the_run_would_stop(
    limit: str, code: int, images: str, tmp_path: Path, undrawn: None
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    sorted(folder.rglob("*.*"))[0].write_bytes(b"no image")
    words = ["check", "esvit", "--data", str(folder), *TINY, "--out", str(tmp_path / "out")]
    assert main([*words, "--data.max-unreadable", limit]) == code


INTERRUPTED = """
import os, signal, sys
from types import MappingProxyType
from leanvit import cli
from leanvit.core.errors import Stopped

class Tidied:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(10**6))

def command(_):
    held = Tidied()
    raise {}

cli.COMMANDS = MappingProxyType({{"check": command}})
sys.exit(cli.main(["check"]))
"""


@pytest.mark.parametrize("error", ["KeyboardInterrupt('stopped')", "Stopped('stopped', 15)"])
def test_ctrl_c_while_a_stopped_command_tidies_up_ends_it(error: str) -> None:
    words = [sys.executable, "-c", INTERRUPTED.format(error)]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (-signal.SIGINT, "leanvit: stopped\n")
