"""What the fork server imports before it forks: all that a run would import by itself."""

import leanvit.cli
import leanvit.run  # noqa: F401
