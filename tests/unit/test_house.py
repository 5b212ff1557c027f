"""The rules of the house that a parser can check (DESIGN.md, "The house" and "Rules")."""

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pytest

import leanvit
from leanvit.config import BACKBONES, Facts, RunConfig, resolve
from leanvit.recipes import RECIPES
from leanvit.recipes.detect import DETECT_RECIPES
from leanvit.recipes.finetuning import FINETUNE_RECIPES
from leanvit.recipes.segment import SEGMENT_RECIPES

SRC = Path(leanvit.__file__).parent
TREES = {
    path.relative_to(SRC).as_posix(): ast.parse(path.read_text())
    for path in sorted(SRC.rglob("*.py"))
}
OUTER = {
    child: node
    for tree in TREES.values()
    for node in ast.walk(tree)
    for child in ast.iter_child_nodes(node)
}
"""What each node lies in."""

FLOORS: tuple[tuple[str, ...], ...] = (
    ("config",),
    ("core",),
    ("kernels",),
    ("backbones", "losses", "data"),
    ("weights",),
    ("methods",),
    ("train",),
    ("evaluation",),
    ("analysis",),
    ("bench",),
    ("folder",),
    ("request", "unreadable", "looks"),
    ("store",),
    ("run",),
    ("measuring",),
    ("preflight", "pretraining", "replaying"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the bottom up: a part imports itself and the floors below it."""

TOP = (
    "folder",
    "request",
    "store",
    "run",
    "measuring",
    "preflight",
    "pretraining",
    "replaying",
    "commands",
    "cli",
)
"""They see the package itself (its version) and the recipes; the recipes see config alone.

Evaluation sees the recipes too, those of fine-tuning, and bench those whose steps it measures.
"""
READERS = ("evaluation", "bench")

FINETUNING = "recipes/finetuning.py"
"""Recipes of fine-tuning, which have a table of their own."""

WITHOUT_TORCH = ("leanvit", "config", "recipes", "commands", "cli", "__main__")

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
N = TypeVar("N", bound=ast.AST)


def part_of(file: str) -> str:
    """Return the package or module directly under leanvit; `leanvit` for its own file."""
    part = file.split("/")[0].removesuffix(".py")
    return "leanvit" if part == "__init__" else part


def may_import(part: str) -> set[str]:
    """Return the parts that a part may import."""
    if part == "leanvit":
        return set()
    if part == "recipes":
        return {"recipes", "config"}
    (floor,) = (number for number, parts in enumerate(FLOORS) if part in parts)
    below = {name for parts in FLOORS[:floor] for name in parts}
    seen = ("leanvit", "recipes") if part in TOP else ("recipes",) if part in READERS else ()
    return {part, *below, *seen}


def around(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node lies in, from the inside out."""
    while node in OUTER:
        node = OUTER[node]
        yield node


def function_of(node: ast.AST) -> str:
    """Return the name of the innermost function that a node lies in; empty at module level."""
    return next((outer.name for outer in around(node) if isinstance(outer, Function)), "")


def nodes(*kinds: type[N]) -> Iterator[tuple[str, N]]:
    """Yield every node of these kinds in src, with its file."""
    for file, tree in TREES.items():
        yield from ((file, node) for node in ast.walk(tree) if isinstance(node, kinds))


def imports(file: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield every name that a file imports, in full, unless it is for the type checker alone."""
    for node in ast.walk(TREES[file]):
        ifs = [outer for outer in around(node) if isinstance(outer, ast.If)]
        if any(ast.unparse(outer.test) == "TYPE_CHECKING" for outer in ifs):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} is a relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def own_part(name: str) -> str:
    """Return the part of leanvit that an imported name belongs to; empty for other packages."""
    first, *rest = name.split(".")
    return "" if first != "leanvit" else rest[0] if rest else "leanvit"


# Imports


@pytest.mark.parametrize("file", TREES)
def test_imports_point_one_way(file: str) -> None:
    allowed = may_import(part_of(file))
    for name, _ in imports(file):
        part = own_part(name)
        assert not part or part in allowed, f"{file} imports {name}"


def test_the_floors_are_those_of_the_design() -> None:
    below = {"config", "core", "kernels", "backbones", "losses", "data", "weights", "methods"}
    assert may_import("train") == {"train", *below}
    assert "data" not in may_import("losses") and "losses" not in may_import("backbones")
    assert "run" in may_import("commands") and "commands" not in may_import("run")


@pytest.mark.parametrize(
    "file", [file for file in TREES if file == "core/errors.py" or part_of(file) in WITHOUT_TORCH]
)
def test_words_need_no_torch(file: str) -> None:
    for name, node in imports(file):
        if part_of(file) in ("commands", "cli") and function_of(node):
            continue  # a command that runs
        light = name.split(".")[0] in sys.stdlib_module_names
        light = light or name.startswith("leanvit.core.errors.")
        assert light or own_part(name) in WITHOUT_TORCH, f"{file} imports {name}"


def test_public_names_are_functions_after_every_import() -> None:
    for entry in pkgutil.walk_packages(leanvit.__path__, "leanvit."):
        missing = "triton" in entry.name and not find_spec("triton")
        if not entry.name.endswith("__main__") and not missing:
            importlib.import_module(entry.name)
    for name in leanvit.__all__:
        assert inspect.isfunction(getattr(leanvit, name)), name
    assert dir(leanvit) == sorted([*leanvit.__all__, "__version__"])
    assert leanvit.list_backbones() == sorted(BACKBONES)
    with pytest.raises(AttributeError, match="has no attribute 'pretran'"):
        getattr(leanvit, "pretran")  # noqa: B009


def test_no_part_has_the_name_of_a_public_function() -> None:
    assert not {part_of(file) for file in TREES} & set(leanvit.__all__)


# Shape


@pytest.mark.parametrize("file", TREES)
def test_a_file_is_read_in_one_sitting(file: str) -> None:
    assert len((SRC / file).read_text().splitlines()) <= 500


@pytest.mark.parametrize("file", TREES)
def test_a_function_fits_on_a_screen(file: str) -> None:
    for node in ast.walk(TREES[file]):
        if isinstance(node, Function):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 50, f"{file}:{node.lineno} {node.name} has {lines} lines"


def test_the_loop_is_short() -> None:
    loop, state = (
        len((SRC / "train" / file).read_text().splitlines()) for file in ("loop.py", "state.py")
    )
    assert loop <= 120
    assert loop + state <= 300


@pytest.mark.parametrize("file", TREES)
def test_every_public_name_has_a_docstring(file: str) -> None:
    assert ast.get_docstring(TREES[file]), file
    for node in ast.walk(TREES[file]):
        if isinstance(node, (*Function, ast.ClassDef)) and not function_of(node):
            scopes = [node, *(outer for outer in around(node) if isinstance(outer, ast.ClassDef))]
            public = not any(scope.name.startswith("_") for scope in scopes)
            assert not public or ast.get_docstring(node), f"{file}:{node.lineno} {node.name}"


def test_only_the_decoder_boundary_catches_everything() -> None:
    broad = {None, "Exception", "BaseException"}
    found = []
    for file, handler in nodes(ast.ExceptHandler):
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if broad & {error and ast.unparse(error) for error in caught}:
            found.append(file)
    found += [file for file, call in nodes(ast.Call) if call_name(call).endswith("suppress")]
    assert found == ["data/decode.py"]


# Recipes


OWN = {
    FINETUNING: "fine-tuning",
    "recipes/detect.py": "detection",
    "recipes/segment.py": "segmentation",
}
"""Files of recipes with a table of their own."""


def test_every_recipe_is_in_its_table() -> None:
    written = {
        (OWN.get(file, "pre-training"), node.name)
        for file, tree in TREES.items()
        if part_of(file) == "recipes" and file != "recipes/__init__.py"
        for node in tree.body
        if isinstance(node, Function) and not node.name.startswith("_")
    }
    tables = {
        "pre-training": RECIPES,
        "fine-tuning": FINETUNE_RECIPES,
        "detection": DETECT_RECIPES,
        "segmentation": SEGMENT_RECIPES,
    }
    assert written == {(kind, name) for kind, table in tables.items() for name in table}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_resolves_and_states_its_figures(name: str) -> None:
    config = RECIPES[name]()
    assert isinstance(config, RunConfig)
    assert config.recipe == name == RECIPES[name].__name__
    for facts in (
        Facts(images=5_000, classes=10, cores=4, device="cpu", bf16=False),
        Facts(images=1_281_167, classes=1_000, cores=64, device="cuda", bf16=True, world=8),
    ):
        assert resolve(config, facts).config.train.duration.unit == "st"
    said = inspect.getdoc(RECIPES[name]) or ""
    assert "Paper" in said and "ours:" in said


# Randomness

DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "poisson"}
DRAWS |= {f"{name}_like" for name in ("rand", "randn", "randint")}
DRAWS |= {f"{name}_" for name in ("normal", "uniform", "random", "bernoulli", "exponential")}
DRAWS |= {"DataLoader", "RandomSampler", "random_split"}
"""Functions of torch that read its global generator unless they are given another."""

ALWAYS_GLOBAL = {"Dropout", "dropout", "drop_path", "manual_seed", "seed", "RandAugment"}
KEYED = {"np.random.Generator", "np.random.Philox", "np.random.SeedSequence"}


def call_name(call: ast.Call) -> str:
    """Return what is called, as it is written."""
    return ast.unparse(call.func)


def draws_globally(call: ast.Call) -> bool:
    """Whether a call reads or sets a global generator, as far as its words tell."""
    name = call_name(call)
    last = name.split(".")[-1]
    if name.startswith(("np.random.", "numpy.random.")) and name.count(".") == 2:
        return name not in KEYED or not call.args
    given = any(keyword.arg == "generator" for keyword in call.keywords)
    return last in ALWAYS_GLOBAL or (last in DRAWS and not given)


def test_nothing_reads_a_global_generator() -> None:
    found = [
        f"{file}:{call.lineno} {call_name(call)}"
        for file, call in nodes(ast.Call)
        if draws_globally(call)
        and not call_name(call).startswith("nn.init.")
        and (file, function_of(call))
        not in [("core/random.py", name) for name in ("seeded", "numpy_seeded")]
    ]
    assert found == []
    assert not [file for file in TREES for name, _ in imports(file) if name.startswith("random")]


def test_a_global_generator_would_be_found() -> None:
    for line in (
        "torch.rand(3)",
        "x.normal_()",
        "torch.randperm(n, device=d)",
        "np.random.rand(3)",
        "np.random.default_rng()",
        "np.random.Generator()",
        "nn.Dropout(0.1)",
        "torch.manual_seed(0)",
        "DataLoader(data, num_workers=2)",
    ):
        assert draws_globally(ast.parse(line, mode="eval").body), line  # type: ignore[arg-type]
    for line in ("torch.rand(3, generator=g)", "draw.random()", "np.random.Philox(seed)"):
        assert not draws_globally(ast.parse(line, mode="eval").body), line  # type: ignore[arg-type]


def test_weights_are_drawn_in_constructors_alone() -> None:
    callers: dict[str, set[str]] = {}
    for _, call in nodes(ast.Call):
        callers.setdefault(call_name(call).split(".")[-1], set()).add(function_of(call))
    initialisers = [(f, call) for f, call in nodes(ast.Call) if ".init." in call_name(call)]
    assert initialisers
    for file, call in initialisers:
        inside = function_of(call)
        helper = callers.get(inside) == {"__init__"}
        assert inside == "__init__" or helper, f"{file}:{call.lineno} {call_name(call)}"


def test_networks_are_built_within_a_seed() -> None:
    for file, call in nodes(ast.Call):
        if call_name(call) == "build_backbone":
            blocks = [ast.unparse(o.items[0]) for o in around(call) if isinstance(o, ast.With)]
            seeded = any(block.startswith("seeded(") for block in blocks)
            assert seeded or function_of(call) == "__init__", f"{file}:{call.lineno}"
