"""Parts of a step on the CPU, each beside what it replaced or might be, in turn in one process.

`python benchmarks/step_parts.py` prints the table of step.md.
"""

import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.catalogue import build_backbone
from leanvit.bench.machine import machine
from leanvit.bench.tables import markdown
from leanvit.bench.turns import seconds_of
from leanvit.config import named_backbone
from leanvit.kernels.prototypes import Projection
from leanvit.losses.view import view_loss

ROUNDS = 9
PROBLEMS, TOKENS, WIDTH = 96, 49, 32
"""Heads and windows of 7 x 7 tokens, as the third stage of a Swin-T has them for four images."""
PROTOTYPES, BOTTLENECK = 65_536, 256


def masked(value: float) -> Callable[[], Tensor]:
    """Weights of windows whose last rows are masked, times values."""
    weights = torch.rand(PROBLEMS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
    weights[:, :, 28:] = value
    values = torch.ones(PROBLEMS, TOKENS, WIDTH)
    return lambda: torch.bmm(weights, values)


def normed(fused: bool) -> Callable[[], None]:
    """Prototypes of weight norm, and the gradients of directions and lengths."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(PROTOTYPES, BOTTLENECK, generator=draw).requires_grad_()
    lengths = torch.ones(PROTOTYPES, 1, requires_grad=True)
    outer = torch.randn(PROTOTYPES, BOTTLENECK, generator=draw)

    def step() -> None:
        if fused:
            found = torch._weight_norm(directions, lengths, 0)
        else:
            found = directions * (lengths / directions.norm(dim=1, keepdim=True))
        torch.autograd.grad(found, (directions, lengths), outer)

    return step


def attended(marked: bool) -> Callable[[], Tensor]:
    """Windows of the first stage of a Swin-T, four images; the bias is marked as trained, or not.

    Nothing is differentiated.
    """
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 256, 3, TOKENS, WIDTH, generator=draw).unbind(0)
    bias = torch.randn(1, 3, TOKENS, TOKENS, generator=draw).requires_grad_(marked)

    def attend() -> Tensor:
        with torch.no_grad():
            return functional.scaled_dot_product_attention(q, k, v, bias)

    return attend


def compared(form: str) -> Callable[[], None]:
    """The view loss of four images in ten views, and its gradients, in bf16."""
    draw = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return functional.normalize(torch.randn(rows, BOTTLENECK, generator=draw), dim=1)

    rows, ours = (unit(count).requires_grad_() for count in (40, PROTOTYPES))
    teacher = Projection(unit(8), unit(PROTOTYPES))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = view_loss(
                Projection(rows, ours),
                teacher,
                torch.zeros(PROTOTYPES),
                student_temp=0.1,
                teacher_temp=0.04,
                form=form,
            )
        torch.autograd.grad(loss, (rows, ours))

    return step


def narrowed(kept: bool) -> Callable[[], list[Tensor]]:
    """The weights of a Swin-T for products of bf16 tensors."""
    weights = [*build_backbone(named_backbone("swin_tiny")).parameters()]
    narrow = [weight.bfloat16() for weight in weights]
    return lambda: narrow if kept else [weight.bfloat16() for weight in weights]


def cut(last: bool) -> Callable[[], Tensor]:
    """Two views of 224 pixels of four images, cut into patches; in torch's format or the other."""
    draw = torch.Generator().manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    layer = nn.Conv2d(3, 96, 4, 4)
    layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
    views = torch.randn(8, 3, 224, 224, generator=draw).contiguous(memory_format=layout)
    return lambda: layer(views)


PARTS: Mapping[str, Mapping[str, Callable[[], object]]] = {
    "96 windows and heads, masked pairs": {
        "weights of e^-100": masked(3.8e-44),
        "weights of 0": masked(0.0),
    },
    "weight norm of 65,536 prototypes, forward and backward": {
        "operation by operation": normed(False),
        "fused": normed(True),
    },
    "256 windows of three heads, attended": {
        "bias marked as trained": attended(True),
        "bias without the mark": attended(False),
    },
    "view loss of 40 rows, 65,536 prototypes, bf16": {
        "flash": compared("flash"),
        "residuals": compared("residuals"),
    },
    "weights of a Swin-T in bf16": {
        "narrowed": narrowed(False),
        "kept": narrowed(True),
    },
    "8 views of 224 pixels cut into patches": {
        "channels first": cut(False),
        "channels last": cut(True),
    },
}


def main() -> None:
    facts = {**machine("cpu"), "threads": torch.get_num_threads(), "rounds": ROUNDS}
    print("  ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    rows = []
    for what, forms in PARTS.items():
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(ROUNDS + 1):
            for name, step in forms.items():
                seconds[name].append(seconds_of(step, "cpu"))
        middle = [1e3 * statistics.median(each[1:]) for each in seconds.values()]
        for name, found in zip(forms, middle, strict=True):
            rows.append([what, name, f"{found:.3f}", f"{middle[0] / found:.1f}"])
    print("\n".join(markdown(["part", "form", "ms", "times faster"], rows)))


if __name__ == "__main__":
    main()
