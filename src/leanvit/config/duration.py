"""Lengths of training in one word, and the schedules that use them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

UNITS = ("ep", "st", "%", "img", "m", "h")
"""Epochs, steps, percent of the run, images, minutes, hours."""
SECONDS: Mapping[str, int] = MappingProxyType({"m": 60, "h": 3600})
"""Units of time."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training: `10ep` epochs, `2000st` steps, `5%` of the run, `1e6img` images.

    `30m` and `2h` are as many steps as take so long.
    """

    amount: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(
                f"Unknown unit {self.unit!r} of a duration; known: {', '.join(UNITS)}."
            )
        if not 0 <= self.amount < float("inf"):
            raise ValueError(f"A duration is finite and not negative, not {self.amount!r}.")
        if self.unit == "%" and self.amount > 100:
            raise ValueError(f"A share of the run is at most 100%, not {self.amount:g}%.")

    @classmethod
    def parse(cls, word: str) -> "Duration":
        """Read a word such as `10ep`. Raises ValueError for anything else."""
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(ep|st|%|img|m|h)\s*", word)
        try:
            return cls(float(match[1]), match[2])  # type: ignore[index]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{word!r} is not a duration; write 10ep (epochs), 2000st (steps), "
                f"5% (of the run), 1e6img (images), 30m or 2h."
            ) from error

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount}{self.unit}"

    @property
    def timed(self) -> bool:
        """Whether it is a time, which becomes steps once it is known how long these take."""
        return self.unit in SECONDS

    def steps(self, *, epoch: int, batch: int, run: int | None = None, seconds: float = 0.0) -> int:
        """Whole steps, rounded to the nearest.

        epoch: steps in an epoch; batch: images in a step over all processes; run: steps in the
        run, None while its length itself is being decided (a percentage is an error then);
        seconds: what a step takes, 0 where that was not measured (a time is an error then).
        """
        if self.unit == "%":
            if run is None:
                raise ValueError(f"The length of a run cannot be {self}: give epochs or steps.")
            return round(self.amount / 100 * run)
        if self.timed:
            if not seconds:
                raise ValueError(
                    f"How many steps are {self} hangs on what a step takes, which was not measured "
                    f"here: give epochs or steps."
                )
            return round(self.amount * SECONDS[self.unit] / seconds)
        return round(self.amount * {"ep": epoch, "st": 1, "img": 1 / batch}[self.unit])


def steps(count: int) -> Duration:
    """Return a duration of so many steps."""
    return Duration(count, "st")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A number that changes over the run: linear from start to peak, then on to end."""

    start: float = 0.0
    """Value at the first step of the warm-up."""
    peak: float
    """Value at the end of the warm-up."""
    end: float
    """Value that the last step approaches."""
    warmup: Duration = Duration(0, "st")
    """Length of the linear warm-up."""
    shape: Literal["cosine", "linear", "steps"] = "cosine"
    """Way from peak to end; steps: two falls by an equal factor, after 8/9 and 26/27 of the run."""


def constant(value: float) -> Schedule:
    """Return a schedule that never changes."""
    return Schedule(start=value, peak=value, end=value)
