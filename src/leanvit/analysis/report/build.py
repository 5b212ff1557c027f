"""x."""

from typing import Any


def report_result(*a: Any) -> Any:
    raise NotImplementedError
