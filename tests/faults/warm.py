"""What the fork server imports before it forks: all that a run would import by itself."""

import gc

import leanvit.cli
import leanvit.run  # noqa: F401

gc.collect()
gc.freeze()  # so that no fork looks through all of it, and copies what it looked at
