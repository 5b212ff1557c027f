"""What a segmentation is worth: counts of pixels, and the scores that follow from them.

Letters: C classes, h and w rows and columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.data.masks import IGNORED


@dataclass
class Confusion:
    """How many pixels of each class (rows) were told as which (columns)."""

    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        self.counts = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)

    def add(self, told: Tensor, truth: Tensor) -> None:
        """Count the pixels of an image: told [h, w], truth [h, w] with IGNORED for no class."""
        there = truth != IGNORED
        count = len(self.classes)
        pairs = count * truth[there].long() + told[there].long()
        found = torch.bincount(pairs.flatten(), minlength=count**2)
        self.counts += found.view(count, count).cpu()

    def overlaps(self) -> list[float | None]:
        """Return intersection over union of each class in percent; None for one that nowhere is.

        A class counts where it is or where it is told.
        """
        hits = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return [
            100 * float(hit / all_) if all_ else None for hit, all_ in zip(hits, union, strict=True)
        ]

    def of_classes(self) -> dict[str, float | None]:
        """Return the overlap of each class by its name."""
        return dict(zip(self.classes, self.overlaps(), strict=True))

    def scores(self) -> dict[str, float]:
        """Return mean IoU, and the accuracy of pixels and of classes (mean), in percent.

        Raises ValueError if no pixel had a class.
        """
        total = self.counts.sum()
        if not total:
            raise ValueError("No pixel of the images to test on has a class.")
        hits, there = self.counts.diagonal().double(), self.counts.sum(1)
        overlaps = [value for value in self.overlaps() if value is not None]
        occurring = there > 0
        return {
            "miou": sum(overlaps) / len(overlaps),
            "pixels": 100 * float(hits.sum() / total),
            "classes": 100 * float((hits[occurring] / there[occurring]).mean()),
        }
