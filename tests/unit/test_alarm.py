"""Collapse is called by its name, at its threshold, once and only when it lasts; real ones too."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from leanvit.config import MethodConfig, constant, steps
from leanvit.data.batch import ViewBatch
from leanvit.methods.catalogue import build_method
from leanvit.train import alarm
from leanvit.train.alarm import CollapseAlarm, collapses
from leanvit.train.loop import train
from leanvit.train.state import TrainState
from tests.tiny import dino, esvit, noise, run_config, view_batch

HEALTHY = {
    "step": 10,
    "loss": 5.0,
    "feature_std": 0.8,
    "effective_rank": 20.0,
    "teacher_entropy": 0.5,
    "teacher_information": 0.5,
    "distinct_matches": 0.4,
}

NAMED = [
    ("features", {"feature_std": 0.0499}, {"feature_std": 0.05}, "nearly the same feature"),
    ("rank", {"effective_rank": 1.499}, {"effective_rank": 1.5}, "a single dimension"),
    (
        "uniform teacher",
        {"teacher_information": 0.03, "teacher_entropy": 0.9801},
        {"teacher_information": 0.03, "teacher_entropy": 0.98},
        "lower teacher temperature",
    ),
    (
        "blind teacher",
        {"teacher_entropy": 0.2, "teacher_information": 0.2639},
        {"teacher_entropy": 0.2, "teacher_information": 0.2641},
        "lower learning rate",
    ),
    ("matches", {"distinct_matches": 0.0299}, {"distinct_matches": 0.03}, "match the same one"),
]
"""Name, values just beyond the threshold, values just within, words of the explanation."""


def told_by(*rows: Mapping[str, float]) -> tuple[CollapseAlarm, list[str]]:
    said: list[str] = []
    observer = CollapseAlarm(said.append)
    for row in rows:
        observer.on_step(int(row["step"]))
        observer.on_row(row)
    observer.on_end()
    return observer, said


def test_a_healthy_row_accuses_nobody() -> None:
    assert collapses(HEALTHY) == {}
    assert collapses({"step": 3, "loss": 1.0}) == {}, "what was not measured is not held against it"


@pytest.mark.parametrize(("name", "bad", "good", "words"), NAMED, ids=[name for name, *_ in NAMED])
def test_a_collapse_is_named_beyond_its_threshold(
    name: str, bad: Mapping[str, float], good: Mapping[str, float], words: str
) -> None:
    found = collapses({**HEALTHY, **bad})
    assert list(found) == [name]
    assert words in found[name]
    assert collapses({**HEALTHY, **good}) == {}


def test_several_collapses_are_all_named() -> None:
    """A teacher is either uniform or blind."""
    others = {name: bad for name, bad, *_ in NAMED if name != "blind teacher"}
    beyond = {metric: value for bad in others.values() for metric, value in bad.items()}
    assert set(collapses({**HEALTHY, **beyond})) == {*others}


def test_one_row_is_no_collapse_and_two_in_a_row_are() -> None:
    bad = {**HEALTHY, "feature_std": 0.01}
    observer, said = told_by(bad, HEALTHY, bad, HEALTHY)
    assert said == [] and observer.told == {}
    observer, said = told_by(HEALTHY, bad, {**bad, "step": 20})
    assert list(observer.told) == ["features"]
    assert said == [
        "collapse (features) at step 20: all images get nearly the same feature (deviation 0.010 "
        "of 1). The run goes on, but it is unlikely to learn."
    ]


def test_another_collapse_does_not_count_as_the_second_row() -> None:
    spread, matches = {**HEALTHY, "feature_std": 0.0}, {**HEALTHY, "distinct_matches": 0.0}
    assert told_by(spread, matches, spread, matches)[1] == []


def test_a_collapse_is_told_once_and_others_after_it() -> None:
    bad = {**HEALTHY, "feature_std": 0.01}
    worse = {**bad, "effective_rank": 1.0}
    observer, said = told_by(bad, bad, bad, HEALTHY, bad, bad, worse, worse, worse)
    assert [line.split(")")[0] for line in said] == ["collapse (features", "collapse (rank"]
    assert set(observer.told) == {"features", "rank"}


def test_the_look_before_training_is_not_a_row_of_the_run() -> None:
    before = {"step": 0, "effective_rank": 1.0}
    bad = {**HEALTHY, "effective_rank": 1.0}
    assert told_by(before, bad)[1] == []
    assert len(told_by(bad, before, bad)[1]) == 1


def test_looks_at_the_features_count_in_a_row_though_other_rows_lie_between() -> None:
    bad = {**HEALTHY, "effective_rank": 1.0}
    without = {name: value for name, value in HEALTHY.items() if name != "effective_rank"}
    assert told_by(bad, without, without)[1] == []
    assert len(told_by(bad, without, without, bad, without, bad)[1]) == 1
    assert told_by(bad, without, HEALTHY, without, bad)[1] == []


def test_every_collapse_says_which_metric_shows_it() -> None:
    assert {name: [*bad][-1] for name, bad, *_ in NAMED} == alarm.SHOWN_BY


# Real runs: 30 steps of the tiny Swin or ViT


def colored(number: int, batch: int = 16) -> ViewBatch:
    """Views of images of a color each; noise alone looks the same all over."""
    views = view_batch(batch, seed=number)
    color = 2 * noise(batch, 3, 1, 1, seed=100 + number)
    return replace(views, groups=tuple(group + color for group in views.groups))


def trained(
    method: MethodConfig, rate: float, views: Callable[[int], ViewBatch]
) -> tuple[CollapseAlarm, list[str]]:
    config = run_config(duration=steps(30), log_every=steps(5), save_every=steps(100))
    config = replace(config, method=method, optim=replace(config.optim, lr=constant(rate)))
    state = TrainState(
        build_method(config.method, config.backbone, config.train.seed), config, epoch_steps=5
    )
    said: list[str] = []
    observer = CollapseAlarm(said.append)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = [views(number) for number in range(30)]
        train(state, batches, save=lambda: None, observers=[observer])
    finally:
        torch.set_num_threads(threads)
    return observer, said


@pytest.mark.parametrize("method", [esvit(), dino()], ids=["esvit", "dino"])
def test_a_run_that_learns_raises_no_alarm(method: MethodConfig) -> None:
    assert trained(method, 1e-4, colored)[1] == []


COLLAPSING = {
    "a center that never moves": (
        esvit(center_momentum=1.0),
        5e-2,
        {"features", "blind teacher"},
    ),
    "a center that never moves, without regions": (
        dino(center_momentum=1.0),
        1e-3,
        {"blind teacher"},
    ),
    "a hot teacher": (
        esvit(center_momentum=0.0, teacher_temp=constant(1.0)),
        5e-2,
        {"features", "uniform teacher", "matches"},
    ),
}


@pytest.mark.parametrize("name", COLLAPSING)
def test_a_run_that_collapses_raises_the_alarm(name: str) -> None:
    method, rate, expected = COLLAPSING[name]
    observer, said = trained(method, rate, lambda number: view_batch(seed=number))
    assert set(observer.told) == expected
    assert len(said) == len(expected)
