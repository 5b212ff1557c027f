"""A recipe states the paper's figure, and one of ours only where a results file has it."""

import re
from pathlib import Path

import pytest

from leanvit.recipes import RECIPES

ROOT = Path(__file__).parents[2]


def claim(text: str) -> str:
    """Return what a docstring says of our own figure: the sentence after `ours:`."""
    found = re.search(r"ours:\s+(.*?)(?:\.\s|\.?$)", " ".join(text.split()), re.IGNORECASE)
    assert found, f"no 'ours:' in {text!r}"
    return found[1]


def unproved(text: str, root: Path) -> list[str]:
    """Return the figures of a claim that its results file does not hold; all, if it names none."""
    said = claim(text)
    if said == "not run":
        return []
    named = re.search(r"\((benchmarks/\S+\.md)\)", said)
    figures = re.findall(r"\d+(?:\.\d+)?", said.replace(named[0] if named else "", ""))
    if not named or not (root / named[1]).is_file():
        return figures or [said]
    held = set(re.findall(r"\d+(?:\.\d+)?", (root / named[1]).read_text()))
    return [figure for figure in figures if figure not in held]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_both_figures(name: str) -> None:
    text = RECIPES[name].__doc__ or ""
    assert re.search(r"Paper\b", text), text
    assert not unproved(text, ROOT)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_own_name(name: str) -> None:
    assert RECIPES[name]().recipe == name


def test_a_figure_without_a_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "x.md").write_text("| 61.5 |")
    assert unproved("Paper: 78.0; ours: not run.", tmp_path) == []
    assert unproved("Paper: 78.0; ours: 77.1.", tmp_path) == ["77.1"]
    assert unproved("Paper: 1; ours: 61.5 (benchmarks/y.md).", tmp_path) == ["61.5"]
    assert unproved("Paper: 1; ours: 61.5 (benchmarks/x.md).", tmp_path) == []
    assert unproved("Paper: 1; ours: 62.5 (benchmarks/x.md).", tmp_path) == ["62.5"]
    assert unproved("Paper: 1; ours: splendid.", tmp_path) == ["splendid"]
