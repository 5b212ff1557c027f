"""A recipe states the paper's figure, and one of ours only where a results file has it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from leanvit.config import Facts, SupervisedConfig, resolve
from leanvit.recipes import RECIPES
from leanvit.recipes.detect import DETECT_RECIPES
from leanvit.recipes.finetuning import FINETUNE_RECIPES
from leanvit.recipes.segment import SEGMENT_RECIPES

IMAGENET = Facts(images=1_281_167, classes=1_000, cores=64, device="cuda", bf16=True, world=8)
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
    named = re.search(r"\(((?:benchmarks|docs)/\S+\.md)\)", said)
    figures = re.findall(r"\d+(?:\.\d+)?", said.replace(named[0] if named else "", ""))
    if not named or not (root / named[1]).is_file():
        return figures or [said]
    held = set(re.findall(r"\d+(?:\.\d+)?", (root / named[1]).read_text()))
    return [figure for figure in figures if figure not in held]


TABLES: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "pre-training": RECIPES,
    "fine-tuning": FINETUNE_RECIPES,
    "detection": DETECT_RECIPES,
    "segmentation": SEGMENT_RECIPES,
}
ALL = [(kind, name) for kind, table in TABLES.items() for name in table]
PUBLISHED = {name for name in FINETUNE_RECIPES if "_in1k_" in name}
"""Fine-tunings that a paper reports."""


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_recipe_states_both_figures(kind: str, name: str) -> None:
    text = TABLES[kind][name].__doc__ or ""
    assert re.search(r"Paper\b", text), text
    assert not unproved(text, ROOT)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_recipe_says_its_own_name(kind: str, name: str) -> None:
    assert not RECIPES.keys() & FINETUNE_RECIPES.keys(), "a name stands for one recipe"
    assert TABLES[kind][name]().recipe == name == TABLES[kind][name].__name__


# What the documents of the lightweight study say (arXiv 2205.14443 and 2404.12210)


@pytest.mark.parametrize(
    ("name", "rate", "batch"),
    [
        ("mae_vit_tiny_in1k", 2.4e-3, 4096),
        ("mae_vit_small_in1k", 2.4e-3, 4096),
        ("dmae_vit_tiny_in1k", 2.4e-3, 4096),
        ("d2mae_vit_tiny_in1k", 2.4e-3, 4096),
        ("mocov3_vit_tiny_in1k", 6e-4, 1024),
        ("deit_tiny_h12_in1k", 4e-3, 1024),
        ("deit_tiny_in1k", 1e-3, 1024),
        ("dino_vit_tiny_in1k", 2e-3, 1024),
        ("simmim_swin_mini_in1k", 4e-4, 2048),
    ],
)
def test_the_rate_at_the_published_batch(name: str, rate: float, batch: int) -> None:
    config = resolve(RECIPES[name](), IMAGENET).config
    assert config.train.batch == batch
    assert config.optim.lr.peak == pytest.approx(rate, rel=1e-12)


TUNED = {
    "deit_tiny_h12_in1k_300ep": (75.8, 300, 0.85, False),
    "mocov3_vit_tiny_in1k_300ep": (76.8, 300, 0.75, False),
    "mae_vit_tiny_in1k_300ep": (78.0, 300, 0.85, False),
    "dmae_vit_tiny_in1k_300ep": (78.4, 300, 0.85, False),
    "d2mae_vit_tiny_in1k_300ep": (78.7, 300, 0.85, False),
    "mae_vit_small_in1k_300ep": (82.1, 300, 0.75, False),
    "mae_vit_tiny_in1k_1000ep_bias": (79.0, 1000, 0.85, True),
    "d2mae_vit_tiny_in1k_1000ep_bias": (79.4, 1000, 0.85, True),
}
"""Figure, epochs, layer decay, position bias."""


def test_every_published_fine_tuning_is_checked() -> None:
    assert set(TUNED) == PUBLISHED
    starts = {name: re.sub(r"_\d+ep(_bias)?$", "", name) for name in PUBLISHED}
    assert set(starts.values()) <= set(RECIPES), "each starts from the recipe that it is called as"


@pytest.mark.parametrize("name", TUNED)
def test_a_published_fine_tuning_is_that_of_the_documents(name: str) -> None:
    figure, epochs, decay, bias = TUNED[name]
    found = FINETUNE_RECIPES[name]()
    assert f"Paper: {figure:.1f}; ours: not run." in (FINETUNE_RECIPES[name].__doc__ or "")
    assert (str(found.duration), str(found.warmup)) == (f"{epochs}ep", "5ep")
    assert (found.layer_decay, found.position_bias) == (decay, bias)
    assert found.lr != "auto" and found.train_batch == 1024
    assert found.lr * found.train_batch / 256 == pytest.approx(4e-3, rel=1e-12)
    assert (found.optimizer, found.weight_decay, found.clip) == ("adamw", 0.05, 0.0)
    assert (found.randaugment, found.erase, found.smoothing) == (10.0, 0.0, 0.0)
    assert (found.mixup, found.cutmix, found.drop_path) == (0.2, 0.0, 0.0)
    assert (found.repeats, found.average, found.teacher) == (1, 0.0, "")


def test_deit_repeats_every_image_three_times_and_the_study_does_not() -> None:
    def repeats(name: str) -> int:
        method = RECIPES[name]().method
        assert isinstance(method, SupervisedConfig)
        return method.views.repeats

    assert [repeats(n) for n in ("deit_tiny_in1k", "deit_tiny_h12_in1k", "supervised")] == [3, 1, 1]


def test_a_figure_without_a_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "x.md").write_text("| 61.5 |")
    assert unproved("Paper: 78.0; ours: not run.", tmp_path) == []
    assert unproved("Paper: 78.0; ours: 77.1.", tmp_path) == ["77.1"]
    assert unproved("Paper: 1; ours: 61.5 (benchmarks/y.md).", tmp_path) == ["61.5"]
    assert unproved("Paper: 1; ours: 61.5 (benchmarks/x.md).", tmp_path) == []
    assert unproved("Paper: 1; ours: 62.5 (benchmarks/x.md).", tmp_path) == ["62.5"]
    assert unproved("Paper: 1; ours: splendid.", tmp_path) == ["splendid"]
