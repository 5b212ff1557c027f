"""The kernels of multi-crop against its plain form: on CUDA if there is one, else interpreted."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leanvit.config import MultiCropConfig
from leanvit.data.ragged import pack, tabulate
from leanvit.data.views import Plan, multi_crop
from leanvit.kernels.multicrop import Plans, Ragged, plain
from tests.numerics.test_multicrop import AS_IS, LEVEL, groups
from tests.numerics.test_triton_attention import NoReads, interpret, packed
from tests.unit.test_views import STRONG
from tests.views import scene

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

Render = Callable[..., Tensor]
ROUNDING = 1e-5
"""What sums in another order may change where nothing was resized."""
LONG = 20_000 if torch.cuda.is_available() else 2_000
"""Longest side of an image; interpreted, 20,000 pixels take half a minute and more."""


def call(content: bytes, beyond: int) -> bytes:
    """Return what the kernels make of these tensors, in the process that interprets.

    beyond: bytes of nothing before the images, of which no page is ever touched.
    """
    from leanvit.kernels.triton_multicrop import render

    (pixels, start, size, table), side, mean, std = torch.load(io.BytesIO(content))
    if beyond:
        memory = torch.from_numpy(np.empty(beyond + len(pixels), np.uint8))
        memory[beyond:] = pixels
        pixels, start = memory, start + beyond
    with NoReads():
        return packed(render(Ragged(pixels, start, size), Plans(side, table), mean, std))


def call_on_device(ragged: Ragged, plans: Plans, mean: Any, std: Any, *, beyond: int = 0) -> Tensor:
    from leanvit.kernels.multicrop import render_group

    cuda = torch.device("cuda")
    pixels = torch.cat([torch.empty(beyond, dtype=torch.uint8), ragged.pixels])
    there = Ragged(pixels, ragged.start + beyond, ragged.size).to(cuda)
    table = plans.to(cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        return render_group(there, table, mean, std, form="triton").cpu()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def render() -> Iterator[Render]:
    if torch.cuda.is_available():
        yield call_on_device
        return
    with ProcessPoolExecutor(1, get_context("spawn"), interpret) as pool:

        def interpreted(
            ragged: Ragged, plans: Plans, mean: Any, std: Any, *, beyond: int = 0
        ) -> Tensor:
            tensors = ragged.pixels, ragged.start, ragged.size, plans.table
            content = packed((tensors, plans.size, mean, std))
            return torch.load(io.BytesIO(pool.submit(call, content, beyond).result()))

        yield interpreted


def same(
    render: Render,
    images: Sequence[Tensor],
    plans: list[list[Plan]],
    *,
    resized: bool = False,
    beyond: int = 0,
) -> Tensor:
    """Compare with the plain form; a few pixels that are resized may round apart by a level."""
    case = pack(images), tabulate(plans), *AS_IS
    found, wanted = render(*case, beyond=beyond), plain(*case)
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    gap = (found - wanted).abs()
    assert float(gap.max()) < (2 * LEVEL if resized else ROUNDING)
    assert float(gap.mean()) < ROUNDING
    return found


AS_LARGE = Plan(16, (3, 2, 16, 16), flip=False, jitter=(), gray=False, sigma=0.0, solarize=False)
"""A crop that is not resized: it rounds nothing."""

SINGLE = {
    "crop": AS_LARGE,
    "flip": replace(AS_LARGE, flip=True),
    "gray": replace(AS_LARGE, gray=True),
    "solarize": replace(AS_LARGE, solarize=True),
    "all but jitter": replace(AS_LARGE, flip=True, gray=True, sigma=1.3, solarize=True),
    **{f"blur {sigma}": replace(AS_LARGE, sigma=sigma) for sigma in (0.1, 0.5, 1.1, 2.0)},
    "blur beyond the view": replace(AS_LARGE, size=4, box=(0, 0, 4, 4), sigma=2.0),
    **{
        f"{name} {factor}": replace(AS_LARGE, jitter=((name, factor),))
        for name, factors in {
            "brightness": (0.6, 1.4),
            "contrast": (0.0, 0.6, 1.4),
            "saturation": (0.0, 1.6),
            "hue": (-0.5, -0.1, 0.25),
        }.items()
        for factor in factors
    },
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_operations(render: Render, name: str) -> None:
    same(render, [scene(24, 20)], [[SINGLE[name]]])


def test_jitters_come_in_the_order_of_the_plan(render: Render) -> None:
    """All orders of four, of three and of two, each in a view of one group."""
    plans = [
        [replace(AS_LARGE, jitter=tuple((name, STRONG[name]) for name in names))]
        for count in (4, 3, 2)
        for names in permutations(STRONG, count)
    ]
    found = same(render, [scene(24, 20)], plans)
    assert len({view.numpy().tobytes() for view in found[:24]}) == 24


def test_contrast_has_the_mean_of_the_whole_view(render: Render) -> None:
    """1600 pixels are more than are summed at a time."""
    large = replace(AS_LARGE, size=40, box=(0, 0, 40, 40))
    jitter = (("brightness", 1.5), ("contrast", 0.2), ("saturation", 1.5))
    same(render, [scene(40, 44)], [[replace(large, jitter=jitter)]])


@pytest.mark.parametrize(
    ("size", "box", "side"),
    [
        ((1, 1), (0, 0, 1, 1), 5),
        ((50, 41), (7, 3, 40, 31), 40),  # neither side is whole tiles
        ((50, 41), (49, 0, 1, 41), 16),
        ((9, 300), (1, 2, 7, 291), 16),
        ((300, 9), (5, 1, 288, 7), 16),
        ((40, 30), (5, 5, 6, 4), 33),
        ((60, 50), (0, 0, 60, 50), 1),
        ((LONG, 30), (0, 0, LONG, 30), 32),
        ((30, LONG), (0, 0, 30, LONG), 32),
    ],
)
def test_crops_of_any_size(
    render: Render, size: tuple[int, int], box: tuple[int, int, int, int], side: int
) -> None:
    plans = [[replace(AS_LARGE, size=side, box=box, flip=True)]]
    found = same(render, [scene(*size)], plans, resized=True)
    assert found.isfinite().all()


def test_views_of_mixed_images(render: Render) -> None:
    images = [scene(40, 60), scene(1, 1), scene(97, 33)]
    often = MultiCropConfig(
        global_size=24, local_sizes=(16,), local_counts=(2,), jitter=1, blur=(1, 0.5, 0.5)
    )
    for plans in groups(multi_crop(often), images):
        same(render, images, plans, resized=True)


def test_views_are_normalised(render: Render) -> None:
    """The published numbers; images and views differ, so that each has to find its own."""
    images = [scene(20, 22), scene(26, 18)]
    blurred = replace(AS_LARGE, sigma=1.0, flip=True)
    plans = tabulate([[AS_LARGE, blurred], [blurred, AS_LARGE], [blurred, blurred]])
    case = pack(images), plans, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(render(*case), plain(*case), rtol=0, atol=5 * ROUNDING)


def test_a_box_beyond_its_image_is_not_read(render: Render) -> None:
    """It gives its own view NaN, whatever follows, and leaves the others alone."""
    jitter = (("contrast", 1.4), ("hue", 0.1))
    good = replace(AS_LARGE, size=4, box=(0, 0, 4, 4))
    boxes = [(1, 0, 4, 4), (0, 1, 4, 4), (-1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 0, 4), (0, 0, 4, -1)]
    bad = [replace(good, box=box, jitter=jitter, sigma=1.0, solarize=True) for box in boxes]
    bad.append(replace(good, box=(2**31 - 1, 0, 4, 4)))
    found = render(pack([scene(4, 4)]), tabulate([[plan] for plan in (good, *bad)]), *AS_IS)
    assert found[1:].isnan().all()
    assert torch.equal(found[:1], plain(pack([scene(4, 4)]), tabulate([[good]]), *AS_IS))


def test_same_arguments_same_bits(render: Render) -> None:
    plan = replace(AS_LARGE, box=(0, 0, 24, 20), jitter=tuple(STRONG.items()), sigma=1.0)
    case = pack([scene(24, 20)]), tabulate([[plan]]), *AS_IS
    assert torch.equal(render(*case), render(*case))


def test_images_may_begin_beyond_two_gigabytes(render: Render) -> None:
    same(render, [scene(20, 22), scene(24, 20)], [[AS_LARGE, AS_LARGE]], beyond=2**31)


@pytest.mark.parametrize("side", [224, 96, 50])
@pytest.mark.parametrize("name", ["_resize", "_recolor", "_blur_columns", "_finish"])
def test_it_compiles_for_hopper(name: str, side: int, tmp_path: Path, monkeypatch: Any) -> None:
    """The interpreter accepts what the compiler may not; the latter needs no device."""
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from leanvit.kernels import triton_multicrop as ours

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = {"pixels": "*u8", "start": "*i64", "size": "*i32", "table": "*i32", "images": "i32"}
    given |= dict.fromkeys(("out", "blurred"), "*fp32")
    given |= {f"{c}_{of}": "fp32" for c in ("red", "green", "blue") for of in ("mean", "std")}
    kernel = getattr(ours, name)
    signature = {name: given.get(name, "constexpr") for name in kernel.arg_names}
    constants = {"side": side, "tile": ours.TILE, "block": ours.BLOCK}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    used = {name: value for name, value in constants.items() if name in signature}
    source = ASTSource(kernel, signature, used, aligned)
    hopper = GPUTarget("cuda", 90, 32)
    options = {"num_warps": ours.WARPS} if name == "_recolor" else {}
    binary = compiled(source, target=hopper, options=options)
    assert binary.asm["cubin"] and binary.metadata.shared <= 48 * 1024
