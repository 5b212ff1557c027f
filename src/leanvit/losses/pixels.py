"""The loss of semantic segmentation.

Letters: B images, C classes, h and w rows and columns.
"""

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.precision import full


def pixel_loss(scores: Tensor, maps: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy, a mean over the pixels that have a class, and their accuracy.

    scores: [B, C, h, w]; maps: [B, h, w] class of every pixel, or `ignored`. Where no pixel has a
    class, both are 0, and so are the gradients.
    """
    target = maps.long()
    there = target != ignored
    count = there.sum().clamp(min=1)
    each = functional.cross_entropy(full(scores), target, ignore_index=ignored, reduction="sum")
    right = (scores.detach().argmax(1) == target) & there
    return each / count, torch.div(right.sum(), count)
