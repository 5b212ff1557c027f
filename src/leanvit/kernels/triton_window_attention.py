"""Attention within (shifted) windows that reads tokens where they lie; for CUDA alone.

A program takes one head of several windows. It finds their tokens through the layout's small
tables, so nothing is partitioned, rolled or masked in memory: rows of qkv come in, attended rows go
out. The backward computes the weights again from the log-sums. Every token lies in one slot, so its
gradient is written once; those of the bias and of the padding row are partial sums, one a group of
windows, that torch adds in a fixed order. Nothing else imports this file before it is needed: it
needs Triton.

Letters: N tokens, C channels, H heads, d = C / H, W windows, T slots of a window, G patterns.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(math.log2(math.e))

_PROGRAMS = 16
"""Programs a processor: enough to even out, few enough that partial sums cost little."""
_STAGES = 2
"""Windows (tiles of large ones) in flight: one is loaded while the other is computed."""
_WIDEST = 128
"""Channels of a head that fit beside the logits."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(qkv: Tensor, heads: int) -> bool:
    """Return whether the kernels take qkv [N, 3C]."""
    return qkv.dtype in _DTYPES and qkv.shape[1] <= 3 * heads * _WIDEST


@torch.library.custom_op("leanvit::window_attention", mutates_args=())
def attend_windows(
    qkv: Tensor, fill: Tensor, bias: Tensor, windows: Tensor, patterns: Tensor, masked: float
) -> tuple[Tensor, Tensor]:
    """Return the attended values [N, C] and log2 of the sums of exponentials [W, H, T], fp32.

    qkv [N, 3C]: queries, keys and values, heads one after another, bf16, fp16 or fp32; fill [3C]:
    the row of padding slots; bias [H, T, T]; windows [W, 2] and patterns [G, 2, T]: those of
    `WindowLayout`; masked: added to logits between regions. Logits and sums are fp32. Gradients
    reach qkv, fill and bias, once.
    """
    qkv, fill, bias = qkv.contiguous(), fill.contiguous(), bias.contiguous()
    heads, side, _ = bias.shape
    out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
    log_sum = qkv.new_empty(len(windows), heads, side, dtype=torch.float32)
    sizes = _sizes(qkv, heads, side)
    grid, group = _grid(qkv.device, len(windows), heads, triton.cdiv(side, sizes["tile"]))
    seen = qkv, fill, bias, windows, patterns
    with torch.cuda.device_of(qkv):  # Triton launches on the current device
        _attend[grid](*seen, out, log_sum, masked, len(windows), group, **sizes)
    return out, log_sum


@attend_windows.register_fake
def _(
    qkv: Tensor, fill: Tensor, bias: Tensor, windows: Tensor, patterns: Tensor, masked: float
) -> tuple[Tensor, Tensor]:
    out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
    return out, qkv.new_empty(windows.shape[0], *bias.shape[:2], dtype=torch.float32)


@torch.library.custom_op("leanvit::window_attention_backward", mutates_args=())
def _gradients(
    gradient: Tensor,
    out: Tensor,
    log_sum: Tensor,
    qkv: Tensor,
    fill: Tensor,
    bias: Tensor,
    windows: Tensor,
    patterns: Tensor,
    masked: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of qkv, fill and bias from that of the attended values [N, C]."""
    gradient, qkv, fill, bias = (x.contiguous() for x in (gradient, qkv, fill, bias))
    (heads, side, _), count = bias.shape, len(windows)
    sizes = _sizes(qkv, heads, side)
    tiles = triton.cdiv(side, sizes["tile"])
    grid, group = _grid(qkv.device, count, heads, tiles)
    pairs, group_of_pairs = _grid(qkv.device, count, heads, tiles * tiles)
    of_qkv = torch.empty_like(qkv)
    of_fill = log_sum.new_zeros(grid[2], tiles, len(fill))  # no output of a padding query is read
    of_bias = log_sum.new_empty(pairs[2], *bias.shape)
    seen = gradient, out if tiles > 1 else None, log_sum, qkv, fill, bias, windows, patterns
    with torch.cuda.device_of(qkv):
        _grad_keys[grid](*seen, of_qkv, of_fill, of_bias, masked, count, group, **sizes)
        if tiles > 1:  # a program for some keys sees neither a whole query nor its bias
            _grad_queries[grid](*seen, of_qkv, masked, count, group, **sizes)
            _grad_bias[pairs](*seen, of_bias, masked, count, group_of_pairs, **sizes)
    return of_qkv, of_fill.sum((0, 1)).to(fill.dtype), of_bias.sum(0).to(bias.dtype)


@_gradients.register_fake
def _(
    gradient: Tensor,
    out: Tensor,
    log_sum: Tensor,
    qkv: Tensor,
    fill: Tensor,
    bias: Tensor,
    windows: Tensor,
    patterns: Tensor,
    masked: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (qkv, fill, bias))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.masked = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(gradient, *ctx.saved_tensors, ctx.masked), None, None, None


attend_windows.register_autograd(_backward, setup_context=_keep)


def _sizes(qkv: Tensor, heads: int, side: int) -> dict[str, int]:
    """Return what the kernels are compiled for.

    Tiles of 64 queries by 64 keys make a window of 7 x 7 one tile. Four warps then hold 32 logits a
    thread, and 16 of each [64, 32] result; wider heads take smaller tiles or more warps. Exact fp32
    products pass through registers, so they take half the tile and eight times the warps.
    """
    width, short = qkv.shape[1] // (3 * heads), qkv.element_size() == 2
    columns = max(32, _padded(width))
    tile = min(_padded(side), 4096 // max(columns, 64) // (1 if short else 2))
    warps = tile * tile * columns // (32768 if short else 4096)
    sizes = {"side": side, "width": width, "tile": tile}
    return sizes | {"num_warps": min(max(1, warps), 8), "num_stages": _STAGES}


def _grid(
    device: torch.device, count: int, heads: int, parts: int
) -> tuple[tuple[int, int, int], int]:
    """Return the grid (heads, parts of a window, groups of windows) and the windows of a group."""
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    group = max(1, count * heads * parts // (processors * _PROGRAMS))
    return (heads, parts, triton.cdiv(count, group)), group


@triton.constexpr_function  # type: ignore[untyped-decorator]
def _padded(size: int) -> int:
    """Return the size that a product of tiles takes."""
    return max(16, triton.next_power_of_2(size))


@triton.jit  # type: ignore[untyped-decorator]
def _slots(
    windows: tl.tensor, patterns: tl.tensor, window: tl.tensor, slot: tl.tensor, side: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return of each slot its token, whether it holds one, and its region; beyond the window -1."""
    pattern = patterns + tl.load(windows + 2 * window) * (2 * side) + slot
    place = tl.load(pattern, mask=slot < side, other=-1)
    region = tl.load(pattern + side, mask=slot < side, other=-1)
    token = tl.load(windows + 2 * window + 1) + place
    return token.to(tl.int64), place >= 0, region


@triton.jit  # type: ignore[untyped-decorator]
def _columns(part: tl.constexpr, width: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return where the head's columns of a part of a row begin and which of them there are."""
    column = tl.arange(0, _padded(width))
    return (part * tl.num_programs(0) + tl.program_id(0)) * width + column, column < width


@triton.jit  # type: ignore[untyped-decorator]
def _read(
    rows: tl.tensor,
    fill: tl.tensor,
    slots: tl.tuple,
    part: tl.constexpr,
    parts: tl.constexpr,
    width: tl.constexpr,
) -> tl.tensor:
    """Return a part of the rows of slots: `fill` of padding, if given, and zeros beyond."""
    token, real, region = slots
    column, used = _columns(part, width)
    place = rows + token[:, None] * (parts * tl.num_programs(0) * width) + column[None, :]
    inside = real[:, None] & used[None, :]
    rest = 0.0
    if fill is not None:
        rest = tl.load(fill + column, mask=used, other=0.0).to(rows.dtype.element_ty)
        rest = tl.where(region[:, None] >= 0, rest[None, :], 0.0)
    return tl.load(place, mask=inside, other=rest)


@triton.jit  # type: ignore[untyped-decorator]
def _write(
    rows: tl.tensor,
    values: tl.tensor,
    slots: tl.tuple,
    part: tl.constexpr,
    parts: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Write a part of the rows of the slots that hold tokens."""
    token, real, _ = slots
    column, used = _columns(part, width)
    place = rows + token[:, None] * (parts * tl.num_programs(0) * width) + column[None, :]
    tl.store(place, values, mask=real[:, None] & used[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _near(bias: tl.tensor, query: tl.tensor, key: tl.tensor, side: tl.constexpr) -> tl.tensor:
    """Return the head's bias in units of ln 2."""
    inside = (query < side)[:, None] & (key < side)[None, :]
    place = (tl.program_id(0) * side + query)[:, None] * side + key[None, :]
    return tl.load(bias + place, mask=inside, other=0.0).to(tl.float32) * _LOG2E


@triton.jit  # type: ignore[untyped-decorator]
def _logits(
    q: tl.tensor,
    k: tl.tensor,
    near: tl.tensor,
    own: tl.tuple,
    met: tl.tuple,
    masked: tl.tensor,
    width: tl.constexpr,
) -> tl.tensor:
    """Return logits [queries, keys] in units of ln 2; -inf of keys without a region."""
    scale: tl.constexpr = width**-0.5 * _LOG2E
    logits = tl.dot(q, k.T, input_precision="ieee") * scale + near
    logits = tl.where(own[2][:, None] == met[2][None, :], logits, logits + masked * _LOG2E)
    return tl.where(met[2][None, :] >= 0, logits, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _row(window: tl.tensor, query: tl.tensor, side: tl.constexpr) -> tl.tensor:
    """Return where the head's queries of a window have their numbers in [W, H, T]."""
    return (tl.cast(window, tl.int64) * tl.num_programs(0) + tl.program_id(0)) * side + query


@triton.jit(do_not_specialize=["count", "group"])  # type: ignore[untyped-decorator]
def _attend(
    qkv: tl.tensor,
    fill: tl.tensor,
    bias: tl.tensor,
    windows: tl.tensor,
    patterns: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    masked: tl.tensor,
    count: tl.tensor,
    group: tl.tensor,
    side: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Write `out` [N, C] and `log_sum` [W, H, T] of a tile of queries of some windows."""
    query, key = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, tile)
    near = _near(bias, query, key, side)
    first = tl.program_id(2) * group
    for window in range(first, tl.minimum(first + group, count)):
        own = _slots(windows, patterns, window, query, side)
        q = _read(qkv, fill, own, 0, 3, width)
        top = tl.full([tile], float("-inf"), tl.float32)
        mass = tl.zeros([tile], tl.float32)
        total = tl.zeros([tile, _padded(width)], tl.float32)
        for begin in range(0, side, tile):
            met = _slots(windows, patterns, window, begin + key, side)
            k, v = _read(qkv, fill, met, 1, 3, width), _read(qkv, fill, met, 2, 3, width)
            if tile < side:
                near = _near(bias, query, begin + key, side)
            logits = _logits(q, k, near, own, met, masked, width)
            highest = tl.maximum(top, tl.max(logits, 1))
            base = tl.where(highest == float("-inf"), 0.0, highest)  # no key in any tile so far
            weights = tl.exp2(logits - base[:, None])
            old = tl.exp2(top - base)
            mass = mass * old + tl.sum(weights, 1)
            total = tl.dot(weights.to(v.dtype), v, total * old[:, None], input_precision="ieee")
            top = highest
        _write(out, total / mass[:, None], own, 0, 1, width)
        tl.store(log_sum + _row(window, query, side), top + tl.log2(mass), mask=query < side)


@triton.jit  # type: ignore[untyped-decorator]
def _queries(
    gradient: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    qkv: tl.tensor,
    fill: tl.tensor,
    own: tl.tuple,
    window: tl.tensor,
    query: tl.tensor,
    side: tl.constexpr,
    width: tl.constexpr,
) -> tl.tuple:
    """Return queries, gradients of their outputs, log-sums, and output . gradient if out is given.

    Queries that do not exist have the log-sum inf, and so no weight.
    """
    q, of_out = _read(qkv, fill, own, 0, 3, width), _read(gradient, None, own, 0, 1, width)
    row = log_sum + _row(window, query, side)
    sums = tl.load(row, mask=query < side, other=float("inf"))
    mean = tl.zeros_like(sums)
    if out is not None:
        mean = tl.sum(_read(out, None, own, 0, 1, width).to(tl.float32) * of_out, 1)
    return q, of_out, sums, mean


@triton.jit  # type: ignore[untyped-decorator]
def _again(
    queries: tl.tuple,
    k: tl.tensor,
    v: tl.tensor,
    near: tl.tensor,
    own: tl.tuple,
    met: tl.tuple,
    masked: tl.tensor,
    width: tl.constexpr,
    all_keys: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return weights [queries, keys] and the gradients of logits.

    Gradients of weights have the mean output . gradient, which all keys give as well.
    """
    q, of_out, sums, mean = queries
    weights = tl.exp2(_logits(q, k, near, own, met, masked, width) - sums[:, None])
    of_weights = tl.dot(of_out, v.T, input_precision="ieee")
    if all_keys:
        mean = tl.sum(weights * of_weights, 1)
    return weights, weights * (of_weights - mean[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _share_fill(shares: tl.tensor, of_k: tl.tensor, of_v: tl.tensor, width: tl.constexpr) -> None:
    """Write sums over slots into this program's row of [groups, tiles, 3C]."""
    row = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    row = shares + row * (3 * tl.num_programs(0) * width)
    column, used = _columns(1, width)
    tl.store(row + column, tl.sum(of_k, 0), mask=used)
    column, used = _columns(2, width)
    tl.store(row + column, tl.sum(of_v, 0), mask=used)


@triton.jit  # type: ignore[untyped-decorator]
def _share_bias(
    shares: tl.tensor, values: tl.tensor, query: tl.tensor, key: tl.tensor, side: tl.constexpr
) -> None:
    """Write this program's tile of [groups, H, T, T]."""
    place = _row(tl.program_id(2), query, side)[:, None] * side + key[None, :]
    tl.store(shares + place, values, mask=(query < side)[:, None] & (key < side)[None, :])


@triton.jit(do_not_specialize=["count", "group"])  # type: ignore[untyped-decorator]
def _grad_queries(
    gradient: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    qkv: tl.tensor,
    fill: tl.tensor,
    bias: tl.tensor,
    windows: tl.tensor,
    patterns: tl.tensor,
    of_qkv: tl.tensor,
    masked: tl.tensor,
    count: tl.tensor,
    group: tl.tensor,
    side: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Write the gradients of a tile of queries."""
    query, key = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, tile)
    first = tl.program_id(2) * group
    for window in range(first, tl.minimum(first + group, count)):
        own = _slots(windows, patterns, window, query, side)
        queries = _queries(gradient, out, log_sum, qkv, fill, own, window, query, side, width)
        of_q = tl.zeros([tile, _padded(width)], tl.float32)
        for begin in range(0, side, tile):
            met = _slots(windows, patterns, window, begin + key, side)
            k, v = _read(qkv, fill, met, 1, 3, width), _read(qkv, fill, met, 2, 3, width)
            near = _near(bias, query, begin + key, side)
            _, of_logits = _again(queries, k, v, near, own, met, masked, width, False)
            of_q = tl.dot(of_logits.to(k.dtype), k, of_q, input_precision="ieee")
        _write(of_qkv, of_q * width**-0.5, own, 0, 3, width)


@triton.jit(do_not_specialize=["count", "group"])  # type: ignore[untyped-decorator]
def _grad_keys(
    gradient: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    qkv: tl.tensor,
    fill: tl.tensor,
    bias: tl.tensor,
    windows: tl.tensor,
    patterns: tl.tensor,
    of_qkv: tl.tensor,
    of_fill: tl.tensor,
    of_bias: tl.tensor,
    masked: tl.tensor,
    count: tl.tensor,
    group: tl.tensor,
    side: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Write the gradients of a tile of keys and values, and this group's share of `fill`'s."""
    query, key = tl.arange(0, tile), tl.program_id(1) * tile + tl.arange(0, tile)
    near, of_near = _near(bias, query, key, side), tl.zeros([tile, tile], tl.float32)
    nothing = tl.zeros([tile, _padded(width)], tl.float32)
    fill_k, fill_v = nothing, nothing
    first = tl.program_id(2) * group
    for window in range(first, tl.minimum(first + group, count)):
        met = _slots(windows, patterns, window, key, side)
        k, v = _read(qkv, fill, met, 1, 3, width), _read(qkv, fill, met, 2, 3, width)
        of_k, of_v = nothing, nothing
        for begin in range(0, side, tile):
            here = begin + query
            own = _slots(windows, patterns, window, here, side)
            queries = _queries(gradient, out, log_sum, qkv, fill, own, window, here, side, width)
            if tile < side:
                near = _near(bias, here, key, side)
            weights, of_logits = _again(queries, k, v, near, own, met, masked, width, tile >= side)
            of_v = tl.dot(weights.to(k.dtype).T, queries[1], of_v, input_precision="ieee")
            of_k = tl.dot(of_logits.to(k.dtype).T, queries[0], of_k, input_precision="ieee")
            if tile >= side:
                of_near += of_logits
                of_q = tl.dot(of_logits.to(k.dtype), k, input_precision="ieee") * width**-0.5
                _write(of_qkv, of_q, own, 0, 3, width)
        of_k *= width**-0.5
        _write(of_qkv, of_k, met, 1, 3, width)
        _write(of_qkv, of_v, met, 2, 3, width)
        fill_k += tl.where(met[1][:, None], 0.0, of_k)
        fill_v += tl.where(met[1][:, None], 0.0, of_v)
    _share_fill(of_fill, fill_k, fill_v, width)
    if tile >= side:
        _share_bias(of_bias, of_near, query, key, side)


@triton.jit(do_not_specialize=["count", "group"])  # type: ignore[untyped-decorator]
def _grad_bias(
    gradient: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    qkv: tl.tensor,
    fill: tl.tensor,
    bias: tl.tensor,
    windows: tl.tensor,
    patterns: tl.tensor,
    of_bias: tl.tensor,
    masked: tl.tensor,
    count: tl.tensor,
    group: tl.tensor,
    side: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Write this group's share of the gradient of a tile of the bias, in [groups, H, T, T]."""
    tiles: tl.constexpr = (side + tile - 1) // tile
    query = tl.program_id(1) // tiles * tile + tl.arange(0, tile)
    key = tl.program_id(1) % tiles * tile + tl.arange(0, tile)
    near = _near(bias, query, key, side)
    of_near = tl.zeros([tile, tile], tl.float32)
    first = tl.program_id(2) * group
    for window in range(first, tl.minimum(first + group, count)):
        own = _slots(windows, patterns, window, query, side)
        queries = _queries(gradient, out, log_sum, qkv, fill, own, window, query, side, width)
        met = _slots(windows, patterns, window, key, side)
        k, v = _read(qkv, fill, met, 1, 3, width), _read(qkv, fill, met, 2, 3, width)
        of_near += _again(queries, k, v, near, own, met, masked, width, False)[1]
    _share_bias(of_bias, of_near, query, key, side)
