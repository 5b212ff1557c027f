"""Batches depend on the order and the seed alone: not on workers, nor on a broken neighbour."""

import random
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from leanvit.config import DataConfig, MultiCropConfig
from leanvit.data.batch import Unreadable, ViewBatch
from leanvit.data.loader import (
    BATCHES_AHEAD,
    REPLACEMENTS,
    Decoded,
    DecodedBatch,
    Views,
    decoded,
    load_views,
)
from leanvit.data.render import render
from leanvit.data.sampler import Key, Order, replacement
from leanvit.data.sources import FolderSource, Sample
from leanvit.data.views import ViewSpec, draw, multi_crop, plan

# On a machine with one core, torch advises against the two workers that these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

CPU = torch.device("cpu")
IMAGES, BATCH, SEED = 11, 4, 6
SPEC = multi_crop(
    MultiCropConfig(global_size=48, local_sizes=(24, 16), local_counts=(3, 1), jitter=1.0)
)
GARBAGE = b"this is not a photograph"


pytestmark = pytest.mark.usefixtures("one_thread")


def write_images(folder: Path, count: int = IMAGES, side: int = 60) -> Path:
    """Write photographs-to-be into two classes: image 0 is a/00.png."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side + 5 * number, side))
        path = folder / ("a" if number < count // 2 else "b") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def batches(
    folder: Path,
    *,
    start: int = 0,
    end: int = 4,
    workers: int = 0,
    seed: int = SEED,
    data: DataConfig | None = None,
    spec: ViewSpec = SPEC,
    rendering: str = "host",
) -> list[ViewBatch]:
    source = FolderSource(folder)
    views = Views(source, spec, data or DataConfig(), seed)
    order = Order(len(source), BATCH, seed)
    return list(
        load_views(views, order, start, end, workers=workers, device=CPU, rendering=rendering)
    )


def rendered(
    source: FolderSource, key: Key, seed: int = SEED
) -> tuple[list[Tensor], int, tuple[Unreadable, ...]]:
    """Return the views of each size, number and history of the image at a place."""
    found = Views(source, SPEC, DataConfig(), seed).batch([key])
    assert not isinstance(found, ValueError)
    return [group[:, 0] for group in found.groups], int(found.index), found.unreadable


def keys(start: int = 0, end: int = 4, images: int = IMAGES) -> list[list[Key]]:
    return list(Order(images, BATCH, SEED).steps(start, end))


def check_same(some: list[ViewBatch], others: list[ViewBatch]) -> None:
    """Compare bit for bit."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert len(one.groups) == len(other.groups)
        for mine, yours in zip(one.groups, other.groups, strict=True):
            assert torch.equal(mine, yours)
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.target, other.target)
        assert one.unreadable == other.unreadable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def break_image(folder: Path, index: int) -> str:
    """Overwrite an image with garbage; return its name."""
    name = FolderSource(folder).name(index)
    (folder / name).write_bytes(GARBAGE)
    return name


def test_groups_are_views_by_images(folder: Path) -> None:
    for batch in batches(folder):
        shapes = [tuple(group.shape) for group in batch.groups]
        assert shapes == [(2, BATCH, 3, 48, 48), (3, BATCH, 3, 24, 24), (1, BATCH, 3, 16, 16)]
        assert all(group.dtype == torch.float32 for group in batch.groups)
        assert len(batch) == BATCH
        assert batch.unreadable == ()


def test_without_local_crops_there_is_one_group(folder: Path) -> None:
    config = MultiCropConfig(global_size=48, local_sizes=(), local_counts=())
    (batch,) = batches(folder, end=1, spec=multi_crop(config))
    assert [tuple(group.shape) for group in batch.groups] == [(2, BATCH, 3, 48, 48)]


def test_batches_follow_the_order(folder: Path) -> None:
    source = FolderSource(folder)
    for batch, step in zip(batches(folder), keys(), strict=True):
        assert batch.index.tolist() == [key.index for key in step]
        assert batch.target.tolist() == [source[key.index].target for key in step]
    assert source.classes == ("a", "b")


def test_without_classes_the_target_is_minus_one(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "a/00.png").rename(tmp_path / "00.png")
    (batch,) = batches(tmp_path, end=1)
    assert batch.target.tolist() == [-1] * BATCH


def test_pixels_are_the_rendered_plans_normalised(folder: Path) -> None:
    """By hand: decode, draw, plan, render, subtract the mean, divide by the deviation."""
    data = DataConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    source = FolderSource(folder)
    (batch,) = batches(folder, start=3, end=4, data=data)
    flat = [view for group in SPEC.groups for view in group]
    for place, key in enumerate(keys(3, 4)[0]):
        with Image.open(folder / source.name(key.index)) as image:
            pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        units = draw(SPEC, SEED, key.epoch, key.index)
        views = [
            render(plan(view, row, *pixels.shape[1:]), pixels)
            for view, row in zip(flat, units, strict=True)
        ]
        found = [group[number, place] for group in batch.groups for number in range(len(group))]
        for view, normalised in zip(views, found, strict=True):
            for channel in range(3):
                expected = (view[channel] - data.mean[channel]) / data.std[channel]
                torch.testing.assert_close(normalised[channel], expected)


def test_an_image_has_other_views_in_another_epoch(folder: Path) -> None:
    first, second = (
        {
            int(index): batch.groups[0][:, place]
            for batch in batches(folder, start=2 * epoch, end=2 * epoch + 2)
            for place, index in enumerate(batch.index)
        }
        for epoch in range(2)
    )
    both = first.keys() & second.keys()
    assert both
    assert not any(torch.equal(first[index], second[index]) for index in both)


def test_another_seed_gives_other_views(folder: Path) -> None:
    source = FolderSource(folder)
    key = Key(epoch=0, position=0, index=5)
    one, other = (rendered(source, key, seed) for seed in (SEED, SEED + 1))
    assert one[1] == other[1] == 5
    assert not any(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_batches(folder: Path, workers: int) -> None:
    check_same(batches(folder, workers=workers), batches(folder, workers=0))


def test_workers_do_not_change_large_views(tmp_path: Path) -> None:
    """A worker has one thread; without workers torch spreads large views over all cores."""
    write_images(tmp_path, side=250)
    spec = multi_crop(MultiCropConfig(jitter=1.0, local_counts=(1,)))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        alone = batches(tmp_path, spec=spec)
    finally:
        torch.set_num_threads(threads)
    check_same(batches(tmp_path, spec=spec, workers=2), alone)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_later_start_gives_the_tail(folder: Path, start: int, workers: int) -> None:
    check_same(batches(folder, start=start, workers=workers), batches(folder)[start:])


def test_ranks_join_to_the_batch_of_one(folder: Path) -> None:
    views = Views(FolderSource(folder), SPEC, DataConfig(), SEED)
    shares = [
        list(load_views(views, Order(IMAGES, BATCH, SEED, rank, 2), 0, 4, workers=0, device=CPU))
        for rank in range(2)
    ]
    for whole, first, second in zip(batches(folder), *shares, strict=True):
        assert whole.index.tolist() == [*first.index.tolist(), *second.index.tolist()]
        for all_of_it, one, two in zip(whole.groups, first.groups, second.groups, strict=True):
            assert torch.equal(all_of_it, torch.cat([one, two], 1))


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_another_number_of_processes_goes_on_with_the_next_images(
    folder: Path, world: int, step: int
) -> None:
    """In the middle of an epoch of two steps, and in the middle of the run."""
    views = Views(FolderSource(folder), SPEC, DataConfig(), SEED)
    orders = [Order(IMAGES, BATCH, SEED, rank, world) for rank in range(world)]
    shares = [list(load_views(views, o, step, 4, workers=0, device=CPU)) for o in orders]
    for whole, *parts in zip(batches(folder)[step:], *shares, strict=True):
        assert whole.index.equal(torch.cat([part.index for part in parts]))
        for number, group in enumerate(whole.groups):
            assert group.equal(torch.cat([part.groups[number] for part in parts], 1))


THRICE = replace(SPEC, repeats=3)


@pytest.mark.parametrize("rendering", ["host", "device"])
def test_every_place_of_an_image_has_views_of_its_own(folder: Path, rendering: str) -> None:
    """The first has those that the image has alone; ranks and a later start change nothing."""
    views = Views(FolderSource(folder), THRICE, DataConfig(), SEED)

    def load(start: int, rank: int = 0, world: int = 1) -> list[ViewBatch]:
        order = Order(IMAGES, 6, SEED, rank, world, THRICE.repeats)
        return list(load_views(views, order, start, 4, workers=0, device=CPU, rendering=rendering))

    whole = load(0)
    first = whole[0]
    assert first.copy is not None and first.copy.tolist() == [0, 0, 1, 1, 2, 2]
    assert first.index.tolist() == first.index.tolist()[:2] * 3
    for group in first.groups:
        assert not any(group[:, a].allclose(group[:, b]) for a, b in [(0, 2), (2, 4), (0, 4)])
    alone = list(
        load_views(
            *(views, Order(IMAGES, 2, SEED), 0, 1), workers=0, device=CPU, rendering=rendering
        )
    )
    assert all(g[:, :2].equal(a) for g, a in zip(first.groups, alone[0].groups, strict=True))
    check_same(load(2), whole[2:])
    for batch, *parts in zip(whole[1:], load(1, 0, 2), load(1, 1, 2), strict=True):
        assert batch.copy is not None and [len(part) for part in parts] == [3, 3]
        assert batch.copy.tolist() == [c for part in parts for c in part.copy.tolist()]  # type: ignore[union-attr]
        for number, group in enumerate(batch.groups):
            assert group.equal(torch.cat([part.groups[number] for part in parts], 1))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_pieces_join_to_the_batch(folder: Path, parts: int) -> None:
    (batch,) = batches(folder, end=1)
    pieces = list(batch.split(parts))
    assert [len(piece) for piece in pieces] == [BATCH // parts] * parts
    for number, group in enumerate(batch.groups):
        assert torch.equal(torch.cat([piece.groups[number] for piece in pieces], 1), group)
    assert torch.equal(torch.cat([piece.index for piece in pieces]), batch.index)
    assert torch.equal(torch.cat([piece.target for piece in pieces]), batch.target)
    numbered = replace(batch, copy=torch.arange(BATCH))
    copies = [piece.copy for piece in numbered.split(parts) if piece.copy is not None]
    assert torch.cat(copies).tolist() == list(range(BATCH))


def test_a_batch_moves_with_all_it_holds(folder: Path) -> None:
    (batch,) = batches(folder, end=1)
    moved = batch.to(torch.device("meta"))
    assert {group.device.type for group in moved.groups} == {"meta"}
    assert moved.index.device == moved.target.device == CPU
    check_same([batch.to(CPU)], [batch])


def broken_step(folder: Path, index: int) -> tuple[list[ViewBatch], list[ViewBatch], int]:
    """Return the batches before and after an image was broken, and the first one it is in."""
    before = batches(folder)
    step = next(number for number, step in enumerate(keys()) if index in [k.index for k in step])
    break_image(folder, index)
    return before, batches(folder), step


def test_an_unreadable_image_leaves_the_others_alone(tmp_path: Path) -> None:
    before, after, _ = broken_step(write_images(tmp_path), 5)
    replaced = 0
    for one, other, step in zip(before, after, keys(), strict=True):
        for place, key in enumerate(step):
            if key.index == 5:
                replaced += 1
                continue
            assert one.index[place] == other.index[place]
            assert one.target[place] == other.target[place]
            for mine, yours in zip(one.groups, other.groups, strict=True):
                assert torch.equal(mine[:, place], yours[:, place])
    assert replaced


def test_an_unreadable_image_is_replaced_by_hash(tmp_path: Path) -> None:
    _, after, number = broken_step(write_images(tmp_path), 5)
    step = keys()[number]
    place = [key.index for key in step].index(5)
    stand_in = replacement(SEED, step[place], 0, IMAGES)
    assert stand_in != 5
    source = FolderSource(tmp_path)
    batch = after[number]
    assert batch.index[place] == stand_in
    assert batch.target[place] == source[stand_in].target
    key = Key(step[place].epoch, 0, stand_in)
    groups, index, unreadable = rendered(source, key)
    assert (index, unreadable) == (stand_in, ())
    for group, expected in zip(batch.groups, groups, strict=True):
        assert torch.equal(group[:, place], expected)


def test_an_unreadable_image_is_recorded(tmp_path: Path) -> None:
    write_images(tmp_path)
    name = break_image(tmp_path, 5)
    for batch, step in zip(batches(tmp_path), keys(), strict=True):
        met = [key for key in step if key.index == 5]
        assert [(entry.index, entry.name) for entry in batch.unreadable] == [(5, name)] * len(met)
        assert all(entry.error.startswith("UnidentifiedImage") for entry in batch.unreadable)


def test_garbage_that_is_called_jpg_is_recorded(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "a/00.png").unlink()
    (tmp_path / "a/00.jpg").write_bytes(GARBAGE)
    records = [entry for batch in batches(tmp_path) for entry in batch.unreadable]
    assert {(entry.index, entry.name) for entry in records} == {(0, "a/00.jpg")}


def test_a_vanished_image_is_recorded(tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path))
    key = Key(epoch=0, position=1, index=5)
    (tmp_path / source.name(5)).unlink()
    _, index, unreadable = rendered(source, key)
    assert index == replacement(SEED, key, 0, IMAGES)
    (entry,) = unreadable
    assert (entry.index, entry.name) == (5, source.name(5))
    assert entry.error.startswith("FileNotFoundError: ")


def test_an_unreadable_replacement_is_replaced_too(tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path))
    position = next(
        position
        for position in range(1000)
        if len({5, *(replacement(SEED, Key(0, position, 5), n, IMAGES) for n in (0, 1))}) == 3
    )
    key = Key(0, position, 5)
    first, second = (replacement(SEED, key, attempt, IMAGES) for attempt in (0, 1))
    break_image(tmp_path, 5)
    break_image(tmp_path, first)
    _, index, unreadable = rendered(source, key)
    assert index == second
    assert [entry.index for entry in unreadable] == [5, first]
    assert [entry.name for entry in unreadable] == [source.name(5), source.name(first)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_replacements_and_records_are_repeatable(tmp_path: Path, workers: int) -> None:
    write_images(tmp_path)
    break_image(tmp_path, 5)
    first = batches(tmp_path)
    assert any(batch.unreadable for batch in first)
    check_same(batches(tmp_path, workers=workers), first)


def garbage(folder: Path) -> Path:
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(GARBAGE)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_garbage_is_an_error(tmp_path: Path, workers: int) -> None:
    message = rf"{REPLACEMENTS} images in a row could not be read, .*\.jpg.*UnidentifiedImage"
    with pytest.raises(ValueError, match=message):
        batches(garbage(tmp_path), end=1, workers=workers)


def test_an_error_in_a_worker_reads_like_any_other(tmp_path: Path) -> None:
    """The command line prints the message as it is, so it holds no traceback."""
    with pytest.raises(ValueError, match="in a row") as caught:
        batches(garbage(tmp_path), end=1, workers=1)
    assert "Traceback" not in str(caught.value)


def global_states() -> list[object]:
    """Return the states of the generators of torch, numpy and Python."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    mersenne = numpy_state["key"].tolist(), numpy_state["pos"]
    return [torch.get_rng_state().tolist(), mersenne, random.getstate()]


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_stay_as_they_were(folder: Path, workers: int) -> None:
    before = global_states()
    batches(folder, workers=workers)
    assert global_states() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_have_no_say(folder: Path, workers: int) -> None:
    first = batches(folder, workers=workers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        check_same(batches(folder, workers=workers), first)


# Views that the device renders, from what threads decode


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_a_device_renders_the_same_views(tmp_path: Path, threads: int) -> None:
    """Of the same images in the same order, with the same stand-ins; a level off here and there."""
    write_images(tmp_path)
    break_image(tmp_path, 5)
    data = DataConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    host = batches(tmp_path, data=data)
    device = batches(tmp_path, data=data, workers=threads, rendering="device")
    assert any(batch.unreadable for batch in host)
    for one, other in zip(host, device, strict=True):
        assert one.index.equal(other.index) and one.target.equal(other.target)
        assert one.unreadable == other.unreadable
        for mine, theirs in zip(one.groups, other.groups, strict=True):
            assert mine.shape == theirs.shape and theirs.dtype == torch.float32
            per_channel = (mine - theirs).abs().mean((0, 1, 3, 4))
            assert (per_channel * torch.tensor(data.std) < 1e-3).all()


def test_threads_change_nothing_and_a_later_start_gives_the_tail(folder: Path) -> None:
    first = batches(folder, rendering="device")
    check_same(batches(folder, rendering="device", workers=4), first)
    check_same(batches(folder, rendering="device", workers=2, start=3), first[3:])


def test_an_error_reaches_whoever_waits_for_threads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images in a row could not be read"):
        batches(garbage(tmp_path), workers=3, rendering="device")
    assert not helpers()


def test_threads_end_with_who_stops_early(folder: Path) -> None:
    views = Views(FolderSource(folder), SPEC, DataConfig(), SEED)
    found = decoded(views, Order(IMAGES, BATCH, SEED), 0, 1000, threads=3)
    next(found)
    assert helpers()
    found.close()  # type: ignore[attr-defined]
    assert not helpers()


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_threads_decode_no_more_than_a_few_batches_ahead(folder: Path) -> None:
    class Counting(FolderSource):
        read = 0

        def __getitem__(self, index: int) -> Sample:
            Counting.read += 1
            return super().__getitem__(index)

    views = Views(Counting(folder), SPEC, DataConfig(), SEED)
    found = decoded(views, Order(IMAGES, BATCH, SEED), 0, 1000, threads=3)
    for number in range(1, 4):
        next(found)
        assert Counting.read <= (number + BATCHES_AHEAD) * BATCH
    found.close()  # type: ignore[attr-defined]


def test_who_stops_early_waits_for_no_more_than_what_has_begun(folder: Path) -> None:
    class Counting(FolderSource):
        read = 0

        def __getitem__(self, index: int) -> Sample:
            Counting.read += 1
            time.sleep(0.05)
            return super().__getitem__(index)

    views = Views(Counting(folder), SPEC, DataConfig(), SEED)
    found = decoded(views, Order(IMAGES, BATCH, SEED), 0, 1000, threads=1)
    next(found)
    seen = Counting.read
    found.close()  # type: ignore[attr-defined]
    assert Counting.read <= seen + 1 < (1 + BATCHES_AHEAD) * BATCH


def test_batches_are_forgotten_once_they_are_used(folder: Path) -> None:
    """Whole photographs are large: besides those ahead, one batch is in memory."""
    alive: list[weakref.ref[Tensor]] = []

    class Remembered(Views):
        def decode(self, key: Key) -> Decoded | ValueError:
            found = super().decode(key)
            assert isinstance(found, Decoded)
            alive.append(weakref.ref(found.pixels))
            return found

        def join(self, *given: Any, **how: Any) -> DecodedBatch:
            found = super().join(*given, **how)
            alive.append(weakref.ref(found.images.pixels))
            return found

    views = Remembered(FolderSource(folder), SPEC, DataConfig(), SEED)
    order = Order(IMAGES, BATCH, SEED)
    for _ in load_views(views, order, 0, 8, workers=2, device=CPU, rendering="device"):
        time.sleep(0.2)  # what is ahead is finished
        joined = [ref for ref in alive if (pixels := ref()) is not None and pixels.dim() == 1]
        raw = [ref for ref in alive if (pixels := ref()) is not None and pixels.dim() == 3]
        assert len(joined) <= BATCHES_AHEAD and not raw
