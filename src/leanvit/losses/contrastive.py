"""The contrastive loss of MoCo-v3 (arXiv 2104.02057): a query finds its key among all keys.

Letters: n images of this process, B images of all processes, D width of a row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from leanvit.core.distributed import all_rows, rank
from leanvit.core.precision import full, unrounded


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss of queries [n, D] against keys [n, D], and the share that found its own.

    A query's own key is that of its row; all others, those of other processes too, are negatives.
    The loss is the mean cross-entropy over cosines / temperature, times 2 * temperature, so that
    its gradients keep their size as the temperature changes. Gradients reach the queries alone.
    Logits are fp32 or wider.
    """
    with unrounded(queries):
        queries = functional.normalize(full(queries), dim=-1)
        known = all_rows(functional.normalize(full(keys.detach()), dim=-1))
        logits = queries @ known.T / temperature
        own = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
        loss = 2 * temperature * functional.cross_entropy(logits, own)
    return loss, (logits.argmax(1) == own).to(logits.dtype).mean()
