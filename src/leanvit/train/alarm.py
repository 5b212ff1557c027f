"""Collapse: the ways in which self-distillation stops saying anything, and how a run shows it."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

LEAST_SPREAD = 0.05
"""Feature standard deviation, 1 for features that point everywhere."""
LEAST_INFORMATION = 0.06
"""Teacher information below which a teacher says the same of all images (failures.md)."""
LEAST_ENTROPY = 0.15
"""Teacher entropy, over log K, below which a teacher is certain, and should tell images apart."""
LEAST_CERTAIN = 0.25
"""Teacher information below which a certain teacher does not."""
LEAST_DISTINCT = 0.03
"""How distinct matches are: 0 if all regions choose the same one."""
LEAST_RANK = 1.5
"""Effective rank of the features of many images."""

SHOWN_BY: Mapping[str, str] = MappingProxyType(
    {
        "features": "feature_std",
        "rank": "effective_rank",
        "uniform teacher": "teacher_information",
        "certain teacher": "teacher_information",
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
    found |= _teacher(row.get("teacher_entropy", 0.5), row.get("teacher_information", 1.0))
    distinct = row.get("distinct_matches", math.inf)
    if distinct < LEAST_DISTINCT:
        found["matches"] = (
            f"nearly all regions match the same one (distinct matches {distinct:.3f} of 1)"
        )
    return found


def _teacher(entropy: float, information: float) -> dict[str, str]:
    """Return how a teacher came to say the same of all images, and what helps, if it did."""
    tells = f"it tells {100 * information:.1f} % of what tells images apart"
    if entropy < LEAST_ENTROPY and information < LEAST_CERTAIN:
        return {
            "certain teacher": f"the teacher gives all images the same few prototypes ({tells}, "
            f"with an entropy of {100 * entropy:.1f} %); centering (method.center_momentum below "
            f"1) or a higher teacher temperature spreads them"
        }
    if entropy >= LEAST_ENTROPY and information < LEAST_INFORMATION:
        return {
            "uniform teacher": f"the teacher gives all images the same shares of the prototypes "
            f"({tells}, with an entropy of {100 * entropy:.1f} %); a lower teacher temperature "
            f"sharpens it, and so may a lower learning rate"
        }
    return {}


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
