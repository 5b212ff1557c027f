"""Bad steps leave no trace, spikes are seen, and all of it is decided on the device."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from leanvit.config import GuardConfig
from leanvit.core.errors import NonFiniteError, SpikeError
from leanvit.train.guard import MEMORY, REMEMBERED, WARMUP, Event, Guard
from tests.tiny import noise

ONE = torch.ones(())
NAN, INF = torch.tensor(math.nan), torch.tensor(math.inf)
Policy = Literal["stop", "skip", "rollback"]


def guard(**options: object) -> Guard:
    return Guard(GuardConfig(**options), [], torch.device("cpu"))  # type: ignore[arg-type]


def settled(judge: Guard, level: float = 2.0, wobble: float = 0.1) -> int:
    """Show a steady loss until it has a level; return the next step."""
    for step in range(2 * WARMUP):
        assert judge.judge(torch.tensor(level + wobble * (-1) ** step), ONE, step) == 1
    assert judge.events() == []
    return 2 * WARMUP


@pytest.mark.parametrize(
    ("loss", "norm"), [(NAN, ONE), (INF, ONE), (-INF, ONE), (ONE, NAN), (ONE, INF)]
)
def test_what_is_not_finite_is_never_sound(loss: Tensor, norm: Tensor) -> None:
    for policy in ("stop", "skip", "rollback"):
        judge = guard(bad_number=policy)
        assert judge.judge(ONE, ONE, 0) == 1
        assert judge.judge(loss, norm, 1) == 0
        assert judge.judge(ONE, ONE, 2) == (policy == "skip")
        if policy == "skip":
            assert judge.events() == [Event(1, spike=False)] and judge.events() == []
        else:
            with pytest.raises(NonFiniteError, match="not finite at step 1"):
                judge.events()
        assert judge.skipped == (policy == "skip")


def test_events_are_counted_and_the_last_of_many_told() -> None:
    judge = guard(bad_number="skip", most=1000)
    for step in range(3 * REMEMBERED):
        judge.judge(NAN if step % 2 else ONE, ONE, step)
    assert judge.skipped == 0, "nothing is read back in between"
    found = judge.events()
    assert len(found) == REMEMBERED and found[-1] == Event(3 * REMEMBERED - 1, spike=False)
    assert judge.skipped == 3 * REMEMBERED // 2
    judge.judge(NAN, ONE, 1000)
    assert judge.events() == [Event(1000, spike=False)]


@pytest.mark.parametrize("policy", ["warn", "stop", "skip", "rollback"])
def test_a_spike_is_a_jump_above_the_level(policy: str) -> None:
    judge = guard(spike=policy)
    at = settled(judge)
    assert judge.judge(torch.tensor(2.9), ONE, at) == 1, "nine deviations of 0.1"
    assert judge.judge(torch.tensor(9.0), ONE, at + 1) == (policy == "warn")
    assert judge.judge(torch.tensor(2.0), ONE, at + 2) == (policy in ("warn", "skip"))
    if policy in ("warn", "skip"):
        assert judge.events() == [Event(at + 1, spike=True)]
    else:
        with pytest.raises(SpikeError, match=f"above its level at step {at + 1}"):
            judge.events()
    assert judge.skipped == (policy == "skip")


def test_so_many_steps_are_left_out_and_no_more() -> None:
    judge = guard(bad_number="skip", most=2)
    for step, loss in enumerate((ONE, NAN, ONE, NAN, ONE, NAN, ONE)):
        assert judge.judge(loss, ONE, step) == (step in (0, 2, 4)), "the third bad one ends it"
    with pytest.raises(NonFiniteError, match="at step 5, after 2 that were left out") as ended:
        judge.events()
    assert ended.value.step == 5


def test_a_fall_a_slow_rise_and_a_steady_loss_are_none() -> None:
    judge = guard(spike="stop")
    at = settled(judge, wobble=0.0)
    assert judge.judge(torch.tensor(2.05), ONE, at) == 1, "2.5 % of a loss that never moved"
    assert judge.judge(torch.tensor(-100.0), ONE, at + 1) == 1
    judge = guard(spike="stop")
    for step in range(500):
        assert judge.judge(torch.tensor(1.0 + 0.02 * step), ONE, step) == 1
    judge = guard(spike="stop")
    for step in range(WARMUP):
        assert judge.judge(torch.tensor(100.0 * (step % 7)), ONE, step) == 1, "no level yet"
    assert judge.events() == []


def test_a_new_level_is_accepted_in_the_end_where_spikes_are_only_told() -> None:
    judge = guard()
    at = settled(judge)
    for step in range(at, at + 200):
        assert judge.judge(torch.tensor(9.0), ONE, step) == 1
    told = judge.events()
    assert 1 <= len(told) < 5


def test_the_level_is_a_mean_of_about_fifty_steps() -> None:
    judge, plain = guard(), []
    for step, value in enumerate((2 + noise(120).tanh()).tolist()):
        judge.judge(torch.tensor(value, dtype=torch.float64), ONE, step)
        plain.append(value)
        if step == 20:
            assert judge.tensors()["level"][0] == pytest.approx(sum(plain) / 21)
    mean, variance = sum(plain[:50]) / 50, 0.0
    expected = 0.0
    for number, value in enumerate(plain):
        share = max(1 / (number + 1), MEMORY)
        away = value - expected
        expected += share * away
        variance = (1 - share) * (variance + share * away * away)
    assert judge.tensors()["level"].tolist() == pytest.approx([expected, variance, 120])
    assert mean != expected


def test_buffers_are_as_they_were_before_a_bad_step() -> None:
    count, value = torch.tensor(3), noise(4)
    judge = Guard(GuardConfig(bad_number="skip"), [count, value], torch.device("cpu"))
    before = value.clone()
    judge.remember()
    count += 1
    value.fill_(math.nan)
    judge.put_back(judge.judge(NAN, ONE, 0))
    assert count == 3 and value.equal(before)
    judge.remember()
    count += 1
    value += 1
    judge.put_back(judge.judge(ONE, ONE, 1))
    assert count == 4 and value.equal(before + 1)


def test_a_guard_goes_on_where_it_was() -> None:
    first, second = guard(spike="stop", bad_number="skip"), guard(spike="stop", bad_number="skip")
    at = settled(first)
    first.judge(NAN, ONE, at)
    first.events()
    second.judge(NAN, ONE, 0)
    second.restore({name: value.clone() for name, value in first.tensors().items()})
    assert second.events() == [] and second.skipped == 1
    for judge in (first, second):
        assert judge.judge(torch.tensor(9.0), ONE, at + 1) == 0
        with pytest.raises(SpikeError):
            judge.events()
