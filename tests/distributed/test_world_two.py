"""Every function that talks to other processes: two processes equal one, in fp64 to 1e-9."""

import pytest
import torch
from torch import Tensor

from leanvit.config import StepMemory, TimmConfig
from leanvit.core.distributed import (
    all_max,
    all_sum,
    all_sum_with_grad,
    launched,
    rank,
    world_size,
)
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.losses.contrastive import info_nce
from leanvit.losses.koleo import koleo
from leanvit.methods.heads import Center, Prototypes
from leanvit.train import fitting
from tests.distributed.launch import in_processes
from tests.tiny import HEAD, build, noise

ROWS = 10


def mine(x: Tensor) -> Tensor:
    """This process's share of rows: uneven on purpose."""
    if world_size() == 1:
        return x
    return x[:3] if rank() == 0 else x[3:]


def sums() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = mine(noise(ROWS, 4, dtype=torch.float64)).requires_grad_()
    total = all_sum_with_grad(x.sum(0))
    weight = torch.arange(4.0, dtype=torch.float64) * (rank() + 1)
    (total * weight).sum().backward()
    assert x.grad is not None
    return all_sum(x.sum(0)).detach(), all_max(x.amax(0)).detach(), total.detach(), x.grad


def compiled() -> Tensor:
    x = mine(noise(ROWS, 4, dtype=torch.float64)).requires_grad_()

    def summed(x: Tensor) -> Tensor:
        return all_sum_with_grad(x.square().sum(0))

    for form in (summed, torch.compile(summed, backend="eager", fullgraph=True)):
        form(x).square().sum().backward()
    assert x.grad is not None
    return x.grad


def batch_norm(*places: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    norm = SyncBatchNorm(4).double()
    norm.weight.data = noise(4, seed=1, dtype=torch.float64)
    norm.bias.data = noise(4, seed=2, dtype=torch.float64)
    x = mine(5 + 3 * noise(ROWS, 4, *places, dtype=torch.float64)).requires_grad_()
    out = norm(x)
    (out * mine(noise(ROWS, 4, *places, seed=3, dtype=torch.float64))).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    assert norm.running_mean is not None and norm.running_var is not None
    shared = (all_sum(norm.weight.grad), all_sum(norm.bias.grad))
    return out.detach(), x.grad, norm.running_mean, norm.running_var, *shared


def convolutions() -> list[Tensor]:
    """Views of two sizes through a network of timm with batch norm, in training."""
    backbone = build(TimmConfig(image_size=64, name="test_resnet"), torch.float64).train()
    views = [mine(noise(ROWS, 3, side, side, seed=side, dtype=torch.float64)) for side in (64, 40)]
    found = backbone(views)
    weights = [noise(ROWS, *f.pooled.shape[1:], seed=4, dtype=torch.float64) for f in found]
    total = sum((f.pooled * mine(w)).sum() for f, w in zip(found, weights, strict=True))
    gradients = torch.autograd.grad(total, list(backbone.parameters()))
    running = [b for _, b in sorted(backbone.named_buffers()) if b.is_floating_point()]
    assert running
    return [*(f.pooled.detach() for f in found), *running, *(all_sum(g) for g in gradients)]


def center() -> Tensor:
    module = Center(HEAD).double()
    prototypes = Prototypes(HEAD.prototypes, HEAD.bottleneck, train_gain=True).double()
    prototypes.weight_v.data.copy_(noise(HEAD.prototypes, HEAD.bottleneck, dtype=torch.float64))
    for step in range(3):
        module.collect(mine(noise(ROWS, HEAD.bottleneck, seed=step, dtype=torch.float64)))
        module.update(prototypes, 0.9)
    return module.value


def test_a_process_alone_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers set RANK for other ends; a run that takes itself for the second writes nothing."""
    monkeypatch.setenv("RANK", "3")
    assert (launched(), world_size(), rank()) == (1, 1, 0)
    for name, value in {"WORLD_SIZE": "4", "MASTER_ADDR": "one", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (launched(), world_size(), rank()) == (4, 1, 3)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_sums_and_maxima() -> None:
    (total, largest, _, _), two = sums(), in_processes(2, sums)
    for found in two:
        close(found[0], total)
        close(found[1], largest)
        close(found[2], total)
        # the loss of process r weighs by r + 1, and every process feels both
        close(found[3][0], 3 * torch.arange(4.0, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_gradients_pass_through_compiled_sums() -> None:
    """Those of both processes, whose losses are the same: twice those of one."""
    close(torch.cat(in_processes(2, compiled)), 2 * compiled())


@pytest.mark.parametrize("places", [(), (3, 5)], ids=["rows", "maps"])
def test_batch_norm(places: tuple[int, ...]) -> None:
    one, two = batch_norm(*places), in_processes(2, batch_norm, *places)
    for number in (0, 1):
        close(torch.cat([found[number] for found in two]), one[number])
    for found in two:
        for number in (2, 3, 4, 5):
            close(found[number], one[number])


def test_convolutions() -> None:
    one, two = convolutions(), in_processes(2, convolutions)
    for number in (0, 1):
        close(torch.cat([found[number] for found in two]), one[number])
    for found in two:
        for number in range(2, len(one)):
            close(found[number], one[number])


def contrast() -> tuple[Tensor, Tensor, Tensor]:
    """A process's mean loss, the hits of its rows, and the gradient of the mean over processes."""
    queries = halves(noise(ROWS, 6, dtype=torch.float64)).requires_grad_()
    keys = queries.detach() + halves(noise(ROWS, 6, seed=1, dtype=torch.float64))
    loss, hits = info_nce(queries, keys, 0.2)
    (loss / world_size()).backward()
    assert queries.grad is not None
    return loss.detach(), hits, queries.grad


def spread() -> tuple[Tensor, Tensor]:
    rows = halves(noise(ROWS, 6, dtype=torch.float64)).requires_grad_()
    loss = koleo(rows)
    (loss / world_size()).backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


def halves(x: Tensor) -> Tensor:
    """This process's share of rows: keys come in equal numbers."""
    return x.chunk(world_size())[rank()]


def test_the_contrast_is_against_the_keys_of_all() -> None:
    (loss, hits, gradient), two = contrast(), in_processes(2, contrast)
    close((two[0][0] + two[1][0]) / 2, loss)
    close((two[0][1] + two[1][1]) / 2, hits)
    close(torch.cat([found[2] for found in two]), gradient)
    assert 0 < hits < 1


def test_center() -> None:
    one, two = center(), in_processes(2, center)
    for found in two:
        close(found, one)


def agreed() -> tuple[int, StepMemory]:
    other = rank() + 1
    step = StepMemory(
        fixed=100 * other, each=30 // other, views=other, waiting=0, gradients=7, whole=other == 2
    )
    return fitting._agreed(1000 * other, step, "cpu")


@pytest.mark.long
def test_the_process_with_the_least_room_decides_on_the_batch() -> None:
    together = (
        1000,
        StepMemory(fixed=200, each=30, views=2, waiting=0, gradients=7, whole=True),
    )
    assert in_processes(2, agreed) == [together, together]


def test_rows_keep_their_distance_from_those_of_all() -> None:
    """The nearest of some lies in the other process, and feels it."""
    rows = torch.nn.functional.normalize(noise(ROWS, 6, dtype=torch.float64), dim=1)
    alike = rows @ rows.T - 2 * torch.eye(ROWS)
    assert (alike.argmax(1) // 5 != torch.arange(ROWS) // 5).any()
    (loss, gradient), two = spread(), in_processes(2, spread)
    close((two[0][0] + two[1][0]) / 2, loss)
    close(torch.cat([found[1] for found in two]), gradient)
