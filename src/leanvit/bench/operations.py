"""What a step asks of torch: how many operations, and how much of it the host waits for."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

FREE = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
"""They allocate, and compute nothing; views are free as well."""
READS = frozenset({"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2"})
"""Operations whose result the host must know: on a GPU it would wait for all that came before. So
does indexing by a mask, whose result has an open size."""


class Operations(TorchDispatchMode):
    """Counts operations while it is on, with those of custom operators as one each."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count it and do it."""
        name = func.overloadpacket.__name__
        if not (func.is_view or name in FREE or func.namespace in ("prim", "profiler")):
            self.counts[name] += 1
        if name in READS or (name == "index" and any(map(_is_mask, args[1]))):
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def count_operations(step: Callable[[], object]) -> Operations:
    """Return what a step asks of torch."""
    with Operations() as found:
        step()
    return found


def window_flops(qkv: Any, fill: Any, biases: Any, *rest: Any, **_: Any) -> int:
    """Return the operations of attention in chunks of windows: two products."""
    return _attended(qkv, biases, rest[-1], 2)


def window_gradient_flops(gradient: Any, qkv: Any, fill: Any, *rest: Any, **_: Any) -> int:
    """Return the operations of its gradients: logits once more, and four products."""
    return _attended(qkv, rest[0], rest[-1], 5)


def _attended(qkv: Any, biases: Any, sizes: list[int], products: int) -> int:
    """Of qkv [N, 3C] and biases [H, ...]; sizes: windows, n and m of each run."""
    runs = zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True)
    width = qkv[1] // 3  # all heads together
    return sum(2 * products * windows * n * m * width for windows, n, m in runs)


def linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Return the operations of oneDNN's linear layer of x [..., C] by weight [D, C]."""
    return 2 * math.prod(x) * weight[0]


def sum_flops(_: Any, left: Any, right: Any, **__: Any) -> int:
    """Return the operations of adding a product of left [N, C] and right [C, D]."""
    return 2 * left[0] * left[1] * right[1]


def count_flops(step: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products of a step on the CPU."""
    mapping = {
        torch.ops.leanvit.window_chunks: window_flops,
        torch.ops.leanvit.window_chunks_backward: window_gradient_flops,
        torch.ops.aten.addmm_: sum_flops,
        torch.ops.mkldnn._linear_pointwise: linear_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return int(counter.get_total_flops())
