"""How many dimensions features really use."""

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885).

    features [N, D], taken as they are; the result lies between 1 and min(N, D), and is 1 for
    features that all point one way.
    """
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))
