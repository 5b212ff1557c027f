"""Views of a whole batch are those of each image alone, and what cannot be one is said."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from leanvit.config import MultiCropConfig
from leanvit.data.ragged import pack, tabulate
from leanvit.data.render import render
from leanvit.data.views import Plan, ViewSpec, draw, multi_crop, plan
from leanvit.kernels import multicrop
from leanvit.kernels.multicrop import FORMS, Plans, Ragged, best_form, render_group
from tests.unit.test_views import SINGLE, STRONG
from tests.views import PLAIN, reference, scene

pytestmark = pytest.mark.usefixtures("one_thread")

AS_IS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Mean and deviation that leave pixels in [0, 1]."""
ALIKE = 1e-4
"""Mean absolute difference of a view to `data.render`, whose resize has weights of 15 bits."""
LEVEL = 1.01 / 255
"""What a pixel may be off where two ways of resizing round apart."""

EXTREME = {
    "one pixel": (1, 1),
    "one row": (1, 300),
    "one column": (300, 1),
    "tall": (20_000, 30),
    "wide": (30, 20_000),
    "smaller than a view": (9, 7),
    "exact": (32, 32),
    "odd": (97, 131),
}
"""Heights and widths."""


def groups(spec: ViewSpec, images: Sequence[Tensor], epoch: int = 0) -> list[list[list[Plan]]]:
    """Return the plans of each size, by view and image."""
    units = [draw(spec, 0, epoch, index) for index in range(len(images))]
    found, number = [], 0
    for group in spec.groups:
        found.append(
            [
                [plan(view, u[k], *image.shape[1:]) for u, image in zip(units, images, strict=True)]
                for k, view in enumerate(group, start=number)
            ]
        )
        number += len(group)
    return found


def batch(images: Sequence[Tensor], plans: list[list[Plan]], form: str = "plain") -> Tensor:
    return render_group(pack(images), tabulate(plans), *AS_IS, form=form)


def alone(images: Sequence[Tensor], plans: list[list[Plan]]) -> Tensor:
    return torch.stack(
        [torch.stack([render(p, i) for p, i in zip(v, images, strict=True)]) for v in plans]
    )


def check(images: Sequence[Tensor], plans: list[list[Plan]]) -> None:
    ours, wanted = batch(images, plans), alone(images, plans)
    assert ours.dtype == torch.float32 and ours.shape == wanted.shape
    gap = (ours - wanted).abs()
    assert float(gap.mean((2, 3, 4)).max()) < ALIKE
    assert float((gap > LEVEL).float().mean()) < 1e-3


@pytest.mark.parametrize("epoch", range(2))
def test_published_views_of_photographs_are_those_of_each_alone(epoch: int) -> None:
    photographs = [data.astronaut(), data.coffee(), data.cat(), data.rocket()]
    images = [torch.from_numpy(photo).permute(2, 0, 1) for photo in photographs]
    for plans in groups(multi_crop(MultiCropConfig()), images, epoch):
        check(images, plans)


def test_images_of_any_size_are_rendered_together() -> None:
    images = [scene(*size) for size in EXTREME.values()]
    small = MultiCropConfig(global_size=32, local_sizes=(16,), local_counts=(4,))
    for plans in groups(multi_crop(small), images):
        check(images, plans)
    whole = [replace(PLAIN, size=32, box=(0, 0, *image.shape[1:])) for image in images]
    check(images, [whole])


@pytest.mark.parametrize("name", SINGLE)
def test_single_operations(name: str) -> None:
    check([scene()], [[SINGLE[name]]])


@pytest.mark.parametrize("names", [*permutations(STRONG)], ids="-".join)
def test_jitters_come_in_the_order_of_the_plan(names: tuple[str, ...]) -> None:
    jitter = tuple((name, STRONG[name]) for name in names)
    full = replace(SINGLE["shrink"], flip=True, jitter=jitter, sigma=1.5, solarize=True)
    check([scene()], [[full], [replace(full, gray=True)]])


@pytest.mark.parametrize("name", ["shrink", "enlarge", "whole image"])
def test_the_resize_is_pillows_but_for_rare_roundings(name: str) -> None:
    """Pillow's weights have 22 bits, which decide where 5 pixels become 2: sums end on halves."""
    ours = batch([scene()], [[SINGLE[name]]])[0, 0].numpy()
    gap = np.abs(ours - reference(SINGLE[name], scene()))
    assert gap.max() < LEVEL and (gap > 1e-6).mean() < (1e-2 if name == "whole image" else 1e-4)


def test_views_are_normalised() -> None:
    images, plans = [scene(40, 60)], [[replace(PLAIN, size=16, box=(0, 0, 40, 60))]]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = render_group(pack(images), tabulate(plans), mean, std)
    channels = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    torch.testing.assert_close(found, (batch(images, plans) - channels[0]) / channels[1])


def test_images_lie_one_after_another() -> None:
    images = [scene(3, 5), scene(7, 2).permute(1, 2, 0).contiguous().permute(2, 0, 1)]
    packed = pack(images)
    assert packed.start.tolist() == [0, 45] and packed.size.tolist() == [[3, 5], [7, 2]]
    assert len(packed) == 2
    for image, begin in zip(images, (0, 45), strict=True):
        own = packed.pixels[begin : begin + image.numel()]
        assert torch.equal(own, image.permute(1, 2, 0).flatten())
    assert torch.equal(packed.to(torch.device("cpu")).pixels, packed.pixels)


def test_a_row_of_the_table_holds_a_plan() -> None:
    jitter = (("hue", -0.05), ("brightness", 1.25))
    said = Plan(8, (1, 2, 3, 4), True, jitter, False, 1.5, True)
    plans = tabulate([[PLAIN, PLAIN], [PLAIN, replace(said, size=PLAIN.size)]])
    assert plans.size == PLAIN.size and plans.table.shape == (2, 2, 16)
    row = plans.to(torch.device("cpu")).table.numpy().view(multicrop.ROW)[1, 1, 0]
    assert row["box"].tolist() == [1, 2, 3, 4]
    assert row["order"].tolist() == [4, 1, 0, 0]
    assert row["factors"].tolist() == [np.float32(-0.05), 1.25, 0, 0]
    assert [row[name].item() for name in ("flip", "gray", "sigma", "solarize")] == [1, 0, 1.5, 1]


# mistakes


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        ([], "sizes \\[\\] and for \\[\\] images"),
        ([[PLAIN], [PLAIN, PLAIN]], "for \\[1, 2\\] images"),
        ([[PLAIN, replace(PLAIN, size=8)]], "sizes \\[8, 150\\]"),
        ([[replace(PLAIN, jitter=(("hue", 0.1), ("hue", 0.1)))]], "at most once"),
        ([[replace(PLAIN, jitter=(("sharpness", 0.1),))]], "'sharpness'"),
        ([[replace(PLAIN, erase=(0, 0, 1, 1))]], r"erase=\(0, 0, 1, 1\)"),
        ([[replace(PLAIN, interpolation="bilinear")]], "'bilinear'"),
        ([[replace(PLAIN, randaugment=(("Invert", ()),))]], "'Invert'"),
    ],
)
def test_plans_that_do_not_fit_the_table_are_refused(plans: list[list[Plan]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tabulate(plans)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 4, 5),
        torch.zeros(4, 5, 3, dtype=torch.uint8),
        torch.zeros(3, 5, dtype=torch.uint8),
        torch.zeros(3, 0, 5, dtype=torch.uint8),
    ],
    ids=["float", "channels last", "grey", "empty"],
)
def test_images_of_other_shapes_are_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \[3, height, width\] of torch.uint8"):
        pack([scene(2, 2), image])


def test_tensors_of_other_types_are_refused() -> None:
    good = pack([scene(4, 4)])
    with pytest.raises(ValueError, match=r"Ragged.pixels is \[48\] of torch.float32"):
        replace(good, pixels=good.pixels.float())
    with pytest.raises(ValueError, match=r"Ragged.pixels is .* contiguous"):
        replace(good, pixels=good.pixels[::2])
    with pytest.raises(ValueError, match=r"Ragged.start is .*of torch.int32"):
        replace(good, start=good.start.int())
    with pytest.raises(ValueError, match=r"Ragged.size is \[2\] of torch.int32"):
        replace(good, size=good.size[0])
    table = tabulate([[PLAIN]]).table
    with pytest.raises(ValueError, match=r"Plans.table is \[1, 1, 16\] of torch.float32"):
        Plans(8, table.float())
    with pytest.raises(ValueError, match=r"must be \[1, 1, 16\]"):
        Plans(8, table[..., :3])
    with pytest.raises(ValueError, match=r"Plans.size is 0"):
        Plans(0, table)


def test_images_and_plans_must_belong_together() -> None:
    ragged, plans = pack([scene(4, 4)]), tabulate([[PLAIN, PLAIN]])
    with pytest.raises(ValueError, match="1 images came with plans for 2"):
        render_group(ragged, plans, *AS_IS)
    with pytest.raises(ValueError, match="on cpu and meta"):
        render_group(ragged, plans.to(torch.device("meta")), *AS_IS)
    elsewhere = Ragged(ragged.pixels.to("meta"), ragged.start, ragged.size)
    with pytest.raises(ValueError, match="on cpu and meta"):
        render_group(elsewhere, tabulate([[PLAIN]]), *AS_IS)


@pytest.mark.parametrize(
    "box", [(0, 0, 5, 4), (0, 1, 4, 4), (-1, 0, 2, 2), (0, -4, 4, 3), (0, 0, 0, 1), (0, 9, 1, 1)]
)
def test_a_box_beyond_its_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not lie in an image of 4 x 4 pixels"):
        batch([scene(4, 4)], [[replace(PLAIN, box=box)]])


def test_forms_have_names_and_devices() -> None:
    images, plans = [scene(4, 4)], [[replace(PLAIN, size=4, box=(0, 0, 4, 4))]]
    assert torch.equal(batch(images, plans, "auto"), batch(images, plans, "plain"))
    with pytest.raises(ValueError, match="form of multi-crop 'plane'; did you mean 'plain'"):
        batch(images, plans, "plane")
    with pytest.raises(ValueError, match="on cuda alone; cpu has 'plain'"):
        batch(images, plans, "triton")
    assert best_form("cpu") == "plain" and best_form("cuda") in FORMS


def test_without_triton_there_is_no_such_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multicrop, "find_spec", lambda _: None)
    assert best_form("cuda") == "plain"
    with pytest.raises(ValueError, match="needs the package triton"):
        multicrop.require_form("triton", "cuda")
