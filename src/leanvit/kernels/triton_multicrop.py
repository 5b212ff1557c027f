"""Views of a ragged batch in four launches, each over every view of every image; for CUDA alone.

`_resize` reads crops straight from the images. A program makes a tile of one channel: it walks over
the rows that the tile sees, resizes a block of them to the tile's width, rounds, and adds it to the
outputs with the weights of the rows. So nothing is kept of a crop of any size, and a pixel is read
for the columns that it counts in, not for every output (twice where two rows of tiles see it).
`_recolor` changes colors in each view's own order, `_blur_columns` and `_finish` blur, solarize and
normalise. Launches do not depend on what lies on the device, and sums have a fixed order. Nothing
else imports this file before it is needed: it needs Triton.

Letters: V views of one size, B images, S side of the views in pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from leanvit.kernels.color import BLUR_REACH, GRAY, SOLARIZE_FROM
from leanvit.kernels.multicrop import CODES, ROW, Channels, Plans, Ragged

_PLACE = {name: field[1] // 4 for name, field in (ROW.fields or {}).items()}
_COLUMNS = tl.constexpr(ROW.itemsize // 4)
_BOX = tl.constexpr(_PLACE["box"])
_FLIP = tl.constexpr(_PLACE["flip"])
_ORDER = tl.constexpr(_PLACE["order"])
_FACTORS = tl.constexpr(_PLACE["factors"])
_GRAY = tl.constexpr(_PLACE["gray"])
_SIGMA = tl.constexpr(_PLACE["sigma"])
_SOLARIZE = tl.constexpr(_PLACE["solarize"])
_CHANGES = tl.constexpr(len(CODES))
_CONTRAST = tl.constexpr(CODES["contrast"])
_SATURATION = tl.constexpr(CODES["saturation"])
_HUE = tl.constexpr(CODES["hue"])
_RED, _GREEN, _BLUE = (tl.constexpr(share) for share in GRAY)
_SOLARIZE_FROM = tl.constexpr(SOLARIZE_FROM)
_BLUR_REACH = tl.constexpr(BLUR_REACH)

TILE = 32
"""Side of the tiles that are resized, and rows of the image at a time: divides 96 and 224."""
BLOCK = 1024
"""Pixels of a view that are changed at a time."""
WARPS = 8
"""Of the program that changes a whole view's colors; the others have Triton's usual four."""


def render(ragged: Ragged, plans: Plans, mean: Channels, std: Channels) -> Tensor:
    """Return the views [V, B, 3, S, S], fp32; see `multicrop.render_group`."""
    side, (views, images) = plans.size, plans.table.shape[:2]
    out = torch.empty(views, images, 3, side, side, device=ragged.pixels.device)
    blurred = torch.empty_like(out)
    tiles, blocks = triton.cdiv(side, TILE), triton.cdiv(3 * side * side, BLOCK)
    count, table = views * images, plans.table
    with torch.cuda.device_of(out):  # Triton launches on the current device
        _resize[(count * tiles * tiles * 3,)](
            *(ragged.pixels, ragged.start, ragged.size, table, out, images, side, TILE)
        )
        _recolor[(count,)](table, out, side, BLOCK, num_warps=WARPS)
        _blur_columns[(count * blocks,)](table, out, blurred, side, BLOCK)
        _finish[(count * blocks,)](
            *(ragged.size, table, blurred, out, images, *map(float, (*mean, *std)), side, BLOCK)
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _fits(size: tl.tensor, row: tl.tensor, image: tl.tensor) -> tl.tensor:
    """Return whether the box of a plan lies in the image, so that its pixels may be read."""
    top, left = tl.load(row + _BOX), tl.load(row + _BOX + 1)
    height, width = tl.load(row + _BOX + 2), tl.load(row + _BOX + 3)
    inside = (top >= 0) & (left >= 0) & (height > 0) & (width > 0)
    inside &= top <= tl.load(size + 2 * image) - height
    return inside & (left <= tl.load(size + 2 * image + 1) - width)


@triton.jit  # type: ignore[untyped-decorator]
def _center(place: tl.tensor, extent: tl.tensor, side: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return where outputs have their centers in the crop: whole pixels, and the rest in [0, 1).

    A place of thousands of pixels with a rest would be too coarse in fp32.
    """
    halves = extent.to(tl.int64) * (2 * place + 1)
    whole = halves // (2 * side)
    rest = tl.div_rn((halves - whole * (2 * side)).to(tl.float32), 2.0 * side)
    return whole.to(tl.int32), rest


@triton.jit  # type: ignore[untyped-decorator]
def _cubic(x: tl.tensor) -> tl.tensor:
    """Return Keys' cubic with a = -1/2; see `multicrop.resize_weights`."""
    x = tl.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    return tl.where(x < 1, near, tl.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))


@triton.jit  # type: ignore[untyped-decorator]
def _level(total: tl.tensor, mass: tl.tensor) -> tl.tensor:
    """Return a weighted mean, rounded to 0..255."""
    return tl.clamp(tl.floor(tl.div_rn(total, mass) + 0.5), 0.0, 255.0)


@triton.jit(do_not_specialize=["images"])  # type: ignore[untyped-decorator]
def _resize(
    pixels: tl.tensor,
    start: tl.tensor,
    size: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    images: tl.tensor,
    side: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Write a tile of one channel of a view, cropped, resized and flipped, in [0, 1]."""
    tiles: tl.constexpr = (side + tile - 1) // tile
    channel, number = tl.program_id(0) % 3, tl.program_id(0) // 3
    x = number % tiles * tile + tl.arange(0, tile)
    y = number // tiles % tiles * tile + tl.arange(0, tile)
    view = number // (tiles * tiles)
    image, row = view % images, table + view.to(tl.int64) * _COLUMNS
    if not _fits(size, row, image):
        return
    height, width = tl.load(row + _BOX + 2), tl.load(row + _BOX + 3)
    line = tl.load(size + 2 * image + 1).to(tl.int64) * 3  # bytes of a row of the image
    crop = pixels + tl.load(start + image) + tl.load(row + _BOX) * line
    crop += tl.load(row + _BOX + 1).to(tl.int64) * 3 + channel
    x_whole, x_rest = _center(tl.minimum(x, side - 1), width, side)
    y_whole, y_rest = _center(tl.minimum(y, side - 1), height, side)
    y_shrink = tl.div_rn(side * 1.0, tl.maximum(height, side).to(tl.float32))
    reach = _reach(height, side)
    stop = tl.minimum(tl.max(y_whole) + reach + 1, height)
    total = tl.zeros([tile, tile], tl.float32)
    mass = tl.zeros([tile], tl.float32)
    for begin in range(tl.maximum(tl.min(y_whole) - reach, 0), stop, tile):
        rows = begin + tl.arange(0, tile)
        levels = _resize_rows(crop, rows, rows < stop, line, x_whole, x_rest, width, side, tile)
        weight = _cubic((rows[None, :] - y_whole[:, None] + (0.5 - y_rest)[:, None]) * y_shrink)
        weight = tl.where(rows[None, :] < stop, weight, 0.0)
        total = tl.dot(weight, levels, total, input_precision="ieee")
        mass += tl.sum(weight, 1)
    to = tl.where(tl.load(row + _FLIP) != 0, side - 1 - x, x)
    plane = out + (view.to(tl.int64) * 3 + channel) * (side * side)
    inside = (y < side)[:, None] & (x < side)[None, :]
    values = tl.div_rn(_level(total, mass[:, None]), 255.0)
    tl.store(plane + y[:, None] * side + to[None, :], values, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _reach(extent: tl.tensor, side: tl.constexpr) -> tl.tensor:
    """Return how many pixels before and after its center may count in an output.

    These are 2 scale + 1/2: the cubic's two pixels, as wide as they become, and a rounded center.
    """
    return ((4 * tl.maximum(extent, side).to(tl.int64) + side) // (2 * side)).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _resize_rows(
    crop: tl.tensor,
    rows: tl.tensor,
    used: tl.tensor,
    line: tl.tensor,
    whole: tl.tensor,
    rest: tl.tensor,
    width: tl.tensor,
    side: tl.constexpr,
    tile: tl.constexpr,
) -> tl.tensor:
    """Return rows of a crop, resized to the columns of a tile, as levels 0..255."""
    shrink = tl.div_rn(side * 1.0, tl.maximum(width, side).to(tl.float32))
    reach = _reach(width, side)
    begin = crop + rows.to(tl.int64) * line
    total = tl.zeros([tile, tile], tl.float32)
    mass = tl.zeros([tile], tl.float32)
    for step in range(-reach, reach + 1):
        column = whole + step
        inside = (column >= 0) & (column < width)
        weight = tl.where(inside, _cubic((step + (0.5 - rest)) * shrink), 0.0)
        place = begin[:, None] + column[None, :].to(tl.int64) * 3
        level = tl.load(place, mask=used[:, None] & inside[None, :], other=0)
        total += level.to(tl.float32) * weight[None, :]
        mass += weight
    return _level(total, mass[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _number(place: tl.tensor) -> tl.tensor:
    """Return a floating-point number of a plan."""
    return tl.load(place).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _gray(red: tl.tensor, green: tl.tensor, blue: tl.tensor) -> tl.tensor:
    return red * _RED + green * _GREEN + blue * _BLUE


@triton.jit  # type: ignore[untyped-decorator]
def _recolor(table: tl.tensor, out: tl.tensor, side: tl.constexpr, block: tl.constexpr) -> None:
    """Change the colors of one view in place: in its order, and to grey."""
    area: tl.constexpr = side * side
    view = tl.program_id(0).to(tl.int64)
    row = table + view * _COLUMNS
    plane = out + view * 3 * area
    contrast = _CHANGES  # which change it is
    for change in tl.static_range(_CHANGES):
        contrast = tl.where(tl.load(row + _ORDER + change) == _CONTRAST, change, contrast)
    total = tl.zeros([block], tl.float32)
    if contrast < _CHANGES:  # it needs the mean grey of what the changes before it leave
        for begin in range(0, area, block):
            place = begin + tl.arange(0, block)
            red, green, blue = _load(plane, place, area)
            red, green, blue = _changed(row, contrast, 0.0, red, green, blue)
            total += _gray(red, green, blue)  # beyond the view is black, and stays so until then
    mean = tl.sum(total) / area
    gray = tl.load(row + _GRAY) != 0
    if gray | (tl.load(row + _ORDER) != 0):
        for begin in range(0, area, block):
            place = begin + tl.arange(0, block)
            red, green, blue = _load(plane, place, area)
            red, green, blue = _changed(row, _CHANGES, mean, red, green, blue)
            if gray:
                red = _gray(red, green, blue)
                green, blue = red, red
            tl.store(plane + place, red, mask=place < area)
            tl.store(plane + area + place, green, mask=place < area)
            tl.store(plane + 2 * area + place, blue, mask=place < area)


@triton.jit  # type: ignore[untyped-decorator]
def _load(
    plane: tl.tensor, place: tl.tensor, area: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return red, green and blue of some pixels."""
    red = tl.load(plane + place, mask=place < area, other=0.0)
    green = tl.load(plane + area + place, mask=place < area, other=0.0)
    return red, green, tl.load(plane + 2 * area + place, mask=place < area, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _changed(
    row: tl.tensor,
    changes: tl.tensor,
    mean: tl.tensor,
    red: tl.tensor,
    green: tl.tensor,
    blue: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return pixels after the first `changes` changes of color; mean: grey, for contrast."""
    for change in tl.static_range(_CHANGES):
        code = tl.where(change < changes, tl.load(row + _ORDER + change), 0)
        factor = _number(row + _FACTORS + change)
        if code == _HUE:
            red, green, blue = _turned(factor, red, green, blue)
        elif code != 0:  # the others move pixels away from something by a factor
            origin = tl.zeros_like(red)
            if code == _CONTRAST:
                origin += mean
            if code == _SATURATION:
                origin = _gray(red, green, blue)
            origin *= 1 - factor
            red = tl.clamp(red * factor + origin, 0.0, 1.0)
            green = tl.clamp(green * factor + origin, 0.0, 1.0)
            blue = tl.clamp(blue * factor + origin, 0.0, 1.0)
    return red, green, blue


@triton.jit  # type: ignore[untyped-decorator]
def _turned(
    turn: tl.tensor, red: tl.tensor, green: tl.tensor, blue: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return pixels with their hue turned; see `color.hue_`."""
    high = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = high - low
    difference = tl.where(high == green, blue - red, red - green)
    difference = tl.where(high == red, green - blue, difference)
    start = tl.where(high == red, 0.0, tl.where(high == green, 2.0, 4.0))
    hue = tl.div_rn(difference, tl.maximum(chroma, 1e-12)) + (start + 6 * turn)
    hue -= 6 * tl.floor(hue / 6)
    red = tl.clamp(tl.abs(hue - 3) - 1, 0.0, 1.0)
    green = tl.clamp(2 - tl.abs(hue - 2), 0.0, 1.0)
    blue = tl.clamp(2 - tl.abs(hue - 4), 0.0, 1.0)
    return red * chroma + low, green * chroma + low, blue * chroma + low


@triton.jit  # type: ignore[untyped-decorator]
def _blur_columns(
    table: tl.tensor,
    out: tl.tensor,
    blurred: tl.tensor,
    side: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write a block of a view, blurred along its columns; nothing where the plan has no blur."""
    blocks: tl.constexpr = (3 * side * side + block - 1) // block
    view = (tl.program_id(0) // blocks).to(tl.int64)
    sigma = _number(table + view * _COLUMNS + _SIGMA)
    if sigma == 0:
        return
    place = tl.program_id(0) % blocks * block + tl.arange(0, block)
    begin = view * (3 * side * side)
    values = _spread(out + begin, place, place // side % side, side, sigma, side)
    tl.store(blurred + begin + place, values, mask=place < 3 * side * side)


@triton.jit  # type: ignore[untyped-decorator]
def _spread(
    planes: tl.tensor,
    place: tl.tensor,
    along: tl.tensor,
    stride: tl.constexpr,
    sigma: tl.tensor,
    side: tl.constexpr,
) -> tl.tensor:
    """Return pixels under a Gaussian in one direction, in which they have the places `along`."""
    reach = tl.minimum(tl.ceil(_BLUR_REACH * sigma), side - 1.0).to(tl.int32)
    total = tl.zeros_like(place).to(tl.float32)
    mass = 0.0
    for step in range(-reach, reach + 1):
        x = step / sigma
        weight = tl.exp(-0.5 * x * x)
        mirrored = tl.abs(along + step)
        mirrored = side - 1 - tl.abs(side - 1 - mirrored)
        to = place + (mirrored - along) * stride
        total += tl.load(planes + to, mask=place < 3 * side * side, other=0.0) * weight
        mass += weight
    return total / mass


@triton.jit(do_not_specialize=["images"])  # type: ignore[untyped-decorator]
def _finish(
    size: tl.tensor,
    table: tl.tensor,
    blurred: tl.tensor,
    out: tl.tensor,
    images: tl.tensor,
    red_mean: tl.tensor,
    green_mean: tl.tensor,
    blue_mean: tl.tensor,
    red_std: tl.tensor,
    green_std: tl.tensor,
    blue_std: tl.tensor,
    side: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Blur a block of a view along its rows, solarize and normalise it; NaN if its box is wrong."""
    area: tl.constexpr = side * side
    blocks: tl.constexpr = (3 * area + block - 1) // block
    view = tl.program_id(0) // blocks
    row = table + view.to(tl.int64) * _COLUMNS
    place = tl.program_id(0) % blocks * block + tl.arange(0, block)
    begin = view.to(tl.int64) * (3 * area)
    sigma = _number(row + _SIGMA)
    if sigma == 0:
        values = tl.load(out + begin + place, mask=place < 3 * area, other=0.0)
    else:
        values = _spread(blurred + begin, place, place % side, 1, sigma, side)
    inverted = (tl.load(row + _SOLARIZE) != 0) & (values >= _SOLARIZE_FROM)
    values = tl.where(inverted, 1 - values, values)
    channel = place // area
    mean = tl.where(channel == 0, red_mean, tl.where(channel == 1, green_mean, blue_mean))
    std = tl.where(channel == 0, red_std, tl.where(channel == 1, green_std, blue_std))
    values = tl.div_rn(values - mean, std)
    values = tl.where(_fits(size, row, view % images), values, float("nan"))
    tl.store(out + begin + place, values, mask=place < 3 * area)
