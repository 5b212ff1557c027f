"""k-NN against plain forms, against scikit-learn, and two processes against one."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional

from leanvit.core.distributed import rank
from leanvit.evaluation import nearest as ours
from leanvit.evaluation.knn import Bank, accuracy_of, knn_accuracy, precision_of
from leanvit.evaluation.nearest import nearest
from leanvit.evaluation.scores import eleven_point_map
from tests.distributed.launch import in_processes
from tests.tiny import noise

pytestmark = pytest.mark.usefixtures("one_thread")
KS = (1, 5, 40)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search in many small pieces, so that few rows meet every one of their edges."""
    monkeypatch.setattr(ours, "BLOCK", 16)
    monkeypatch.setattr(ours, "QUERIES", 4)
    monkeypatch.setattr(ours, "KEYS", 150)


# The search


def coarse(rows: int, seed: int) -> Tensor:
    """Return rows of few directions, some of length 0: many similarities are equal to the bit.

    Along an axis, or with all of four numbers equal but for their signs: unit rows are halves and
    ones then, and sums of products exact in any order, as processors differ in it.
    """
    draw = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (rows, 4), generator=draw) * 2.0 - 1
    axis = functional.one_hot(torch.randint(0, 4, (rows,), generator=draw), 4)
    kind = torch.randint(0, 5, (rows, 1), generator=draw)
    drawn = torch.where(kind < 2, signs, signs * axis) * (kind < 4)
    return drawn * (1.0 + torch.arange(rows)[:, None] % 3)


def sorted_out(rows: Tensor, queries: Tensor, leave_one_out: bool) -> tuple[Tensor, Tensor]:
    """Return similarities and places of all rows, nearest first, of equal ones the lower place."""
    like = functional.normalize(queries, dim=1) @ functional.normalize(rows, dim=1).T
    if leave_one_out:
        like.fill_diagonal_(-math.inf)
    values, order = like.sort(dim=1, descending=True, stable=True)
    return values, order


def found_by(rows: Tensor, queries: Tensor, k: int, **how: bool) -> tuple[Tensor, Tensor]:
    parts = list(nearest(rows, queries, k, **how))
    assert [part.queries.start for part in parts[1:]] == [part.queries.stop for part in parts[:-1]]
    return torch.cat([part.similarity for part in parts]), torch.cat([p.place for p in parts])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("k", [1, 2, 20, 76])
def test_the_nearest_are_those_of_a_sort(k: int, leave_one_out: bool) -> None:
    rows = coarse(77, seed=0)
    queries = rows if leave_one_out else coarse(21, seed=1)
    values, order = sorted_out(rows, queries, leave_one_out)
    like, place = found_by(rows, queries, k, leave_one_out=leave_one_out)
    assert torch.equal(place, order[:, :k]), "of equally similar ones, the first"
    torch.testing.assert_close(like, values[:, :k])


@pytest.mark.usefixtures("small")
def test_lengths_change_nothing_and_halves_are_taken() -> None:
    rows, queries = noise(60, 8), noise(9, 8, seed=1)
    _, expected = found_by(rows, queries, 7)
    for factor in (1e-12, 1e12):
        assert torch.equal(found_by(rows * factor, queries / factor, 7)[1], expected)
    _, place = found_by(rows.half(), queries.half(), 7)
    assert torch.equal(
        place, sorted_out(rows.half().float(), queries.half().float(), False)[1][:, :7]
    )


def test_blocks_cover_all_rows_once() -> None:
    for rows in (0, 1, 1023, 1024, 1025, 100_000):
        blocks = list(ours._blocks(rows))
        assert all(start + size == after for (start, size), (after, _) in pairwise(blocks))
        assert not blocks or (blocks[0][0] == 0 and sum(blocks[-1]) >= rows > blocks[-1][0])


def test_a_key_is_in_the_order_of_its_similarity_and_then_of_its_place() -> None:
    like = torch.tensor([-math.inf, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0])
    keys = ours._keys(like, torch.tensor([5, 5, 5, 4, 5, 5, 5, 5]))
    order = torch.tensor([0, 1, 2, 4, 3, 5, 6, 7])
    assert torch.equal(keys.argsort(), order), "-0 is as near as 0, and its place is lower"
    assert torch.equal(ours._similarity(keys), like)


# Classes


@pytest.mark.usefixtures("small")
def test_knn_is_its_definition() -> None:
    train, test = noise(40, 6, seed=0), noise(30, 6, seed=1)
    train_target, test_target = torch.arange(40) % 7, torch.arange(30) % 7
    found = knn_accuracy(train, train_target, test, test_target, ks=KS)
    for k in KS:
        hits = [0, 0]
        for row, target in zip(test, test_target.tolist(), strict=True):
            like = functional.cosine_similarity(row[None], train)
            votes = torch.zeros(7)
            for near in like.argsort(descending=True)[:k].tolist():
                votes[train_target[near]] += math.exp(float(like[near]) / 0.07)
            order = votes.argsort(descending=True, stable=True).tolist()
            hits[0] += target == order[0]
            hits[1] += target in order[: min(5, k)]
        assert found[k] == pytest.approx((100 * hits[0] / 30, 100 * hits[1] / 30))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.07, 0.001, 5.0])
def test_scikit_learn_finds_the_same(seed: int, temperature: float) -> None:
    """Cosine distance, votes by a function of it; at 0.001 a vote alone is beyond fp32."""
    target, wanted = (torch.arange(n) * (seed + 2) % 6 for n in (90, 40))
    train, test = noise(90, 5, seed=seed), noise(40, 5, seed=seed + 10)
    found = knn_accuracy(train, target, test, wanted, ks=KS, temperature=temperature)
    for k in KS:
        other = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp(-distance / temperature)
        ).fit(train.double().numpy(), target.numpy())
        assert found[k][0] == pytest.approx(
            100 * other.score(test.double().numpy(), wanted.numpy())
        )


def test_knn_with_few_rows_and_classes() -> None:
    rows, target = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_accuracy(rows, target, rows, target, ks=(1, 20)) == {
        1: (100.0, 100.0),
        20: (100.0, 100.0),
    }
    alone = accuracy_of(Bank(rows, target, leave_one_out=True), rows, target, ks=(1, 20))
    assert alone[1] == (0.0, 0.0) and alone[20][0] == 0.0, "nobody else has its class"


# Many classes an image


def labels_of(rows: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, 4, generator=draw) < 0.3).long()


@pytest.mark.usefixtures("small")
def test_many_labels_are_voted_on_each_by_itself() -> None:
    train, test = noise(40, 6, seed=0), noise(30, 6, seed=1)
    labels, wanted = labels_of(40, 0), labels_of(30, 1)
    labels[::5, 1], labels[:, 3] = -1, -1
    found = precision_of(Bank(train, labels), test, wanted, ks=KS)
    for k in KS:
        scores = torch.zeros(30, 4)
        for number, row in enumerate(test):
            like = functional.cosine_similarity(row[None], train)
            near = like.argsort(descending=True)[:k]
            for c in range(3):  # of the last class nobody knows anything
                known = near[labels[near, c] >= 0]
                vote = (like[known].double() / 0.07).exp()
                if len(known):
                    scores[number, c] = (vote * labels[known, c]).sum() / vote.sum()
        assert found[k] == pytest.approx(eleven_point_map(scores, wanted), abs=1e-4)


def test_one_label_an_image_ranks_as_scikit_learn_says() -> None:
    """Scores of all training rows are its probabilities, whose precision it finds by itself."""
    train, test = noise(60, 5, seed=0), noise(200, 5, seed=1)
    target = (train[:, 0] > 0).long() + (train[:, 1] > 0)
    wanted = functional.one_hot((test[:, 0] > 0).long() + (test[:, 1] > 0), 3)
    labels = functional.one_hot(target, 3)
    other = KNeighborsClassifier(60, metric="cosine", weights=lambda d: np.exp(-d / 0.07))
    chances = other.fit(train.double().numpy(), target.numpy()).predict_proba(test.double().numpy())
    mine = precision_of(Bank(train, labels), test, wanted, ks=(60,))[60]
    assert mine == pytest.approx(eleven_point_map(torch.from_numpy(chances), wanted), abs=1e-3)
    smooth = 100 * average_precision_score(wanted.numpy(), chances)
    assert mine == pytest.approx(smooth, abs=5), "eleven points are near the whole curve"


# Mistakes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train": torch.empty(0, 3), "target": torch.empty(0).long()}, "both sides: 0 to learn"),
        ({"test": torch.empty(0, 3), "wanted": torch.empty(0).long()}, "3 to learn, 0 to test"),
        ({"target": torch.tensor([0, 1])}, "3 rows and 2 targets of images to learn from"),
        ({"wanted": torch.tensor([0, 1])}, "3 rows and 2 targets of images to test on"),
        ({"target": torch.tensor([0, -1, 1])}, "number 1 to learn from has the label -1"),
        ({"wanted": torch.tensor([0, 1, -7])}, "number 2 to test on has the label -7"),
        ({"train": torch.eye(3) / torch.eye(3)}, "image to learn from number 0 are not"),
        ({"test": torch.tensor([[1.0], [2.0], [math.inf]]) * torch.ones(3)}, "test on number 2"),
        ({"test": torch.full((3, 3), 1e30)}, "or are too large"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, Tensor], expected: str) -> None:
    rows, target = torch.eye(3), torch.tensor([0, 1, 2])
    given = {"train": rows, "target": target, "test": rows, "wanted": target, **change}
    with pytest.raises(ValueError, match=expected):
        knn_accuracy(given["train"], given["target"], given["test"], given["wanted"], ks=(1,))


def test_labels_of_no_meaning_are_refused() -> None:
    labels = torch.tensor([[1, 0], [2, 0]])
    with pytest.raises(ValueError, match=r"number 1 to learn from has the label \[2, 0\]"):
        Bank(torch.eye(2), labels)
    with pytest.raises(ValueError, match=r"labels \[2, 3\], those to learn from \[2, 2\]"):
        precision_of(Bank(torch.eye(2), labels.clamp(max=1)), torch.eye(2), torch.ones(2, 3).long())
    with pytest.raises(ValueError, match="0 to learn"):
        accuracy_of(
            Bank(torch.eye(1), torch.tensor([0]), leave_one_out=True),
            torch.eye(1),
            torch.tensor([0]),
        )


# Two processes


CASES = ((20, False), (31, True), (50, False))
"""Rows of the first process, of 50, and whether each looks for neighbours of its own."""


def searched(shared: bool) -> list[tuple[Tensor, Tensor]]:
    """Search for neighbours in this process's share of the rows, or in all."""
    torch.set_num_threads(1)
    ours.BLOCK = 16
    rows, found = coarse(50, seed=0), []
    for cut, leave_one_out in CASES:
        queries = rows if leave_one_out else coarse(9, seed=1)
        first = (0, cut)[rank()] if shared else None
        part = rows if not shared else rows[cut:] if rank() else rows[:cut]
        for k in (3, 49):
            near = nearest(part, queries, k, first=first, leave_one_out=leave_one_out)
            found += [(each.similarity, each.place) for each in near]
    return found


def test_two_processes_find_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one of them has no rows at all, or fewer than are asked for."""
    monkeypatch.setattr(ours, "BLOCK", ours.BLOCK)  # to be restored
    alone = searched(False)
    for found in in_processes(2, searched, True):
        for (like, place), (other, there) in zip(alone, found, strict=True):
            assert torch.equal(place, there) and torch.equal(like, other)
