"""Attention of many queries over many keys in one pass that writes no logits; for CUDA alone.

A program holds a block of queries and walks over tiles of keys with a running maximum and sum. Few
queries would leave most processors idle: their keys are split over several programs, whose results
are merged by their log-sums. Nothing else imports this file before it is needed: it needs Triton.

Letters: N queries, K keys, D width, S splits of the keys.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(math.log2(math.e))
_LN2 = tl.constexpr(math.log(2))

_SHARED = 227 * 1024
"""Bytes of shared memory that a program may take on Hopper, which stands for the interpreter."""
_STAGES = 2
"""Tiles of keys and of values in shared memory: one is loaded while the other is multiplied."""
_WARPS = 8
"""Two warp groups: at D = 256 a thread holds 128 outputs and 32 logits in its 255 registers."""
_SHARE = 8
"""Tiles of keys that are worth the partial result that a split writes."""
_BUSY = 0.85
"""Share of the processors' time that is good enough to split no further."""


class _Tiles(NamedTuple):
    queries: int
    keys: int


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    key_bias: Tensor | None = None,
    *,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return softmax(l) @ value [N, D] and logsumexp(l) [N] of l = scale * query @ key' + key_bias.

    query [N, D], key and value [K, D] share bf16, fp16 or fp32; key_bias [K] and results are fp32.
    Logits and sums are fp32 throughout; 16-bit values meet weights that are rounded to their type.
    Only the first `queries` and `keys` rows count, numbers on the device that the host never reads:
    later rows of the results are undefined. Without keys, rows are 0 and their log-sums -inf.
    Forward only: no gradient reaches any argument. `splits` is chosen for the device if not given.
    """
    (n, width), k = query.shape, len(key)
    shared, processors = _SHARED, 1
    if query.is_cuda:
        device = torch.cuda.get_device_properties(query.device)
        shared = device.shared_memory_per_block_optin  # type: ignore[attr-defined]
        processors = device.multi_processor_count
    tiles = _tiles(width, query.element_size(), shared)
    blocks = triton.cdiv(n, tiles.queries)
    splits = splits or _splits(blocks, triton.cdiv(k, tiles.keys), processors)
    out = query.new_empty(splits, n, width, dtype=torch.float32)
    log_sum = out.new_empty(splits, n)
    with torch.cuda.device_of(query):  # Triton launches on the current device
        _attend[blocks, splits](
            *(tensor.contiguous() for tensor in (query, key, value)),
            None if key_bias is None else key_bias.contiguous(),
            *(queries, keys, out, log_sum, n, k),
            scale * _LOG2E.value,
            width=width,
            columns=_columns(width),
            query_tile=tiles.queries,
            key_tile=tiles.keys,
            num_warps=_WARPS,
            num_stages=_STAGES,
        )
    return _merge(out, log_sum)


def _columns(width: int) -> int:
    """Return the width that a product of tiles takes."""
    return max(16, triton.next_power_of_2(width))


def _tiles(width: int, itemsize: int, shared: int) -> _Tiles:
    """Return the largest tiles that fit into shared memory, or the smallest there are.

    128 x 64 is what Hopper holds at D = 256 in 16 bits: 64 KiB of queries, and 32 KiB for each of
    two tiles of keys and of values. Exact fp32 products pass through registers instead, of which
    32 x 32 takes 162 a thread and twice the queries would spill. Wider rows and smaller devices
    halve both as often as it takes; a product of tiles has 16 rows at least.
    """
    tiles = _Tiles(128, 64) if itemsize == 2 else _Tiles(32, 32)
    row = _columns(width) * itemsize
    while tiles.keys > 16 and (tiles.queries + 2 * _STAGES * tiles.keys) * row > shared:
        tiles = _Tiles(tiles.queries // 2, tiles.keys // 2)
    return tiles


def _splits(blocks: int, tiles: int, processors: int) -> int:
    """Return the fewest splits that keep the processors busy, else those that do so best.

    N and K stand for the counts on the device, which may be smaller.
    """

    def busy(splits: int) -> float:
        rounds = max(1, blocks) * splits / processors  # a program takes a whole processor
        return rounds / math.ceil(rounds)

    choices = range(1, max(1, min(tiles // _SHARE, processors)) + 1)
    return next((splits for splits in choices if busy(splits) >= _BUSY), max(choices, key=busy))


def _merge(out: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results over all keys from those of each split, [S, N, D] and [S, N]."""
    if len(out) == 1:
        return out[0], log_sum[0]
    total = torch.logsumexp(log_sum, 0)
    # No split has a key: -inf less a finite number, where -inf less -inf would be NaN
    weight = (log_sum - total.clamp(min=torch.finfo(total.dtype).min)).exp_()
    return out.mul_(weight[..., None]).sum(0), total


@triton.jit(do_not_specialize=["n", "k"])  # type: ignore[untyped-decorator]
def _attend(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_bias: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    scale: tl.tensor,
    width: tl.constexpr,
    columns: tl.constexpr,
    query_tile: tl.constexpr,
    key_tile: tl.constexpr,
) -> None:
    """Write `out` [S, N, D] and `log_sum` [S, N]; `scale` and logits are in units of ln 2."""
    row, split = tl.program_id(0) * query_tile, tl.program_id(1)
    n_used = n if queries is None else tl.minimum(tl.load(queries), n).to(tl.int32)
    k_used = k if keys is None else tl.minimum(tl.load(keys), k).to(tl.int32)
    if row >= n_used:
        return
    column = tl.arange(0, columns)[None, :]
    rows, cols = tl.arange(0, query_tile), tl.arange(0, key_tile)
    inside = (row + rows < n_used)[:, None] & (column < width)
    own = rows[:, None] * width + column  # 32 bits within a tile, 64 for where it begins
    tile = cols[:, None] * width + column
    q = tl.load(query + row.to(tl.int64) * width + own, mask=inside, other=0.0)
    top = tl.full([query_tile], float("-inf"), tl.float32)
    mass = tl.zeros([query_tile], tl.float32)
    total = tl.zeros([query_tile, columns], tl.float32)
    share = tl.cdiv(tl.cdiv(k_used, key_tile), tl.num_programs(1)) * key_tile
    for start in range(split * share, tl.minimum((split + 1) * share, k_used), key_tile):
        used = start + cols < k_used
        filled = used[:, None] & (column < width)
        begin = tl.cast(start, tl.int64) * width
        keys_here = tl.load(key + begin + tile, mask=filled, other=0.0)
        bias = tl.where(used, 0.0, float("-inf"))
        if key_bias is not None:
            bias = tl.load(key_bias + start + cols, mask=used, other=float("-inf")) * _LOG2E
        logits = tl.dot(q, keys_here.T, input_precision="ieee") * scale + bias[None, :]
        values = tl.load(value + begin + tile, mask=filled, other=0.0)
        top, mass, total = _absorb(logits, values, top, mass, total)
    mass = tl.where(mass == 0, 1.0, mass)  # without keys: 0 / 1, and -inf + log2(1)
    to = split.to(tl.int64) * n + row
    tl.store(out + to * width + own, total / mass[:, None], mask=inside)
    tl.store(log_sum + to + rows, (top + tl.log2(mass)) * _LN2, mask=row + rows < n_used)


@triton.jit  # type: ignore[untyped-decorator]
def _absorb(
    logits: tl.tensor, values: tl.tensor, top: tl.tensor, mass: tl.tensor, total: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return maximum, sum of weights and sum of weighted values with one more tile of keys."""
    new_top = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf less -inf would be NaN
    weight = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(top - base)
    mass = mass * shrink + tl.sum(weight, 1)
    total = tl.dot(weight.to(values.dtype), values, total * shrink[:, None], input_precision="ieee")
    return new_top, mass, total
