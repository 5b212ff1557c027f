"""The value of a schedule at a step."""

import math

from leanvit.config import Schedule


def schedule_value(schedule: Schedule, step: int, run: int) -> float:
    """Return the value at `step` (from 0) of a run of `run` steps.

    The schedule is resolved: its warm-up is a number of steps. The warm-up of n steps takes n
    values from start to peak, both included; the rest follows the cosine (or line) from peak
    towards end, which it would reach one step after the last (DINO's `cosine_scheduler`), or falls
    in two steps.
    """
    warmup = _steps(schedule)
    if step < warmup:
        return schedule.start + (schedule.peak - schedule.start) * step / max(warmup - 1, 1)
    if schedule.shape == "steps":
        fallen = _falls(step / run) / 2
        return schedule.peak ** (1 - fallen) * schedule.end**fallen
    share = (step - warmup) / max(run - warmup, 1)
    if schedule.shape == "cosine":
        share = 0.5 * (1 - math.cos(math.pi * share))
    return schedule.peak + (schedule.end - schedule.peak) * share


FALLS = (8 / 9, 26 / 27)
"""Shares of a run after which a schedule of steps falls (ViTDet, arXiv 2203.16527)."""


def _falls(share: float) -> int:
    return sum(share >= fall for fall in FALLS)


def _steps(schedule: Schedule) -> int:
    if schedule.warmup.unit != "st":
        raise ValueError(f"The warm-up {schedule.warmup} of a schedule is not resolved to steps.")
    return int(schedule.warmup.amount)
