"""What a step asks of torch: how many operations, and how much of it the host waits for."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from leanvit.kernels.prototype_sweeps import FLASH

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


def attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Return the operations of torch's attention on the CPU."""
    return int(sdpa_flop_count(q, k, v))


def attention_gradient_flops(out: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Return the operations of its gradients."""
    return int(sdpa_backward_flop_count(out, q, k, v))


def linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Return the operations of oneDNN's linear layer of x [..., C] by weight [D, C]."""
    return 2 * math.prod(x) * weight[0]


def sum_flops(_: Any, left: Any, right: Any, **__: Any) -> int:
    """Return the operations of adding a product of left [N, C] and right [C, D]."""
    return 2 * left[0] * left[1] * right[1]


def count_flops(step: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products of a step on the CPU."""
    mapping = {
        getattr(torch.ops.aten, FLASH): attention_flops,
        getattr(torch.ops.aten, f"{FLASH}_backward"): attention_gradient_flops,
        torch.ops.aten.addmm_: sum_flops,
        torch.ops.mkldnn._linear_pointwise: linear_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return int(counter.get_total_flops())
