"""What the fork server imports before it forks: all that a run would import by itself."""

import matplotlib.pyplot  # noqa: F401

import leanvit.cli
import leanvit.run  # noqa: F401
