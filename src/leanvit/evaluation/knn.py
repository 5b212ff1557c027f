"""Weighted k-nearest-neighbour classification of frozen features (EsViT, `eval_knn`).

Letters: N training rows, M test rows, D channels, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def knn_accuracy(
    train: Tensor,
    train_target: Tensor,
    test: Tensor,
    test_target: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Mapping[int, tuple[float, float]]:
    """Return top-1 and top-5 accuracy in percent for each k.

    train [N, D] and test [M, D] are normalised here; targets are class numbers from 0. The k
    nearest training rows vote with exp(cosine / temperature). Of k beyond N all N vote. Top-5
    looks at min(5, k, C) classes; of equal votes, none included, the lower class comes first.
    `chunk` test rows are compared at a time. Raises ValueError for empty or mismatched inputs.
    """
    if not len(train) or not len(test):
        raise ValueError(
            f"k-NN needs rows on both sides: {len(train)} to learn, {len(test)} to test."
        )
    if len(train) != len(train_target) or len(test) != len(test_target):
        raise ValueError("Every row of features needs one target.")
    classes = int(torch.cat([train_target, test_target]).max()) + 1
    bank = functional.normalize(train.float(), dim=1)
    correct = {k: torch.zeros(2, dtype=torch.long, device=test.device) for k in ks}
    for rows, targets in zip(test.split(chunk), test_target.split(chunk), strict=True):
        similarity = functional.normalize(rows.float(), dim=1) @ bank.T
        nearest, index = similarity.topk(min(max(ks), len(bank)))
        votes = (nearest / temperature).exp()
        labels = train_target[index]
        for k in ks:
            score = votes.new_zeros(len(rows), classes)
            score.scatter_add_(1, labels[:, :k], votes[:, :k])
            guesses = score.sort(stable=True, dim=1, descending=True).indices[:, : min(5, k)]
            hits = guesses == targets[:, None]
            correct[k] += torch.stack([hits[:, :1].sum(), hits.sum()])
    share = {k: (100 * count.double() / len(test)).tolist() for k, count in correct.items()}
    return {k: (top1, top5) for k, (top1, top5) in share.items()}
