"""What `train.batch auto` and `train.accumulate auto` become, on facts that are made up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from leanvit.config import Facts, StepMemory, rehearsal, replace_options, resolve
from leanvit.config.batch import LARGEST, USED, even
from leanvit.recipes import RECIPES, recipe

MIB = 2**20
STEP = StepMemory(fixed=1000 * MIB, each=100 * MIB, views=2 * MIB, waiting=0, gradients=200 * MIB)
"""1000 MiB and 100 an image."""
CPU = Facts(
    images=100_000,
    classes=10,
    cores=4,
    device="cpu",
    bf16=False,
    memory=10_000 * MIB,
    step=STEP,
)
"""8000 MiB are used, of which 7000 are left to 70 images: 64 of them."""
GPU = replace(CPU, device="cuda", bf16=True)
"""9000 MiB are used: 80 images."""
ROOM = "80 % of the 9.8 GiB that are free"


def decide(
    facts: Facts, name: str = "esvit", **options: object
) -> tuple[int | str, int | str, Mapping[str, str]]:
    """Return the batch, its micro-batches, and where every value comes from."""
    asked = {option.replace("__", "."): value for option, value in options.items()}
    found = resolve(replace_options(recipe(name), asked), facts, given=tuple(asked))
    return found.config.train.batch, found.config.train.accumulate, found.origins


def free(mib: int, facts: Facts = CPU) -> Facts:
    """Return the facts with so many MiB for a run, after what is left alone."""
    return replace(facts, memory=-(-mib * MIB * 100 // round(100 * USED[facts.device])))


# The most that fits


@pytest.mark.parametrize(
    ("facts", "batch", "why"),
    [
        (CPU, 64, f"the most that fits: it takes 7.2 GiB, within {ROOM}"),
        (GPU, 80, "the most that fits: it takes 8.8 GiB, within 90 % of the 9.8 GiB that are free"),
        (free(1800), 8, "the most that fits: it takes 1.8 GiB, within 80 % of the 2.2 GiB that"),
        (free(1799), 6, "the most that fits: it takes 1.6 GiB"),
        (free(1199), 1, "the most that fits: it takes 1.1 GiB"),
        (free(200_000), LARGEST, "the most that auto takes; 1984 would fit into 80 % of the 244.1"),
        (replace(CPU, images=400), 48, "so that an epoch of 400 images has 8 steps; 64 would fi"),
        (replace(CPU, images=100), 16, "so that an epoch of 100 images has 6 steps; 64 would fit"),
        (replace(CPU, images=7), 6, "so that an epoch of 7 images has 1 step; 64 would fit into 8"),
    ],
)
def test_each_bound_bites(facts: Facts, batch: int, why: str) -> None:
    found, parts, origins = decide(facts, train__batch="auto")
    assert (found, parts) == (batch, 1)
    assert origins["train.batch"].startswith(f"given; {why}")


def test_the_most_that_fits_fits_and_the_next_does_not() -> None:
    for mib in range(1100, 9000, 37):
        facts = free(mib)
        batch, _, _ = decide(facts, train__batch="auto")
        assert isinstance(batch, int) and even(batch) == batch
        larger = next(n for n in range(batch + 1, batch + 9) if even(n) == n)
        assert STEP.needed(batch) <= USED["cpu"] * facts.memory < STEP.needed(larger)


def test_the_learning_rate_follows_what_was_chosen() -> None:
    for rule, peak in (("linear", 1e-3 * 64 / 256), ("sqrt", 1e-3 / 2), ("none", 1e-3)):
        options = {"train.batch": "auto", "optim.lr.peak": 1e-3, "optim.lr_rule": rule}
        found = resolve(replace_options(recipe("esvit"), options), CPU)
        assert found.config.optim.lr.peak == pytest.approx(peak)
        assert ("whatever the batch" in found.spoken_rate()) == (rule == "none")
    assert "linear rule, batch 64" in decide(CPU, train__batch="auto")[2]["optim.lr.peak"]


def test_durations_count_in_what_was_chosen() -> None:
    options = {"train.batch": "auto", "train.duration": "2ep"}
    found = resolve(replace_options(recipe("esvit"), options), CPU).config
    assert str(found.train.duration) == f"{2 * (100_000 // 64)}st"


def test_what_waits_takes_room_too() -> None:
    step = replace(STEP, waiting=75 * MIB)
    assert decide(replace(CPU, step=step), train__batch="auto")[0] == 40  # 7000 / 175


# Several processes, several micro-batches


def test_each_process_has_its_share_and_a_copy_of_the_gradients() -> None:
    facts = replace(CPU, world=2)
    batch, _, origins = decide(facts, train__batch="auto")
    assert batch == 2 * 64  # 6800 MiB are left to 68 images each
    assert origins["train.batch"].endswith(f"{ROOM} to each of 2 processes")
    tight = replace(facts, memory=free(1000 + 800).memory)
    assert decide(tight, train__batch="auto")[0] == 2 * 6  # without the copy it would be 8
    assert decide(replace(CPU, world=8), train__batch="auto")[0] == 8 * 64
    assert decide(replace(CPU, world=32), train__batch="auto")[0] == LARGEST


def test_given_micro_batches_make_a_batch_larger() -> None:
    batch, parts, origins = decide(CPU, train__batch="auto", train__accumulate=4)
    # 6800 MiB are left: 100 for an image of a micro-batch, 6 for the views of three others
    assert (batch, parts) == (4 * 64, 4)
    assert STEP.needed(256, 4) <= 8000 * MIB < STEP.needed(288, 4)
    assert (
        "in 4 parts"
        in resolve(
            replace_options(recipe("esvit"), {"train.batch": "auto", "train.accumulate": 4}), CPU
        ).spoken_batch()
    )
    assert origins["train.accumulate"] == "given"


def test_a_batch_that_is_auto_is_not_split() -> None:
    batch, parts, origins = decide(CPU, train__batch="auto", train__accumulate="auto")
    assert (batch, parts) == (64, 1)
    assert origins["train.accumulate"] == "given; the batch is chosen to fit as a whole"


@pytest.mark.parametrize(
    ("batch", "facts", "parts", "why"),
    [
        (70, CPU, 1, f"the step takes 7.8 GiB, within {ROOM}"),
        (72, CPU, 2, f"72 images at once take 8.0 GiB, more than {ROOM}; the fewest that fit"),
        (256, CPU, 4, "256 images at once take 26.0 GiB"),
        (140, replace(CPU, world=2), 2, "70 images at once take 8.0 GiB"),
        (7, free(1400), 7, "7 images at once take 1.7 GiB"),
    ],
)
def test_the_fewest_micro_batches_that_fit(batch: int, facts: Facts, parts: int, why: str) -> None:
    found = decide(facts, train__batch=batch, train__accumulate="auto")
    assert found[:2] == (batch, parts)
    assert found[2]["train.accumulate"].startswith(f"given; {why}")


def test_mixing_keeps_micro_batches_even() -> None:
    options: dict[str, Any] = {
        "train__batch": 18,
        "train__accumulate": "auto",
        "method__mix__views": 1,
    }
    tight = free(1200 + 3 * 100 + 15 * 2)  # three images at a time
    assert decide(tight, train__batch=18, train__accumulate="auto")[1] == 6
    assert decide(tight, **options)[1] == 9


def test_what_cannot_be_split_says_what_would_fit() -> None:
    said = (
        r"^128 images at once take 13\.5 GiB, more than 80 % of the 9\.8 GiB that are free, and "
        r"this method or network couples .*: set train\.batch to 64, or to auto\.$"
    )
    whole = replace(CPU, step=replace(STEP, whole=True))
    asked: dict[str, Any] = {"train__batch": 128, "train__accumulate": "auto"}
    for facts, name, more in (
        (CPU, "mocov3", {}),
        (CPU, "esvit", {"method__targets": "sinkhorn"}),
        (CPU, "dino", {"method__koleo": 0.1}),
        (whole, "esvit", {}),
    ):
        with pytest.raises(ValueError, match=said):
            decide(facts, name, **asked, **more)
        assert decide(facts, name, **{**asked, "train__batch": 64}, **more)[1] == 1
        assert decide(facts, name, train__batch="auto", **more)[0] == 64


# What is refused


@pytest.mark.parametrize(
    "options", [{"train__batch": "auto"}, {"train__batch": 8, "train__accumulate": "auto"}]
)
def test_not_even_one_image(options: dict[str, Any]) -> None:
    said = (
        r"^Not even one image at a time fits: that takes 1\.\d GiB, of which an image 100 MiB, "
        r"more than 80 % of the 1\.3 GiB that are free\. Take a smaller --backbone, fewer or "
        r"smaller views \(method\.views\), or free some memory\.$"
    )
    with pytest.raises(ValueError, match=said):
        decide(free(1080), **options)


def test_nothing_is_guessed_without_a_measurement() -> None:
    with pytest.raises(ValueError, match="what a step takes was not measured; give numbers"):
        decide(replace(CPU, step=None), train__batch="auto")


def test_numbers_ask_for_no_memory() -> None:
    facts = replace(CPU, step=None, memory=0)
    assert decide(facts, train__batch=32, train__accumulate=2)[:2] == (32, 2)


def test_an_odd_batch_for_two_processes_is_still_refused() -> None:
    with pytest.raises(ValueError, match="does not split into 1 micro-batches on each of 2"):
        decide(replace(CPU, world=2), train__batch=65, train__accumulate="auto")


# What is measured


@pytest.mark.parametrize("name", RECIPES)
def test_a_rehearsal_has_everything_in_motion(name: str) -> None:
    asked = replace_options(recipe(name), {"train.batch": "auto", "train.accumulate": "auto"})
    for facts in (CPU, GPU, replace(CPU, images=3), replace(GPU, world=8)):
        config = rehearsal(asked, replace(facts, step=None))
        assert config.train.accumulate == 1
        assert str(config.train.duration) == "100st"
        for start in ("region_start", "freeze_prototypes"):
            assert str(getattr(config.method, start, "0st")) == "0st"
        assert config.train.device == facts.device


def test_too_few_images_are_told_before_anything_is_tried() -> None:
    asked = replace_options(recipe("esvit"), {"train.batch": 64, "train.accumulate": "auto"})
    with pytest.raises(ValueError, match="There are 40 images, fewer than one batch of 64"):
        rehearsal(asked, replace(CPU, images=40, step=None))
