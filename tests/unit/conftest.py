"""What unit tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import SAVE


@pytest.fixture(params=SAVE)
def save(request: pytest.FixtureRequest) -> Callable[[object, Path], None]:
    """Write an object as torch does, by the new way and by the old."""
    return SAVE[request.param]
