"""Collapse: the ways in which self-distillation stops saying anything, and how a run shows it."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

LEAST_SPREAD = 0.05
"""Feature standard deviation, 1 for features that point everywhere."""
MOST_ENTROPY = 0.995
"""Teacher entropy, over log K, from which on a teacher says nothing."""
LEAST_ENTROPY = 1e-4
"""Teacher entropy, over log K, below which every image has one prototype for certain."""
LEAST_DISTINCT = 0.03
"""How distinct matches are: 0 if all regions choose the same one."""
LEAST_RANK = 1.5
"""Effective rank of the features of many images."""

SHOWN_BY: Mapping[str, str] = MappingProxyType(
    {
        "features": "feature_std",
        "rank": "effective_rank",
        "uniform teacher": "teacher_entropy",
        "certain teacher": "teacher_entropy",
        "matches": "distinct_matches",
    }
)
"""The metric that shows each collapse; not every row has each metric."""


def collapses(row: Mapping[str, float]) -> dict[str, str]:
    """Return the name of every collapse that a row of metrics shows, and what it means.

    A metric that the row lacks accuses nobody.
    """
    found: dict[str, str] = {}
    spread = row.get("feature_std", math.inf)
    if spread < LEAST_SPREAD:
        found["features"] = f"all images get nearly the same feature (deviation {spread:.3f} of 1)"
    rank = row.get("effective_rank", math.inf)
    if rank < LEAST_RANK:
        found["rank"] = f"the features use a single dimension (effective rank {rank:.2f})"
    entropy = row.get("teacher_entropy", 0.5)
    if entropy > MOST_ENTROPY:
        found["uniform teacher"] = (
            f"the teacher gives every prototype the same share (entropy {100 * entropy:.2f} % of "
            f"the most); a lower teacher temperature sharpens it"
        )
    if entropy < LEAST_ENTROPY:
        found["certain teacher"] = (
            f"the teacher gives each image one prototype for certain (entropy "
            f"{100 * entropy:.3f} % of the most); a higher teacher temperature softens it"
        )
    distinct = row.get("distinct_matches", math.inf)
    if distinct < LEAST_DISTINCT:
        found["matches"] = (
            f"nearly all regions match the same one (distinct matches {distinct:.3f} of 1)"
        )
    return found


class CollapseAlarm:
    """Warns once of each collapse, when two rows in a row that have its metric show it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._before: set[str] = set()
        self.told: dict[str, str] = {}
        """Every collapse that was warned of."""

    def on_step(self, step: int) -> None:
        """Wait for a row."""

    def on_row(self, row: Mapping[str, float]) -> None:
        """Compare the row with what a run that learns looks like."""
        if "loss" not in row:
            return
        found = collapses(row)
        for name, meaning in found.items():
            if name in self._before and name not in self.told:
                self.told[name] = meaning
                self._tell(
                    f"collapse ({name}) at step {row['step']:.0f}: {meaning}. The run goes on, but "
                    f"it is unlikely to learn."
                )
        unseen = {name for name in self._before if SHOWN_BY[name] not in row}
        self._before = unseen | found.keys()

    def on_end(self) -> None:
        """Nothing is left to say."""
