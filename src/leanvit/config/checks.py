"""What a value must be, said once."""

from collections.abc import Callable
from typing import Any

Rule = tuple[str, Callable[[float], bool]]
"""What is expected, in words, and whether a value is so."""

POSITIVE: Rule = ("above 0", lambda value: value > 0)
NOT_NEGATIVE: Rule = ("0 or more", lambda value: value >= 0)
AT_LEAST_ONE: Rule = ("at least 1", lambda value: value >= 1)
SHARE: Rule = ("within [0, 1]", lambda value: 0 <= value <= 1)
PERCENT: Rule = ("0 to 100 percent", lambda value: 0 <= value <= 100)
BELOW_ONE: Rule = ("within [0, 1)", lambda value: 0 <= value < 1)


def require(config: Any, rule: Rule, *names: str) -> None:
    """Check fields of a section, each entry of those that hold several; `auto` passes.

    Raises ValueError with the field's name, its value and what was expected.
    """
    expected, holds = rule
    for name in names:
        value = getattr(config, name)
        for entry in value if isinstance(value, tuple) else (value,):
            if entry != "auto" and not holds(entry):
                raise ValueError(f"{name} is {value!r}; expected {expected}.")


def require_schedule(config: Any, rule: Rule, *names: str) -> None:
    """Check the start, peak and end of schedules of a section."""
    for name in names:
        try:
            require(getattr(config, name), rule, "start", "peak", "end")
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from error
