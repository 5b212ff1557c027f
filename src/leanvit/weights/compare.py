"""How far the features of two networks are from each other."""

import numpy as np
import torch
from torch import Tensor

from leanvit.core.random import generator

TOLERANCE = 1e-4
"""How far what was written may be from what was read: the largest difference of features over the
largest feature."""

OTHER_EPS = 1e-3
"""The same where norms of the other code add another number to the variance, and nothing else is
different: a note says so, with the figure."""


def difference(found: Tensor, right: Tensor) -> float:
    """Return the largest difference over the largest value; infinite for other shapes.

    Not a number where either holds one, so that only `<=` says that features agree.
    """
    if found.shape != right.shape:
        return float("inf")
    return float((found - right).abs().max() / right.abs().max())


def images_for(size: int | tuple[int, int], count: int = 2) -> Tensor:
    """Return images [count, 3, height, width] of normal numbers, the same each time.

    size: (height, width), or the side of squares.
    """
    height, width = (size, size) if isinstance(size, int) else size
    drawn = generator(0, "compare", height, width, count)
    return torch.from_numpy(drawn.standard_normal((count, 3, height, width), dtype=np.float32))
