"""Collapse: the ways in which self-distillation stops saying anything, and how a run shows it."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

LEAST_SPREAD = 0.05
"""Feature standard deviation, 1 for features that point everywhere."""
MOST_ENTROPY = 0.98
"""Teacher entropy, over log K, beyond which a teacher weighs all prototypes alike."""
LEAST_TOLD = 0.33
"""Teacher information, over what its entropy leaves, below which it says the same of all images.

0.52 and more in runs that learned, 0.31 and less where they went wrong (the runs of failures.md).
"""
LEAST_DISTINCT = 0.03
"""How distinct matches are: 0 if all regions choose the same one."""
LEAST_RANK = 1.5
"""Effective rank of the features of many images."""

SHOWN_BY: Mapping[str, str] = MappingProxyType(
    {
        "features": "feature_std",
        "rank": "effective_rank",
        "uniform teacher": "teacher_entropy",
        "blind teacher": "teacher_information",
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
    tells = (
        f"it tells {100 * information:.1f} % of what tells images apart, with an entropy of "
        f"{100 * entropy:.1f} %"
    )
    if entropy > MOST_ENTROPY:
        return {
            "uniform teacher": f"the teacher weighs all prototypes alike ({tells}); a lower "
            f"teacher temperature sharpens it"
        }
    if information < LEAST_TOLD * (1 - entropy):
        return {
            "blind teacher": f"the teacher says nearly the same of all images ({tells}); a lower "
            f"learning rate, a slower teacher (method.teacher_momentum) or centering "
            f"(method.center_momentum below 1) keeps them apart"
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
