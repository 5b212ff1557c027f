"""How large every named backbone is: built and run on the meta device, without any arithmetic.

Letters as in base.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from leanvit.backbones.base import Backbone, Block, Logits, Packed
from leanvit.backbones.catalogue import build_backbone, list_backbones
from leanvit.config import BackboneConfig, named_backbone
from leanvit.core.random import seeded


@dataclass(frozen=True, slots=True)
class BackboneSize:
    """A named backbone in figures, at the image size that it is made for."""

    name: str
    family: str
    image_size: int
    """Side of the image in pixels."""
    parameters: int
    multiply_adds: int
    """Of one image's matrix products and convolutions, attention included; norms, activations and
    sums are left out."""
    stride: int
    """Pixels between neighbouring regions."""
    width: int
    """Channels of a feature, D."""
    regions: tuple[int, int]
    """Rows and columns of the region features."""


@dataclass(frozen=True, slots=True)
class BackboneTable:
    """Named backbones in figures; prints as a table."""

    backbones: Sequence[BackboneSize]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return asdict(self)

    def __str__(self) -> str:
        longest = max(len(size.name) for size in self.backbones)
        head = "family  image  M parameters  G multiply-adds  stride  width  regions"
        lines = [f"{'backbone':{longest}}  {head}"]
        for size in self.backbones:
            rows, columns = size.regions
            lines.append(
                f"{size.name:{longest}}  {size.family:6}  {size.image_size:5}  "
                f"{size.parameters / 1e6:12.2f}  {size.multiply_adds / 1e9:15.2f}  "
                f"{size.stride:6}  {size.width:5}  {f'{rows} x {columns}':>7}"
            )
        return "\n".join(lines)


def describe_backbones(names: Sequence[str] = ()) -> BackboneTable:
    """Return the sizes of these backbones, also of `timm:NAME`, or of all that have a name.

    Raises ValueError for an unknown name, with the nearest one.
    """
    return BackboneTable(
        [backbone_size(named_backbone(name), name) for name in names or list_backbones()]
    )


def backbone_size(config: BackboneConfig, name: str = "") -> BackboneSize:
    """Return the size of the network of a configuration, under a name."""
    with seeded(0, "weights"), torch.device("meta"), _Unfilled():
        backbone = build_backbone(config).eval()
    side = config.image_size
    image = torch.empty(1, 3, side, side, device="meta")
    products, regions = multiply_adds(backbone, image)
    return BackboneSize(
        name=name,
        family=config.kind,
        image_size=side,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        multiply_adds=products,
        stride=backbone.stride,
        width=backbone.feature_dim,
        regions=regions,
    )


class _Unfilled(TorchFunctionMode):
    """Leaves weights that have no memory unfilled, which takes most of the time otherwise."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__.endswith("_") and not func.__name__.startswith("_"):
            return args[0] if args else kwargs["tensor"]  # as nn.init passes it on
        return func(*args, **kwargs)


@torch.no_grad()
def multiply_adds(backbone: Backbone, images: Tensor) -> tuple[int, tuple[int, int]]:
    """Return the multiply-adds of images on the meta device, and the grid of their regions.

    Blocks that differ in nothing but the values of their weights are run once and counted each,
    for which `backbone` is changed: it is of no use afterwards.
    """
    known: dict[tuple[Any, ...], int] = {}
    repeated = 0

    def once(block: Block) -> Callable[..., tuple[Packed, list[Logits]]]:
        run = block.forward

        def forward(packed: Packed, *rest: Any) -> tuple[Packed, list[Logits]]:
            nonlocal repeated
            sizes = tuple(parameter.shape for parameter in block.parameters())
            kind = (type(block), sizes, packed.x.shape, packed.shapes)
            if kind in known:
                repeated += known[kind]
                return packed, []
            before = counter.get_total_flops()
            found = run(packed, *rest)
            known[kind] = counter.get_total_flops() - before
            return found

        return forward

    for block in backbone.blocks():
        if isinstance(block, Block):  # a network of timm runs as a whole
            block.forward = once(block)  # type: ignore[method-assign]
    with FlopCounterMode(display=False) as counter:
        grid = backbone.features(images).grid
    rows, columns = grid.shape[1:3]
    return (counter.get_total_flops() + repeated) // 2, (rows, columns)
