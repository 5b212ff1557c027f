"""Sinkhorn-Knopp targets without logits: every prototype gets the same share of a global batch.

SwAV, arXiv 2006.09882, appendix A; DINOv2, arXiv 2304.07193. Normalising columns and rows in turn
only ever adds a number to each column and row of the logits. The rows' numbers vanish in the final
softmax, and the columns' are a bias of the keys, which is all that prototype attention needs.

Letters: M teacher rows of this process, K prototypes.
"""

import torch
from torch import Tensor

from leanvit.core.distributed import all_max, all_sum
from leanvit.core.precision import full, unrounded
from leanvit.kernels.prototype_sweeps import log_sum_exp
from leanvit.kernels.prototypes import Projection


@torch.no_grad()
def sinkhorn_bias(teacher: Projection, temperature: float, iterations: int) -> Tensor:
    """Return the key bias [K] under which softmax gives the targets of Sinkhorn-Knopp.

    In the log domain and in fp32 or wider, with the rows of all processes; only vectors are kept.
    Each iteration shares the rows equally among the prototypes, then makes them distributions.
    """
    with unrounded(teacher.rows):
        rows, prototypes = full(teacher.rows), full(teacher.prototypes)
        row_bias, key_bias = rows.new_zeros(len(rows)), rows.new_zeros(len(prototypes))
        for number in range(iterations):
            if number:
                row_bias = -log_sum_exp(rows, prototypes, 1 / temperature, key_bias)
            here = log_sum_exp(prototypes, rows, 1 / temperature, row_bias)
            peak = all_max(here)
            key_bias = -(peak + all_sum((here - peak).exp()).log())
        return key_bias
