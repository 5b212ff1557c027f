"""A short soak: a run stays as it is, and one that is killed leaves nothing behind."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "soak", module)  # where its dataclasses look
        patch.setenv("OMP_NUM_THREADS", "1")
        spec.loader.exec_module(module)
        yield module


@pytest.mark.long
def test_a_run_stays_as_it_is(soak: ModuleType) -> None:
    """Coarse limits here: most memory is taken in the first hundreds of steps, and the files of
    batches on their way come and go; a leak at every step or every save would show."""
    samples, _ = soak.soak(150)
    memory, _, files, *counted = soak.verdicts(samples, 150)
    assert len(samples) > 50
    assert memory.last < 1.2 * memory.first
    assert files.last <= files.first + 8
    assert [figure.name for figure in counted] == ["threads", "processes"]
    assert all(figure.last <= figure.first + 1 for figure in counted), counted  # one may be saving
    assert counted[1].first == 3  # the run and two workers


@pytest.mark.long
def test_a_killed_run_leaves_nothing_behind(soak: ModuleType) -> None:
    left = soak.kill(2, each=12)
    assert left.files == []
    assert left.seconds < 4  # torch's own watchdog takes five


STEPS = [200.0 * number for number in range(80)]


@pytest.mark.parametrize(
    ("growth", "flat"), [(0.0, True), (0.005, True), (0.02, False), (-0.05, True)]
)
def test_what_grows_is_told_from_noise(soak: ModuleType, growth: float, flat: bool) -> None:
    """Growth in 10,000 steps under noise of 0.3 %, with looks at the features that stand out."""
    noise = np.random.default_rng(0).normal(0, 0.003, len(STEPS)).tolist()
    values = [500 * (1 + growth * s / 10_000 + n) for s, n in zip(STEPS, noise, strict=True)]
    values[::10] = [value + 200 for value in values[::10]]
    found = soak.judge("memory", STEPS, values)
    assert found.flat is flat
    assert found.growth == pytest.approx(growth, abs=0.002)


def test_one_handle_more_is_a_leak(soak: ModuleType) -> None:
    """Handles come and go, but the least of them stays."""
    values = [59.0 + number % 7 for number in range(80)]
    assert soak.judge("open files", STEPS, values, counted=True).flat
    leaking = [value + (number > 60) for number, value in enumerate(values)]
    assert not soak.judge("open files", STEPS, leaking, counted=True).flat
