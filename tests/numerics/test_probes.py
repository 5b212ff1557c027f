"""Descriptions of images and the linear probe against plain forms."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from leanvit.data.batch import Unreadable
from leanvit.data.images import ImageBatch
from leanvit.evaluation.features import (
    COLOR_BINS,
    GREY_BINS,
    PIXELS,
    Description,
    describe,
    describe_grid,
    describe_histogram,
    describe_network,
    describe_pixels,
    last_block_features,
    standardize,
)
from leanvit.evaluation.linear import LinearProbe
from tests.tiny import FAMILIES, VIT, build, noise

LUMA = torch.tensor([0.2989, 0.587, 0.114])
"""Share of red, green and blue in grey (ITU-R 601), as torchvision rounds it."""


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Return numbers in [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def plain_grey(image: Tensor) -> Tensor:
    """Return the standardised grey [S, S] of an image [3, S, S]."""
    grey = (LUMA[:, None, None] * image).sum(0)
    return (grey - grey.mean()) / grey.std(correction=0)


# Grey, standardised


def test_standardised_images_are_grey_with_mean_0_and_deviation_1() -> None:
    images = unit(4, 3, 20, 20) ** 2
    found = standardize(images)
    assert found.shape == images.shape
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std((1, 2, 3), correction=0), torch.ones(4))
    for image, row in zip(images, found, strict=True):
        torch.testing.assert_close(row[0], plain_grey(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.2, 1 / 3, 1.0])
def test_an_image_of_one_color_becomes_nothing(value: float) -> None:
    image = torch.full((1, 3, 224, 224), value)
    image[:, 1] *= 0.7
    assert standardize(image).abs().max() < 0.01


def test_brightness_and_contrast_do_not_matter() -> None:
    images = 0.2 + 0.3 * unit(2, 3, 16, 16)
    for changed in (images + 0.25, images * 1.9, 0.4 * images + 0.1, 1.5 * images - 0.2):
        torch.testing.assert_close(standardize(changed), standardize(images), atol=1e-4, rtol=0)
    inverted = standardize(1 - images)
    torch.testing.assert_close(inverted, -standardize(images), atol=1e-4, rtol=0)


def test_rounding_is_not_blown_up() -> None:
    """Less than half an 8-bit step is no structure; one step is."""
    half, whole = (torch.zeros(1, 3, 8, 8) for _ in range(2))
    half[..., ::2], whole[..., ::2] = 0.2 / 255, 1 / 255
    assert standardize(half).abs().max() < 0.21
    one = torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(standardize(whole).abs(), one, atol=1e-3, rtol=0)


# What needs no network


@pytest.mark.parametrize("protocol", ["color", "grey"])
def test_small_images_are_described_by_all_their_pixels(protocol: str) -> None:
    images = unit(3, 3, 24, 24)
    found = describe_pixels(protocol)(images)
    for image, row in zip(images, found, strict=True):
        wanted = plain_grey(image) if protocol == "grey" else image - image.mean()
        torch.testing.assert_close(row, wanted.flatten(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("protocol", ["color", "grey"])
def test_larger_images_are_reduced_first(protocol: str) -> None:
    images = unit(2, 3, 4 * PIXELS, 4 * PIXELS)
    found = describe_pixels(protocol)(images)
    assert found.shape == (2, (1 if protocol == "grey" else 3) * PIXELS**2)
    small = tv.resize(images, [PIXELS, PIXELS], antialias=True)
    for image, row in zip(small, found, strict=True):
        wanted = plain_grey(image) if protocol == "grey" else image - image.mean()
        torch.testing.assert_close(row, wanted.flatten(), atol=1e-4, rtol=0)


def test_a_color_histogram_counts_colors() -> None:
    images = unit(2, 3, 12, 12)
    images[1] = images[1].round()  # black, white and full colors alone: the outermost bins
    found = describe_histogram("color")(images)
    assert found.shape == (2, 512)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    for image, row in zip(images, found, strict=True):
        counts = torch.zeros(512)
        for red, green, blue in image.flatten(1).T.tolist():
            r, g, b = (min(int(value * COLOR_BINS), COLOR_BINS - 1) for value in (red, green, blue))
            counts[64 * r + 8 * g + b] += 1 / 144
        torch.testing.assert_close(row, counts)


def test_a_grey_histogram_counts_deviations() -> None:
    images = unit(2, 3, 12, 12)
    images[1] = 0.5
    images[1, :, 3, 4] = 1.0  # far beyond three deviations of the rest
    found = describe_histogram("grey")(images)
    assert found.shape == (2, GREY_BINS)
    edges = torch.linspace(-3, 3, GREY_BINS + 1)[1:-1]
    for image, row in zip(images, found, strict=True):
        counts = torch.zeros(GREY_BINS)
        for value in plain_grey(image).flatten().tolist():
            counts[int((edges <= value).sum())] += 1 / 144
        torch.testing.assert_close(row, counts)
    assert found[1, -1] == pytest.approx(1 / 144)
    assert found[1].count_nonzero() == 2


def test_grey_descriptions_are_blind_to_color_and_brightness() -> None:
    structure = 0.2 + 0.5 * unit(1, 1, 16, 16)
    red = torch.cat([structure, structure * 0.2, structure * 0.2], 1)
    dark = structure.expand(-1, 3, -1, -1) * 0.4 + 0.05
    for kind, near in ((describe_pixels, 1e-3), (describe_histogram, 0.02)):
        one, other = (kind("grey")(images) for images in (red, dark))
        assert (one - other).abs().max() < near
        one, other = (kind("color")(images) for images in (red, dark))
        assert (one - other).abs().max() > 0.1


# Networks


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_network_sees_its_own_mean_and_deviation(config: object) -> None:
    backbone = build(config).eval()  # type: ignore[arg-type]
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    images = unit(3, 3, 32, 32)
    seen = images.clone()
    for channel in range(3):
        seen[:, channel] = (seen[:, channel] - backbone.mean[channel]) / backbone.std[channel]
    wanted = backbone.features(seen)
    torch.testing.assert_close(describe_network(backbone)(images), wanted.pooled.detach())
    torch.testing.assert_close(describe_grid(backbone)(images), wanted.grid.detach())
    last = last_block_features(backbone, seen, 2)
    torch.testing.assert_close(describe_network(backbone, blocks=2)(images), last.detach())


def test_a_network_sees_grey_images_standardised() -> None:
    backbone = build(VIT).eval()
    images = unit(2, 3, 32, 32)
    wanted = backbone.features(standardize(images))
    for found in (describe_network(backbone, "grey"), describe_grid(backbone, "grey")):
        rows = found(images)
        torch.testing.assert_close(
            rows, (wanted.pooled if rows.ndim == 2 else wanted.grid).detach()
        )
        assert not rows.requires_grad
    changed = 0.5 * tv.rgb_to_grayscale(images, 3) + 0.3
    rows, same = (describe_network(backbone, "grey")(seen) for seen in (images, changed))
    torch.testing.assert_close(rows, same, atol=1e-3, rtol=1e-3)


def test_a_network_refuses_what_it_cannot_describe() -> None:
    backbone = build(VIT)
    with pytest.raises(ValueError, match="has 3 blocks, fewer than the last 4"):
        describe_network(backbone, blocks=4)
    for what in (describe_network, describe_grid):
        with pytest.raises(ValueError, match="protocol is 'gray'; expected color or grey"):
            what(backbone, "gray")


def batches(*sizes: int) -> Iterator[ImageBatch]:
    """Yield batches of images whose every pixel is the image's number, the last of each broken."""
    number = 0
    for size in sizes:
        index = torch.arange(number, number + size - 1)
        pixels = index.float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        broken = Unreadable(number + size - 1, f"{number + size - 1}.png", "Error: broken")
        yield ImageBatch(pixels, index, index % 3, (broken,))
        number += size


def test_all_images_are_described_in_every_way() -> None:
    ways = {
        "mean": Description(lambda x: x.mean((2, 3))),
        "sum": Description(lambda x: x.double().sum((1, 2, 3))[:, None]),
    }
    found = describe(batches(3, 1, 4), ways)
    assert found.index.tolist() == [0, 1, 4, 5, 6]
    assert found.target.tolist() == [0, 1, 1, 2, 0]
    assert found.rows["mean"].tolist() == [[i] * 3 for i in (0, 1, 4, 5, 6)]
    assert found.rows["sum"].tolist() == [[48 * i] for i in (0, 1, 4, 5, 6)]
    assert all(rows.dtype == torch.float32 for rows in found.rows.values())
    assert [entry.name for entry in found.unreadable] == ["2.png", "3.png", "7.png"]


def test_without_a_readable_image_nothing_is_described() -> None:
    with pytest.raises(ValueError, match="None of the 2 images could be read"):
        describe(batches(1, 1), {"mean": Description(lambda x: x.mean((2, 3)))})


# The linear probe

RATES = (0.01, 0.1, 1.0, 3.0)
STEPS, COLUMNS, CLASSES = 12, 5, 7


def learn(probe: LinearProbe, dtype: torch.dtype = torch.float32) -> None:
    for step in range(STEPS):
        rows = noise(9, COLUMNS, seed=step, dtype=dtype)
        probe.update(rows, torch.arange(step, step + 9) % CLASSES)


def test_each_classifier_is_the_one_that_torch_would_train_alone() -> None:
    probe = LinearProbe(COLUMNS, CLASSES, RATES, steps=STEPS, momentum=0.8)
    probe.weight, probe.bias, probe.rates = (
        value.double() for value in (probe.weight, probe.bias, probe.rates)
    )
    probe._speed = [speed.double() for speed in probe._speed]
    assert (probe.weight == probe.weight[0]).all() and not probe.bias.any()
    alone = []
    for number, rate in enumerate(probe.rates.tolist()):
        layer = nn.Linear(COLUMNS, CLASSES, dtype=torch.float64)
        layer.weight.data = probe.weight[number].T.clone()
        layer.bias.data.zero_()
        optim = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.8)
        alone.append((layer, optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, STEPS)))
    learn(probe, torch.float64)
    for layer, optim, schedule in alone:
        for step in range(STEPS):
            rows = noise(9, COLUMNS, seed=step, dtype=torch.float64)
            target = torch.arange(step, step + 9) % CLASSES
            optim.zero_grad()
            functional.cross_entropy(layer(rows), target).backward()
            optim.step()
            schedule.step()
    for number, (layer, _, _) in enumerate(alone):
        torch.testing.assert_close(
            probe.weight[number].T, layer.weight.data, atol=1e-12, rtol=1e-10
        )
        torch.testing.assert_close(probe.bias[number, 0], layer.bias.data, atol=1e-12, rtol=1e-10)
    rows = noise(3, COLUMNS, seed=99, dtype=torch.float64)
    for logits, (layer, _, _) in zip(probe.logits(rows), alone, strict=True):
        torch.testing.assert_close(logits, layer(rows).detach())


def test_the_last_step_is_nearly_none() -> None:
    probe = LinearProbe(COLUMNS, CLASSES, (1.0,), steps=50)
    moves = []
    for step in range(50):
        before = probe.weight.clone()
        probe.update(noise(9, COLUMNS, seed=step), torch.arange(9) % CLASSES)
        moves.append(float((probe.weight - before).norm()))
    assert moves[0] > 0.05
    assert moves[-1] < 0.01 * max(moves)


def test_weights_are_drawn_by_the_seed() -> None:
    one, same, other = (LinearProbe(400, 30, RATES, steps=1, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    assert one.weight.shape == (4, 400, 30) and one.weight.dtype == torch.float32
    assert float(one.weight[0].std()) == pytest.approx(0.01, rel=0.05)
    assert abs(float(one.weight[0].mean())) < 5e-4


def test_the_same_batches_give_the_same_weights() -> None:
    before = torch.get_rng_state()
    first, second = (LinearProbe(COLUMNS, CLASSES, RATES, steps=STEPS) for _ in range(2))
    learn(first)
    learn(second)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rate_does_not_know_of_the_others() -> None:
    together = LinearProbe(COLUMNS, CLASSES, RATES, steps=STEPS)
    alone = LinearProbe(COLUMNS, CLASSES, (RATES[2],), steps=STEPS)
    learn(together)
    learn(alone)
    torch.testing.assert_close(together.weight[2], alone.weight[0])


def test_what_can_be_separated_is_learned() -> None:
    target = torch.arange(40) % 4
    rows = functional.one_hot(target, 6).float() + 0.05 * noise(40, 6)
    probe = LinearProbe(6, 4, (1e-9, 1.0), steps=50)
    for _ in range(50):
        probe.update(rows, target)
    assert probe.accuracy(rows, target)[1].tolist() == [100.0, 100.0]
    assert probe.accuracy(rows, target)[0, 0] < 60, "the lowest rate has learned nothing"


def test_accuracy_is_its_definition() -> None:
    probe = LinearProbe(COLUMNS, CLASSES, RATES, steps=STEPS)
    learn(probe)
    rows, target = noise(50, COLUMNS, seed=5), torch.arange(50) % CLASSES
    found = probe.accuracy(rows, target, chunk=7)
    assert found.shape == (len(RATES), 2)
    for number in range(len(RATES)):
        scores = np.asarray(rows @ probe.weight[number] + probe.bias[number])
        hits = [0, 0]
        for score, wanted in zip(scores, target.tolist(), strict=True):
            order = sorted(range(CLASSES), key=lambda c: (-score[c], c))
            hits[0] += order[0] == wanted
            hits[1] += wanted in order[:5]
        assert found[number].tolist() == pytest.approx([2 * hits[0], 2 * hits[1]])
    assert torch.equal(probe.accuracy(rows, target), found)


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    probe = LinearProbe(2, 40, (1.0,), steps=1)
    probe.weight.zero_()
    assert probe.accuracy(torch.ones(5, 2), torch.arange(5)).tolist() == [[20.0, 100.0]]
    assert probe.accuracy(torch.ones(5, 2), torch.arange(5, 10)).tolist() == [[0.0, 0.0]]


def test_top_5_of_fewer_classes_is_all() -> None:
    probe = LinearProbe(COLUMNS, 3, RATES, steps=1)
    found = probe.accuracy(noise(30, COLUMNS), torch.arange(30) % 3)
    assert found[:, 1].tolist() == [100.0] * 4
    assert found[0, 0] < 100


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_diverged_classifier_scores_nothing(broken: float) -> None:
    probe = LinearProbe(COLUMNS, 3, (0.1, 0.2), steps=1)
    probe.weight[1, 2, 0] = broken
    found = probe.accuracy(noise(30, COLUMNS), torch.zeros(30, dtype=torch.long))
    assert found[1].tolist() == [0.0, 0.0]
    assert found[0, 1] == 100.0


def test_a_rate_far_too_high_diverges_alone() -> None:
    """Features of a collapsed or wild network are no reason for NaN in the other classifiers."""
    probe, calm = (LinearProbe(2, 3, rates, steps=60) for rates in ((0.1, 1e30), (0.1,)))
    rows, target = 1e9 * noise(12, 2), torch.arange(12) % 3
    for _ in range(50):
        for each in (probe, calm):
            each.update(rows, target)
    assert not probe.weight[1].isfinite().all()
    assert torch.equal(probe.weight[0], calm.weight[0])
    assert probe.accuracy(rows, target)[1].tolist() == [0.0, 0.0]


def test_a_probe_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="at least one learning rate"):
        LinearProbe(COLUMNS, CLASSES, (), steps=1)
