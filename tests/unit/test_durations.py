"""Durations in words, and the schedules that use them."""

import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from leanvit.config import Duration, Schedule, constant, steps
from leanvit.config.duration import UNITS
from leanvit.core.schedules import schedule_value


def refusal(text: str) -> "re.Pattern[str]":
    """Return a pattern of this text, word by word."""
    return re.compile(re.escape(text))


# Durations


def test_a_word_is_a_duration() -> None:
    words = ["10ep", "1e2ep", " 3.3 % ", "1e6img", "1E+3img", "0st", "0.5ep"]
    amounts = [(10, "ep"), (100, "ep"), (3.3, "%"), (1e6, "img"), (1000, "img"), (0, "st")]
    words, amounts = [*words, "30m", "1.5 h"], [*amounts, (0.5, "ep"), (30, "m"), (1.5, "h")]
    expected = [Duration(*pair) for pair in amounts]
    assert [Duration.parse(word) for word in words] == expected


@pytest.mark.parametrize(
    "word",
    ["", "10", "ep", "10 epochs", "-1ep", "1e999ep", "nanst", "1.2.3st", "10EP", "5%%", "101%"],
)
def test_another_word_is_no_duration(word: str) -> None:
    with pytest.raises(ValueError, match=refusal(f"{word!r} is not a duration; write 10ep")):
        Duration.parse(word)


def test_a_duration_refuses_what_is_no_length() -> None:
    with pytest.raises(ValueError, match="Unknown unit 'd' of a duration; known: ep, st, %, img"):
        Duration(1, "d")
    with pytest.raises(ValueError, match="at most 100%, not 101%"):
        Duration(101, "%")
    for amount in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="finite and not negative"):
            Duration(amount, "st")


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("amount", [0, 1, 100, 0.1, 3.3, 1 / 3, 12.5])
def test_a_duration_survives_being_written(amount: float, unit: str) -> None:
    duration = Duration(amount, unit)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("amount", [1e-6, 1e6, 1281167, 1e16, 1e22])
def test_an_extreme_duration_survives_being_written(amount: float) -> None:
    assert Duration.parse(str(Duration(amount, "img"))) == Duration(amount, "img")


def test_whole_amounts_are_written_without_a_point() -> None:
    words = [str(Duration(10.0, "ep")), str(steps(7)), str(Duration(0.5, "%"))]
    assert words == ["10ep", "7st", "0.5%"]


def test_a_duration_in_steps_is_rounded_to_the_nearest() -> None:
    words = (
        "3ep 0.5ep 0.004ep 0.006ep 2000st 2.4st 2.6st 5% 0.14% 0.16% 100% 1e6img 95img 97img 0img"
    )
    counts = [Duration.parse(word).steps(epoch=100, batch=64, run=1000) for word in words.split()]
    assert counts == [300, 50, 0, 1, 2000, 2, 3, 50, 1, 2, 1000, 15625, 1, 2, 0]
    assert {type(count) for count in counts} == {int}


def test_a_time_is_as_many_steps_as_take_so_long() -> None:
    counts = [
        Duration.parse(word).steps(epoch=100, batch=64, run=1000, seconds=0.25)
        for word in ("30m", "1.5h", "0.001m", "0m")
    ]
    assert counts == [7200, 21600, 0, 0]
    with pytest.raises(ValueError, match=refusal("How many steps are 30m hangs on what a step")):
        Duration(30, "m").steps(epoch=100, batch=64)


@pytest.mark.parametrize("batch", [3, 7, 49, 64, 4096])
def test_one_batch_of_images_is_one_step(batch: int) -> None:
    assert Duration(batch, "img").steps(epoch=10, batch=batch) == 1
    assert Duration(1000 * batch, "img").steps(epoch=10, batch=batch) == 1000


def test_a_share_of_an_unknown_run_is_refused() -> None:
    with pytest.raises(ValueError, match="length of a run cannot be 5%: give epochs or steps"):
        Duration(5, "%").steps(epoch=10, batch=4)


# Schedules


def cosine_scheduler(
    peak: float, end: float, run: int, warmup: int, start: float
) -> NDArray[np.float64]:
    """DINO's formula: a line that includes both ends, then a cosine that stops short of its end."""
    line = np.linspace(start, peak, warmup)
    step = np.arange(run - warmup)
    cosine = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * step / max(len(step), 1)))
    return np.concatenate([line, cosine])


def values(schedule: Schedule, run: int) -> list[float]:
    return [schedule_value(schedule, step, run) for step in range(run)]


@pytest.mark.parametrize(("run", "warmup"), [(100, 10), (7, 2), (5, 1), (5, 0), (5, 5), (1, 0)])
def test_cosine_schedules_follow_dino(run: int, warmup: int) -> None:
    schedule = Schedule(start=1e-5, peak=5e-4, end=1e-6, warmup=steps(warmup))
    expected = cosine_scheduler(5e-4, 1e-6, run, warmup, 1e-5)
    np.testing.assert_allclose(values(schedule, run), expected, rtol=1e-12)


def test_weight_decay_and_momentum_rise_as_in_dino() -> None:
    for start, end in [(0.04, 0.4), (0.996, 1.0)]:
        schedule = Schedule(start=start, peak=start, end=end)
        expected = cosine_scheduler(start, end, 30, 0, 0.0)
        np.testing.assert_allclose(values(schedule, 30), expected, rtol=1e-12)


def test_the_teacher_temperature_warms_up_in_a_line_and_stays() -> None:
    schedule = Schedule(start=0.04, peak=0.07, end=0.07, warmup=steps(6), shape="linear")
    expected = np.concatenate([np.linspace(0.04, 0.07, 6), np.full(14, 0.07)])
    np.testing.assert_allclose(values(schedule, 20), expected, rtol=1e-12)


def test_a_linear_schedule_reaches_its_end_one_step_after_the_last() -> None:
    schedule = Schedule(peak=1.0, end=0.0, warmup=steps(2), shape="linear")
    np.testing.assert_allclose(values(schedule, 6), [0, 1, 1, 0.75, 0.5, 0.25], rtol=1e-12)
    assert schedule_value(schedule, 6, 6) == 0


def test_a_constant_never_changes() -> None:
    assert values(constant(0.3), 9) == [0.3] * 9


def test_a_schedule_in_epochs_is_refused_before_it_is_resolved() -> None:
    schedule = Schedule(peak=1.0, end=0.0, warmup=Duration(2, "ep"))
    with pytest.raises(ValueError, match="warm-up 2ep of a schedule is not resolved to steps"):
        schedule_value(schedule, 0, 10)
