"""KoLeo, which spreads features: every image keeps its distance from the one most like it.

The term of the Kozachenko-Leonenko estimate of entropy that features can change, arXiv 1806.03198;
as DINOv2 has it (arXiv 2304.07193, section 4), but among the images of all processes.

Letters: n images of this process, B images of all processes, D width of a row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.distributed import all_rows_with_grad, rank
from leanvit.core.precision import full, unrounded

LEAST = 1e-8
"""Distance below which two rows are the same one, which nothing pulls apart."""


def koleo(rows: Tensor) -> Tensor:
    """Return the mean of -log of the distance from each unit row [n, D] to the nearest of [B, D].

    Gradients reach both rows of a pair, wherever they are. In fp32 or wider: in bf16 another row
    is often nearest. Raises ValueError if there is a single row.
    """
    with unrounded(rows):
        own = functional.normalize(full(rows), dim=-1)
        every = all_rows_with_grad(own)
        if len(every) < 2:
            raise ValueError("KoLeo compares images, and there is one.")
        with torch.no_grad():
            number = torch.arange(len(own), device=own.device)
            alike = own @ every.T
            alike[number, number + rank() * len(own)] = -torch.inf
            nearest = alike.argmax(1)
        distance = (own - every[nearest]).square().sum(1).clamp_min(LEAST**2).sqrt()
        return -(distance + LEAST).log().mean()
